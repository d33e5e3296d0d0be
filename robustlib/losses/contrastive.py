"""Losses on pairs of views or examples: SupCon and NT-Xent, Barlow Twins, and the negative contrast of ANCRA."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.errors import InputError, NonNegative, Positive, check_known, typed

Strategy = Literal["random", "soft", "hard", "easy"]


def confidence_similarity(logits: Tensor, other: Tensor) -> Tensor:
    """Sim(a, b) = mean_i 1[argmax a_i = argmax b_i] sqrt(max_c q(a_i)[c] max_c q(b_i)[c]), q = softmax (ANCRA's release, loss_fn).

    Of logits (B, K) each, a scalar in [0, 1]; only pairs that are predicted as one class count.
    """
    p, q = (z.float().softmax(1).max(1) for z in (logits, other))
    return ((p.indices == q.indices) * (p.values * q.values).sqrt()).mean()


def negative_contrast(logits: Tensor, negative: Tensor, alpha: float = 1.0) -> Tensor:
    """alpha Sim(sg[q(x)], q(x_o)) + (1 - alpha) Sim(q(x), sg[q(x_o)]): the asymmetric negative contrast of ANCRA.

    Of the logits (B, K) of the anchors x and of a negative x_o for each. The value is Sim for every alpha, which only shares out
    the gradient: 1 freezes the natural example and pushes the negative away, 0 does the reverse, 0.5 is symmetric.
    """
    away = confidence_similarity(logits.detach(), negative)
    back = confidence_similarity(logits, negative.detach())
    return alpha * away + (1 - alpha) * back


def pick_negatives(
    y: Tensor, strategy: Strategy = "random", *, logits: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor | None:
    """For each anchor the position in the batch of one example of another class, int64 (B,); None if there is one class only.

    "random": a class uniformly among the others of the batch, then one of its images, with the `generator` on `y`'s device.
    The mined strategies need the batch's `logits` (B, K). They take, among images of other classes, those predicted as the
    anchor is ("soft"), as the anchor's label ("hard") or as neither ("easy"), and of them the one with the largest logit of
    the anchor's label; where there are none, a random one (ANCRA's release).
    """
    check_known("negative strategy", strategy, get_args(Strategy))
    foreign = y[:, None] != y[None, :]
    if not bool(foreign.any()):
        return None
    sizes = (~foreign).sum(1)  # of each example's class: a class is drawn uniformly, then an image of it
    picked = torch.multinomial(foreign / sizes, 1, generator=generator)[:, 0]
    if strategy == "random":
        return picked
    assert logits is not None, "mined negatives need logits"
    predicted = logits.argmax(1)
    as_anchor, as_label = (predicted[None, :] == wanted[:, None] for wanted in (predicted, y))
    candidates = foreign & {"easy": ~(as_anchor | as_label), "soft": as_anchor, "hard": as_label}[strategy]
    scores = logits.float().t()[y].masked_fill(~candidates, -torch.inf)  # [i, j]: of image j, the logit of i's label
    return torch.where(candidates.any(1), scores.argmax(1), picked)


def supcon_loss(
    z: Tensor, labels: Tensor | None = None, temperature: float = 0.07, *, one_sided: bool = False
) -> Tensor:
    """Supervised contrastive loss "L_out" (Khosla et al. 2020, eq. 2), a scalar in float32, in any autocast.

    With u_i = z_i / ||z_i||, all V B rows as anchors, A(i) all rows but i, and P(i) those of A(i) that show an image of the same
    class (without labels: the same image):

        L = mean_i -1/|P(i)| sum_{p in P(i)} log [ exp(u_i.u_p / t) / sum_{a in A(i)} exp(u_i.u_a / t) ]

    An anchor without positives, which a single view may have, counts as 0. The released code's factor t / 0.07 is left out.

    Of projections z (V, B, D) of V views of B images, of any length, labels int64 (B,) or None, and a temperature t > 0. If it is
    `one_sided`, the gradient flows through the anchors u_i alone, others being constants (RoCL's release); same value.
    """
    typed(temperature, Positive, "temperature")
    views, size = z.shape[:2]
    if views < 2 and labels is None:
        raise InputError(f"{views} view(s) of an image without labels make no positive pair: give two views or labels.")
    with torch.autocast(z.device.type, enabled=False):
        u = F.normalize(z.flatten(0, 1).float(), dim=1)
        similar = u @ (u.detach() if one_sided else u).t() / temperature
        same = (torch.arange(size, device=z.device) if labels is None else labels).repeat(views)
        itself = torch.eye(len(u), dtype=torch.bool, device=z.device)
        positive = (same[:, None] == same[None, :]) & ~itself
        log_p = similar - similar.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
        return -(torch.where(positive, log_p, 0.0).sum(1) / positive.sum(1).clamp_min(1)).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5, *, one_sided: bool = False) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (Chen et al. 2020, eq. 1): `supcon_loss` without labels.

    Row i of the projections a (B, D) is the positive of row i of b (B, D).
    """
    return supcon_loss(torch.stack((a, b)), None, temperature, one_sided=one_sided)


def barlow_twins_loss(a: Tensor, b: Tensor, off_diagonal: float = 0.005, *, eps: float = 1e-5) -> Tensor:
    """sum_i (1 - C_ii)^2 + off_diagonal sum_i sum_{j != i} C_ij^2, a scalar in float32, in any autocast (Zbontar et al. 2021, eq. 1).

    C (D, D) is the cross-correlation of the projections over the batch (eq. 2),

        C_ij = sum_n a_ni b_nj / (sqrt(sum_n a_ni^2) sqrt(sum_n b_nj^2)),   each column of a and b less its mean.

    The batch divides the cross-correlation and nothing else, here as in both releases. Of projections a and b (B, D) of the same
    B >= 2 images; eps is added to the variances, as the release's BatchNorm does, so that a collapsed column counts as 0; 0 is eq. 2.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"Projections of shapes {shapes} have no cross-correlation: give (B, D) twice, B >= 2.")
    typed(off_diagonal, NonNegative, "off_diagonal")
    with torch.autocast(a.device.type, enabled=False):
        floats = (z.float() for z in (a, b))
        one, other = ((z - z.mean(0)) * (z.var(0, unbiased=False) + eps).rsqrt() for z in floats)
        squared = (one.T @ other / len(a) - torch.eye(a.shape[1], device=a.device)).square()
        diagonal = squared.diagonal().sum()
        return diagonal + off_diagonal * (squared.sum() - diagonal)
