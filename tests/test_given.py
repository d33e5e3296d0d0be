"""Whatever judges or trains says what it wants where it is given a data set for a split, a split for a data set, or a name for a method."""

import pytest

from robustlib.attacks import PGD, Tangent
from robustlib.audit import audit, audit_run, check_model, check_run
from robustlib.data import check_split
from robustlib.errors import InputError
from robustlib.evaluation import (
    adversarial_distances,
    claf_published_protocol,
    compare_with_reference,
    evaluate,
    evaluate_run,
    measure_distances,
    measure_unseen,
    robustness_curve,
)
from robustlib.methods import METHODS
from robustlib.models import build_model
from robustlib.representation import attacked_pairs, embed_runs, features, gap_table, measure_runs, run_features
from robustlib.runs import Run, write_json
from robustlib.threat import Threat
from robustlib.training import fit
from tests.conftest import Linear
from tests.training_fixtures import tiny

THREAT = Threat("linf", 0.1)
LOOK = PGD(THREAT, steps=1)
OF_SPLITS = {
    "evaluate": lambda model, split: evaluate(model, split, {"pgd": LOOK}),
    "robustness_curve": lambda model, split: robustness_curve(model, split, LOOK, eps=[0.1]),
    "adversarial_distances": lambda model, split: adversarial_distances(model, split, Tangent(Threat("l2", 1.0))),
    "claf_published_protocol": claf_published_protocol,
    "audit": lambda model, split: audit(model, split, THREAT),
    "features": features,
    "attacked_pairs": lambda model, split: attacked_pairs(model, split, THREAT),
}
OF_DATA_SETS = {
    "evaluate_run": evaluate_run,
    "audit_run": audit_run,
    "check_run": check_run,
    "compare_with_reference": compare_with_reference,
    "measure_unseen": lambda run, dataset: measure_unseen({"a": run}, dataset),
    "measure_distances": lambda run, dataset: measure_distances({"a": run}, dataset),
    "run_features": lambda run, dataset: run_features(run, dataset, LOOK),
    "gap_table": lambda run, dataset: gap_table([run], dataset, LOOK),
    "measure_runs": lambda run, dataset: measure_runs([run], dataset, LOOK),
    "embed_runs": lambda run, dataset: embed_runs([run], dataset, LOOK),
}


@pytest.mark.parametrize("name", OF_SPLITS)
def test_a_data_set_is_no_split(digits, name):
    with pytest.raises(InputError, match=r"^split=Dataset\(name='digits'.*: give a Split, such as ds\.test\.$"):
        OF_SPLITS[name](build_model("mlp_8", digits), digits)


@pytest.mark.parametrize("name", OF_DATA_SETS)
def test_a_split_is_no_data_set(digits, tmp_path, name):
    run = Run.from_model(Linear(10, (1, 8, 8)), digits, root=tmp_path)
    rows = [{"attack": "clean", "accuracy": 1.0}]
    write_json(run.path / "results.json", {"n": 1, "checkpoint": "given", "threat": "Linf 0.2", "rows": rows})
    with pytest.raises(InputError, match=r"^dataset=Split\(.*: give a Dataset, such as load_dataset\('digits'\)\.$"):
        OF_DATA_SETS[name](run, digits.test)


def test_what_is_trained_and_what_is_wrapped(digits, tmp_path):
    for method, said in (
        ("trades", r"^'trades' is no method: give make_method\('trades', preset='digits'\), or"),
        (METHODS["trades"], r"TRADES'> is no method: give make_method\('trades'\)"),
        (digits, r"^Dataset\(.* is no method"),
    ):
        with pytest.raises(InputError, match=said):
            fit(method, digits, root=tmp_path)
    with pytest.raises(InputError, match=r"^dataset='digits': give a Dataset, such as load_dataset\('digits'\)"):
        fit(tiny("standard"), "digits", root=tmp_path)
    with pytest.raises(InputError, match=r"^dataset=Split\("):
        fit(tiny("standard"), digits.train, root=tmp_path)
    with pytest.raises(InputError, match=r"^dataset=Split\("):
        Run.from_model(Linear(10, (1, 8, 8)), digits.test, root=tmp_path)
    with pytest.raises(InputError, match=r"^split=Dataset\("):
        check_model(build_model("mlp_8", digits), digits, digits)
    assert check_split(digits.val) is digits.val
    assert not list(tmp_path.iterdir())
