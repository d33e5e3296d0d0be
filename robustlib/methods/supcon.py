"""Supervised contrastive learning (Khosla et al. 2020)."""

from dataclasses import dataclass

from robustlib.data import Batch
from robustlib.losses import supcon_loss
from robustlib.methods.contrastive import Contrastive, projected
from robustlib.models import Projected
from robustlib.threat import Threat
from robustlib.training import At, Loss


@dataclass(frozen=True, kw_only=True)
class SupCon(Contrastive):
    """min E L_out over two augmented views (eq. 2), positives being all views of all images of the class; no attack in it.

    Values of the release (HobbitLong/SupContrast) for CIFAR-10: batch 1024, learning rate 0.5, temperature 0.1, 1000 epochs.
    """

    name = "supcon"
    title = "SupCon"
    paper = "Khosla et al. 2020, Supervised Contrastive Learning, NeurIPS"
    summary = "Pulls augmented images of one class together, without attacks; then a linear head."
    protocol = ""  # its paper attacks nothing

    batch_size: int = 1024
    temperature: float = 0.1  # t of the contrastive loss

    def contrast(self, model: Projected, threat: Threat, batch: Batch, at: At) -> Loss:
        """SupCon of two views."""
        return Loss(supcon_loss(projected(model, self.two_views(batch)), batch.y, self.temperature))
