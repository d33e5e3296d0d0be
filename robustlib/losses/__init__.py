"""Training losses as the papers write them."""

from robustlib.losses.robust import trades_loss

__all__ = ["trades_loss"]
