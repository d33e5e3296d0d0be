"""Training losses as the papers write them."""

from robustlib.losses.contrastive import confidence_similarity, negative_contrast, pick_negatives
from robustlib.losses.disentangled import confusion_labels, mean_cosine
from robustlib.losses.robust import mart_loss, trades_loss
from robustlib.losses.supcon import nt_xent, supcon_loss

__all__ = [
    "confidence_similarity",
    "confusion_labels",
    "mart_loss",
    "mean_cosine",
    "negative_contrast",
    "nt_xent",
    "pick_negatives",
    "supcon_loss",
    "trades_loss",
]
