"""Power that fails at any write, a clock that goes backwards, a disk that becomes read-only."""

import itertools
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kills import differences

from robustlib.audit import audit_run
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation import evaluate_run
from robustlib.runs import Run, find_runs
from robustlib.workbook.cli import main
from tests.training_fixtures import tiny, train


class PowerCut(BaseException):
    """Nothing that runs survives it."""


def whole(few: Dataset, root: Path) -> Run:
    """A training, its evaluation and its audit, or what is left of them to do."""
    run = train(tiny("standard", epochs=2, arch="mlp_8", train_examples=64), few, root)
    evaluate_run(run, few, n=6, device="cpu")
    audit_run(run, few, n=6, device="cpu")
    return run


def counted(patch: pytest.MonkeyPatch, at: int = -1, after: bool = False) -> Callable[[], int]:
    """Power fails before or after the write number `at`; how many there were."""
    real, numbers = os.replace, itertools.count()
    seen: list[int] = []

    def replace(source: str, target: str) -> None:
        seen.append(next(numbers))
        if seen[-1] == at and not after:
            raise PowerCut
        real(source, target)
        if seen[-1] == at:
            raise PowerCut

    patch.setattr(os, "replace", replace)
    return lambda: len(seen)


@pytest.mark.usefixtures("brief_protocol")
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_write_the_power_fails_at_all_is_whole_and_goes_on(few: Dataset, tmp_path: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        writes = counted(patch)
        undisturbed = whole(few, tmp_path / "undisturbed")
    assert writes() > 12
    for at, after in itertools.product(range(0, writes(), step), (False, True)):
        root = tmp_path / f"{at}-{after}"
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, at, after)
            with pytest.raises(PowerCut):
                whole(few, root)
        for run in find_runs(root, finished=False):
            assert not run.damage
            if results := run.results():
                judged = run.records()
                assert set(judged["attack"]) >= {row["attack"] for row in results["rows"]} - {"worst"}
        assert (at, after, differences(whole(few, root), undisturbed)) == (at, after, [])


def test_a_clock_that_goes_backwards_changes_no_number(few: Dataset, tmp_path: Path, monkeypatch) -> None:
    method = tiny("standard", epochs=4, arch="mlp_8", train_examples=64)
    undisturbed = train(method, few, tmp_path / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, 12)
        with pytest.raises(PowerCut):
            train(method, few, tmp_path / "runs")
    now, files = time.time, [*(tmp_path / "runs").rglob("*")]
    monkeypatch.setattr(time, "time", lambda: now() - 86_400)  # files are of tomorrow
    assert files
    (begun,) = find_runs(tmp_path / "runs", finished=False)
    assert 1 < len(begun.metrics()) < 5, "in mid-training"
    run = train(method, few, tmp_path / "runs")
    assert torch.equal(run.model("last").head.weight, undisturbed.model("last").head.weight)
    assert run.status()["state"] == "done"
    assert run.provenance()["wall_seconds"] >= 0
    assert (run.metrics()["seconds"] >= 0).all()


def test_runs_on_a_read_only_disk_are_read_and_a_training_there_is_a_sentence(
    disk: Path, few: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    method = tiny("standard", epochs=1, arch="mlp_8", train_examples=64)
    run = train(method, few, disk / "runs")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert train(method, few, disk / "runs") == run, "it is finished"
    with pytest.raises(SystemExit) as stop:
        main(["list", "--runs", str(disk / "runs")])
    assert (stop.value.code, "standard" in capsys.readouterr().out) == (0, True)
    for call in (
        lambda: train(tiny("standard", epochs=2, arch="mlp_8"), few, disk / "runs"),
        lambda: evaluate_run(run, few, n=4, device="cpu"),
    ):
        with pytest.raises(InputError, match=r"Read-only file system|choose a writable directory|may write"):
            call()
