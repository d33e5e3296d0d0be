"""What a terminal shows of many jobs."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from robustlib.runs import Run
from robustlib.workbook import console
from robustlib.workbook.engines.batch import _status
from robustlib.workbook.experiments import Job
from robustlib.workbook.task import Task


def jobs(tmp_path: Path, states: list[str]) -> tuple[list[Job], list[dict[str, Any]]]:
    made = [Task(Path(), {}, tmp_path / f"{k}.ipynb") for k in range(len(states))]
    started = {"started": "2026-01-01T00:00:00+00:00", "seconds": 61.0}
    statuses = [
        {"state": state, "reason": f"because {state}"} | (started if state != "queued" else {}) for state in states
    ]
    return [Job(Run(tmp_path / str(k)), task, f"job {k}", 3) for k, task in enumerate(made)], statuses


def drawn(thing: Any) -> list[str]:
    said = Console(width=120, record=True)
    said.print(thing)
    return [line.rstrip() for line in said.export_text().splitlines() if line.strip()]


def test_of_more_jobs_than_lines_those_are_shown_that_somebody_waits_for(tmp_path: Path) -> None:
    states = ["done"] * 30 + ["queued"] * 40
    states[3], states[50], states[60] = "running", "failed", "running"
    head, _, *rows, counts = drawn(console._on_one_screen(*jobs(tmp_path, states), 5))
    assert head.split() == ["training", "state", "now", "elapsed", "left"]
    assert [row.split()[1:3] for row in rows] == [
        *(["3", "running"], ["30", "queued"], ["31", "queued"], ["50", "failed"], ["60", "running"]),
    ]
    assert counts == "of 70: 38 queued, 29 done, 2 running, 1 failed"
    assert len(drawn(console._on_one_screen(*jobs(tmp_path, states), 70))) == 72, "all where they fit"


def test_lines_are_few_and_read_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,), (status,) = jobs(tmp_path, ["running"])
    said, asked = Console(width=120, record=True, force_terminal=False), list[str]()
    monkeypatch.setattr(console, "activity", lambda *_: asked.append("") or f"epoch {len(asked)}")
    with console.job_monitor(said, [job]) as show:
        for state in ("running", "running", "running", "done"):
            show([status | {"state": state}])
    assert [line.split("  ")[-1] for line in said.export_text().splitlines()] == ["running: epoch 1", "done: epoch 2"]


def test_a_status_is_read_again_where_its_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, read, known = Task(Path(), {}, tmp_path / "a.ipynb"), list[str](), dict[Path, Any]()
    status = Task.status
    monkeypatch.setattr(Task, "status", lambda self: read.append("") or status(self))
    assert _status(task, known) == {}, "before the first"
    for state, times in (("queued", 1), ("running", 3), ("done", 1)):
        task.enqueue(state=state)
        read.clear()
        held = task.hold()
        assert held
        with held:
            assert [_status(task, known)["state"] for _ in range(3)] == [state] * 3
        assert len(read) == times
