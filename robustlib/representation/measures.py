"""Measures of tables of features (N, D): gaps, alignment, exclusion, their shape, and what a classifier reads off them.

Those of examples answer for each one, (N,); means are the caller's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.errors import InputError, check_known, typed
from robustlib.representation.features import Features, as_features, as_labels, pieces, rows_at_once

GapMeasure = Literal["relative_l2", "cosine", "l1", "l2", "linf"]
GAPS: tuple[GapMeasure, ...] = ("relative_l2", "cosine", "l1", "l2", "linf")
TINY = 1e-12
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al. 2018)


def feature_gap(clean: Tensor, adversarial: Tensor, measure: GapMeasure = "relative_l2") -> Tensor:
    """How far the attack moved each example, (N,): f = clean features, f' = adversarial ones, both (N, D).

    - "relative_l2": |f' - f| / |f|, in [0, inf); 0 where both are zero. The headline: scaling or rotating all features does not
      change it (shifting them does).
    - "cosine": 1 - cos(f, f'), in [0, 2]; the other headline: directions only.
    - "l1", "l2", "linf": the raw |f' - f|, in [0, inf). They grow with the scale of the features, which training is free to
      choose, so they compare epochs or layers of one model at best. L-infinity is what AFD plots (Zhou et al. 2024, figure 1).
    """
    clean, adversarial = as_features(clean, adversarial)
    check_known("measure of the feature gap", measure, GAPS)
    gaps = []
    for f, g in pieces(clean, adversarial):
        if measure == "cosine":
            gaps.append(_squared_chord(f, g) / 2)  # more exact for small angles than 1 - cos
        elif measure == "relative_l2":
            gaps.append((g - f).norm(dim=1) / f.norm(dim=1).clamp_min(TINY))
        else:
            gaps.append((g - f).norm(p={"l1": 1.0, "l2": 2.0, "linf": torch.inf}[measure], dim=1))
    return torch.cat(gaps)


def mean_gaps(clean: Tensor, adversarial: Tensor) -> dict[str, float]:
    """The mean of each `feature_gap` of features (N, D)."""
    return {measure: float(feature_gap(clean, adversarial, measure).mean()) for measure in GAPS}


def _squared_chord(first: Tensor, second: Tensor) -> Tensor:
    return (unit(first) - unit(second)).square().sum(1).clamp(0, 4)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """|u - v|^2 of each pair of unit vectors u = f / |f|, v = g / |g|, (N,) in [0, 4]; 0 = one direction, 2 = right angles.

    Its mean is the alignment of Wang and Isola (2020, section 4.1, alpha = 2), low where positive pairs, such as ANCRA's, are close.
    """
    first, second = as_features(first, second)
    return torch.cat([_squared_chord(f, g) for f, g in pieces(first, second)])


def class_alignment(features: Tensor, labels: Tensor) -> Tensor:
    """The mean |u_i - u_j|^2 of each example's unit vector to the others of its class, (N,) in [0, 4].

    With unit vectors the mean over j is 2 - 2 u_i . (s - u_i) / (n - 1), s the sum and n the size of the class.
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
    means = []
    for f, y in pieces(features, labels):
        u = unit(f)
        means.append(2 - 2 * (u * (sums[y] - u)).sum(1) / (counts[y] - 1))
    return torch.cat(means).clamp(0, 4)


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Distances |u - v| between unit vectors, for each example (N,), in [0, 2]; margin in [-2, 2].

    The margin is twice the hypothesis margin of Gilad-Bachrach et al. (2004): below 0 the nearest neighbour is of another class.
    """

    nearest: Tensor  # to the nearest example of another class (ANCRA's negative pair at its hardest)
    mean: Tensor  # to all examples of other classes, on average
    margin: Tensor  # nearest of another class minus nearest of the own class; NaN where that has no other example


def exclusion(features: Tensor, labels: Tensor, reference: Tensor | None = None) -> Exclusion:
    """How far each example stays from other classes, as ANCRA's exclusion criterion wants it (Zhou et al. 2023).

    Neighbours come from `reference`, the features of the same N examples in the same order, e.g. natural ones for adversarial
    `features`; None = `features` themselves. An example never is its own neighbour. Memory: some 100 MB more; time grows with N^2 D.
    """
    features, reference = as_features(features, features if reference is None else reference)
    labels = as_labels(labels, features, classes=2)
    measured = torch.empty(3, len(features), device=features.device)  # at once: small pieces would split the heap
    for start, distances in _pairwise(features, reference):
        rows, line = slice(start, start + len(distances)), torch.arange(len(distances), device=labels.device)
        same = labels[rows, None] == labels
        measured[1, rows] = distances.masked_fill(same, 0).sum(1) / (~same).sum(1)
        measured[0, rows] = distances.masked_fill(same, torch.inf).amin(1)
        same[line, start + line] = False  # itself
        measured[2, rows] = measured[0, rows] - distances.masked_fill_(same.logical_not_(), torch.inf).amin(1)
    nearest, mean, margin = measured
    return Exclusion(nearest, mean, torch.where(margin.isfinite(), margin, torch.nan))


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t |u_i - u_j|^2) over all pairs i < j of unit vectors, in [-4 t, 0].

    0 = all in one point; the lower, the more evenly features fill the sphere (Wang and Isola 2020, section 4.1, t = 2). For
    directions drawn evenly in many dimensions it is near -2 t. Memory: some 50 MB beside the features; time grows with N^2 D.
    """
    (features,) = as_features(features)
    if len(features) < 2:
        raise InputError("Uniformity is about pairs: give at least two examples.")
    n, total = len(features), 0.0
    for _, distances in _pairwise(features, features):
        total += float(distances.square_().mul_(-t).exp_().sum(dtype=torch.float64))
    return min(0.0, float(torch.tensor((total - n) / (n * (n - 1)), dtype=torch.float64).log()))


def _pairwise(features: Tensor, reference: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, distances |u - v| of some rows of `features` (N, D) to all of `reference` (M, D)) of unit vectors."""
    lengths, start = reference.norm(dim=1).clamp_min(TINY), 0  # divided out afterwards: no copy of the tables
    for rows in features.split(rows_at_once(len(reference))):
        cosines = (rows @ reference.T).div_(rows.norm(dim=1, keepdim=True).clamp_min(TINY)).div_(lengths)
        yield start, cosines.mul_(-2).add_(2).clamp_(0, 4).sqrt_()
        start += len(rows)


def unit(features: Tensor) -> Tensor:
    """Each row divided by its length; rows of zeros stay."""
    return F.normalize(features, dim=1, eps=TINY)


def cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment |Y'X|^2 / (|X'X| |Y'Y|) of centred X (N, D), Y (N, E), in [0, 1] (Kornblith et al. 2019).

    1 = equal up to rotation, shift and scale, 0 = uncorrelated, or one is constant. It is biased towards 1 for N below a few times D.
    """
    (first,), (second,) = as_features(first), as_features(second)
    if len(first) != len(second):
        raise InputError(f"CKA compares layers on the same examples, not {len(first)} with {len(second)}.")
    cross, own, other = (_covariance(a, b).norm() for a, b in ((second, first), (first, first), (second, second)))
    scale = float(own * other)
    return min(1.0, float(cross.square()) / scale) if scale else 0.0


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values' shares p_i = s_i / sum s of centred features, in [1, min(N - 1, D)].

    How many directions the features really use (Roy and Vetterli 2007). 0 where all features are equal.
    """
    (features,) = as_features(features)
    values = torch.linalg.eigvalsh(_covariance(features, features)).clamp_min(0)
    values = values[values > values.max() * 1e-12].sqrt()  # below, rounding of float64
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


@dataclass(frozen=True)
class NeuralCollapse:
    """Distances from neural collapse (Papyan, Han and Donoho 2020); all are 0 when it is complete. NC3 and NC4 need a head."""

    variability: float  # NC1: trace(S_W pinv(S_B)) / K of the within- and between-class covariances, in [0, inf)
    equinorm: float  # NC2: standard deviation over mean of the lengths of centred class means, in [0, inf)
    equiangular: float  # NC2: mean over pairs of |cos + 1 / (K - 1)|, in [0, 2]
    self_duality: float = math.nan  # NC3: |W / |W| - M / |M|| of the head's weights and centred class means, in [0, 2]
    nearest_centre: float = math.nan  # NC4: share of examples where head and nearest class mean disagree, in [0, 1]


def neural_collapse(features: Tensor, labels: Tensor, head: nn.Linear | None = None) -> NeuralCollapse:
    """How far features (N, D) of the layer before `head`, the last linear one, are from collapsing onto a simplex of class means."""
    (features,) = as_features(features)
    labels = as_labels(labels, features)
    counts = labels.bincount(minlength=head.out_features if head else 0)
    if len(counts) < 2 or bool((counts == 0).any()):
        missing = ", ".join(map(str, (counts == 0).nonzero().flatten().tolist()[:5])) or "1"
        raise InputError(f"Class {missing} has no example: neural collapse is about the means of at least two classes.")
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    for rows, y in pieces(features, labels):
        sums.index_add_(0, y, rows.double())
    means = sums / counts[:, None]
    centred, spread = means - means.mean(0), means - features.mean(0, dtype=torch.float64)
    within = _covariance(features, features) - spread.T @ (spread * counts[:, None])  # all minus between, both summed
    between = centred.T @ centred / len(counts)
    lengths, k = centred.norm(dim=1), len(counts)
    directions = centred / lengths[:, None].clamp_min(TINY)
    cosines = (directions @ directions.T)[~torch.eye(k, dtype=torch.bool, device=features.device)]
    return NeuralCollapse(
        max(0.0, float((within * torch.linalg.pinv(between, hermitian=True, rtol=1e-10)).sum()) / k / len(features)),
        float(lengths.std(unbiased=False) / lengths.mean().clamp_min(TINY)),
        float((cosines + 1 / (k - 1)).abs().mean()),
        *((math.nan, math.nan) if head is None else _against_head(features, means, centred, head)),
    )


def _against_head(features: Tensor, means: Tensor, centred: Tensor, head: nn.Linear) -> tuple[float, float]:
    """NC3 and NC4."""
    weights, bias = (None if p is None else p.detach().to(means) for p in (head.weight, head.bias))
    if weights.shape != means.shape:
        sizes = f"{tuple(weights.shape)} weights, the features have {tuple(means.shape)} class means"
        raise InputError(f"The head has {sizes}: give the features that it sees, with all its classes.")
    dual = float((weights / weights.norm().clamp_min(TINY) - centred / centred.norm().clamp_min(TINY)).norm())
    differ = 0
    for (rows,) in pieces(features):
        decided = F.linear(rows.double(), weights, bias).argmax(1)
        nearest = (rows.double() @ means.T - 0.5 * means.square().sum(1)).argmax(1)
        differ += int((decided != nearest).sum())
    return dual, differ / len(features)


def _covariance(first: Tensor, second: Tensor) -> Tensor:
    """X'Y of centred X (N, D), Y (N, E) in float64, (D, E), a sum over examples, without a copy of the whole tables."""
    means = first.mean(0, dtype=torch.float64), second.mean(0, dtype=torch.float64)
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64, device=first.device)
    for x, y in pieces(first, second):
        total += (x - means[0]).T @ (y - means[1])  # float64, as the means are
    return total


