"""One notebook in a process group of its own.

A worker (`robustlib.workbook.task`) runs papermill; this side starts it, watches the clock, passes Ctrl-C on, and records what it cannot.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Annotated, Any

from robustlib.errors import Positive, typed
from robustlib.workbook.task import CANCELLED, INTERRUPTED, Status, Task, check, signal_group

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")  # numbers depend on them
GRACE = 20.0  # seconds between asking a worker to stop and killing it


def execute(
    task: Task,
    *,
    timeout: float | None = None,
    stop: threading.Event | None = None,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> Status:
    """Executes a notebook in its own process group and returns its final status; does not raise for what a cell does.

    A task that another process executes is waited for; if that one ends well with the same parameters, its result is ours. The limit is
    in seconds. Set `stop` from another thread to interrupt it (SIGINT, after 20 s SIGKILL); Ctrl-C does so too, and is raised. Its
    process gets `environment` besides ours, and works in `folder` where that is there.
    """
    check_timeout(timeout)
    task, stop, waited = check(task), stop or threading.Event(), False
    while (lock := task.hold()) is None:
        waited = True
        if stop.wait(0.5):
            return task.status()
    with lock:
        if waited and _finished(task):
            return task.status()
        cancelled = task.cancel_path.exists()
        task.cancel_path.unlink(missing_ok=True)
        task.enqueue(**{name: value for name, value in task.status().items() if name == "slurm"})
        if stop.is_set() or cancelled:
            return task.record(**(CANCELLED if cancelled else INTERRUPTED))
        task.record(state="running", started=datetime.now(UTC).isoformat(timespec="seconds"), host=platform.node())
        return _watch(task, lock, timeout, stop, {**os.environ, **THREADS, **(environment or {})}, folder)


def execute_queued(task: Task, **options: Any) -> Status:
    """`execute` for one that was queued: what another process has finished since is left as it is."""
    return task.status() if _finished(task) else execute(task, **options)


def _finished(task: Task) -> bool:
    return task.current and bool(task.status().get("parameters") == task.parameters)


def check_timeout(timeout: float | None) -> None:
    """Raises InputError for what is no limit in seconds."""
    typed(timeout, Annotated[Positive, "or leave it out"] | None, "timeout")


def _watch(
    task: Task, lock: IO[Any], timeout: float | None, stop: threading.Event, environment: Any, folder: str | None
) -> Status:
    began, end = time.monotonic(), INTERRUPTED  # what holds if watching is cut short by Ctrl-C
    spec = json.dumps([str(task.notebook.absolute()), task.parameters, str(task.output.absolute())])
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "robustlib.workbook.task", spec]
        # stdin is the worker's lifeline: it ends with this process, however that ends; the lock goes on until both have ended
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "pass_fds": [lock.fileno()]}
        place = folder if folder and os.path.isdir(folder) else None
        worker = subprocess.Popen(command, env=environment, cwd=place, start_new_session=True, **streams)
        try:
            while worker.poll() is None and not stop.wait(0.1):
                if timeout and time.monotonic() - began > timeout:
                    end = {"state": "timeout", "reason": f"It ran longer than its limit of {timeout:g} s."}
                    break
                if task.cancel_path.exists():
                    task.cancel_path.unlink(missing_ok=True)
                    end = CANCELLED
                    break
        finally:
            if worker.poll() is None:
                _terminate(worker, task)
            else:
                end = {}
            log.seek(0)
            said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            status = _record_end(task, worker, end, said[-1] if said else "", time.monotonic() - began)
    return status


def _terminate(worker: subprocess.Popen[bytes], task: Task) -> None:
    signal_group(worker.pid, signal.SIGINT)
    try:
        worker.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # it does not listen, or Ctrl-C came twice
        signal_group(worker.pid, signal.SIGKILL)
        worker.wait()
        signal_group(task.status().get("kernel"), signal.SIGKILL)  # Jupyter gives kernels a group of their own


def _record_end(task: Task, worker: subprocess.Popen[bytes], end: Status, last_line: str, seconds: float) -> Status:
    if worker.stdin:
        worker.stdin.close()
    status = task.status()
    if status["state"] == "running" and not end:  # the worker ended without a word
        signal_group(status.get("kernel"), signal.SIGKILL)
        code = worker.returncode
        how, state = (f"exit code {code}", "failed") if code >= 0 else (signal.Signals(-code).name, "killed")
        end = {"state": state, "reason": f"The notebook's process ended with {how}. {last_line}".strip()}
    if status["state"] == "done":  # it was faster than the wish to stop it
        end = {}
    return task.record(**end, seconds=round(seconds, 2))
