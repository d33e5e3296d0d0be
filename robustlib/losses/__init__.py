"""Training losses as the papers write them."""

from robustlib.losses.contrastive import confidence_similarity, negative_contrast, pick_negatives
from robustlib.losses.robust import trades_loss

__all__ = ["confidence_similarity", "negative_contrast", "pick_negatives", "trades_loss"]
