"""Robust contrastive learning without labels (Kim, Tack and Hwang 2020)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustlib.attacks import Ascent
from robustlib.attacks.search import borrowed
from robustlib.data import Batch
from robustlib.errors import InputError
from robustlib.losses import nt_xent, supcon_loss
from robustlib.methods.contrastive import Contrastive, projected
from robustlib.models import Projected
from robustlib.threat import Threat
from robustlib.training import At, Loss


@dataclass(frozen=True, kw_only=True)
class RoCL(Contrastive):
    """min E NT-Xent(x1, x2, x') + (1 / lambda) NT-Xent(x', x2), where x' climbs NT-Xent(x', x2) in the ball around the view x1.

    As released (Kim-Minseon/RoCL): all three positive pairings count, summed and divided by the 3 B rows, which is twice
    `supcon_loss` without labels; the second term comes from a forward pass of its own; gradients flow through one side of each
    similarity; the attack runs in eval mode from a random start. The linear evaluation there is SGD for 150 epochs.
    """

    name = "rocl"
    title = "RoCL"
    paper = "Kim et al. 2020, Adversarial Self-Supervised Contrastive Learning, NeurIPS"
    summary = "An instance-wise attack away from the other augmentation makes the third view, without labels; then a linear head."
    protocol = "pgd20"
    attacks = 1  # on the first view

    lr: float = 0.1  # of pre-training, peak
    weight_decay: float = 1e-6  # of pre-training
    attack_steps: int = 7  # of the attack inside pre-training
    attack_step_size: float | None = 0.007  # at 8/255
    projection: tuple[int, ...] = (2048, 128)  # widths of the projection head
    regulariser: float = 256.0  # lambda: NT-Xent(x', x2) is divided by it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.regulariser > 0:
            raise InputError(f"rocl: regulariser={self.regulariser!r}: give a positive number; inf drops the term.")

    def contrast(self, model: Projected, threat: Threat, batch: Batch, at: At) -> Loss:
        """The three views' loss and its regulariser."""
        x1, x2 = self.two_views(batch)
        with borrowed(model), torch.no_grad():
            fixed = model.project(x2)

        def apart(seen: Any, x: Tensor) -> Tensor:
            return nt_xent(seen.project(x), fixed, self.temperature, one_sided=True)

        attack = Ascent(threat, self.attack_steps, self.attack_step_size)
        x_adv = attack(model, x1, apart, generator=at.generator, precision=at.precision)
        pair = supcon_loss(projected(model, (x_adv, x2)), None, self.temperature, one_sided=True)
        three = 2 * supcon_loss(projected(model, (x1, x2, x_adv)), None, self.temperature, one_sided=True)
        return Loss(three + pair / self.regulariser, {"views": three, "pair": pair})
