"""What training_speed.py times and weighs: a step of the real loop, passes of the bare model, and the memory of a step."""

import itertools
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain_loops import EPS, STEPS
from side_by_side import CIFAR, cifar_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from robustlib.data import Dataset, Split
from robustlib.methods import METHODS, Contrastive, Method, make_method
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training import StepContext
from robustlib.training.compilation import encoder_of, tuned_convolutions
from robustlib.training.loop import Training, moving_average

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
PASSES = 5  # of the bare model at a time


def made_up_dataset(n: int, side: int = 32) -> Dataset:
    """Random images of CIFAR-10's shape, or larger ones: speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    train, val, test = (Split(images, torch.arange(n) % 10, torch.arange(n) + first) for first in (0, n, 2 * n))
    test = replace(test, images=255 - images)  # a data set's splits share no images
    names = tuple(map(str, range(10)))
    return Dataset("made-up", train, val, test, names, CIFAR.mean, CIFAR.std, Threat("linf", EPS))


def method_of(name: str, batch_size: int) -> Method:
    """The method as its paper has it, with `STEPS` steps of the attack unless it allows a single one."""
    options: dict[str, float] = {"attack_steps": STEPS} if METHODS[name].attack_steps > 1 else {}  # type: ignore[attr-defined]
    options |= {"angle": 180.0} if name == "arrest" else {}  # every step is attacked, none replays noise
    return make_method(name, batch_size=batch_size, **options)


def our_step(
    name: str, precision: str, batch_size: int, device: torch.device, compiled: bool = False
) -> Callable[[], object]:
    """One step of the real loop in the last stage of the real method, its teacher and moving average included; if asked compiled,
    where that is faster or not.

    The last stage of a contrastive method is a mere head: there it is the one before.
    """
    dataset, method = made_up_dataset(batch_size), method_of(name, batch_size)
    run = Run(Path(tempfile.mkdtemp()))
    model = cifar_model("resnet18", device, **method.model_options())
    training = Training(
        run, method, dataset, model, 0, device, PRECISIONS[precision], torch.get_num_threads(), False, False
    )
    training.stage = stage = method.stages(dataset, training.model)[-2 if isinstance(method, Contrastive) else -1]
    training.modules = stage.modules
    for module in stage.modules.values():
        module.to(device)
    if stage.begin is not None:
        stage.begin()
    training.optimisers = {key: spec.build() for key, spec in stage.optimisers.items()}
    training.average = moving_average(training.model, stage.ema) if stage.ema else None
    part, batch = stage.passes[-1], next(dataset.train.to(device).batches(batch_size))
    generator = torch.Generator(device).manual_seed(0)
    training.model.train()
    if compiled:
        encoder_of(training.model).compile(dynamic=False)
    context = StepContext(0, 0, 0.0, generator, PRECISIONS[precision])
    return tuned_convolutions()(lambda: training._step(part, batch, context))


def bare_passes(precision: str, x: Tensor, y: Tensor) -> Callable[[], object]:
    """PASSES forward-backward passes in train mode, weight gradients included."""
    model = cifar_model("resnet18", x.device).to(memory_format=torch.channels_last).train()

    def work() -> None:
        for _ in range(PASSES):
            model.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()

    return work


def allocated_mb(work: Callable[[], object]) -> float:
    """MiB that the tensors of `work` take together at its fullest moment: counted by torch's profiler, so the same on every machine."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    assert watched.profiler is not None
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_order = sorted(events, key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in in_order)) / 2**20


def peak_mb(make: Callable[..., Callable[[], object]], *arguments: Any, device: torch.device, threads: int) -> float:
    """MiB that make(*arguments) and a first call of what it returns need beyond what the process held before, measured in a
    process of its own.

    Of a training step: the momentum comes after the first; it is as large for every method.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, make, arguments, device, threads).result()


def _peak_here(
    make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: torch.device, threads: int
) -> float:
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = 0.0 if device.type == "cuda" else _high_water_mb()
    make(*arguments)()
    return (torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _high_water_mb()) - before


def _high_water_mb() -> float:
    """The most memory this process has held (Linux). Unlike ru_maxrss, it inherits nothing from the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:"))
