"""TRADES (Zhang et al. 2019)."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.training import Loss, Stage


@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialMethod):
    """min E CE(f(x), y) + beta max KL(p(x) || p(x')) over the ball around x (eq. 5).

    The attack climbs the same KL from x + 0.001 N(0, I) in eval mode; the clean side of the KL is not detached. As released,
    x, x' and x again are forwarded separately in train mode, so BatchNorm's statistics move three times a step. Unlike the
    release, the attack's start is clipped to [0, 1] before its first gradient (there after its first step).
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

        def loss(batch: Batch, x_adv: Tensor) -> Loss:
            return self.trades_forward(model, batch, x_adv, self.beta)

        return self.attacking_stage(model, attack, loss)
