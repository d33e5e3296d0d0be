"""Training losses as the papers write them."""

from robustlib.losses.contrastive import barlow_twins_loss, negative_contrast, nt_xent, pick_negatives, supcon_loss
from robustlib.losses.robust import confusion_labels, mart_loss, mean_cosine, trades_loss
from robustlib.losses.spectral import batch_spectral_shrinkage, cross_lipschitz, exact_squared_norm, l2_sp
