"""Numbers and their versions move together; and a run is stale by them, not by bytes."""

import pytest

from robustlib.attacks import APGD, PGD, AutoAttack, Threat
from robustlib.methods import METHODS, make_method
from robustlib.runs import NUMERICS, Run, attack_names, versions, write_json
from tests import numerics

HOW = (
    "The numbers of {name} moved by {gap:.1e}, more than {most:.1e}. If that is meant, raise its version in robustlib/runs/numerics.py (runs "
    "made before are stale then) and store the new ones: PYTHONPATH=. python benchmarks/store_numerics.py {name}"
)


@pytest.fixture(scope="module")
def make(digits):
    return numerics.makers(digits)


def test_every_version_has_numbers(make):
    known = numerics.stored()
    assert set(NUMERICS) == set(make) == set(known)
    assert {name: entry["version"] for name, entry in known.items()} == NUMERICS, "store the numbers of the new version"
    assert {f"methods/{name}" for name in METHODS} <= set(NUMERICS)
    assert max(map(numerics.tolerance, known.values())) < 0.1, "a wider one would notice little"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of methods on so few images
@pytest.mark.parametrize("name", NUMERICS)
def test_numbers_move_with_their_version(name, make):
    known = numerics.stored()[name]
    gap, most = numerics.difference(make[name](), known["numbers"]), numerics.tolerance(known)
    assert gap <= most, HOW.format(name=name, gap=gap, most=most)


def test_an_attack_is_named_with_its_parts():
    threat = Threat("linf", 0.1)
    assert attack_names([PGD(threat)]) == {"attacks/pgd"}
    parts = {f"attacks/{name}" for name in ("autoattack", "apgd", "fab", "square")}
    assert attack_names([AutoAttack(threat)]) == parts
    custom = AutoAttack(threat, "custom", (("plain", lambda *args, **kwargs: args[1]), ("apgd", APGD(threat))))
    assert versions(*attack_names([custom])) == versions("attacks/autoattack", "attacks/apgd")


def test_a_method_names_what_makes_its_numbers():
    assert make_method("trades", "digits").numerics == ("methods/trades",)
    assert make_method("pgd_at", "digits", awp_gamma=0.01).numerics == ("methods/pgd_at", "methods/awp")
    assert make_method("claf", "digits", final="aff").numerics == ("methods/claf", "methods/aff")


@pytest.mark.parametrize(
    ("method", "facts", "results", "words"),
    [
        ("pgd_at", {"numerics": {"methods/pgd_at": 1}}, {}, []),
        ("pgd_at", {"numerics": {"methods/pgd_at": 7}}, {}, ["methods/pgd_at 7 (now 1)"]),
        ("pgd_at", {"numerics": {"methods/gone": 1}}, {}, ["methods/gone 1 (now gone)"]),
        ("pgd_at", {"numerics": {"methods/pgd_at": 1}}, {"numerics": {"attacks/apgd": 0}}, ["attacks/apgd 0 (now 1)"]),
        ("pgd_at", {"code": "0123"}, {}, []),  # runs from before versions have version 1
        ("trades", {"code": "0123"}, {}, [f"methods/trades 1 (now {NUMERICS['methods/trades']})"]),
        ("pgd_at", {}, {}, []),
    ],
)
def test_a_run_is_stale_where_a_version_moved(tmp_path, method, facts, results, words):
    params = {"method": method, "dataset": "digits", "arch": "mlp", "seed": 0}
    results = {
        "n": 1,
        "threat": "Linf 0.2",
        "checkpoint": "best",
        "rows": [{"attack": "clean", "accuracy": 1.0}],
        **results,
    }
    run = Run.of(params, tmp_path)
    for name, content in (("params", params), ("provenance", facts), ("results", results)):
        write_json(run.path / f"{name}.json", content)
    assert (run.outdated, run.stale, run.provenance()) == (words, bool(words), facts)
