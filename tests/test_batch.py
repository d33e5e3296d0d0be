"""What a comparison asks of finished runs: curves, arms told apart, and verdicts of runs and of committed results."""

import json
from pathlib import Path

import pytest

from robustlib import batch
from robustlib.runs import Run, find_runs

STUDY = batch.preset_study("digits")


def made(root: Path, method: str, seed: int, changed: str = "", arch: str = "small_cnn") -> Run:
    """A run directory with the facts that comparisons read."""
    run = Run(root / "digits" / method / f"{arch}-seed{seed}-{changed}")
    run.path.mkdir(parents=True)
    params = {"method": method, "title": method.upper(), "changed": changed, "seed": seed, "arch": arch}
    results = {"curve": [{"eps": eps, "accuracy": 1 - eps} for eps in (0.0, 0.2)]}
    contents = {"params": {**params, "dataset": "digits", "preset": "digits"}, "status": {"state": "done"}}
    for name, content in (contents | {"results": results}).items():
        (run.path / f"{name}.json").write_text(json.dumps(content))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two seeds of two arms of TRADES, and one of PGD-AT."""
    arms = (("trades", 1, ""), ("trades", 0, ""), ("trades", 2, "beta=3.0"), ("pgd_at", 0, ""))
    return [made(tmp_path, *arm) for arm in arms]


def test_arms_are_told_apart(runs: list[Run]) -> None:
    assert {title: run.params()["seed"] for title, run in batch.one_each(runs).items()} == {
        "PGD_AT": 0,
        "TRADES": 0,
        "TRADES · beta=3.0": 2,
    }
    assert len(batch.one_each(runs, most=2)) == 2


def test_networks_are_named_where_there_are_several(tmp_path: Path) -> None:
    pair = [made(tmp_path, "trades", 0, arch=arch) for arch in ("small_cnn", "mlp")]
    assert list(batch.one_each(pair)) == ["TRADES · mlp", "TRADES · small_cnn"]


def test_curves_of_many_runs_are_one_table(runs: list[Run]) -> None:
    table = batch.curves(runs)
    assert len(table) == 8
    assert table.groupby(["title", "changed"]).seed.nunique().to_dict() == {
        ("PGD_AT", ""): 1,
        ("TRADES", ""): 2,
        ("TRADES", "beta=3.0"): 1,
    }
    assert batch.curves([]).empty


def test_a_preset_without_claims_has_no_study() -> None:
    assert STUDY is not None
    assert STUDY.name == "digits-claims"
    assert batch.preset_study("cifar10-paper") is None


def test_verdicts_wait_for_all_seeds(runs: list[Run]) -> None:
    assert STUDY is not None
    assert {found.verdict for found in batch.verdicts(STUDY, runs)} == {"undecided"}


def test_committed_results_are_read_as_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert STUDY is not None
    committed = batch.reference_verdicts(STUDY)
    assert [found.claim.name for found in committed] == [claim.name for claim in STUDY.claims]
    assert all(len(found.evidence.differences) == len(STUDY.seeds) for found in committed), "study and export"
    monkeypatch.setattr("robustlib.batch.compare.REFERENCE", tmp_path)
    assert batch.reference_verdicts(STUDY) == []
    assert find_runs(tmp_path) == []
