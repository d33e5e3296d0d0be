"""Executes notebooks, each in a process group of its own, one or many side by side.

A worker (`robustlib.workbook.task`) runs papermill; this side starts it, watches the clock, passes Ctrl-C on, and records what it cannot.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from robustlib.errors import InputError, Positive, check_known, explained, typed
from robustlib.workbook.task import INTERRUPTED, Status, Task, check

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")  # numbers depend on them
GRACE = 20.0  # seconds between asking a worker to stop and killing it


def execute(task: Task, *, timeout: float | None = None, stop: threading.Event | None = None) -> Status:
    """Executes a notebook in its own process group and returns its final status; does not raise for what a cell does.

    The limit is in seconds. Set `stop` from another thread to interrupt it (SIGINT, after 20 s SIGKILL); Ctrl-C does so too, and is raised.
    """
    check_limits(1, timeout, "local")
    task, stop, began = check(task), stop or threading.Event(), time.monotonic()
    task.enqueue()
    if stop.is_set():
        return task.record(**INTERRUPTED)
    task.record(state="running", started=datetime.now(UTC).isoformat(timespec="seconds"))
    spec = json.dumps([str(task.notebook), task.parameters, str(task.output)])
    end: Status = INTERRUPTED  # what holds if watching is cut short by Ctrl-C
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "robustlib.workbook.task", spec]
        # stdin is the worker's lifeline: it ends with this process, however that ends
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        worker = subprocess.Popen(command, env=os.environ | THREADS, start_new_session=True, **streams)
        try:
            while worker.poll() is None and not stop.wait(0.1):
                if timeout and time.monotonic() - began > timeout:
                    end = {"state": "timeout", "reason": f"It ran longer than its limit of {timeout:g} s."}
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
    _signal(worker.pid, signal.SIGINT)
    try:
        worker.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # it does not listen, or Ctrl-C came twice
        _signal(worker.pid, signal.SIGKILL)
        worker.wait()
        _signal(task.status().get("kernel"), signal.SIGKILL)  # Jupyter gives kernels a group of their own


def _signal(group: int | None, number: int) -> None:
    if group:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def _record_end(task: Task, worker: subprocess.Popen[bytes], end: Status, last_line: str, seconds: float) -> Status:
    if worker.stdin:
        worker.stdin.close()
    status = task.status()
    if status["state"] == "running" and not end:  # the worker ended without a word
        _signal(status.get("kernel"), signal.SIGKILL)
        code = worker.returncode
        how, state = (f"exit code {code}", "failed") if code >= 0 else (signal.Signals(-code).name, "killed")
        end = {"state": state, "reason": f"The notebook's process ended with {how}. {last_line}".strip()}
    if status["state"] == "done":  # it was faster than the wish to stop it
        end = {}
    return task.record(**end, seconds=round(seconds, 2))


def check_limits(jobs: int, timeout: float | None, engine: str) -> None:
    """Raises InputError where `run_all` can do nothing with these."""
    typed(jobs, Annotated[int, "[1, 1000]", "trainings side by side"], "jobs")
    typed(timeout, Annotated[Positive, "or leave it out"] | None, "timeout")
    check_known("engine", engine, ENGINES)


def run_all(
    tasks: Sequence[Task],
    jobs: int = 1,
    on_change: Callable[[list[Status]], object] | None = None,
    *,
    timeout: float | None = None,
    engine: str = "local",
) -> list[Status]:
    """Executes tasks side by side, `jobs` at a time; one that fails does not stop the others. Returns the final statuses in order.

    All are checked before the first one starts. `on_change` is called about twice a second, in the calling thread, with all
    statuses. The engine is "local" processes, or "ray" (needs the extra `ray`, and a file system that all its nodes share).
    """
    check_limits(jobs, timeout, engine)
    tasks = [check(task) for task in tasks]
    outputs = [task.output for task in tasks]
    if twice := [str(path) for path in outputs if outputs.count(path) > 1]:
        raise InputError(f"Two tasks would write {twice[0]}: give each an output of its own.")
    for task in tasks:
        task.enqueue()
    ENGINES[engine](tasks, jobs, timeout, lambda: on_change and on_change([task.status() for task in tasks]))
    return [task.status() for task in tasks]


def _on_processes(tasks: Sequence[Task], jobs: int, timeout: float | None, tick: Callable[[], object]) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, task, timeout=timeout, stop=stop) for task in tasks]
        try:
            while wait(futures, timeout=0.5).not_done:
                tick()
        finally:  # after Ctrl-C, or if a display fails, no worker may stay behind
            stop.set()
            wait(futures)
            tick()
    for future in futures:
        future.result()


def _on_ray(tasks: Sequence[Task], jobs: int, timeout: float | None, tick: Callable[[], object]) -> None:
    with explained(ImportError, lambda _: "The ray engine needs ray: pip install 'robustlib[ray]'."):
        import ray
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    share = min(1.0, ray.cluster_resources().get("GPU", 0) / jobs)  # Ray hides every GPU that is not asked for
    remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(execute)
    queued = list(tasks)
    running: list[Any] = []
    try:
        while queued or running:
            started = [queued.pop(0) for _ in range(min(jobs - len(running), len(queued)))]
            running += [remote.remote(task, timeout=timeout) for task in started]
            ended, running = ray.wait(running, num_returns=1, timeout=0.5)
            ray.get(ended)
            tick()
    finally:
        for reference in running:
            ray.cancel(reference)  # raises KeyboardInterrupt in `execute` over there
        for task in queued:
            task.record(**INTERRUPTED)


ENGINES = {"local": _on_processes, "ray": _on_ray}
