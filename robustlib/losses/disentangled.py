"""What AFD asks of features and of the strongest wrong class (Zhou et al. 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def confusion_labels(logits: Tensor, y: Tensor) -> Tensor:
    """The strongest wrong class argmax_{k != y} z_k of each example, int64 (B,).

    The paper's two cases, the predicted class where it is wrong and else the second highest, are both this one.

    Args:
        logits: z, (B, K) with K >= 2.
        y: labels (B,).
    """
    return logits.scatter(1, y.unsqueeze(1), -torch.inf).argmax(1)


def mean_cosine(features: Tensor, others: Tensor) -> Tensor:
    """Mean over the batch of the cosine between features (B, D) and others (B, D), in [-1, 1]; 0 where a row is zero."""
    return F.cosine_similarity(features.float(), others.float(), dim=1).mean()
