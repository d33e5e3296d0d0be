"""Models that several test modules of the attacks share."""

import pytest
import torch
from torch import nn

from tests.conftest import ConvNet


@pytest.fixture
def jumpy() -> nn.Module:
    """Says 0 in float32 and something else in bf16."""

    class Jumpy(ConvNet):
        def forward(self, x):
            logits = super().forward(x).float()
            sure = nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 5) * 1e3
            return -sure + logits if torch.is_autocast_enabled("cpu") else sure + logits

    return Jumpy().eval()
