"""Processes of this machine, each with a GPU of its own where there are some."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue

from robustlib.errors import InputError
from robustlib.workbook.engines.process import execute_queued
from robustlib.workbook.engines.settings import HIDDEN, Settings
from robustlib.workbook.task import Task


def device_type(settings: Settings, device: str, *_: object) -> str:
    """The type of device that a task finds which asks for `device`. Raises InputError where more share a GPU than were asked to."""
    from robustlib.training.fit import resolve_device

    if settings.gpus_per_task == 0 and device == "auto":
        return "cpu"
    found = resolve_device(device).type
    slots(settings, device)
    return found


def slots(settings: Settings, device: str) -> list[dict[str, str]]:
    """The environment of each of the tasks that run at a time: every GPU serves as many as `gpus_per_task` allows, one unless told.

    A task that names the GPU itself (cuda:1) sees all.
    """
    jobs, share = settings.jobs, settings.gpus_per_task
    if share == 0:
        return [HIDDEN] * jobs
    if jobs == 1 and not share:
        return [{}]
    gpus = _gpus() if not device.startswith("cpu") else []
    if not gpus:
        return [{}] * jobs
    named = ":" in device
    each = max(1, round(share)) if share else 1  # GPUs of a task
    room = (1 if named else len(gpus) // each) * (int(1 / share + 1e-6) if share and share < 1 else 1)
    if jobs > room:
        there = f"{device}" if named else f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}"
        many = f"{jobs} jobs{f' with {share:g} GPUs each' if share else ''} would share {there}"
        raise InputError(f"{many}: give --jobs {max(room, 1)}, or --gpus-per-task 0.5 where two may share one.")
    if named:
        return [{}] * jobs
    groups = [gpus[k : k + each] for k in range(0, len(gpus) - each + 1, each)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[k % len(groups)])} for k in range(jobs)]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from torch import cuda

    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (visible or [str(k) for k in range(cuda.device_count())])[: cuda.device_count()]


def run(tasks: Sequence[Task], settings: Settings, tick: Callable[[], object]) -> None:
    """Executes the tasks, `settings.jobs` at a time; calls `tick` about twice a second."""
    stop, free = threading.Event(), SimpleQueue[dict[str, str]]()
    devices = {str(task.parameters.get("device", "auto")) for task in tasks}
    for environment in slots(settings, devices.pop() if len(devices) == 1 else "auto"):
        free.put(environment)

    def one(task: Task) -> None:
        environment = free.get()
        try:
            execute_queued(task, timeout=settings.timeout, stop=stop, environment=environment)
        finally:
            free.put(environment)

    with ThreadPoolExecutor(settings.jobs) as pool:
        futures = [pool.submit(one, task) for task in tasks]
        try:
            while wait(futures, timeout=0.5).not_done:
                tick()
        finally:  # after Ctrl-C, or if a display fails, no worker may stay behind
            stop.set()
            wait(futures)
            tick()
    for future in futures:
        future.result()
