"""What breaks first: 50 000 images of 1 000 classes at 224 pixels on one machine, and 10 000 trainings on up to 1 000 GPUs.

    python benchmarks/scale.py      # a quarter of an hour on one core, 13 GiB of memory; writes scale.md

The network of the first part is tiny: what is measured is the memory and time that robustlib itself adds to a user's passes. The second part
measures what one command spends on each of its tasks, and what a training writes, then simulates a batch by events: GPUs train, a file
system takes what they write, and one process watches statuses and writes the index. No cluster of that size was ever used.
"""

import argparse
import heapq
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import many_runs
import torch
from side_by_side import cifar_model, markdown, write_report
from torch import nn

from robustlib.attacks import PGD
from robustlib.audit import audit
from robustlib.data import Split
from robustlib.evaluation import evaluate
from robustlib.representation import features
from robustlib.runs import save_weights
from robustlib.threat import Threat
from robustlib.training.loop import moving_average
from robustlib.workbook.cli import SELDOM
from robustlib.workbook.engines.batch import _status
from robustlib.workbook.experiments.studies import MOST
from robustlib.workbook.task import Task

IMAGES, CLASSES, SIDE, FEW = 50_000, 1000, 224, 2048
THREAT = Threat("linf", 4 / 255)
GPUS, RUNS, EPOCHS = (10, 100, 1000), 10_000, 50
EPOCH, EVALUATION = 10.0, 600.0  # seconds of PGD-AT on a GPU, and of what follows a training: aims, not measured here
DISK = 2e9  # bytes a second that a shared file system takes: an assumption
TICK = 0.5  # seconds between two looks at all statuses


