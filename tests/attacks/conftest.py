"""What tests of attacks share."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from robustlib.attacks import APGD, FAB, Square, Threat
from tests.conftest import ConvNet

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
QUICK: list[Any] = [APGD(LINF, 5), APGD(LINF, 5, targets=2, objective="margin"), FAB(LINF, 5, 2), Square(LINF, 20)]
ROUNDS = [replace(attack, threat=threat) for threat in (LINF, L2) for attack in QUICK]


def name(attack: Any) -> str:
    where = attack.threat.norm if hasattr(attack, "threat") else attack.bound
    return f"{type(attack).__name__}-{where}{'-t' if getattr(attack, 'targets', 0) else ''}"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(classes: int = 5, n: int = 24, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, *shape), torch.randint(classes, (n,))


@pytest.fixture
def jumpy() -> nn.Module:
    """Says 0 in float32 and something else in bf16."""

    class Jumpy(ConvNet):
        def forward(self, x):
            logits = super().forward(x).float()
            sure = nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 5) * 1e3
            return -sure + logits if torch.is_autocast_enabled("cpu") else sure + logits

    return Jumpy().eval()
