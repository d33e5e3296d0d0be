"""Training losses as the papers write them."""

from robustlib.losses.barlow import barlow_twins_loss
from robustlib.losses.contrastive import confidence_similarity, negative_contrast, pick_negatives
from robustlib.losses.cross_lipschitz import cross_lipschitz
from robustlib.losses.disentangled import confusion_labels, mean_cosine
from robustlib.losses.power_iteration import PowerIteration
from robustlib.losses.robust import mart_loss, trades_loss
from robustlib.losses.spectral import check_exact, conv_squared_norm, dense_squared_norm, exact_squared_norm, weight_of
from robustlib.losses.supcon import nt_xent, supcon_loss
from robustlib.losses.transfer import batch_spectral_shrinkage, l2_sp

__all__ = [
    "PowerIteration",
    "barlow_twins_loss",
    "batch_spectral_shrinkage",
    "check_exact",
    "confidence_similarity",
    "confusion_labels",
    "conv_squared_norm",
    "cross_lipschitz",
    "dense_squared_norm",
    "exact_squared_norm",
    "l2_sp",
    "mart_loss",
    "mean_cosine",
    "negative_contrast",
    "nt_xent",
    "pick_negatives",
    "supcon_loss",
    "trades_loss",
    "weight_of",
]
