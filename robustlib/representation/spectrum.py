"""The shape of a cloud of features: similarity of two layers, effective dimensions, collapse onto class means."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.representation.features import as_features, as_labels, pieces
from robustlib.representation.measures import TINY


def cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment |Y'X|^2 / (|X'X| |Y'Y|) of centred X (N, D), Y (N, E), in [0, 1] (Kornblith et al. 2019).

    1 = equal up to rotation, shift and scale, 0 = uncorrelated. With N below a few times D it is biased towards 1, so compare
    values of the same N only. 0 where one of the two is constant.

    Raises:
        InputError: not the same number of examples.
    """
    (first,), (second,) = as_features(first), as_features(second)
    if len(first) != len(second):
        raise InputError(f"CKA compares layers on the same examples, not {len(first)} with {len(second)}.")
    cross, own, other = (cross_products(a, b).norm() for a, b in ((second, first), (first, first), (second, second)))
    scale = float(own * other)
    return min(1.0, float(cross.square()) / scale) if scale else 0.0


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values' shares p_i = s_i / sum s of centred features, in [1, min(N - 1, D)].

    How many directions the features really use (Roy and Vetterli 2007). 0 where all features are equal.
    """
    (features,) = as_features(features)
    covariance = cross_products(features, features)
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    values = values[values > values.max() * 1e-12].sqrt()  # below, rounding of float64
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


@dataclass(frozen=True)
class NeuralCollapse:
    """Distances from neural collapse (Papyan, Han and Donoho 2020); all are 0 when it is complete.

    Args:
        variability: NC1, trace(S_W pinv(S_B)) / K of the within- and between-class covariances, in [0, inf).
        equinorm: NC2, standard deviation over mean of the lengths of centred class means, in [0, inf).
        equiangular: NC2, mean over pairs of |cos + 1 / (K - 1)|, in [0, 2].
        self_duality: NC3, |W / |W| - M / |M|| of the head's weights and centred class means, in [0, 2]; NaN without a head.
        nearest_centre: NC4, share of examples for which the head decides otherwise than the nearest class mean, in [0, 1];
            NaN without a head.
    """

    variability: float
    equinorm: float
    equiangular: float
    self_duality: float = math.nan
    nearest_centre: float = math.nan


def neural_collapse(features: Tensor, labels: Tensor, head: nn.Linear | None = None) -> NeuralCollapse:
    """How far features (N, D) with labels (N,) are from collapsing onto a simplex of class means, see NeuralCollapse.

    Args:
        features: of the layer before `head`.
        labels: every class 0 .. K - 1 at least once, K at least 2.
        head: the last linear layer, for NC3 and NC4.

    Raises:
        InputError: fewer than two classes, a class without examples, a head of other sizes.
    """
    (features,) = as_features(features)
    labels = as_labels(labels, features)
    counts = labels.bincount(minlength=head.out_features if head else 0)
    if len(counts) < 2 or bool((counts == 0).any()):
        missing = ", ".join(map(str, (counts == 0).nonzero().flatten().tolist()[:5])) or "1"
        raise InputError(f"Class {missing} has no example: neural collapse is about the means of at least two classes.")
    means = _class_sums(features, labels, len(counts)) / counts[:, None]
    centred = means - means.mean(0)
    spread = means - features.mean(0, dtype=torch.float64)
    within = cross_products(features, features) - spread.T @ (
        spread * counts[:, None]
    )  # all minus between, both summed
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
        decided = nn.functional.linear(rows.double(), weights, bias).argmax(1)
        nearest = (rows.double() @ means.T - 0.5 * means.square().sum(1)).argmax(1)
        differ += int((decided != nearest).sum())
    return dual, differ / len(features)


def _class_sums(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums of features (N, D) by class, (K, D) float64."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    for rows, y in pieces(features, labels):
        sums.index_add_(0, y, rows.double())
    return sums


def cross_products(first: Tensor, second: Tensor) -> Tensor:
    """X'Y of centred X (N, D), Y (N, E) in float64, (D, E), without a copy of the whole tables."""
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
    values, vectors = torch.linalg.eigh(cross_products(features, features))
    k = min(k, *features.shape)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :k]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    scores = (features - features.mean(0)) @ vectors.float()
    return scores, values[:k] / values.sum().clamp_min(TINY)
