"""Training losses as the papers write them."""

from robustlib.losses.disentangled import confusion_labels, mean_cosine
from robustlib.losses.robust import mart_loss, trades_loss

__all__ = ["confusion_labels", "mart_loss", "mean_cosine", "trades_loss"]
