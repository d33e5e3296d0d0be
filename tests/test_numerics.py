"""Numbers and their versions move together; and a run is stale by them, not by bytes."""

import json

import pytest
import torch

from robustlib.attacks import APGD, PGD, AutoAttack, Threat, apgd
from robustlib.methods import METHODS, make_method
from robustlib.runs import NUMERICS, Run, attack_names, outdated, versions, write_json
from tests import numerics

HOW = (
    "The numbers of {name} moved by {gap:.1e}, more than {most:.1e}. If that is meant, raise its version in robustlib/runs/run.py (runs "
    "made before are stale then) and store the new ones: python -m tests.numerics {name}"
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
    known, most = numerics.stored()[name], numerics.tolerance(numerics.stored()[name])
    torch.manual_seed(0)
    gap = numerics.difference(make[name](), known["numbers"])
    assert gap <= most, HOW.format(name=name, gap=gap, most=most)


def test_another_momentum_is_noticed(make, monkeypatch):
    monkeypatch.setattr(apgd, "MOMENTUM", 0.7)
    known = numerics.stored()["attacks/apgd"]
    assert numerics.difference(make["attacks/apgd"](), known["numbers"]) > 10 * numerics.tolerance(known)


def test_an_attack_is_named_with_its_parts():
    threat = Threat("linf", 0.1)
    assert attack_names([PGD(threat)]) == {"attacks/pgd"}
    parts = {f"attacks/{name}" for name in ("autoattack", "apgd", "fab", "square")}
    assert attack_names([AutoAttack(threat)]) == parts
    custom = AutoAttack(threat, "custom", (("mine", lambda *args, **kwargs: args[1]), ("apgd", APGD(threat))))
    assert versions(*attack_names([custom])) == versions("attacks/autoattack", "attacks/apgd")


def test_a_method_names_what_makes_its_numbers():
    assert make_method("trades", "digits").numerics == ("methods/trades",)
    assert make_method("pgd_at", "digits", awp_gamma=0.01).numerics == ("methods/pgd_at", "methods/awp")
    assert make_method("claf", "digits", final="aff").numerics == ("methods/claf", "methods/aff")


def made(root, facts, results=None):
    run = Run(root)
    write_json(root / "params.json", {"method": "pgd_at"})
    write_json(root / "provenance.json", facts)
    if results is not None:
        write_json(root / "results.json", results)
    return run


@pytest.mark.parametrize(
    ("facts", "results", "words"),
    [
        ({"numerics": {"methods/pgd_at": 1}}, None, []),
        ({"numerics": {"methods/pgd_at": 7}}, None, ["methods/pgd_at 7 (now 1)"]),
        ({"numerics": {"methods/gone": 1}}, None, ["methods/gone 1 (now gone)"]),
        ({"numerics": {"methods/pgd_at": 1}}, {"numerics": {"attacks/apgd": 0}}, ["attacks/apgd 0 (now 1)"]),
        ({"code": "0123"}, {}, []),
        ({}, None, []),
    ],
)
def test_a_run_is_stale_where_a_version_moved(tmp_path, facts, results, words):
    run = made(tmp_path, facts, results)
    assert run.outdated == words
    assert run.stale == bool(words)


def test_runs_from_before_versions_have_version_one(tmp_path):
    run = made(tmp_path, {"code": "0123"})
    write_json(tmp_path / "params.json", {"method": "trades"})
    assert run.outdated == [f"methods/trades 1 (now {NUMERICS['methods/trades']})"]
    assert outdated({}) == []
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"code": "0123"}
