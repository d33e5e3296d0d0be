"""Executing notebooks: kernels really die, clocks really run out, interrupts are really sent."""

import json
import math
import os
import re
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
from robustlib.workbook import engines
from robustlib.workbook.engines import execute, local, process, run_all
from robustlib.workbook.engines.settings import Settings
from robustlib.workbook.task import CANCELLED, Task, check
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


CANCEL = -1


def disturbed(task: Task, mark: Path, number: int = 0) -> dict[str, Any]:
    """The status of a task whose worker gets a signal while its cell waits; 0: the request to stop; CANCEL: `robustlib cancel`."""
    stop = threading.Event()

    def disturb() -> None:
        wait_for(mark.exists)
        if number == CANCEL:
            task.cancel_path.touch()
        else:
            stop.set() if number == 0 else os.kill(task.status()["worker"], number)

    threading.Thread(target=disturb).start()
    return execute(task, stop=stop)


@pytest.mark.parametrize(
    ("number", "state", "reason"),
    [
        *((0, "interrupted", "Interrupted; .* resumes"), (CANCEL, "interrupted", "Cancelled; .* resumes")),
        *((signal.SIGTERM, "interrupted", "Interrupted; .* resumes"), (signal.SIGKILL, "killed", "SIGKILL")),
    ],
)
def test_a_signal_ends_worker_and_kernel(make: Notebook, mark: Path, number: int, state: str, reason: str) -> None:
    task = make(f"try:\n    exec({WAIT!r})\nfinally:\n    print('tidied up')", word=mark)
    status = disturbed(task, mark, number)
    assert status["state"] == state
    assert re.search(reason, status["reason"])
    assert not task.cancel_path.exists()
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


def test_jobs_run_side_by_side_on_gpus_of_their_own_and_one_failure_stops_nobody(
    make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    meet = "import os, time, pathlib\npathlib.Path(word).touch()\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    meet += "while not pathlib.Path(items[0]).exists():\n    time.sleep(.05)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    pair = [make(meet, name=name, word=x, items=[y]) for name, x, y in (("one", a, b), ("two", b, a))]
    tasks = [make("1 / 0", name="bad"), *pair]
    seen: list[list[str]] = []
    statuses = run_all(tasks, 2, lambda all_: seen.append([status["state"] for status in all_]))
    assert [status["state"] for status in statuses] == seen[-1] == ["failed", "done", "done"]
    assert statuses[0]["reason"] == "ZeroDivisionError: division by zero"
    assert ["queued"] in [states[2:] for states in seen]
    assert {outputs(task) for task in pair} == {"0\n", "1\n"}


def test_gpus_are_shared_only_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(device: str = "auto", **settings: Any) -> list[str]:
        return [slot.get("CUDA_VISIBLE_DEVICES", "all") for slot in local.slots(Settings(**settings), device)]

    assert seen(jobs=3) == ["all"] * 3, "there is none"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (seen(), seen(jobs=2), seen("cpu", jobs=3)) == (["all"], ["0", "1"], ["all"] * 3)
    assert (seen(jobs=4, gpus_per_task=0.5), seen(gpus_per_task=2)) == (["0", "1"] * 2, ["0,1"])
    assert (seen(jobs=2, gpus_per_task=0), seen("cuda:1", jobs=2, gpus_per_task=0.5)) == ([""] * 2, ["all"] * 2)
    assert [engines.device_type("local", "auto", gpus_per_task=gpus) for gpus in (None, 0)] == ["cuda", "cpu"]
    for device, settings, sentence in (
        (
            "auto",
            {"jobs": 3},
            "3 jobs would share 2 GPUs: give --jobs 2, or --gpus-per-task 0.5 where two may share one",
        ),
        ("cuda:1", {"jobs": 2}, "2 jobs would share cuda:1: give --jobs 1"),
        ("auto", {"jobs": 5, "gpus_per_task": 0.5}, "5 jobs with 0.5 GPUs each would share 2 GPUs: give --jobs 4"),
        ("auto", {"jobs": 2, "gpus_per_task": 2}, "2 jobs with 2 GPUs each would share 2 GPUs: give --jobs 1"),
        ("auto", {"gpus_per_task": 1.5}, "give a share of at most 1, or a whole number"),
        ("auto", {"gpus_per_task": -1}, "gpus_per_task=-1"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            engines.device_type("local", device, **settings)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert seen(jobs=2) == ["5", "7"]


def test_a_second_runner_waits_for_the_first_and_takes_its_result(make: Notebook, tmp_path: Path) -> None:
    mark, said = tmp_path / "mark", list[dict[str, Any]]()
    cell = "import pathlib, time\nmark = pathlib.Path(word)\nmark.write_text(mark.read_text() + 'x' if mark.exists() else 'x')\n"
    task = make(cell + "while not mark.with_name('go').exists():\n    time.sleep(.05)", word=str(mark))
    first = threading.Thread(target=lambda: said.append(execute(task)))
    first.start()
    wait_for(mark.exists)
    before, stop = task.status(), threading.Event()
    stop.set()
    assert execute(task, stop=stop) == before, "whoever is interrupted while it waits leaves it alone"

    def follow(statuses: list[dict[str, Any]]) -> None:
        assert statuses == [before] or (tmp_path / "go").exists()
        (tmp_path / "go").touch()

    assert run_all([task], on_change=follow) == [task.status()]
    first.join()
    assert said == [task.status()]
    assert process.execute_queued(task) == said[0], "whoever comes later does not repeat it"
    assert (said[0]["state"], mark.read_text()) == ("done", "x")


def test_what_is_running_by_its_status_alone_was_lost(make: Notebook) -> None:
    task = make("1")
    task.enqueue()
    task.record(state="running")
    assert task.status()["state"] == "interrupted"
    lock = task.hold()
    assert lock is not None
    with lock:
        assert (task.status()["state"], task.hold()) == ("running", None)
        task.settle(CANCELLED)
        assert task.status()["state"] == "running", "it is another process's"


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
