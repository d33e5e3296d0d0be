"""Distances in feature space: how far an attack moves an image, and how far classes stand from each other.

Each function takes tables of features (N, D), any scale, and answers for each example; means are the caller's.

Whether features stay where they are when an image is augmented or attacked: what contrastive training asks of them.

How fast features change around an image: the steepest rise an attack finds, and the size of the Jacobian.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.attacks import Attack
from robustlib.attacks.base import check_inputs, frozen_eval
from robustlib.data import Split
from robustlib.errors import InputError, unknown
from robustlib.representation.features import (
    FEATURES,
    Features,
    as_features,
    as_labels,
    features,
    layer_function,
    pieces,
    rows_at_once,
)
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd


GapMeasure = Literal["relative_l2", "cosine", "l1", "l2", "linf"]
HEADLINE: tuple[GapMeasure, ...] = ("relative_l2", "cosine")  # free of the features' scale
RAW: tuple[GapMeasure, ...] = ("l1", "l2", "linf")  # grow with it: compare within one model only
TINY = 1e-12


def feature_gap(clean: Tensor, adversarial: Tensor, measure: GapMeasure = "relative_l2") -> Tensor:
    """How far the attack moved each example, (N,): f = clean features, f' = adversarial ones, both (N, D).

    - "relative_l2": |f' - f| / |f|, in [0, inf); 0 where both are zero. The headline: scaling or rotating all features does not
      change it (shifting them does).
    - "cosine": 1 - cos(f, f'), in [0, 2]; the other headline: directions only.
    - "l1", "l2", "linf": the raw |f' - f|, in [0, inf). They grow with the scale of the features, which training is free to
      choose, so they compare epochs or layers of one model at best. L-infinity is what AFD plots (Zhou et al. 2024, figure 1).

    Raises:
        InputError: unknown measure, shapes that differ.
    """
    clean, adversarial = as_features(clean, adversarial)
    if measure not in (*HEADLINE, *RAW):
        raise unknown("measure of the feature gap", measure, (*HEADLINE, *RAW))
    return torch.cat([_gap(f, g, measure) for f, g in pieces(clean, adversarial)])


def _gap(clean: Tensor, adversarial: Tensor, measure: GapMeasure) -> Tensor:
    if measure == "cosine":
        return _squared_chord(clean, adversarial) / 2  # more exact for small angles than 1 - cos
    shift = adversarial - clean
    if measure == "relative_l2":
        return shift.norm(dim=1) / clean.norm(dim=1).clamp_min(TINY)
    return shift.norm(p={"l1": 1.0, "l2": 2.0, "linf": torch.inf}[measure], dim=1)


def _squared_chord(first: Tensor, second: Tensor) -> Tensor:
    return (unit(first) - unit(second)).square().sum(1).clamp(0, 4)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """|u - v|^2 of each pair of unit vectors u = f / |f|, v = g / |g|, (N,) in [0, 4]; 0 = one direction, 2 = right angles.

    Its mean is the alignment of Wang and Isola (2020, section 4.1, alpha = 2), low where positive pairs are close. Positive
    pairs are a natural image and its adversarial (ANCRA), or two augmentations of one image (`features(..., augment=)`
    twice, with two seeds); for members of one class see `class_alignment`.
    """
    first, second = as_features(first, second)
    return torch.cat([_squared_chord(f, g) for f, g in pieces(first, second)])


def class_alignment(features: Tensor, labels: Tensor) -> Tensor:
    """The mean |u_i - u_j|^2 of each example's unit vector to the others of its class, (N,) in [0, 4].

    With unit vectors the mean over j is 2 - 2 u_i . (s - u_i) / (n - 1), s the sum and n the size of the class.

    Raises:
        InputError: a class with a single example has no pairs.
    """
    (features,) = as_features(features)
    labels = as_labels(labels, features)
    counts = labels.bincount()
    if bool((counts == 1).any()):
        lonely = int((counts == 1).nonzero()[0])
        raise InputError(f"Class {lonely} has a single example, so no pairs: give at least two of each class.")
    sums = torch.zeros(len(counts), features.shape[1], device=features.device)
    for f, y in pieces(features, labels):
        sums.index_add_(0, y, unit(f))
    found = []
    for f, y in pieces(features, labels):
        u = unit(f)
        found.append(2 - 2 * (u * (sums[y] - u)).sum(1) / (counts[y] - 1))
    return torch.cat(found).clamp(0, 4)


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Distances |u - v| between unit vectors, for each example (N,), in [0, 2]; margin in [-2, 2].

    Args:
        nearest: to the nearest example of another class (ANCRA's negative pair at its hardest).
        mean: to all examples of other classes, on average.
        margin: nearest of another class minus nearest of the own class; below 0 its nearest neighbour is of another class.
            Twice the hypothesis margin of Gilad-Bachrach et al. (2004). NaN where the class has no other example.
    """

    nearest: Tensor
    mean: Tensor
    margin: Tensor


def exclusion(features: Tensor, labels: Tensor, reference: Tensor | None = None) -> Exclusion:
    """How far each example stays from other classes, as ANCRA's exclusion criterion wants it (Zhou et al. 2023).

    Memory: some 100 MB beside the features; time grows with N^2 D.

    Args:
        features: (N, D), of natural or adversarial images.
        labels: (N,).
        reference: among which neighbours are looked for: the features of the same N examples in the same order, e.g. natural
            ones for adversarial `features`; None = `features` themselves. An example never is its own neighbour.

    Raises:
        InputError: fewer than two classes.
    """
    features, reference = as_features(features, features if reference is None else reference)
    labels = as_labels(labels, features)
    if len(labels.unique()) < 2:
        raise InputError(f"All {len(labels)} examples are of class {int(labels[0])}: exclusion needs two classes.")
    found = torch.empty(
        3, len(features), device=features.device
    )  # at once: small pieces between large ones split the heap
    for start, distances in pairwise(features, reference):
        here, line = slice(start, start + len(distances)), torch.arange(len(distances), device=labels.device)
        same = labels[here, None] == labels
        found[1, here] = distances.masked_fill(same, 0).sum(1) / (~same).sum(1)
        found[0, here] = distances.masked_fill(same, torch.inf).amin(1)
        same[line, start + line] = False  # itself
        found[2, here] = found[0, here] - distances.masked_fill_(same.logical_not_(), torch.inf).amin(1)
    nearest, mean, margin = found
    return Exclusion(nearest, mean, torch.where(margin.isfinite(), margin, torch.nan))


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t |u_i - u_j|^2) over all pairs i < j of unit vectors, in [-4 t, 0].

    0 = all in one point; the lower, the more evenly features fill the sphere (Wang and Isola 2020, section 4.1, t = 2). For
    directions drawn evenly in many dimensions it is near -2 t. Memory: some 50 MB beside the features; time grows with N^2 D.

    Raises:
        InputError: fewer than two examples.
    """
    (features,) = as_features(features)
    if len(features) < 2:
        raise InputError("Uniformity is about pairs: give at least two examples.")
    n, total = len(features), 0.0
    for _, distances in pairwise(features, features):
        total += float(distances.square_().mul_(-t).exp_().sum(dtype=torch.float64))
    return min(0.0, float(torch.tensor((total - n) / (n * (n - 1)), dtype=torch.float64).log()))


def pairwise(features: Tensor, reference: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, distances |u - v| of some rows of `features` (N, D) to all of `reference` (M, D)) of unit vectors."""
    long = reference.norm(dim=1).clamp_min(TINY)  # lengths are divided out afterwards: no copy of the tables
    step, start = rows_at_once(len(reference)), 0
    for rows in features.split(step):
        cosines = (rows @ reference.T).div_(rows.norm(dim=1, keepdim=True).clamp_min(TINY)).div_(long)
        yield start, cosines.mul_(-2).add_(2).clamp_(0, 4).sqrt_()
        start += len(rows)


