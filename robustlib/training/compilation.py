"""What makes a training faster: cuDNN's choice of algorithms, and what is compiled of a model, if that is faster here."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks import BatchPGD
from robustlib.attacks.base import Precision
from robustlib.threat import Threat


@contextmanager
def tuned_convolutions() -> Iterator[None]:
    """Within, cuDNN takes the fastest algorithm for each shape that it meets. Not for validation, where attacks on ever fewer
    images would have it try all algorithms for every size."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, not cudnn.deterministic
    try:
        yield
    finally:
        cudnn.benchmark = before


def encoder_of(model: Any) -> Any:
    """What is compiled of a model: its encoder, through which every method goes whatever it asks of a model, else all of it."""
    return getattr(model, "encoder", model)


def speed_up(model: nn.Module, x: Tensor, threat: Threat, precision: Precision) -> float:
    """How many times as fast ten attack steps on x (B, C, H, W) and the pass that trains on the outcome are when compiled."""
    seconds = {False: float("inf"), True: float("inf")}
    for compiled in seconds:
        twin = copy.deepcopy(model).train()
        if compiled:
            encoder_of(twin).compile(dynamic=False)
        for again in (False, True, True, True):  # the first compiles
            started = time.perf_counter()
            x_adv = BatchPGD(threat, 10)(
                twin, x, lambda seen, at: encoder_of(seen)(at).square().sum(), precision=precision
            )
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = encoder_of(twin)(x_adv).square().sum()
            loss.backward()
            seconds[compiled] = min(seconds[compiled], time.perf_counter() - started) if again else seconds[compiled]
    return seconds[False] / seconds[True]
