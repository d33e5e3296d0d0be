"""Losses of the adversarial-training family."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(p(x) || p(x')), summed over classes and averaged over the batch; both sides carry gradients."""
    p, q = logits.float().log_softmax(1), logits_adv.float().log_softmax(1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def trades_loss(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """CE(f(x), y) + beta KL(p(x) || p(x')) (Zhang et al. 2019, eq. 5; the clean side is not detached, as released).

    Args:
        logits: f(x), (B, K).
        logits_adv: f(x'), (B, K).
        y: labels (B,).
        beta: weight of the robust term, 1/lambda in the paper; 6 in its CIFAR-10 experiments.

    Returns:
        The loss and its parts {"ce", "kl"} (kl without beta).
    """
    ce, kl = F.cross_entropy(logits.float(), y), kl_divergence(logits, logits_adv)
    return ce + beta * kl, {"ce": ce, "kl": kl}