def unit(features: Tensor) -> Tensor:
    """Each row divided by its length; rows of zeros stay."""
    return F.normalize(features, dim=1, eps=TINY)


CLEAN = "clean"


def image_copies(
    model: nn.Module, split: Split, attack: Attack, *, augment: str = "simclr", seed: int = 0
) -> dict[str, Features]:
    """The penultimate features of the same images as they are ("clean"), "augmented" and "attacked", N each in one order.

    Args:
        model: x -> logits; left as found.
        split: the images.
        attack: on the plain images.
        augment: the view of the augmented copies; see `features`.
        seed: of augmentation and attack.

    Raises:
        InputError: as `features`.
    """
    return {
        CLEAN: features(model, split, seed=seed),
        "augmented": features(model, split, augment=augment, seed=seed),
        "attacked": features(model, split, attack=attack, seed=seed),
    }


def displacement(copies: Mapping[str, Features]) -> dict[str, Tensor]:
    """By kind of copy 1 - cos of each image's features to its clean ones, (N,) in [0, 2]; for `figures.pair_distances`.

    Args:
        copies: of `image_copies`.

    Raises:
        InputError: no clean ones.
    """
    return {kind: feature_gap(before, after, "cosine") for kind, before, after in _pairs(copies)}


def consistency(models: Mapping[str, Mapping[str, Features]]) -> "pd.DataFrame":
    """How consistent models are under augmentation and under attack; low gaps, a low alignment and many same answers are good.

    Args:
        models: name -> what `image_copies` makes of it.

    Returns:
        A row a model and kind of copy: model, copy, the means of `alignment` and of the relative L2 gap (see `feature_gap`),
        and the share of copies that the model answers as it answers their image ("same answer").

    Raises:
        InputError: no clean features.
    """
    import pandas as pd

    rows = []
    for name, copies in models.items():
        for kind, before, after in _pairs(copies):
            means = {"alignment": alignment(before, after), "relative_l2": feature_gap(before, after)}
            means["same answer"] = (copies[kind].predictions == copies[CLEAN].predictions).float()
            rows.append({"model": name, "copy": kind} | {key: float(value.mean()) for key, value in means.items()})
    return pd.DataFrame(rows)


