"""Executing notebooks: kernels really die, clocks really run out, interrupts are really sent."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlib.errors import InputError
from robustlib.runs import write_atomic
from robustlib.workbook.engines import execute, process, run_all
from robustlib.workbook.task import Task, check
from tests.workbook import wait_for
from tests.workbook.notebooks import WAIT, Notebook, maker, outputs


@pytest.fixture
def make(tmp_path: Path) -> Notebook:
    return maker(tmp_path)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is killed for being slow on a busy machine."""
    monkeypatch.setattr(process, "GRACE", 600.0)


def wait_for_the_end(pid: int) -> None:

    def ended() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (ProcessLookupError, FileNotFoundError):
            return True

    wait_for(ended)


def test_done_with_parameters_in_one_thread(make: Notebook) -> None:
    cell = "import os; print(type(seed).__name__, seed + 1, word, items, rate, os.environ['OMP_NUM_THREADS'])"
    task = make(cell, seed=np.int64(3), word=Path("/x"), items=("a", 1), rate=np.float32(0.5))
    status = execute(task)
    assert (status["state"], status["reason"]) == ("done", "")
    assert outputs(task) == "int 4 /x ['a', 1] 0.5 1\n"
    assert status["seconds"] > 0
    assert status["started"].endswith("+00:00")
    assert status["parameters"] == {"seed": 3, "word": "/x", "items": ["a", 1], "rate": 0.5}
    wait_for_the_end(status["kernel"])


def test_failed_names_the_exception(make: Notebook) -> None:
    task = make("from robustlib.errors import InputError\nraise InputError('Unknown method: say trades.')", "print(1)")
    status = execute(task)
    assert (status["state"], status["exception"]) == ("failed", "InputError")
    assert status["reason"] == "InputError: Unknown method: say trades."
    assert json.loads(task.status_path.read_text()) == status


@pytest.mark.parametrize(
    ("cell", "exception", "reason"),
    [
        ("import sys\nsys.exit(0)", "SystemExit", "It ended itself in cell 2 of 3"),
        ("%nosuch", "UsageError", "Line magic function `%nosuch` not found"),
        ("assert False", "AssertionError", "AssertionError"),
    ],
)
def test_a_notebook_that_stopped_is_not_done_and_says_why(make: Notebook, cell: str, exception: str, reason: str):
    task = make(cell, "print('never')")
    status = execute(task)
    assert (status["state"], status["exception"]) == ("failed", exception)
    assert reason in status["reason"]
    assert not status["reason"].endswith(": ")
    assert (outputs(task).count("never"), task.current) == (0, False)


def test_a_task_is_current_by_what_it_was_made_from(make: Notebook, tmp_path: Path) -> None:
    made = make("print('seed {}'.format(seed))", name="{seed}", seed=3)  # braces in a path are no parameters
    task = Task(made.notebook, made.parameters, tmp_path / "b{" / "{seed}" / "{0}.ipynb")
    assert not task.current
    assert execute(task)["state"] == "done"
    for file in (task.notebook, task.output):
        whole = file.read_bytes()
        os.utime(file, (0, 0))
        assert task.current, "whatever the clock says"
        file.write_bytes(whole[:-9])
        assert not task.current, "another notebook, or a copy cut short"
        file.write_bytes(whole)
    assert outputs(task) == "seed 3\n"
    task.record(state="interrupted")
    assert not task.current


def test_dead_kernel_is_killed_not_done(make: Notebook) -> None:
    status = execute(make("import os", "os.kill(os.getpid(), 9)", "print(1)"))
    assert status["state"] == "killed"
    assert "The kernel died in cell 3 of 4" in status["reason"]


