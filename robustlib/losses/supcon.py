"""Losses that pull the views of an image, or of a class, together and push all others apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.errors import InputError


def supcon_loss(
    z: Tensor, labels: Tensor | None = None, temperature: float = 0.07, *, one_sided: bool = False
) -> Tensor:
    """Supervised contrastive loss "L_out" (Khosla et al. 2020, eq. 2), a scalar in float32, in any autocast.

    With u_i = z_i / ||z_i||, all V B rows as anchors, A(i) all rows but i, and P(i) those of A(i) that show an image of the same
    class (without labels: the same image):

        L = mean_i -1/|P(i)| sum_{p in P(i)} log [ exp(u_i.u_p / t) / sum_{a in A(i)} exp(u_i.u_a / t) ]

    An anchor without positives, which a single view may have, counts as 0. The released code's factor t / 0.07 is left out.

    Args:
        z: projections of V views of B images, (V, B, D), of any length; normalised here.
        labels: int64 (B,); None for no labels.
        temperature: t > 0.
        one_sided: the gradient flows through the anchors u_i alone, others being constants (RoCL's release); same value.

    Raises:
        InputError: a temperature that is not positive, or one view without labels, where nothing has a positive.
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature={temperature!r}: give a positive number, e.g. 0.07 or 0.5.")
    views, size = z.shape[:2]
    if views < 2 and labels is None:
        raise InputError(
            f"{views} view(s) of each image without labels make no positive pair: give two views or labels."
        )
    with torch.autocast(z.device.type, enabled=False):
        u = F.normalize(z.flatten(0, 1).float(), dim=1)
        similar = u @ (u.detach() if one_sided else u).t() / temperature
        same = torch.arange(size, device=z.device) if labels is None else labels
        same = same.repeat(views)
        itself = torch.eye(len(u), dtype=torch.bool, device=z.device)
        positive = (same[:, None] == same[None, :]) & ~itself
        log_p = similar - similar.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
        return -(torch.where(positive, log_p, 0.0).sum(1) / positive.sum(1).clamp_min(1)).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5, *, one_sided: bool = False) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (Chen et al. 2020, eq. 1): `supcon_loss` without labels, a scalar.

    Args:
        a, b: projections of the same B images, (B, D) each; row i of one is the positive of row i of the other.
        temperature, one_sided: as of `supcon_loss`.

    Raises:
        InputError: a temperature that is not positive.
    """
    return supcon_loss(torch.stack((a, b)), None, temperature, one_sided=one_sided)
