"""Slurm, by submitit: a batch is one job array. What runs into the time limit is requeued and goes on from its last epoch."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, check_known, explained
from robustlib.workbook.engines import process
from robustlib.workbook.engines.settings import HIDDEN, Settings
from robustlib.workbook.task import CANCELLED, INTERRUPTED, UNDER_WAY, Task

CLUSTER = "slurm"  # of submitit's executors; "local" imitates it by processes
REQUEUES = 1000  # at most so many times a task may run into its limit
USUAL = {"time": 240, "cpus_per_task": 1}  # minutes, and CPUs, where nobody says otherwise
REQUEUED = "Slurm ended it before its time limit; it is queued again and goes on from the last epoch."


def device_type(settings: Settings, device: str, *_: object) -> str:
    """GPUs if some were asked for: nobody can look before the array is there. The tasks then fail where there is none."""
    _options(settings)
    _submitit()
    gpus = settings.gpus_per_task or 0
    if gpus and gpus != int(gpus):
        raise InputError(f"gpus_per_task={gpus:g}: Slurm gives whole GPUs, so give a whole number.")
    kind = device.partition(":")[0] if device != "auto" else "cuda" if gpus else "cpu"
    if kind == "cuda" and not gpus:
        raise InputError(f"--device {device} on Slurm needs a GPU: add --gpus-per-task 1.")
    return kind


def _options(settings: Settings) -> dict[str, Any]:
    """What sbatch is told, by submitit's names: "mem=16GB" -> {"mem": "16GB"}, and a whole number as one."""
    given: dict[str, Any] = dict(USUAL)
    for text in settings.slurm:
        name, sign, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not sign or not name.isidentifier():
            raise InputError(f"--slurm {text!r} sets nothing: write name=value, such as partition=gpu or time=240.")
        given[name] = [value] if name in ("setup", "teardown") else int(value) if value.isdecimal() else value
    return given


def _submitit() -> Any:
    with explained(ImportError, lambda _: "The slurm engine needs submitit: pip install 'robustlib[slurm]'."):
        import submitit
    if CLUSTER == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            "There is no sbatch here: call this on a node of a Slurm cluster from which jobs are submitted."
        )
    return submitit


class Resumed:
    """The function of a job: executes a task, and when Slurm says that time is up, ends it and has it queued again."""

    def __init__(self, timeout: float | None, folder: str, environment: dict[str, str]) -> None:
        self.limits: Any = {"timeout": timeout, "folder": folder, "environment": environment}

    def __call__(self, task: Task) -> None:
        """Executes the task; a thread does, so that the signal is heard meanwhile."""
        from submitit import JobEnvironment

        _belongs(task, JobEnvironment().paths.folder, JobEnvironment().job_id)
        self.stop, errors = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                process.execute_queued(task, stop=self.stop, **self.limits)
            except BaseException as error:  # it is raised in the main thread
                errors.append(error)

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        while self.thread.is_alive():
            self.thread.join(0.2)
        for error in errors:
            raise error

    def checkpoint(self, task: Task) -> Any:
        """What submitit queues again, which it asks for before the limit."""
        self.stop.set()
        self.thread.join(process.GRACE + 5)
        if task.status()["state"] != "done":
            task.record(state="queued", reason=REQUEUED)
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Resumed(**self.limits), task.resumed())


def _belongs(task: Task, folder: Path, job: str) -> None:
    """Keeps which job has the task, for later calls."""
    if lock := task.hold():
        with lock:
            task.record(slurm=[str(folder), job])


def waiting(task: Task) -> Any:
    """The job that Slurm has for a task from an earlier call, where that one is not over; else None."""
    status = task.status()
    known = status.get("slurm") if status.get("state") in UNDER_WAY else None
    if not known or CLUSTER != "slurm":
        return None
    with suppress(Exception):  # where Slurm cannot be asked, it is as if it knew nothing
        job = _submitit().SlurmJob(*known)
        return None if job.done(force_check=True) else job
    return None


def run(tasks: Sequence[Task], settings: Settings, tick: Callable[[], object]) -> None:
    """Submits the tasks as one array, of which `settings.jobs` run at a time, and follows it; calls `tick` about twice a second.

    Tasks that an earlier call submitted are followed, not submitted again. Ctrl-C cancels all; to leave the array alone kill this process.
    """
    submitit = _submitit()
    jobs = {task.output: job for task in tasks if (job := waiting(task))}
    new = [task for task in tasks if task.output not in jobs]
    work = Resumed(settings.timeout, os.getcwd(), {} if settings.gpus_per_task else HIDDEN)
    if new:
        executor = _executor(submitit, settings, new[0].output.parent / ".slurm")
        with explained(Exception, lambda error: f"Slurm did not take the batch: {error}."), executor.batch():
            made = [executor.submit(work, task) for task in new]
        for task, job in zip(new, made, strict=True):
            jobs[task.output] = job
            _belongs(task, job.paths.folder, job.job_id)
    left = list(tasks)
    try:
        while left:
            for task in [task for task in left if jobs[task.output].done()]:
                left.remove(task)
                _ended(task, jobs[task.output])
            for task in left:
                _cancel(task, jobs[task.output])
            tick()
            time.sleep(0.5)
    finally:
        _stop(left, jobs)
        tick()


def _executor(submitit: Any, settings: Settings, folder: Path) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    given = _options(settings) | {"array_parallelism": settings.jobs}
    executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTER, **{f"{CLUSTER}_max_num_timeout": REQUEUES})
    for name in given:
        check_known("option of sbatch", name, SlurmExecutor._valid_parameters())
    with explained(Exception, lambda error: f"submitit cannot use these options of --slurm: {error}."):
        limit = given.pop("time")
        given |= {} if isinstance(limit, int) else {"time": limit}  # sbatch knows 1-12:00:00 too
        named = {f"slurm_{name}": value for name, value in given.items()}
        executor.update_parameters(name="robustlib", timeout_min=limit if isinstance(limit, int) else None, **named)
        if settings.gpus_per_task:
            executor.update_parameters(gpus_per_node=int(settings.gpus_per_task))
    return executor


def _ended(task: Task, job: Any) -> None:
    """Records what the task could not say itself: that Slurm ended its job, and how."""
    if task.status().get("state") not in UNDER_WAY:
        return
    last = str(job.exception() or "").strip().rpartition("\n")[2]
    task.settle({"state": "killed", "reason": f"Slurm's job {job.job_id} ended as {job.state}. {last}".strip()}, 5.0)


def _cancel(task: Task, job: Any) -> None:
    """Takes a task from the queue that `robustlib cancel` named; one that runs is stopped where it does."""
    if task.cancel_path.exists() and (lock := task.hold()):
        with lock:
            if task.status().get("state") == "queued":
                job.cancel(check=False)
                task.cancel_path.unlink(missing_ok=True)
                task.record(**CANCELLED)


def _stop(tasks: Sequence[Task], jobs: dict[Path, Any]) -> None:
    """Cancels what is left: what runs is asked first, so that it can say how it ended."""
    for task in tasks:
        task.cancel_path.touch()
    for task in tasks:
        _cancel(task, jobs[task.output])
    end = time.monotonic() + process.GRACE + 5
    while any(task.status().get("state") == "running" for task in tasks) and time.monotonic() < end:
        time.sleep(0.2)
    for task in tasks:
        jobs[task.output].cancel(check=False)
        task.cancel_path.unlink(missing_ok=True)
        task.settle(INTERRUPTED)
