"""In which precision an attack searches: bf16 where the device gains by it. Verdicts are always float32."""

import time
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustlib.attacks.base import Precision
from robustlib.attacks.pgd import PGD
from robustlib.rng import forked
from robustlib.threat import Threat

GAIN = (
    1.6  # by which a step in bf16 must be faster: verdicts, and a second search of what is near a success, stay float32
)
ROUNDS, STEPS = 3, 3  # of the measurement
FEW = 8  # images of the look before it
EMULATED = 0.5  # the gain below which no measurement is needed

T = TypeVar("T")
_gains: dict[tuple[str, str, tuple[int, ...]], float] = {}  # by device, structure of the model, and shape of the images


def in_precision(attack: T, precision: Precision) -> T:
    """The attack with its search in that precision; as it is where it has none to choose."""
    return replace(attack, precision=precision) if hasattr(attack, "precision") else attack  # type: ignore[type-var]


def fastest_precision(model: nn.Module, x: Tensor) -> Precision:
    """The precision in which to search at the images x (B, C, H, W): bf16 where its `bf16_gain` reaches GAIN."""
    return "bf16-mixed" if bf16_gain(model, x) >= GAIN else "32-true"


def bf16_gain(model: nn.Module, x: Tensor) -> float:
    """How many times as much a step of PGD at the images x (B, C, H, W) costs in float32 as in bf16, in CPU-seconds (on a GPU in
    seconds). A process measures once for each structure of a model and shape of images; where a look at FEW images shows that bf16
    is emulated, so many more would take minutes, and the look decides."""
    key = x.device.type, str(model), tuple(x.shape)
    if key not in _gains:
        with forked(x.device):
            look = _gain(model, x[:FEW], rounds=1, steps=1)
            _gains[key] = look if look < EMULATED else _gain(model, x, ROUNDS, STEPS)
    return _gains[key]


def _gain(model: nn.Module, x: Tensor, rounds: int, steps: int) -> float:
    """The gain by the fastest of so many rounds, after one that warms up; each precision in turn."""
    y, costs = torch.zeros(len(x), dtype=torch.int64, device=x.device), dict[Any, list[float]]()
    for _ in range(rounds + 1):
        for precision in ("32-true", "bf16-mixed"):
            seconds = _seconds(PGD(Threat("linf", 0.1), steps, precision=precision), model, x, y)
            costs.setdefault(precision, []).append(seconds)
    return min(costs["32-true"][1:]) / min(costs["bf16-mixed"][1:])


def _seconds(attack: PGD, model: nn.Module, x: Tensor, y: Tensor) -> float:
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter  # others may be using this CPU
    began = clock()
    attack(model, x, y)[0, 0].tolist()  # waits for the device
    return clock() - began
