"""Barlow Twins: two views of a batch agree feature by feature, and features say different things."""

import torch
from torch import Tensor

from robustlib.errors import InputError


def barlow_twins_loss(a: Tensor, b: Tensor, off_diagonal: float = 0.005, *, eps: float = 1e-5) -> Tensor:
    """sum_i (1 - C_ii)^2 + off_diagonal sum_i sum_{j != i} C_ij^2, a scalar in float32, in any autocast (Zbontar et al. 2021, eq. 1).

    C (D, D) is the cross-correlation of the projections over the batch (eq. 2),

        C_ij = sum_n a_ni b_nj / (sqrt(sum_n a_ni^2) sqrt(sum_n b_nj^2)),   each column of a and b less its mean.

    The batch divides the cross-correlation and nothing else, here as in Zbontar et al.'s release and in rep-spectral's.

    Args:
        a, b: projections of the same B >= 2 images, (B, D) each.
        off_diagonal: the weight lambda of the redundancy term, >= 0.
        eps: added to the variances, as their release does (its BatchNorm), so that a collapsed column counts as 0; 0 is eq. 2.

    Raises:
        InputError: projections of different shapes, fewer than two images, a negative weight.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise InputError(
            f"Projections of shapes {tuple(a.shape)} and {tuple(b.shape)} have no cross-correlation: give (B, D) twice, B >= 2."
        )
    if not 0 <= off_diagonal < float("inf"):
        raise InputError(f"off_diagonal={off_diagonal!r}: give a number of at least 0, e.g. 0.005.")
    with torch.autocast(a.device.type, enabled=False):
        one, other = (_standard(z.float(), eps) for z in (a, b))
        squared = (one.T @ other / len(a) - torch.eye(a.shape[1], device=a.device)).square()
        diagonal = squared.diagonal().sum()
        return diagonal + off_diagonal * (squared.sum() - diagonal)


def _standard(z: Tensor, eps: float) -> Tensor:
    """Columns with mean 0 and variance 1 over the batch."""
    return (z - z.mean(0)) * (z.var(0, unbiased=False) + eps).rsqrt()
