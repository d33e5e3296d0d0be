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
ROUNDS, STEPS = 3, 3  # of the measurement: each precision in turn, the fastest of its rounds counts

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
    seconds). A process measures once for each structure of a model and shape of images."""
    key = x.device.type, str(model), tuple(x.shape)
    if key not in _gains:
        y, costs = torch.zeros(len(x), dtype=torch.int64, device=x.device), dict[Any, float]()
        with forked(x.device):
            for turn in range(ROUNDS + 1):  # the first one warms up
                for precision in ("32-true", "bf16-mixed"):
                    seconds = _seconds(PGD(Threat("linf", 0.1), STEPS, precision=precision), model, x, y)
                    costs[precision] = min(seconds, costs.get(precision, seconds) if turn > 1 else seconds)
        _gains[key] = costs["32-true"] / costs["bf16-mixed"]
    return _gains[key]


def _seconds(attack: PGD, model: nn.Module, x: Tensor, y: Tensor) -> float:
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter  # others may be using this CPU
    began = clock()
    attack(model, x, y)[0, 0].tolist()  # waits for the device
    return clock() - began
