"""PGD adversarial training (Madry et al. 2018)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.training import At, Loss, Stage, Updates


@dataclass(frozen=True, kw_only=True)
class PGDAT(AdversarialMethod):
    """min E CE(f(x'), y) with x' the PGD maximiser of the same loss in the ball around x (eq. 2.1)."""

    name = "pgd_at"
    title = "PGD adversarial training"
    paper = "Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR"
    summary = "Cross-entropy on images attacked by PGD at every step."
    protocol = "pgd20"

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One adversarial stage."""
        attack = PGD(self.threat(dataset), **self.attack_settings())

        def updates(batch: Batch, at: At) -> Updates:
            x_adv = self.attacked(attack, model, batch, at)
            yield "model", Loss(F.cross_entropy(model(x_adv).float(), batch.y))

        return self.single_stage(model, updates, adversarial=True)
