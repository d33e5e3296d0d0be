"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass

from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.losses import trades_loss
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.training import At, Loss, Stage, Updates


@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialMethod):
    """min E CE(f(x), y) + beta max KL(p(x) || p(x')) over the ball around x (eq. 5).

    The attack climbs the same KL from x + 0.001 N(0, I) in eval mode; the clean side of the KL is not detached. As released,
    x and x' are forwarded separately in train mode, so BatchNorm sees each batch by itself.
    """

    name = "trades"
    title = "TRADES"
    paper = "Zhang et al. 2019, Theoretically Principled Trade-off between Robustness and Accuracy, ICML"
    summary = "Clean cross-entropy plus a weighted KL between clean and attacked predictions."
    protocol = "pgd20"

    beta: float = 6.0  # weight of the robust term (1/lambda in the paper, section 5; 6 on CIFAR-10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise InputError(f"trades: beta={self.beta!r}: give a weight of at least 0.")

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One adversarial stage."""
        attack = PGD(self.threat(dataset), objective="kl", start="gaussian", **self.attack_settings())

        def updates(batch: Batch, at: At) -> Updates:
            x_adv = self.attacked(attack, model, batch, at)
            total, parts = trades_loss(model(batch.x), model(x_adv), batch.y, self.beta)
            yield "model", Loss(total, parts)

        return self.single_stage(model, updates, adversarial=True)
