"""Training losses as the papers write them."""

from robustlib.losses.robust import mart_loss, trades_loss

__all__ = ["mart_loss", "trades_loss"]
