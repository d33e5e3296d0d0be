"""What the speed benchmarks share: competitors timed in turn, so that a noisy machine is noisy for all of them."""

import argparse
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from robustlib.models import build_model
from robustlib.runs.provenance import processor

FOLDER = "ROBUSTLIB_BENCHMARKS"  # the environment variable that `write_report` asks
KEPT = "<!-- kept -->"  # what stands below it in a page was added by hand
CIFAR = SimpleNamespace(num_classes=10, image_shape=(3, 32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


def cifar_model(arch: str, device: torch.device, **options: bool) -> Any:
    """A fresh model for 32x32 colour images whose BatchNorm statistics have seen some; options as of `build_model`."""
    torch.manual_seed(0)
    model = build_model(arch, CIFAR, **options).to(device)
    with torch.no_grad():
        model.train()(torch.rand(64, 3, 32, 32, device=device))
    return model.eval()


class Counted(nn.Module):
    """A model whose passes are counted, whoever attacks it: images forward and, where a gradient comes back, backward."""

    seen: ClassVar[Counter[str]] = Counter()  # of all instances: attacks may copy a model

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.image_shape = model, getattr(model, "image_shape", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The model's logits (B, K)."""
        logits: torch.Tensor = self.model(x)
        self.seen["forward"] += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda slope: self.seen.update(backward=len(slope)))
        return logits


def passes_per_image(attack: Callable[[nn.Module], object], model: nn.Module, images: int) -> float:
    """Forward and backward passes of `attack(model)`, called twice: the first time a folded copy of the model is checked."""
    counted = Counted(model).train(model.training)
    for _ in range(2):
        Counted.seen.clear()
        attack(counted)
    return Counted.seen.total() / images


def timed_options(parser: argparse.ArgumentParser, batch: int) -> argparse.Namespace:
    """What the command line says of --device, --batch, --rounds, --threads and the parser's own; torch takes the threads."""
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def alternate(
    competitors: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Median seconds of each competitor over `rounds` turns by a `clock`, on a GPU after one turn that is not counted. By default
    that is CPU time of this process, which other processes do not change, and on a GPU wall time."""
    clock = clock or (time.perf_counter if device.type == "cuda" else time.process_time)
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for turn in range(0 if device.type == "cuda" else 1, rounds + 1):
        for name, work in competitors.items():
            started = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def absent(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in modules if find_spec(name) is None]


def left_out(names: Iterable[str]) -> list[str]:
    """A line that names the peers which a report is without, as a list of no or one part of it."""
    said = ", ".join(names)
    return [f"Left out, not installed here: {said}.\n"] if said else []


def machine(device: torch.device) -> str:
    """One line on where it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def markdown(rows: list[Mapping[str, object]]) -> str:
    """A table of dicts with the same keys in the same order; ValueError where a row has others."""
    if any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(f"Rows with other columns than the first one's, {list(rows[0])}.")
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]) + "\n"


def kept(page: Path) -> str:
    """The part of a page that a script which writes it anew leaves as it is: KEPT and all below it, or nothing."""
    _, marker, below = (page.read_text() if page.exists() else "").partition(KEPT)
    return f"\n{marker}{below}" if marker else ""


def write_report(
    file: str, title: str, command: str, device: torch.device, tables: list[str], claims: Mapping[str, bool]
) -> int:
    """Prints the report, writes it beside the benchmark, and returns 1 if a claim does not hold.

    The names of files measured on a GPU end in its type, and those of speeds on a CPU with AMX in "_amx": each kind is kept. Where the
    environment variable ROBUSTLIB_BENCHMARKS names a folder, it is written there, and what is committed stays as it is. Of a page that
    is there already, what stands below KEPT is kept.
    """
    verdicts = "\n".join(f"- {'holds' if ok else '**does not hold**'}: {claim}" for claim, ok in claims.items())
    text = f"# {title}\n\n`{command}` on {machine(device)}\n\n" + "\n".join(tables) + f"\n{verdicts}\n"
    print(text)
    folder = Path(os.environ.get(FOLDER) or Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    kind = device.type if device.type != "cpu" else "amx" if "_speed" in file and processor().endswith("AMX") else ""
    page = folder / (file.replace(".md", f"_{kind}.md") if kind else file)
    page.write_text(text + kept(page))
    return 0 if all(claims.values()) else 1
