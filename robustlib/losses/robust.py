"""Losses of the adversarial-training family: TRADES, MART, and what AFD asks of features and labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

MART_ROOM = 1e-4  # the release writes 1.0001 - p for the paper's 1 - p: a wrong class of p = 1 costs 9.2 at most


def trades_loss(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """CE(f(x), y) + beta KL(p(x) || p(x')) (Zhang et al. 2019, eq. 5; the clean side is not detached, as released).

    Of logits (B, K); beta is 1/lambda in the paper, 6 on CIFAR-10. Returns the loss and {"ce", "kl"} (kl without beta).
    """
    p, q = logits.float().log_softmax(1), logits_adv.float().log_softmax(1)
    ce, kl = F.cross_entropy(logits.float(), y), F.kl_div(q, p, log_target=True, reduction="batchmean")
    return ce + beta * kl, {"ce": ce, "kl": kl}


def mart_loss(
    logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float, *, weighing: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), averaged over the batch (Wang et al. 2020; mart.py).

    BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x')). As released, nothing is detached, the weight 1 - p_y(x) neither, and
    the second logarithm is of 1.0001 - p; the released guards of 1e-7 and 1e-12 are not needed with log-softmax.

    Of logits (B, K), K >= 2; beta is lambda in the paper, 5 in the released ResNet-18 script. The p_y of the weight is that of
    `weighing` (B, K) where given, e.g. another head's logits at x. Returns the loss and {"bce", "kl"} (kl weighted, without beta).
    """
    log_p, log_q = logits.float().log_softmax(1), logits_adv.float().log_softmax(1)
    runner_up = log_q.scatter(1, y[:, None], -float("inf")).amax(1).exp()
    bce = F.nll_loss(log_q, y) - (1 + MART_ROOM - runner_up).log().mean()
    log_w = log_p if weighing is None else weighing.float().log_softmax(1)
    unsure = 1 - log_w.gather(1, y[:, None])[:, 0].exp()
    kl = (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1) * unsure).mean()
    return bce + beta * kl, {"bce": bce, "kl": kl}


def confusion_labels(logits: Tensor, y: Tensor) -> Tensor:
    """The strongest wrong class argmax_{k != y} z_k of each example, int64 (B,), of logits z (B, K).

    The paper's two cases, the predicted class where it is wrong and else the second highest, are both this one.
    """
    return logits.scatter(1, y.unsqueeze(1), -torch.inf).argmax(1)


def mean_cosine(features: Tensor, others: Tensor) -> Tensor:
    """Mean over the batch of the cosine between features (B, D) and others (B, D), in [-1, 1]; 0 where a row is zero."""
    return F.cosine_similarity(features.float(), others.float(), dim=1).mean()
