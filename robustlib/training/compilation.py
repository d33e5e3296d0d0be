"""Compiled training: what is compiled of a model, and whether that is faster here."""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks import BatchPGD
from robustlib.attacks.base import Precision
from robustlib.threat import Threat

STEPS, ROUNDS = 10, 3  # of the attack in each round


def encoder_of(model: Any) -> nn.Module:
    """What is compiled of a model: its encoder, through which every method goes whatever it asks of a model, else all of it."""
    encoder: nn.Module = getattr(model, "encoder", model)
    return encoder


def speed_up(model: nn.Module, x: Tensor, threat: Threat, precision: Precision) -> float:
    """How many times as fast ten attack steps on x (B, C, H, W) and the pass that trains on the outcome are when compiled."""
    attack, seconds = BatchPGD(threat, STEPS), []

    def loss(seen: nn.Module, at: Tensor) -> Tensor:
        return encoder_of(seen)(at).float().square().mean()

    for compiled in (False, True):
        twin, times = copy.deepcopy(model).train(), []
        if compiled:
            encoder_of(twin).compile(dynamic=False)
        for _ in range(1 + ROUNDS):  # the first compiles
            started = time.perf_counter()
            x_adv = attack(twin, x, loss, precision=precision)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                value = loss(twin, x_adv)
            value.backward()
            times.append(time.perf_counter() - started)
        seconds.append(min(times[1:]))
    return seconds[0] / seconds[1]
