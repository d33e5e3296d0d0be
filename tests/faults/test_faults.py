"""Killed processes, a full disk, notebooks that are none: what is left is whole, says what happened, and can go on."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from robustlib.errors import InputError
from robustlib.runs import Run, read_json, write_json
from robustlib.workbook.engines import execute, process
from robustlib.workbook.task import Task
from tests.training_fixtures import tiny, train
from tests.workbook import wait_for
from tests.workbook.notebooks import WAIT, Notebook, maker
from tests.workbook.test_engines import SCRIPT, wait_for_the_end


@pytest.fixture
def make(tmp_path: Path) -> Notebook:
    return maker(tmp_path)


TRAIN = """
from robustlib.data import load_dataset
from robustlib.training import fit
from tests.conftest import hardly_validated
from tests.training_fixtures import tiny
fit(tiny("standard", epochs=seed), hardly_validated(load_dataset("digits")), root=word, device="cpu", threads=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(4))
def test_killed_at_random_moments_a_training_ends_with_the_same_numbers(
    make: Notebook, tmp_path: Path, few: Any, draw: int
) -> None:
    epochs, generator = 150, random.Random(draw)
    undisturbed = train(tiny("standard", epochs=epochs), few, tmp_path / "undisturbed")
    task, killed = make(TRAIN, word=str(tmp_path / "runs"), seed=epochs), 0
    command = [sys.executable, "-c", RUNNER, str(task.notebook), str(tmp_path / "runs"), str(epochs), str(task.output)]
    for who in generator.sample(["kernel", "worker", "runner"], 3):
        runner = subprocess.Popen(command)
        wait_for(lambda: task.status().get("state") == "running" and "kernel" in task.status())  # of this one
        time.sleep(generator.uniform(0, 12))
        victims = {**task.status(), "runner": runner.pid}
        if runner.poll() is None and task.status()["state"] == "running":
            os.kill(victims[who], signal.SIGKILL)
            killed += 1
        runner.wait()
        wait_for(lambda: read_json(task.status_path)["state"] != "running")
        for name in ("worker", "kernel"):
            wait_for_the_end(victims[name])
    assert killed
    assert execute(task)["state"] == "done"
    (run,) = [Run(file.parent) for file in (tmp_path / "runs").rglob("params.json")]
    for which in ("best", "last"):
        one, two = (each.model(which).state_dict() for each in (run, undisturbed))
        assert all(torch.equal(one[name], two[name]) for name in two)


RUNNER = """
import sys
from pathlib import Path
from robustlib.workbook.engines import execute
from robustlib.workbook.task import Task
execute(Task(Path(sys.argv[1]), {"word": sys.argv[2], "seed": int(sys.argv[3])}, Path(sys.argv[4])))
"""


def test_a_kernel_that_does_not_listen_ends_with_a_killed_runner(make: Notebook, tmp_path: Path) -> None:
    deaf, mark = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAIT, tmp_path / "mark"
    runner = subprocess.Popen([sys.executable, "-c", SCRIPT.replace("range(3)", "range(1)"), make(deaf).notebook, mark])
    wait_for(Path(f"{mark}0").exists)
    runner.kill()
    runner.wait()
    task = Task(Path(), {}, Path(f"{mark}0.ipynb"))
    wait_for(lambda: read_json(task.status_path)["state"] == "interrupted")
    wait_for_the_end(task.status()["kernel"])


@pytest.mark.parametrize(
    ("cells", "state", "reason"),
    [
        (["def f(:\n    pass"], "failed", "SyntaxError"),
        (
            ["import pathlib\npathlib.Path(word).touch()\nwhile True:\n    pass"],
            "timeout",
            "longer than its limit of 6 s",
        ),
    ],
)
def test_a_notebook_that_is_no_program_or_never_ends(
    make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[str], state: str, reason: str
) -> None:
    monkeypatch.setattr(process, "GRACE", 600.0)
    status = execute(make(*cells, word=str(tmp_path / "mark")), timeout=6 if state == "timeout" else None)
    assert (status["state"], reason in status["reason"]) == (state, True)


def test_a_notebook_without_parameters_takes_none(make: Notebook) -> None:
    task = make("1", seed=1)
    text = task.notebook.read_text().replace('"parameters"', '"others"')
    task.notebook.write_text(text)
    with pytest.raises(InputError, match=r"Unknown parameter of note\.ipynb 'seed'"):
        execute(task)


@pytest.mark.parametrize("disk", ["2m"], indirect=True)
def test_a_disk_that_is_full_is_said_and_the_training_goes_on_with_more_room(
    disk: Path, few: Any, tmp_path: Path
) -> None:
    method, filler = tiny("standard", epochs=2), disk / "filler"
    write_json(disk / "old.json", {"old": 1})
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    with pytest.raises(InputError, match=r"No space left on device.* free some space"):
        write_json(disk / "old.json", {"new": "x" * 100_000})
    assert read_json(disk / "old.json") == {"old": 1}
    with pytest.raises(InputError, match="No space left on device"):
        train(method, few, disk / "runs")
    filler.unlink()
    run, other = train(method, few, disk / "runs"), train(method, few, tmp_path / "other")
    assert (run.finished, run.damage) == (True, "")
    assert torch.equal(run.model().head.weight, other.model().head.weight)
    assert not [file for file in disk.rglob(".*") if file.is_file() and "lock" not in file.name]


def test_on_windows_the_import_says_so() -> None:
    code = "import sys\nsys.platform = 'win32'\nimport robustlib"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stderr.strip().endswith(
        "runs on Linux and macOS, and on Windows within WSL: it needs their locks and signals."
    )
