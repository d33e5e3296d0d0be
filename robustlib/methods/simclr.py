"""Contrastive learning without labels (Chen et al. 2020)."""

from dataclasses import dataclass

from robustlib.data import Batch
from robustlib.losses import nt_xent
from robustlib.methods.contrastive import Contrastive, projected
from robustlib.models import Projected
from robustlib.threat import Threat
from robustlib.training import At, Loss


@dataclass(frozen=True, kw_only=True)
class SimCLR(Contrastive):
    """min E NT-Xent of two augmented views (eq. 1), the positive being the other view of the same image; no label, no attack.

    Values as SupContrast's release runs it on CIFAR-10: batch 1024, learning rate 0.5 with SGD, temperature 0.5, 1000 epochs.
    """

    name = "simclr"
    title = "SimCLR"
    paper = "Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, ICML"
    summary = "Pulls two augmentations of an image together, without labels or attacks; then a linear head."
    protocol = ""  # its paper attacks nothing

    batch_size: int = 1024

    def contrast(self, model: Projected, threat: Threat, batch: Batch, at: At) -> Loss:
        """NT-Xent of two views."""
        a, b = projected(model, self.two_views(batch))
        return Loss(nt_xent(a, b, self.temperature))
