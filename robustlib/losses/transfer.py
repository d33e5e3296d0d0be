"""Penalties of fine-tuning: on the distance to where it started, and on the smallest singular values of a batch's features."""

from collections.abc import Iterable

import torch
from torch import Tensor

from robustlib.errors import InputError
from robustlib.losses.spectral import finite


def l2_sp(
    weights: Iterable[Tensor], start: Iterable[Tensor], new: Iterable[Tensor], alpha: float = 0.1, beta: float = 0.01
) -> Tensor:
    """alpha |w - w0|^2 + beta |v|^2, a scalar in float32 (L2-SP, Li et al. 2018; their factors 1/2 are left out).

    Args:
        weights: w, those that were pre-trained.
        start: w0, the same in the same order as they were before fine-tuning; constants.
        new: v, those that were not pre-trained, i.e. the new head.
        alpha, beta: weights of the two terms, >= 0.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}={value!r}: give a number of at least 0.")
    pairs = zip(weights, start, strict=True)
    moved = torch.stack([(w.float() - w0.detach().float()).square().sum() for w, w0 in pairs]).sum()
    return alpha * moved + beta * torch.stack([v.float().square().sum() for v in new]).sum()


def batch_spectral_shrinkage(features: Tensor, k: int = 1) -> Tensor:
    """The sum of the k smallest squared singular values of a batch's features F, a scalar (BSS, Chen et al. 2019).

    F has min(B, D) singular values; zeros count. The right singular vectors v are found without gradients and held, so the
    value sum |F v|^2 has the exact gradient 2 F v v' and nothing differentiates through the decomposition. In float32,
    in any autocast.
    """
    if not 1 <= k <= min(features.shape):
        raise InputError(
            f"k={k!r}: a batch of {features.shape[0]} images with {features.shape[1]} features has {min(features.shape)} "
            "singular values: give 1 <= k <= that."
        )
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        with torch.no_grad():
            v = torch.linalg.svd(finite(features), full_matrices=False).Vh[-k:]
        return (features @ v.T).square().sum()
