"""Training losses as the papers write them."""

from robustlib.losses.contrastive import (
    barlow_twins_loss,
    confidence_similarity,
    negative_contrast,
    nt_xent,
    pick_negatives,
    supcon_loss,
)
from robustlib.losses.robust import confusion_labels, mart_loss, mean_cosine, trades_loss
from robustlib.losses.spectral import (
    PowerIteration,
    batch_spectral_shrinkage,
    check_exact,
    conv_squared_norm,
    cross_lipschitz,
    dense_squared_norm,
    exact_squared_norm,
    l2_sp,
    weight_of,
)
