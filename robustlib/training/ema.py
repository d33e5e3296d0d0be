"""The exponential moving average of a model's weights and statistics."""

import copy

import torch
from torch import nn


class EMA:
    """A shadow of `model` with decay min(decay, (1 + t) / (10 + t)) at update t, so that early updates count.

    Args:
        model: the model that is trained; its floating parameters and buffers are averaged, the others copied.
        decay: long-run decay, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the shadow towards the model."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        theirs = model.state_dict()
        for name, mine in self.module.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], weight)
            else:
                mine.copy_(theirs[name])
