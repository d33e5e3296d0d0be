"""A run's answers to the same images as an attack on them grows: computed once, kept beside the run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustlib import representation
from robustlib.attacks import APGD, FGSM, Attack
from robustlib.data import Dataset
from robustlib.errors import InputError, check_known
from robustlib.evaluation import accuracy
from robustlib.evaluation.protocols import EOT
from robustlib.representation.features import Features
from robustlib.representation.measures import unit
from robustlib.runs import Run
from robustlib.threat import Threat

Report = Callable[..., Any]
MULTIPLES = tuple(k / 4 for k in range(9))  # of the eps of the run's threat model: from nothing to twice as much


def explorer_attacks(threat: Threat, stochastic: bool = False) -> dict[str, Attack]:
    """The attacks to choose from, by their usual names; PGD-20 is `probe_attack`."""
    eot = EOT if stochastic else 1
    probe = replace(representation.probe_attack(threat), eot=eot)
    return {"FGSM": FGSM(threat, eot=eot), "PGD-20": probe, "APGD-CE": APGD(threat, steps=50, eot=eot)}


@dataclass(frozen=True, eq=False)
class Grid:
    """The same N images at T growing radii, and what the model of a run makes of them."""

    run: Run
    attack: str  # a name of `explorer_attacks`
    eps: float  # radius of the run's threat model, one of `radii`
    radii: tuple[float, ...]  # eps of each step, rising from 0
    steps: tuple[Features, ...]  # one a radius, with images and every layer; the first is clean

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

    def is_adversarial(self, step: int) -> Tensor:
        """Which images are right before the attack and wrong at this step, bool (N,)."""
        return self.clean.correct & ~self.steps[step].correct

    def probabilities(self, image: int, step: int) -> Tensor:
        """softmax of one image's logits, (K,)."""
        return self.steps[step]["logits"][image].softmax(0)

    def neighbours(self, layer: str, image: int, step: int, k: int) -> Tensor:
        """Positions of the k clean images nearest to one image at this step, by cosine, int64 (k,); never itself."""
        likeness = unit(self.clean[layer]) @ unit(self.steps[step][layer][image : image + 1])[0]
        likeness[image] = -torch.inf
        return likeness.topk(k).indices


def make_grid(
    run: Run, dataset: Dataset, attack: str, *, n: int = 200, seed: int = 0, report: Report = lambda *_: None
) -> Grid:
    """The grid of a finished run under an attack, taken from beside the run, or computed: see `run_features`.

    Before each radius `report` is called with the number of radii done, of all, and the radius.
    """
    if not run.finished:
        raise InputError(f"There is no finished run in {run.path} any more: choose another one, or train it again.")
    model, threat = run.model(), Threat(**run.params()["threat"])
    known = explorer_attacks(threat, model.stochastic)
    check_known("attack of the explorer", attack, known)
    radii = tuple(dict.fromkeys(threat.scaled(multiple).eps for multiple in MULTIPLES))
    names = representation.layers(model)
    steps: list[Features] = []
    for done, eps in enumerate(radii[1:]):
        report(done, len(radii) - 1, eps)
        stronger = representation.at_eps(known[attack], eps)
        pair = representation.run_features(run, dataset, stronger, layers=names, n=n, seed=seed)
        steps = [*(steps or pair[:1]), pair[1]]
    return Grid(run, attack, threat.eps, radii, tuple(steps))
