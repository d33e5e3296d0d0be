"""PGD adversarial training (Madry et al. 2018)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.training import Loss, Stage


@dataclass(frozen=True, kw_only=True)
class PGDAT(AdversarialMethod):
    """min E CE(f(x'), y) with x' the PGD maximiser of the same loss in the ball around x (eq. 2.1)."""

    name = "pgd_at"
    title = "PGD adversarial training"
    paper = "Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR"
    summary = "Cross-entropy on images attacked by PGD at every step."
    protocol = "pgd20"

    def inner_attack(self, dataset: Dataset) -> PGD:
        """The attack inside the training."""
        return PGD(self.threat(dataset), **self.attack_settings())

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One adversarial stage."""

        def loss(batch: Batch, x_adv: Tensor) -> Loss:
            return Loss(F.cross_entropy(model(x_adv).float(), batch.y))

        return self.attacking_stage(model, self.inner_attack(dataset), loss)
