"""`robustlib benchmark` and `compare` from the command line to the pages; the notebooks are executed in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustlib.runs import Run, find_runs, write_json
from robustlib.workbook import cli
from robustlib.workbook.cli import main
from robustlib.workbook.task import Task, _digest
from tests.notebook import perform

NETS = """
from torch import nn


def build(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def executed(task: Task, **_: object) -> dict[str, Any]:
    """What `engines.execute` does, in this process."""
    task.output.parent.mkdir(parents=True, exist_ok=True)
    task.enqueue()
    perform(task)
    return task.record(state="done", reason="", output=_digest(task.output))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with a file that builds networks and three checkpoints of one, in which notebooks run in this process."""

    def run_all(tasks: Sequence[Task], jobs: int, on_change: Any, **_: object) -> list[dict[str, Any]]:
        return [executed(task) for task in tasks]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.out, "width", 250)
    monkeypatch.setattr("robustlib.workbook.engines.run_all", run_all)
    monkeypatch.setattr("robustlib.workbook.experiments.jobs.execute", executed)
    (tmp_path / "nets.py").write_text(NETS)
    for epoch in (2, 10):
        torch.manual_seed(epoch)
        torch.save(
            {"state_dict": nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).state_dict()},
            f"net-{epoch}.pt",
        )
    return tmp_path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.usefixtures("brief_protocol")
def test_checkpoints_become_runs_pages_and_a_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--dataset", "digits", "--examples", 6, "--name", "Ours")
    assert call("benchmark", "nets.py:build", "--weights", "net-*.pt", *common, "--dry-run") == 0
    assert not {"reports", "runs"} & {file.name for file in folder.iterdir()}, "a dry run shows the sanity checks alone"
    assert "no better than chance" in capsys.readouterr().out
    assert call("benchmark", "nets.py:build", "--weights", "net-*.pt", *common) == 0
    shown = capsys.readouterr().out
    first, second = sorted(find_runs(), key=lambda run: run.params()["about"]["epoch"])
    assert [run.params()["title"] for run in (first, second)] == ["Ours · net-2", "Ours · net-10"]
    assert all(run.results()["n"] == 6 and run.audit() for run in (first, second))
    pages = {path.name for path in (folder / "reports" / "other").glob("*.html")}
    assert {f"{run.path.parent.name}-{run.path.name}.html" for run in (first, second)} < pages
    index = (folder / "reports" / "index.html").read_text()
    assert "trained elsewhere" in index
    assert all(f"Ours · net-{epoch}" in index for epoch in (2, 10))
    (comparison,) = (folder / "reports" / "other").glob("compare-*.html")
    text = comparison.read_text()
    assert f"Comparison: {comparison.relative_to(folder)}" in shown
    for words in (
        "On the same images",
        "Who fails where: of the images that",
        "2 checkpoints: clean accuracy from",
    ):
        assert words in text
    page = (folder / "reports" / "other" / f"{first.path.parent.name}-{first.path.name}.html").read_text()
    for words in (
        "is this the network that was meant?",
        "state_dict",
        "the input of module 3",
        "AutoAttack, step by step",
    ):
        assert words in page
    for words in ("paper's attack", "paper's protocol", "choosing the best epoch", "training time", "peak memory"):
        assert words not in page, "it has no paper, and nothing was trained"
    assert call("list") == 0
    assert (
        call(
            "benchmark",
            "nets.py:build",
            "--weights",
            "net-2.pt",
            "--dataset",
            "digits",
            "--examples",
            6,
            "--name",
            "Ours · net-2",
        )
        == 0
    )
    assert len(find_runs()) == 2, "the same network is the same run"


def test_runs_of_other_data_or_threats_are_not_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for threat in ("linf:0.1", "linf:0.2"):
        run = Run.from_model("nets.py:build", _digits(), name=threat, threat=_threat(threat))
        write_json(
            run.path / "results.json",
            {
                "n": 1,
                "checkpoint": "given",
                "threat": str(_threat(threat)),
                "rows": [{"attack": "clean", "accuracy": 1.0}],
            },
        )
    paths = [run.path for run in find_runs()]
    assert call("compare", *paths) == 2
    assert "was judged by another threat (Linf 0.2)" in capsys.readouterr().err


def _digits() -> Any:
    from robustlib.data import load_dataset

    return load_dataset("digits")


def _threat(text: str) -> Any:
    from robustlib.threat import Threat

    return Threat("linf", float(text.partition(":")[2]))