def test_a_timeout_leaves_no_process(make: Notebook, tmp_path: Path) -> None:
    status = execute(make(WAIT, word=tmp_path / "mark"), timeout=8)
    assert status["state"] == "timeout"
    assert "8 s" in status["reason"]
    for who in {"kernel", "worker"} & set(status):
        wait_for_the_end(status[who])


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that a cell makes when it begins to wait."""
    return tmp_path / "mark"


def disturbed(task: Task, mark: Path, number: int = 0) -> dict[str, Any]:
    """The status of a task whose worker gets a signal while its cell waits; 0: the request to stop."""
    stop = threading.Event()

    def disturb() -> None:
        wait_for(mark.exists)
        stop.set() if number == 0 else os.kill(task.status()["worker"], number)

    threading.Thread(target=disturb).start()
    return execute(task, stop=stop)


@pytest.mark.parametrize(
    ("number", "state", "reason"),
    [(0, "interrupted", "resumes"), (signal.SIGTERM, "interrupted", "resumes"), (signal.SIGKILL, "killed", "SIGKILL")],
)
def test_a_signal_ends_worker_and_kernel(make: Notebook, mark: Path, number: int, state: str, reason: str) -> None:
    task = make(f"try:\n    exec({WAIT!r})\nfinally:\n    print('tidied up')", word=mark)
    status = disturbed(task, mark, number)
    assert status["state"] == state
    assert reason in status["reason"]
    assert state == "killed" or "tidied up" in outputs(task)
    wait_for_the_end(status["kernel"])


def test_deaf_kernel_is_killed_after_the_grace(make: Notebook, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 1.0)
    status = disturbed(make("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAIT, word=mark), mark)
    assert status["state"] == "interrupted"
    wait_for_the_end(status["kernel"])


SCRIPT = """
import sys
from pathlib import Path
from robustlib.workbook.engines import process, run_all
from robustlib.workbook.task import Task
process.GRACE = 600.0
tasks = [Task(Path(sys.argv[1]), {"word": sys.argv[2] + str(n)}, Path(sys.argv[2] + f"{n}.ipynb")) for n in range(3)]
run_all(tasks, jobs=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_death_of_the_caller_leaves_nothing_running(make: Notebook, mark: Path, number: int) -> None:
    caller = subprocess.Popen([sys.executable, "-c", SCRIPT, make(WAIT).notebook, mark], stderr=subprocess.DEVNULL)
    wait_for(lambda: Path(f"{mark}0").exists() and Path(f"{mark}1").exists())
    caller.send_signal(number)
    wait_for(lambda: caller.poll() is not None)
    assert caller.returncode != 0
    *running, queued = (Task(Path(), {}, Path(f"{mark}{n}.ipynb")) for n in range(3))
    wait_for(lambda: [task.status()["state"] for task in running] == ["interrupted"] * 2)
    assert queued.status()["state"] == ("interrupted" if number == signal.SIGINT else "queued")
    for task in running:
        wait_for_the_end(task.status()["kernel"])


def test_a_kernel_gets_a_second_start(make: Notebook, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, folder = make("print('well')"), mark.parent / "ipython"
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    flaky = f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
    flaky += "if not mark.exists():\n    mark.touch()\n    os._exit(1)\n"
    for code, state in ((flaky, "done"), ("import os\nos._exit(1)\n", "killed")):
        write_atomic(folder / "profile_default" / "startup" / "0.py", code)
        status = execute(task)
        assert status["state"] == state
    assert "did not start" in status["reason"]


def test_jobs_run_side_by_side_and_one_failure_stops_nobody(make: Notebook, tmp_path: Path) -> None:
    meet = "import time, pathlib\npathlib.Path(word).touch()\n"
    meet += "while not pathlib.Path(items[0]).exists():\n    time.sleep(.05)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    pair = [make(meet, name=name, word=x, items=[y]) for name, x, y in (("one", a, b), ("two", b, a))]
    tasks = [make("1 / 0", name="bad"), *pair]
    seen: list[list[str]] = []
    statuses = run_all(tasks, 2, lambda all_: seen.append([status["state"] for status in all_]))
    assert [status["state"] for status in statuses] == seen[-1] == ["failed", "done", "done"]
    assert statuses[0]["reason"] == "ZeroDivisionError: division by zero"
    assert ["queued"] in [states[2:] for states in seen]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"sed": 1}, "Did you mean 'seed'"),
        ({"seed": "one"}, "'seed'='one': give a whole number"),
        ({"seed": True}, "'seed'=True: give a whole number"),
        ({"seed": 1.5}, "'seed'=1.5: give a whole number"),
        ({"seed": 2**63}, "'seed'=9223372036854775808: give a whole number .*at most"),
        ({"items": np.zeros(3)}, "holds a ndarray"),
        ({"word": object()}, "holds a object"),
        ({"items": [{1: 2}]}, "holds a dict"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(make: Notebook, parameters: dict, sentence: str) -> None:
    task = make("1", **parameters)
    with pytest.raises(InputError, match=sentence):
        execute(task)
    assert not task.output.parent.exists()


def test_bad_tasks(make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = make("1")
    (tmp_path / "text.ipynb").write_text("not a notebook")
    (tmp_path / "json.ipynb").write_text("{}")
    bad = {"none.ipynb": "no notebook", "text.ipynb": "not a readable", "json.ipynb": "not a readable"}
    for name, sentence in bad.items():
        with pytest.raises(InputError, match=sentence):
            check(Task(tmp_path / name, {}, good.output))
    with pytest.raises(InputError, match=r"end in \.ipynb"):
        check(Task(good.notebook, {}, tmp_path / "out.html"))
    with pytest.raises(InputError, match="is no path"):
        check(Task(good.notebook, {}, tmp_path / f"{'a' * 256}.ipynb"))
    with pytest.raises(InputError, match="timeout=nan"):
        execute(good, timeout=math.nan)
    monkeypatch.setitem(sys.modules, "ray", None)
    for sentence, tasks, options in (
        ("Two tasks would write", [good, good], {}),
        *(("give a whole number of at least 1 and at most 1000", [good], {"jobs": jobs}) for jobs in (0, 1001, 1.5)),
        *(("give a (finite )?number above 0, or leave", [good], {"timeout": t}) for t in (0, math.nan, math.inf, "9")),
        ("Did you mean 'local'", [good], {"engine": "locale"}),
        ("Unknown engine", [good], {"engine": ["local"]}),
        ("needs ray", [good], {"engine": "ray"}),
    ):
        with pytest.raises(InputError, match=sentence):
            run_all(tasks, **options)
    assert run_all([]) == []
