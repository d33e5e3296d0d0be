"""Many tasks on one of the engines."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, check_known
from robustlib.workbook.engines import local, ray, slurm
from robustlib.workbook.engines.settings import Settings
from robustlib.workbook.task import Status, Task, check

ENGINES: dict[str, Any] = {"local": local, "ray": ray, "slurm": slurm}


def check_limits(jobs: int, timeout: float | None, engine: str, **settings: Any) -> None:
    """Raises InputError where `run_all` can do nothing with these."""
    Settings(jobs, timeout, **settings)
    check_known("engine", engine, ENGINES)


def device_type(
    engine: str, device: str, folders: Sequence[Path] = (), files: Sequence[str] = (), *, jobs: int = 1, **settings: Any
) -> str:
    """The type of device ("cpu", "cuda") that tasks find where they run and ask for `device`; it decides a training's precision.

    Ray's workers are asked; they must see `folders`, which are made, and `files`. Raises InputError where they do not, where there is
    no such device, or where more tasks would share a GPU than `gpus_per_task` allows.
    """
    asked = Settings(jobs, **settings)
    kind: str = ENGINES[check_known("engine", engine, ENGINES)].device_type(asked, device, folders, files)
    return kind


def run_all(
    tasks: Sequence[Task],
    jobs: int = 1,
    on_change: Callable[[list[Status]], object] | None = None,
    *,
    timeout: float | None = None,
    engine: str = "local",
    **settings: Any,
) -> list[Status]:
    """Executes tasks side by side, `jobs` at a time; one that fails does not stop the others. Returns the final statuses in order.

    All are checked before the first one starts. `on_change` is called about twice a second, in the calling thread, with all
    statuses. The engine is "local" processes, "ray" or "slurm" (which need the extras of these names, and a file system that all
    nodes share). `settings` are `gpus_per_task`, the `address` of a Ray cluster and the options of `slurm`, as of Settings. Where another process
    executes one of the tasks, it is left to that one, and waited for.
    """
    check_limits(jobs, timeout, engine, **settings)
    tasks = [check(task) for task in tasks]
    if tasks and (most := Counter(task.output for task in tasks).most_common(1)[0])[1] > 1:
        raise InputError(f"Two tasks would write {most[0]}: give each an output of its own.")
    if engine != "local":  # whoever executes them may work in another directory
        tasks = [replace(task, notebook=task.notebook.absolute(), output=task.output.absolute()) for task in tasks]
    for task in tasks:
        enqueue(task)
    known = dict[Path, tuple[Any, Status]]()
    if tasks:
        tick = lambda: on_change and on_change([_status(task, known) for task in tasks])  # noqa: E731
        ENGINES[engine].run(tasks, Settings(jobs, timeout, **settings), tick)
    return [task.status() for task in tasks]


def _status(task: Task, known: dict[Path, tuple[Any, Status]]) -> Status:
    """The task's status, from `known` where its file is the same: most of thousands wait, or have ended."""
    with suppress(OSError):
        about = os.stat(task.status_path)
        stamp, (before, status) = (about.st_mtime_ns, about.st_ino, about.st_size), known.get(task.output, (None, {}))
        if stamp != before or status["state"] == "running":  # whose process may have gone
            known[task.output] = stamp, task.status()
        return known[task.output][1]
    return task.status()


def enqueue(task: Task) -> None:
    """Starts its status anew, unless another process executes it, or Slurm already has it in its queue."""
    if lock := task.hold():
        with lock:
            if not slurm.waiting(task):
                task.cancel_path.unlink(missing_ok=True)
                task.enqueue()