class Tiny(nn.Sequential):
    """A classifier of 1 000 classes that costs next to nothing."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, 16, 16, stride=16), nn.Linear(16, CLASSES)
        super().__init__(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def images(n: int) -> Split:
    """n images, of different greys."""
    grey = (torch.arange(n) % 256).to(torch.uint8)[:, None, None, None]
    every = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8).copy_(grey)
    return Split(every, torch.arange(n) % CLASSES, torch.arange(n))


def clean(n: int) -> dict[str, object]:
    """Clean accuracy alone."""
    frame = evaluate(Tiny().eval(), images(n), {})
    return {"result (MiB)": f"{frame.memory_usage(deep=True).sum() / 2**20:.1f}"}


def attacked(n: int) -> dict[str, object]:
    """Three attacks; the records of each image grow with their number."""
    attacks = {name: PGD(THREAT, steps=2) for name in ("pgd20", "cw50", "square")}
    frame = evaluate(Tiny().eval(), images(n), attacks, adaptive={})
    return {"result (MiB)": f"{frame.memory_usage(deep=True).sum() / 2**20:.1f}"}


def audited(n: int) -> dict[str, object]:
    """The audit, with fewer queries than usual: it keeps images of several attacks at a time."""
    audit(Tiny().eval(), images(n), THREAT, queries=20, noise=20, targets=2, readouts=4)
    return {"result (MiB)": "–"}


def represented(n: int) -> dict[str, object]:
    """Features of all images at the penultimate layer."""
    table = features(Tiny().eval(), images(n), layers="3")["3"]
    return {"result (MiB)": f"{table.nbytes / 2**20:.1f}"}


WORK = {
    "clean images": (clean, IMAGES),
    "three attacks of two steps": (attacked, FEW),
    "audit": (audited, FEW),
    "features": (represented, IMAGES),
}


def large() -> list[dict[str, object]]:
    """Each piece of work in a process of its own: CPU-seconds, memory at its peak, and that of the images alone."""
    rows = []
    for name, (_, n) in WORK.items():
        done = subprocess.run(
            [sys.executable, __file__, "--only", name],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
        rows.append({"work": name, "images": spaced(n), **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    return rows


def alone(name: str) -> None:
    """Prints what a piece of work took in this process."""
    work, n = WORK[name]
    began = time.process_time()
    more = work(n)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    stored = n * 3 * SIDE * SIDE / 2**20
    spent = {"CPU-seconds": f"{time.process_time() - began:.0f}", "images as uint8 (MiB)": f"{stored:.0f}"}
    print(json.dumps({**spent, "peak memory (MiB)": f"{peak:.0f}", **more}))


@dataclass(frozen=True)
class Costs:
    """What one command and its trainings cost: seconds of the watching process, bytes of a training."""

    look: float  # at the status of one task that waits or has ended
    look_running: float  # at that of one that runs
    index: float  # to write the index, for each run in it
    epoch: float  # bytes written after an epoch
    best: float  # and after one that is the best so far


def measured(folder: Path) -> Costs:
    """The costs, measured on tasks, runs and a ResNet-18 in `folder`."""
    waiting = [Task(Path("a.ipynb"), {}, folder / "tasks" / f"{k}.ipynb") for k in range(MOST)]
    (folder / "tasks").mkdir()
    known: dict[Path, Any] = {}
    for task in waiting:
        task.enqueue()
        _status(task, known)
    began = time.process_time()
    for task in waiting:
        _status(task, known)
    look = (time.process_time() - began) / MOST
    for task in waiting[:1000]:
        task.record(state="running")
    began = time.process_time()
    for task in waiting[:1000]:
        _status(task, known)
    look_running = (time.process_time() - began) / 1000
    many_runs.copies(1000, folder / "runs")
    for _ in range(2):  # the second time most is known of them
        index, *_ = many_runs.spent("index", folder / "runs", folder / "reports")
    model = cifar_model("resnet18", torch.device("cpu"))
    average = moving_average(model, 0.999)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    parts = {"model": model.state_dict(), "ema": average.module.state_dict()}
    torch.save({"modules": parts, "optimisers": {"sgd": optimiser.state_dict()}}, folder / "checkpoint.pt")
    save_weights(model, folder / "model.safetensors", {})
    sizes = [(folder / name).stat().st_size for name in ("checkpoint.pt", "model.safetensors")]
    return Costs(look, look_running, index / 1000, float(sizes[0]), float(sizes[1]))


def simulate(gpus: int, runs: int, costs: Costs, epochs: int = EPOCHS) -> dict[str, object]:
    """A batch by events: after each epoch a GPU waits until the file system has taken what it wrote, first come, first served; who ends
    waits for the command to give it another task. That one looks at all statuses in every tick, and then may write the index."""
    events: list[tuple[float, int, int, int]] = [
        (0.0, k, k, 0) for k in range(min(gpus, runs))
    ]  # when, whose, run, epoch
    heapq.heapify(events)
    started, ended, free, written = (
        min(gpus, runs),
        0,
        0.0,
        0.0,
    )  # when the file system is free again, and how long it worked
    watched, due, idle, indexed = (
        0.0,
        0.0,
        0.0,
        0.0,
    )  # until when the command is busy; when the next index may be; seconds
    last, tick = 0.0, min(runs, MOST) * costs.look + gpus * costs.look_running
    while events:
        now, gpu, run, epoch = heapq.heappop(events)
        last = max(last, now)
        if epoch < epochs:
            took = (costs.epoch + costs.best / 2) / DISK  # every second epoch is the best so far
            begins = max(now + EPOCH, free)
            free, written = begins + took, written + took
            idle += free - (now + EPOCH)
            heapq.heappush(events, (free, gpu, run, epoch + 1))
            continue
        ended += 1
        done = now + EVALUATION
        last = max(last, done)
        seen = max(done + TICK / 2, watched) + tick  # all of a tick's tasks are given out in it
        if seen >= due:
            spent = costs.index * ended
            watched, due, indexed = seen + spent, seen + spent + SELDOM * spent, indexed + spent
        if started < runs:
            idle += seen - done
            heapq.heappush(events, (seen, gpu, started, 0))
            started += 1
    useful = runs * (epochs * EPOCH + EVALUATION)
    return {
        "GPUs": gpus,
        "hours": f"{last / 3600:.1f}",
        "at least": f"{useful / gpus / 3600:.1f}",
        "GPUs at work": f"{useful / (gpus * last):.0%}",
        "the file system writes": f"{written / last:.0%} of the time",
        "the command looks at statuses": f"{tick / (TICK + tick):.1%} of the time",
        "it writes the index": f"{indexed / last:.0%} of the time",
        "GPUs wait": f"{idle / (gpus * last):.1%} of the time",
    }


def spaced(number: int) -> str:
    """50 000."""
    return f"{number:,}".replace(",", " ")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(WORK), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        alone(options.only)
        return 0
    rows = large()
    with tempfile.TemporaryDirectory() as place:
        costs = measured(Path(place))
    said = (
        f"Measured: a look at a status that rests {1e6 * costs.look:.0f} us, at one that runs {1e6 * costs.look_running:.0f} us; "
        f"an index {1000 * costs.index:.1f} ms for each run; a ResNet-18 writes {costs.epoch / 1e6:.0f} MB after an epoch and "
        f"{costs.best / 1e6:.0f} MB more if it is the best. Assumed: {EPOCHS} epochs of {EPOCH:g} s, {EVALUATION:g} s of evaluation, "
        f"{DISK / 1e9:g} GB a second for all.\n"
    )
    simulated = [simulate(gpus, RUNS, costs) for gpus in GPUS]
    print(said, *simulated, sep="\n", flush=True)
    first = f"## {spaced(IMAGES)} images of {spaced(CLASSES)} classes, {SIDE} pixels\n"
    second = f"\n## {spaced(RUNS)} trainings, simulated\n"
    tables = [first, markdown(rows), second, said, markdown(simulated)]
    peak = max(float(row["peak memory (MiB)"]) for row in rows)  # type: ignore[arg-type]
    claims = {
        f"all of it fits into 16 GiB ({peak / 1024:.1f})": peak < 16 * 1024,
        "at 100 GPUs at least 95 % of them are at work": float(str(simulated[1]["GPUs at work"]).rstrip("%")) >= 95,
    }
    return write_report("scale.md", "Scale", "python benchmarks/scale.py", torch.device("cpu"), tables, claims)


if __name__ == "__main__":
    sys.exit(main())
