"""A Ray cluster whose nodes share a file system. Ray places tasks; what becomes of them stands in their statuses."""

import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, explained
from robustlib.runs import write_atomic
from robustlib.workbook.engines import process
from robustlib.workbook.engines.settings import HIDDEN, Settings
from robustlib.workbook.task import INTERRUPTED, UNDER_WAY, Status, Task

PATIENCE = 10.0  # seconds for which a cluster may be silent, and what a dying worker has to say is waited for
PULSE = 3.0  # seconds between two questions whether it is there


def device_type(settings: Settings, device: str, folders: Sequence[Path], files: Sequence[str]) -> str:
    """Asks each node that can run a task which type of device one finds there that asks for `device`, and whether it sees folders and files."""
    ray = _connect(settings.address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    share, tokens = _share(ray, settings), list[Path]()
    nodes = [node for node in ray.nodes() if node["Alive"] and _fits(node["Resources"], share)]
    if not nodes:
        wanted = f"a CPU and {share:g} GPUs" if share else "a CPU"
        raise InputError(f"No node of the Ray cluster has {wanted} for a task: start one that has, or ask for less.")
    try:
        for folder in folders:  # one of that name may be there and be another
            tokens.append(folder.absolute() / f".{uuid.uuid4().hex[:8]}.token")
            write_atomic(tokens[-1], "")
        look, found = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_look), []  # whose process ends with it
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            seen = look.options(scheduling_strategy=there).remote([*map(str, tokens), *files], device, share > 0)
            found.append(seen)
        answers = _answers(ray, nodes, found)
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)
    for name, missing, error, _ in answers:
        if missing:
            place = missing.rpartition("/")[0] if missing.endswith(".token") else missing
            raise InputError(f"The Ray node {name} does not see {place}: put it in a folder that all nodes share.")
        if error:
            more = "" if share else " Tasks see the GPUs that --gpus-per-task asks for."
            raise InputError(f"The Ray node {name} says: {error}{more}")
    types = {kind for *_, kind in answers}
    if len(types) > 1:
        raise InputError(
            f"Some Ray nodes would train on {' and others on '.join(sorted(types))}: say --device and --precision."
        )
    return types.pop()


def _answers(ray: Any, nodes: Sequence[Any], found: Sequence[Any]) -> list[tuple[str, str, str, str]]:
    """The address of each node and what it says; those that died meanwhile will not execute anything and are left out."""
    answers = []
    for node, reference in zip(nodes, found, strict=True):
        try:
            answers.append((node["NodeManagerAddress"], *ray.get(reference)))
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue
        except ray.exceptions.RayError as error:
            said = f"The Ray node {node['NodeManagerAddress']} cannot run robustlib ({_short(error)})"
            raise InputError(f"{said}: install the same robustlib and Python on all nodes.") from error
    if not answers:
        raise InputError("All nodes of the Ray cluster that could run a task died while they were asked: start some.")
    return answers


def _look(files: Sequence[str], device: str, gpus: bool) -> tuple[str, str, str]:
    """On a node: the first of the files that is not there, or why there is no such device, or its type."""
    if missing := [file for file in files if not os.path.exists(file)]:
        return missing[0], "", ""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None) if gpus else os.environ.update(HIDDEN)
    from robustlib.training.fit import resolve_device

    try:
        return "", "", resolve_device(device).type
    except InputError as error:
        return "", str(error), ""


def _connect(address: str) -> Any:
    """The library, connected to the cluster at `address`, else at RAY_ADDRESS, else to one that it starts on this machine."""
    with explained(ImportError, lambda _: "The ray engine needs ray: pip install 'robustlib[ray]'."):
        import ray
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS", "")
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "/" not in host and not _answers_at(host, int(port)):
            raise InputError(f"No Ray cluster answers at {address}: start one with `ray start`, or correct --address.")
        said = f"Ray cannot be used{f' at {address}' if address else ''}"
        with explained(Exception, lambda error: f"{said} ({_short(error)}): correct --address, or start a cluster."):
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def _answers_at(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), PATIENCE / 2):
        return True
    return False