def _pairs(copies: Mapping[str, Features]) -> list[tuple[str, Tensor, Tensor]]:
    """(kind of copy, clean features, its features) for all but the clean ones."""
    if CLEAN not in copies:
        raise InputError(
            f"There are no clean features among {', '.join(copies) or 'none'}: take those of image_copies."
        )
    clean = copies[CLEAN][FEATURES]
    return [(kind, clean, found[FEATURES]) for kind, found in copies.items() if kind != CLEAN]


def local_lipschitz(
    model: nn.Module,
    x: Tensor,
    threat: Threat,
    *,
    layer: str | None = None,
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """The largest |f(x') - f(x)|_2 / |x' - x| found over x' of the ball and of [0, 1], for each image, (B,) in [0, inf).

    Projected ascent on the ratio from a random start, steps of eps / 4; the length in the denominator is the threat's norm.
    What is found is a lower bound of the local Lipschitz constant. After Yang et al. (2020, "A closer look at accuracy vs.
    robustness", eq. 3), who take the L1 norm of the outputs: with L2 and an l2 threat a linear layer has its spectral norm.

    Args:
        model: x -> logits; in eval mode for the time and left as found.
        x: (B, C, H, W) in [0, 1].
        threat: where to look, eps above 0.
        layer: f, see `layers`; None = the penultimate features.
        steps: of the ascent, at least 1.
        seed: of the start, one stream an image.

    Raises:
        InputError: eps of 0, fewer than 1 step, no such layer, images outside [0, 1].
    """
    check_inputs(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    if not threat.eps or steps < 1:
        raise InputError(
            f"eps={threat.eps:g} and steps={steps!r}: a slope needs a ball of eps > 0 and at least 1 step."
        )
    f = layer_function(model, layer)
    rng = ExampleRNG.for_examples(seed, torch.arange(len(x), device=x.device))
    point = threat.random_start(x, rng.uniform(*x.shape[1:]), rng.fold_in(0).normal(*x.shape[1:]))
    best = torch.zeros(len(x), device=x.device)
    with frozen_eval(model):
        with torch.no_grad():
            origin = f(x)
        for step in range(steps + 1):
            ratio, gradient = _ratio(f, point, x, origin, threat)
            best = torch.maximum(best, ratio)
            if step < steps:
                point = threat.project(point + threat.steepest_step(gradient, threat.eps / 4), x)
    return best


def _ratio(
    f: Callable[[Tensor], Tensor], point: Tensor, x: Tensor, origin: Tensor, threat: Threat
) -> tuple[Tensor, Tensor]:
    """The ratio at `point`, (B,), and the gradient of its numerator: the denominator is held, or no step would reach the border."""
    point = point.detach().requires_grad_(True)
    with torch.enable_grad():
        moved = (f(point) - origin).square().sum(1).clamp_min(TINY**2).sqrt()
        gradient = torch.autograd.grad(moved.sum(), point)[0]
    return moved.detach() / threat.distance(point.detach(), x).clamp_min(TINY), gradient


def feature_jacobian_norm(
    model: nn.Module,
    x: Tensor,
    *,
    layer: str | None = None,
    projections: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Frobenius norm |df/dx|_F of each image, (B,) in [0, inf).

    Estimated by |J|_F^2 = E |J'v|^2 over v ~ N(0, I) (Hutchinson 1990; for networks Hoffman et al. 2019, eq. 9): the relative
    standard error of one image's norm is at most sqrt(1 / (2 projections)). Where that is no cheaper than exact, it is exact.

    Args:
        model: x -> logits; in eval mode for the time and left as found.
        x: (B, C, H, W).
        layer: f, see `layers`; None = the penultimate features.
        projections: backward passes, at least 1; as many as f has outputs, or 0, give the exact norm.
        generator: of the projections, on the images' device; None = torch's global one.

    Raises:
        InputError: a negative number of projections, no such layer.
    """
    if projections < 0:
        raise InputError(f"projections={projections!r}: give a number of backward passes, or 0 for the exact norm.")
    f, x = layer_function(model, layer), x.detach().requires_grad_(True)
    with frozen_eval(model), torch.enable_grad():
        answer = f(x)
        outputs = answer.shape[1]
        exact = not 0 < projections < outputs
        total = torch.zeros(len(x), device=x.device)
        for k in range(outputs if exact else projections):
            if exact:
                v = torch.zeros_like(answer)
                v[:, k] = 1
            else:
                v = torch.randn(answer.shape, generator=generator, device=x.device)
            slope = torch.autograd.grad(answer, x, v, retain_graph=True)[0]
            total += slope.flatten(1).square().sum(1)
    return (total if exact else total / projections).sqrt()
