"""Contrastive losses."""

from typing import Literal, get_args

import torch
from torch import Tensor

from robustlib.errors import unknown

Strategy = Literal["random", "soft", "hard", "easy"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


def confidence_similarity(logits: Tensor, other: Tensor) -> Tensor:
    """Sim(a, b) = mean_i 1[argmax a_i = argmax b_i] sqrt(max_c q(a_i)[c] max_c q(b_i)[c]), q = softmax (ANCRA's release, loss_fn).

    In [0, 1], a scalar; only pairs that are predicted as one class count.

    Args:
        logits, other: (B, K) each.
    """
    p, q = (z.float().softmax(1).max(1) for z in (logits, other))
    return ((p.indices == q.indices) * (p.values * q.values).sqrt()).mean()


def negative_contrast(logits: Tensor, negative: Tensor, alpha: float = 1.0) -> Tensor:
    """alpha Sim(sg[q(x)], q(x_o)) + (1 - alpha) Sim(q(x), sg[q(x_o)]): the asymmetric negative contrast of ANCRA.

    Its value is Sim for every alpha, which only shares out the gradient.

    Args:
        logits: of the anchors x, (B, K).
        negative: of one example of another class for each anchor, (B, K).
        alpha: 1 freezes the natural example and pushes the negative away, 0 does the reverse, 0.5 is symmetric.
    """
    away = confidence_similarity(logits.detach(), negative)
    back = confidence_similarity(logits, negative.detach())
    return alpha * away + (1 - alpha) * back


def pick_negatives(
    y: Tensor,
    strategy: Strategy = "random",
    *,
    logits: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """For each anchor the position in the batch of one example of another class, int64 (B,); None if there is one class only.

    "random": a class uniformly among the others of the batch, then one of its images. The mined strategies take, among images
    of other classes, those predicted as the anchor is ("soft"), as the anchor's label ("hard") or as neither ("easy"), and
    of them the one with the largest logit of the anchor's label; where there are none, a random one (ANCRA's release).

    Args:
        y: labels, int64 (B,).
        logits: (B, K) of the batch; mined strategies need them.
        generator: source of the random draws, on `y`'s device; None means PyTorch's global one.

    Raises:
        InputError: unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise unknown("negative strategy", strategy, STRATEGIES)
    foreign = y[:, None] != y[None, :]
    if not bool(foreign.any()):
        return None
    sizes = (~foreign).sum(1)  # of each example's class: a class is drawn uniformly, then an image of it
    picked = torch.multinomial(foreign / sizes, 1, generator=generator)[:, 0]
    if strategy == "random":
        return picked
    assert logits is not None, "mined negatives need logits"
    candidates = foreign & _predicted_as(strategy, y, logits)
    scores = (
        logits.float().t()[y].masked_fill(~candidates, -torch.inf)
    )  # [i, j]: of image j, the logit of anchor i's label
    return torch.where(candidates.any(1), scores.argmax(1), picked)


def _predicted_as(strategy: Strategy, y: Tensor, logits: Tensor) -> Tensor:
    """[i, j]: whether image j's prediction suits anchor i, (B, B) bool."""
    predicted = logits.argmax(1)
    as_anchor, as_label = (predicted[None, :] == wanted[:, None] for wanted in (predicted, y))
    if strategy == "easy":
        return ~(as_anchor | as_label)
    return as_anchor if strategy == "soft" else as_label