def _share(ray: Any, settings: Settings) -> float:
    """GPUs of a task: those asked for, else the cluster's shared among the jobs, at most one for each."""
    if settings.gpus_per_task is not None:
        return settings.gpus_per_task
    return min(1.0, ray.cluster_resources().get("GPU", 0) / settings.jobs)


def _fits(resources: dict[str, float], share: float) -> bool:
    return resources.get("CPU", 0) >= 1 and resources.get("GPU", 0) >= share


def _execute(task: Task, timeout: float | None, folder: str, environment: dict[str, str]) -> Status:
    """On a node. Ctrl-C of the caller arrives as KeyboardInterrupt."""
    return process.execute_queued(task, timeout=timeout, folder=folder, environment=environment)


def _short(error: BaseException) -> str:
    return str(getattr(error, "cause", None) or error).strip().partition("\n")[0].partition(". ")[0]


def run(tasks: Sequence[Task], settings: Settings, tick: Callable[[], object]) -> None:
    """Executes the tasks, `settings.jobs` at a time; calls `tick` about twice a second.

    One whose worker or node dies is executed once more, and goes on from its checkpoint; after that it is "killed". If the cluster is
    lost, so are all that were under way.
    """
    ray = _connect(settings.address)
    share = _share(ray, settings)
    address = "" if settings.address.startswith("ray://") else ray.get_runtime_context().gcs_address
    remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(_execute)
    rest: Any = (settings.timeout, os.getcwd(), {} if share else HIDDEN)
    queued, again, running, seen = list(tasks), set[Path](), dict[Any, Task](), time.monotonic()
    asked, lost = seen, False
    try:
        while queued or running:
            while queued and len(running) < settings.jobs:
                task = queued.pop(0)
                running[remote.remote(task, *rest)] = task
            ended, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in ended:
                task = running.pop(reference)
                if _died(ray, reference, task, last=task.output in again):
                    again.add(task.output)
                    queued.insert(0, task.resumed())
            tick()
            if address and time.monotonic() - asked > PULSE:
                asked = time.monotonic()
                seen = asked if _answers_at(*_place(address)) else seen
                if lost := asked - seen > PATIENCE:
                    break
    finally:
        _stop(ray, running, queued, f"The Ray cluster at {address} was lost" if lost else "")
        tick()


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _died(ray: Any, reference: Any, task: Task, last: bool) -> bool:
    """Whether a task that ended shall be executed once more; what Ray says of it goes into its status."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # raised by `_execute`, such as by a folder that cannot be written
        name = type(error.cause).__name__
        task.settle({"state": "failed", "exception": name, "reason": f"{name}: {error.cause}"}, PATIENCE)
    except ray.exceptions.RayError as error:
        said = f"Its Ray worker died ({_short(error)})"
        end: Status = {"state": "killed", "reason": f"{said}, for the second time."}
        if not last:
            end = {"state": "queued", "reason": f"{said}; it goes on from the last epoch."}
            end |= {"host": platform.node(), "pid": os.getpid()}
        with task.hold(PATIENCE) or nullcontext():  # the worker's last words come first
            if task.status()["state"] in (*UNDER_WAY, "interrupted"):
                task.record(**end)
                return not last
    return False


def _stop(ray: Any, running: dict[Any, Task], queued: Sequence[Task], lost: str) -> None:
    """Ends what is under way, and sees to it that no status says it still is."""
    end = {"state": "killed", "reason": f"{lost}; the same call goes on from the last epoch."} if lost else INTERRUPTED
    if lost:
        ray.shutdown()  # else Ray ends this process a minute after it lost its cluster
    for reference in running if not lost else ():
        ray.cancel(reference)  # raises KeyboardInterrupt in `_execute` over there
    for task in queued:
        task.settle(end)
    if running and not lost:
        ray.wait(list(running), num_returns=len(running), timeout=process.GRACE + 2)
    for task in running.values():
        task.settle(end, PATIENCE / 2)
        state = task.status()["state"]  # under way still, where a process that hangs or is out of reach has the lock
        if state in UNDER_WAY or (lost and state == "interrupted"):
            task.record(**end)
