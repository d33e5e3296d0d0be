"""What an attack maximises: per-example functions of the logits, larger when the attacker is better off.

Each takes logits (B, K), labels y (B,) and gives (B,). A `target` class (B,) turns it into its targeted form.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.errors import InputError
from robustlib.threat import TINY


def margin_of(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k, (B,): positive where the model is right."""
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def ce(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Cross-entropy -log p_y; targeted: log p_t."""
    value = F.cross_entropy(logits, y if target is None else target, reduction="none")
    return value if target is None else -value


def nll(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """-z_y, for outputs that are log-probabilities or sums of them, where it is a cross-entropy; targeted: z_t."""
    z = logits.gather(1, (y if target is None else target)[:, None])[:, 0]
    return -z if target is None else z


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """max_{k != y} z_k - z_y (Carlini and Wagner 2017, f_6 without confidence); targeted: z_t - max_{k != t} z_k."""
    return -margin_of(logits, y) if target is None else margin_of(logits, target)


def gap(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """z_t - z_y, 0 on the boundary between the two classes; without a target the `margin`."""
    return -margin_of(logits, y) if target is None else nll(logits, y, target) + nll(logits, y)


def probability_margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """max_{k != y} p_k - p_y of the softmax (PMA; Xie et al. 2024, arXiv 2411.15210); targeted: p_t - p_y."""
    return gap(logits.softmax(1), y, target)


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6 and 7), unchanged when all logits are shifted or scaled.

    -(z_y - max_{k != y} z_k) / (z_1 - z_3); targeted: -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), z sorted downwards.
    """
    needed = 3 if target is None else 4
    if logits.shape[1] < needed:
        raise InputError(f"The DLR objective needs {needed} classes, the model has {logits.shape[1]}: use 'margin'.")
    top = logits.topk(needed, dim=1).values
    if target is None:
        return -margin_of(logits, y) / (top[:, 0] - top[:, 2] + TINY)
    gap = (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None]))[:, 0]
    return -gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p(x) || p(x')) from the `reference` logits (B, K) at x; it uses no label (TRADES, Zhang et al. 2019, eq. 5)."""
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="none").sum(1)


#: What an attack maximises, by name: logits (B, K), labels (B,), targets (B,) or None -> a value for each image (B,).
OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "ce": ce,
    "nll": nll,
    "margin": margin,
    "gap": gap,
    "probability_margin": probability_margin,
    "dlr": dlr,
}


def is_adversarial(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """(B,) bool: the prediction is wrong (targeted: is the target). Logits that are not finite count as wrong."""
    prediction = logits.argmax(1)
    reached = prediction != y if target is None else prediction == target
    return reached | ~logits.isfinite().all(1)
