"""MART (Wang et al. 2020)."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.losses import mart_loss
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.training import Loss, Stage


@dataclass(frozen=True, kw_only=True)
class MART(AdversarialMethod):
    """min E BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) with x' the PGD maximiser of the cross-entropy.

    As released, the attack climbs from x + 0.001 N(0, I) in eval mode, and x and x' are forwarded separately in train mode.
    Unlike the release, that start is clipped to [0, 1] before its first gradient (there after its first step).
    Epochs, learning rate and weight decay are those of the released ResNet-18 script.
    """

    name = "mart"
    title = "MART"
    paper = "Wang et al. 2020, Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR"
    summary = "Boosted cross-entropy on attacked images plus a KL that weighs misclassified images more."
    protocol = "pgd20"

    epochs: int = 120
    lr: float = 0.01  # a tenth of the usual, with seven times the weight decay
    weight_decay: float = 3.5e-3
    milestones: tuple[float, ...] = (74, 89, 99)  # the release counts epochs from 1: 75, 90, 100
    attack_step_size: float | None = 0.007  # at 8/255
    beta: float = 5.0  # weight of the KL (lambda in the paper); released: 5 with ResNet-18, 6 with WRN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise InputError(f"mart: beta={self.beta!r}: give a weight of at least 0.")

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One adversarial stage."""
        attack = PGD(self.threat(dataset), start="gaussian", **self.attack_settings())

        def loss(batch: Batch, x_adv: Tensor) -> Loss:
            return Loss(*mart_loss(model(batch.x), model(x_adv), batch.y, self.beta))

        return self.attacking_stage(model, attack, loss)
