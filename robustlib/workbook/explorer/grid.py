"""What a run answers to the same images while an attack grows, and where their features lie: computed once, then looked up."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.attacks import APGD, FGSM, Attack
from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.evaluation import accuracy
from robustlib.evaluation.protocols import EOT
from robustlib.representation import (
    at_eps,
    embed_path,
    feature_gap,
    layers,
    principal_components,
    probe_attack,
    run_features,
)
from robustlib.representation.features import Features
from robustlib.representation.measures import check_neighbours, unit
from robustlib.runs import Run
from robustlib.threat import Threat

MULTIPLES = tuple(k / 4 for k in range(9))  # of the eps of the run's threat model: from nothing to twice as much

Report = Callable[[int, int, float], object]  # radii done, radii in all, the next radius


def explorer_attacks(threat: Threat, stochastic: bool = False) -> dict[str, Attack]:
    """The attacks to choose from, by their usual names; PGD-20 is `probe_attack`."""
    eot = EOT if stochastic else 1
    return {
        "FGSM": FGSM(threat, eot=eot),
        "PGD-20": replace(probe_attack(threat), eot=eot),
        "APGD-CE": APGD(threat, steps=50, eot=eot),
    }


@dataclass(frozen=True, eq=False)
class Grid:
    """The same N images at T growing radii, and what one model makes of them.

    Args:
        run: whose model it is.
        attack: a name of `explorer_attacks`.
        eps: radius of the run's threat model, one of `radii`.
        radii: eps of each step, rising from 0.
        steps: one `Features` a radius, with images and every layer; the first is clean.
    """

    run: Run
    attack: str
    eps: float
    radii: tuple[float, ...]
    steps: tuple[Features, ...]

    @property
    def clean(self) -> Features:
        """The images before the attack."""
        return self.steps[0]

    def curve(self, keep: Tensor) -> list[dict[str, Any]]:
        """Accuracy of the images in `keep`, bool (N,), at each radius: eps, n, correct, accuracy, low, high (95 % Wilson).

        Each radius is attacked by itself, so this is no worst case, and may rise where the attack is too weak.
        """
        n = int(keep.sum())
        right = [int((step.correct & keep).sum()) for step in self.steps]
        return [{"eps": eps, **accuracy(k, n)} for eps, k in zip(self.radii, right, strict=True)]

    def fooled(self, step: int) -> Tensor:
        """Which images are right before the attack and wrong at this step, bool (N,)."""
        return self.clean.correct & ~self.steps[step].correct

    def probabilities(self, image: int, step: int) -> Tensor:
        """softmax of one image's logits, (K,)."""
        return self.steps[step]["logits"][image].softmax(0)

    def neighbours(self, layer: str, image: int, step: int, k: int) -> Tensor:
        """Positions of the k clean images nearest to one image at this step, by cosine, int64 (k,); never itself."""
        check_neighbours(len(self.clean) - 1, k)
        likeness = unit(self.clean[layer]) @ unit(self.steps[step][layer][image : image + 1])[0]
        likeness[image] = -torch.inf
        return likeness.topk(k).indices

    def gap(self, layer: str, image: int, step: int) -> float:
        """The displacement of one image's features from its clean ones, relative to their length (`feature_gap`)."""
        one = slice(image, image + 1)
        return float(feature_gap(self.clean[layer][one], self.steps[step][layer][one]))


def make_grid(
    run: Run, dataset: Dataset, attack: str, *, n: int = 200, seed: int = 0, report: Report | None = None
) -> Grid:
    """The grid of a finished run under an attack, around the eps of its threat model: found beside the run, or made and kept.

    Args:
        run, dataset, n, seed: see `run_features`.
        attack: a name of `explorer_attacks`.
        report: called before each radius.
    """
    if not run.finished:
        raise InputError(f"There is no finished run in {run.path} any more: choose another one, or train it again.")
    model, threat = run.model(), Threat(**run.params()["threat"])
    known = explorer_attacks(threat, model.stochastic)
    if attack not in known:
        raise unknown("attack of the explorer", attack, known)
    radii = tuple(dict.fromkeys(threat.scaled(multiple).eps for multiple in MULTIPLES))
    steps: list[Features] = []
    for place, eps in enumerate(radii[1:]):
        if report is not None:
            report(place, len(radii) - 1, eps)
        pair = run_features(run, dataset, at_eps(known[attack], eps), layers=layers(model), n=n, seed=seed)
        steps = [*(steps or pair[:1]), pair[1]]
    return Grid(run, attack, threat.eps, radii, tuple(steps))


@dataclass(frozen=True, eq=False)
class Projection:
    """Coordinates (T, N, 2) of every image at every radius, and how they were made."""

    points: np.ndarray
    note: str


def pca_projection(grid: Grid, layer: str) -> Projection:
    """The first two principal components of the unit vectors of all steps together."""
    features = torch.cat([step[layer] for step in grid.steps])
    scores, shares = principal_components(unit(features), 2)
    flat = np.pad(scores.numpy(), ((0, 0), (0, 2 - scores.shape[1])))
    note = (
        "PCA of clean and adversarial features of all radii together, each scaled to length 1; the two axes hold "
        f"{float(shares[:2].sum()):.0%} of the variance."
    )
    return Projection(flat.reshape(len(grid.steps), -1, 2), note)


def umap_projection(grid: Grid, layer: str, seed: int) -> Projection:
    """The joint UMAP of all steps, kept beside the run unless that was deleted meanwhile."""
    cache = grid.run.path if grid.run.finished else None
    made = embed_path(tuple(step[layer] for step in grid.steps), seed=seed, cache=cache)
    return Projection(made.points, str(made))
