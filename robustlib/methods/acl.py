"""Adversarial contrastive learning, the dual-stream variant (Jiang et al. 2020)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustlib.attacks import Ascent
from robustlib.data import Batch
from robustlib.losses import nt_xent
from robustlib.methods.contrastive import Contrastive
from robustlib.models import Projected
from robustlib.models.dual_batchnorm import clean_statistics
from robustlib.threat import Threat
from robustlib.training import At, Loss


@dataclass(frozen=True, kw_only=True)
class ACL(Contrastive):
    """min E (NT-Xent(x1, x2; BN) + NT-Xent(x1 + d1, x2 + d2; BN')) / 2, where (d1, d2) together climb the second term: ACL(DS).

    BatchNorm is dual: attacked views have statistics and affine weights of their own, BN', and these are deployed. As released
    (VITA-Group/Adversarial-Contrastive-Learning) the attack runs on BN' in eval mode from a random start, and the projector's
    maps have a BatchNorm each. It makes three such maps, but its forward pass uses two. Crops there keep 10 % of the area at
    least, here 20 %, and what is fine-tuned (aff) begins with a new head.
    """

    name = "acl"
    title = "ACL(DS)"
    paper = "Jiang et al. 2020, Robust Pre-Training by Adversarial Contrastive Learning, NeurIPS"
    summary = "NT-Xent on clean views and on jointly attacked ones, each with BatchNorm statistics of its own; then a linear head."

    attacks = 2  # both views

    weight_decay: float = 1e-6  # of pre-training
    projection: tuple[int, ...] = (512, 512)  # widths of the projection head

    def model_options(self) -> dict[str, Any]:
        """A projection head with BatchNorm, and dual BatchNorm everywhere."""
        return {**super().model_options(), "projection_batchnorm": True, "dual_batchnorm": True}

    def contrast(self, model: Projected, threat: Threat, batch: Batch, at: At) -> Loss:
        """The mean of the clean and the attacked stream."""
        both = torch.cat(self.two_views(batch))

        def stream(seen: Any, x: Tensor) -> Tensor:
            a, b = seen.project(x).chunk(2)
            return nt_xent(a, b, self.temperature)

        with clean_statistics(model):
            clean = stream(model, both)
        attack = Ascent(threat, self.attack_steps, self.attack_step_size)
        attacked = stream(model, attack(model, both, stream, generator=at.generator, precision=at.precision))
        return Loss((clean + attacked) / 2, {"clean": clean, "attacked": attacked})