def principal_components(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first principal components of features (N, D): coordinates float32 (N, k'), shares of the variance (k',).

    k' = min(k, N, D). Each direction points to where its largest entry is positive, so the result has no arbitrary signs.
    """
    (features,) = as_features(features)
    values, vectors = torch.linalg.eigh(_covariance(features, features))
    k = min(k, *features.shape)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :k]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return (features - features.mean(0)) @ vectors.float(), values[:k] / values.sum().clamp_min(TINY)


@dataclass(frozen=True, eq=False)
class Probe:
    """A classifier of features, trained by `linear_probe` or `knn_probe`: `predict` maps (N, D) to classes int64 (N,)."""

    predict: Callable[[Tensor], Tensor]

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of features (N, D) whose class (N,) it predicts, in [0, 1]; clean or adversarial ones."""
        labels = as_labels(labels, features)
        return float((self.predict(features).to(labels.device) == labels).float().mean())


def linear_probe(features: Tensor, labels: Tensor) -> Probe:
    """Multinomial logistic regression on standardised features (N, D), the usual probe of a layer (Alain and Bengio 2017)."""
    from sklearn.linear_model import LogisticRegression

    (features,) = as_features(features)
    labels = as_labels(labels, features, classes=2)
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))

    def standardised(rows: Tensor) -> Tensor:
        return (rows - mean.to(rows.device)).div_(scale.to(rows.device)).cpu()  # one copy of the table, not two

    regression = LogisticRegression(max_iter=2000, tol=1e-3).fit(standardised(features).numpy(), labels.cpu().numpy())
    return Probe(lambda rows: torch.from_numpy(regression.predict(standardised(*as_features(rows)).numpy())))


