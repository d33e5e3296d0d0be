"""The binarisation test: an attack that misses adversarial examples that are known to exist is too weak to be believed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.audit.attacks import AuditAttacks, Wrapper
from robustlib.rng import uniform_point

INNER = 20  # points of the inner ball; fewer where the readout has fewer inputs than points
INNER_RADIUS = 0.5  # of eps
CLOSENESS = 0.9  # where the decision boundary lies between the inner points (0) and the boundary point (1)
Output = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> (B, D) float32
RIDGE = 1e-4  # of the mean squared feature: the readout interpolates, and stays finite
JUDGED_AFTER = (25, 25, 25, 25)  # steps of PGD, after each of which its points are judged
STOCHASTIC_JUDGED_AFTER = (40,)  # once: by chance, more looks find more
FITTED = 64  # draws of a stochastic model whose mean a readout is fitted on: it would interpolate the noise of one


class Readouts(Wrapper):
    """N linear functions of some output of a model, to be attacked together, each by an image of its own.

    Args:
        output: of the model.
        weights, biases: (D,) and () of each readout, whose value is above 0 for "adversarial", below for "inside".
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, output: Output, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        super().__init__(model)
        self.output = output
        self.register_buffer("weight", torch.stack(list(weights), 1))
        self.register_buffer("bias", torch.stack(list(biases)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N + 1): logit i is high where readout i says "inside", the last one is 0; always differentiable, with a
        gradient of zero where the output is not."""
        scores = self.output(x) @ self.weight + self.bias
        return F.pad(0 * x.flatten(1).sum(1, keepdim=True) - scores, (0, 1))


def outputs(model: nn.Module) -> dict[str, Output]:
    """What a readout can be fitted on, by name, each x -> (B, D): the model's features if it has some, and its logits."""
    found = {"features": getattr(model, "features", None), "logits": model}
    return {name: _flat(output) for name, output in found.items() if output is not None}


def _flat(output: Output) -> Output:
    return lambda x: output(x).flatten(1).float()


@dataclass(frozen=True)
class Binarised:
    """(N,) bool each: for which examples a readout with a certain adversarial example exists, and where PGD found one."""

    possible: Tensor
    found: Tensor


def binarised(attacks: AuditAttacks, images: int) -> dict[str, Binarised]:
    """Attacks readouts of each output of the model for each of the first `images` examples (Zimmermann et al. 2022, section 3).

    Those of the features cannot see what a head hides, those of the logits can. For each image a linear readout is fitted
    that calls `INNER` random points within half of eps "inside" and one on the ball's surface "adversarial". Where it does
    so exactly, an adversarial example exists; PGD on the readout must find one. Of a stochastic model it is fitted on mean
    outputs, and the point on the surface is asked for as what PGD finds is: by the majority of fresh draws.
    """
    count = min(images, len(attacks.x))
    tests = {}
    for name, output in outputs(attacks.model.model).items():
        readouts = [_readout(attacks, output, i) for i in range(count)]
        possible = torch.tensor([readout is not None for readout in readouts], dtype=torch.bool)
        found = torch.zeros_like(possible)
        if certain := [readout for readout in readouts if readout is not None]:
            together = Readouts(attacks.model.model, output, *zip(*certain, strict=True))
            found[possible] = _broken(attacks, together, possible.nonzero()[:, 0]).cpu()
        tests[name] = Binarised(possible, found)
    return tests


def _readout(attacks: AuditAttacks, output: Output, i: int) -> tuple[Tensor, Tensor] | None:
    """Weight (D,) and bias () of the readout of one example; None where no linear readout separates its points."""
    model, threat = attacks.model.model, attacks.threat
    x, rng = attacks.x[i : i + 1], attacks.rng[i : i + 1].fold_in(90)
    width = output(x).shape[1]
    count = min(INNER, max(width - 2, 2))
    points = [uniform_point(threat.scaled(INNER_RADIUS), x, rng.fold_in(k)) for k in range(1, count)]
    points = [x, *points, _surface_point(attacks, x, i)]
    with torch.no_grad():
        draws = FITTED if attacks.stochastic else 1
        f = torch.stack([output(torch.cat(points)).double() for _ in range(draws)]).mean(0)
    centre = f[:-1].mean(0)
    g = f - centre
    aim = -torch.ones(len(g), dtype=g.dtype, device=g.device)
    aim[-1] = 1
    # Ridge regression in its dual form: as many unknowns as points.
    gram = g @ g.T + 1
    gram.diagonal().add_(RIDGE * float(g.square().sum(1).mean()) + 1e-12)
    weight = g.T @ torch.linalg.solve(gram, aim)
    scores = g @ weight
    inner, outer = scores[:-1].amax(), scores[-1]
    if not bool(outer > inner):
        return None
    level = inner + CLOSENESS * (outer - inner)
    scale = 1 / (outer - inner)
    readout = (scale * weight).float(), (-scale * (centre @ weight + level)).float()
    alone = Readouts(model, output, *([part] for part in readout))
    return readout if not attacks.stochastic or bool(_outside(attacks, alone, points[-1])) else None


def _surface_point(attacks: AuditAttacks, x: Tensor, i: int) -> Tensor:
    """A random point of the ball's surface: a corner for linf, a random direction for l2; clipped to [0, 1]."""
    rng = attacks.rng[i : i + 1].fold_in(91)
    step = 2 * rng.uniform(*x.shape[1:]) - 1 if attacks.threat.norm == "linf" else rng.normal(*x.shape[1:])
    return attacks.threat.project(x + attacks.threat.steepest_step(step, attacks.threat.eps), x)


def _broken(attacks: AuditAttacks, readouts: Readouts, images: Tensor) -> Tensor:
    """(N,) bool: which readouts PGD leads to "adversarial", each from its own one of the images (N,)."""
    images = images.to(attacks.x.device)
    x, own, rng = attacks.x[images], torch.arange(len(images), device=images.device), attacks.rng[images].fold_in(92)
    found, start = torch.zeros_like(own, dtype=torch.bool), None
    for steps in STOCHASTIC_JUDGED_AFTER if attacks.stochastic else JUDGED_AFTER:
        attack = PGD(attacks.threat, steps=steps, objective="nll", eot=attacks.eot)
        start = attack(readouts, x, own, rng=rng, start=start)
        found |= _outside(attacks, readouts, start)
    return found


def _outside(attacks: AuditAttacks, readouts: Readouts, points: Tensor) -> Tensor:
    """(N,) bool: whether each readout calls its own one of the points (N, C, H, W) "adversarial", by the majority of draws."""
    with torch.no_grad():
        votes = torch.stack([readouts(points).diagonal() < 0 for _ in range(attacks.k)])
    return votes.double().mean(0) > 0.5
