"""Probes: what can be read off features by a linear classifier or by neighbours, and measures to watch during training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.data import Batch
from robustlib.errors import InputError
from robustlib.representation.features import activations, as_features, as_labels, resolve_layers, rows_at_once
from robustlib.representation.measures import GapMeasure, feature_gap, unit
from robustlib.rng import ExampleRNG

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


GAP_IMAGES = 128  # attacked by `gap_probe` at each epoch
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al. 2018)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regression on standardised features; made by `linear_probe`."""

    mean: Tensor
    scale: Tensor
    regression: "LogisticRegression"

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 (N,) of features (N, D)."""
        (features,) = as_features(features)
        return torch.from_numpy(self.regression.predict(_standard(features, self.mean, self.scale).cpu().numpy()))

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of features (N, D) whose class (N,) it tells, in [0, 1]; clean or adversarial ones."""
        return _share(self.predict(features), labels)


def linear_probe(features: Tensor, labels: Tensor, *, c: float = 1.0) -> LinearProbe:
    """Multinomial logistic regression on frozen features, the usual probe of a layer (Alain and Bengio 2017).

    Args:
        features: (N, D) of training images; they are standardised.
        labels: (N,).
        c: inverse strength of the L2 penalty.

    Raises:
        InputError: fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    (features,) = as_features(features)
    labels = as_labels(labels, features)
    if len(labels.unique()) < 2:
        raise InputError(f"All {len(labels)} examples are of class {int(labels[0])}: a probe needs two classes.")
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    table = _standard(features, mean, scale).cpu().numpy()
    regression = LogisticRegression(C=c, max_iter=2000, tol=1e-3).fit(table, labels.cpu().numpy())
    return LinearProbe(mean, scale, regression)


def _standard(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (features - mean.to(features.device)).div_(scale.to(features.device))  # one copy of the table, not two


@dataclass(frozen=True, eq=False)
class KNNProbe:
    """The vote of the k nearest of a bank of features; made by `knn_probe`."""

    bank: Tensor
    labels: Tensor
    k: int

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 (N,) of features (N, D)."""
        (features,) = as_features(features)
        votes_of, start = torch.nn.functional.one_hot(self.labels).float(), 0
        found = torch.empty(len(features), dtype=torch.int64, device=features.device)
        for rows in features.split(rows_at_once(len(self.bank))):
            nearest = (unit(rows) @ self.bank.T).topk(self.k, dim=1)
            weights = ((nearest.values - 1) / TEMPERATURE).exp()
            found[start : start + len(rows)] = (weights[..., None] * votes_of[nearest.indices]).sum(1).argmax(1)
            start += len(rows)
        return found

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """The share of features (N, D) whose class (N,) it tells, in [0, 1]; clean or adversarial ones."""
        return _share(self.predict(features), labels)


def knn_probe(features: Tensor, labels: Tensor, *, k: int = 20) -> KNNProbe:
    """k nearest neighbours by cosine, their votes weighted by exp(cos / 0.07) (Wu et al. 2018, section 3.4).

    Args:
        features: (N, D) of training images, the bank.
        labels: (N,).
        k: neighbours, at most N.

    Raises:
        InputError: fewer examples than neighbours.
    """
    (features,) = as_features(features)
    check_neighbours(len(features), k)
    return KNNProbe(unit(features), as_labels(labels, features), k)


def check_neighbours(n: int, k: int) -> None:
    """Raises InputError if n examples do not have k neighbours, or k is no number of neighbours."""
    if not 1 <= k <= n:
        raise InputError(f"{k!r} neighbours among {n} examples: give more examples, or from 1 to {n} neighbours.")


def _share(predictions: Tensor, labels: Tensor) -> float:
    if predictions.shape != labels.shape:
        raise InputError(f"{len(predictions)} features need as many labels, got {tuple(labels.shape)}.")
    return float((predictions.to(labels.device) == labels).float().mean())


def gap_probe(
    attack: Attack,
    layers: Mapping[str, str],
    *,
    measures: Sequence[GapMeasure] = ("relative_l2", "cosine", "linf"),
    images: int = GAP_IMAGES,
    seed: int = 0,
) -> Callable[[nn.Module, Batch], dict[str, float]]:
    """Mean feature gaps of several layers under one attack, to watch during training: an entry of `Stage.probes`.

    They appear in the metrics as "probe/<layer's name>/<measure>". The attack runs once for all of them. The model is left as
    found.

    Args:
        attack: finds the adversarial examples.
        layers: name in the metrics -> layer, see `resolve_layers`.
        measures: of `feature_gap`; "linf" is what AFD plots, the others do not depend on the features' scale.
        images: how many of the batch are attacked, spread evenly over it (its order may be that of classes), always the same.
        seed: of the attack, one stream an example, the same in every epoch.

    Raises:
        InputError: when called, no such layer or measure.
    """

    def probe(model: nn.Module, batch: Batch) -> dict[str, float]:
        names = resolve_layers(model, tuple(layers.values()))
        spread = torch.arange(0, len(batch), max(1, len(batch) // images), device=batch.y.device)[:images]
        few = replace(batch, images=batch.images[spread], y=batch.y[spread], index=batch.index[spread])
        with frozen_eval(model):
            x_adv = attack(validation_view(model), few.x, few.y, rng=ExampleRNG.for_examples(seed, few.index))
            with torch.no_grad():
                clean, adversarial = activations(model, few.x, names), activations(model, x_adv, names)
        return {
            f"{said}/{measure}": float(feature_gap(clean[name], adversarial[name], measure).mean())
            for said, name in zip(layers, names, strict=True)
            for measure in measures
        }

    return probe