def knn_probe(features: Tensor, labels: Tensor, *, k: int = 20) -> Probe:
    """The k nearest of features (N, D) by cosine, their votes weighted by exp(cos / 0.07) (Wu et al. 2018, section 3.4)."""
    (features,) = as_features(features)
    check_neighbours(len(features), k)
    bank, votes = unit(features), F.one_hot(as_labels(labels, features)).float()

    def predict(rows: Tensor) -> Tensor:
        classes = []
        for piece in as_features(rows)[0].split(rows_at_once(len(bank))):
            nearest = (unit(piece) @ bank.T).topk(k, dim=1)
            weights = ((nearest.values - 1) / TEMPERATURE).exp()
            classes.append((weights[..., None] * votes[nearest.indices]).sum(1).argmax(1))
        return torch.cat(classes)

    return Probe(predict)


def check_neighbours(n: int, k: int) -> None:
    """Raises InputError if n examples do not have k neighbours, or k is no number of neighbours."""
    if not 1 <= typed(k, int, "neighbours") <= n:
        raise InputError(f"{k!r} neighbours among {n} examples: give more examples, or from 1 to {n} neighbours.")


def measures(clean: Features, adversarial: Features, layer: str, head: nn.Linear | None = None) -> dict[str, float]:
    """The numbers of one layer that both kept, of the same examples; `head` is the last linear layer, if this layer is its input.

    Mean gaps (relative_l2, cosine, l1, l2, linf); alignment (clean to adversarial) and class_alignment; nearest, other, margin
    (`exclusion` of clean features), uniformity and effective_rank, and the same with adversarial_ (adversarial features among
    clean ones); cka of clean with adversarial; the fields of `NeuralCollapse` (of clean features).
    """
    before, after, y = clean[layer], adversarial[layer], clean.labels
    numbers = mean_gaps(before, after)
    numbers |= {"alignment": float(alignment(before, after).mean()), "cka": cka(before, after)}
    numbers["class_alignment"] = float(class_alignment(before, y).mean())
    for prefix, table in (("", before), ("adversarial_", after)):
        apart = exclusion(table, y, before)
        numbers |= {f"{prefix}nearest": float(apart.nearest.mean()), f"{prefix}other": float(apart.mean.mean())}
        numbers |= {f"{prefix}margin": float(apart.margin.nanmean()), f"{prefix}uniformity": uniformity(table)}
        numbers[f"{prefix}effective_rank"] = effective_rank(table)
    return numbers | asdict(neural_collapse(before, y, head))
