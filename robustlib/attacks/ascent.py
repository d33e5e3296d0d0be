"""PGD on a loss of a whole batch, in which examples see each other, as contrastive losses are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks.draws import Draws, uniform_point
from robustlib.attacks.replica import replica_of
from robustlib.attacks.search import Precision, borrowed
from robustlib.errors import InputError, check_counts
from robustlib.threat import Threat


@dataclass(frozen=True)
class Ascent:
    """x_0 = a random point of the ball; x_{k+1} = Projection(x_k + step_size * steepest(gradient of the loss at x_k)).

    For training without labels. Evaluation attacks logits, with `PGD` and the others.

    Args:
        threat: the allowed perturbations.
        steps: gradient steps, >= 1.
        step_size: length of a step in the threat's norm; None = eps / 4 (2/255 at 8/255).

    Raises:
        InputError: at construction, a value outside these ranges.
    """

    threat: Threat
    steps: int = 5
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_counts(self, "steps")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"Ascent step_size={self.step_size!r}: give a positive length, or None for eps / 4.")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        loss: Callable[[Any, Tensor], Tensor],
        *,
        generator: torch.Generator | None = None,
        precision: Precision = "32-true",
    ) -> Tensor:
        """x_adv (B, C, H, W) inside the ball around `x` and inside [0, 1]; the model is left as found.

        Args:
            model: what `loss` looks at, by way of a faster twin where there is one; in eval mode meanwhile.
            x: images (B, C, H, W) in [0, 1].
            loss: the model or its twin, and images (B, C, H, W) -> what to climb, a scalar.
            generator: source of the random start.
            precision: of the forward and backward passes.
        """
        length = self.threat.eps / 4 if self.step_size is None else self.step_size
        x_adv = uniform_point(self.threat, x, Draws.from_generator(generator, len(x), x.device))
        with borrowed(model), torch.autocast(x.device.type, torch.bfloat16, enabled=False):
            fast = replica_of(model, x, precision) or model
            for _ in range(self.steps):
                x_adv = x_adv.detach().requires_grad_(True)
                cast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
                with torch.enable_grad(), cast:
                    (gradient,) = torch.autograd.grad(loss(fast, x_adv), x_adv)
                x_adv = self.threat.project(x_adv + self.threat.steepest_step(gradient, length), x)
        return x_adv.detach()
