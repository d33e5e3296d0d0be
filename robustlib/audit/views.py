"""Models as the audit looks at them."""

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """A model whose logits are multiplied by `factor`: the same predictions, other gradients of the cross-entropy."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.stochastic = bool(getattr(model, "stochastic", False))

    def forward(self, x: Tensor) -> Tensor:
        """factor * logits (B, K)."""
        return self.factor * self.model(x)


class Anchored(nn.Module):
    """A model that can always be differentiated: where its output does not depend on x for autograd, the gradient is zero.

    Attacks stop with an error on a model that leaves autograd's graph (numpy, detach); here they go on and find nothing,
    as if the gradient were zero, and the checks that follow say why.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.stochastic = model, bool(getattr(model, "stochastic", False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits = self.model(x)
        if x.requires_grad and torch.is_grad_enabled():
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits
