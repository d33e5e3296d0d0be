"""The binarisation test: an attack that misses adversarial examples that are known to exist is too weak to be believed."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.audit.attacks import AuditAttacks, View
from robustlib.models.classifier import logits_of
from robustlib.rng import uniform_point
from robustlib.threat import exact

INNER = 20  # points of the inner ball; fewer where the readout has fewer inputs than points
INNER_RADIUS = 0.5  # of eps
CLOSENESS = 0.9  # where the decision boundary lies between the inner points (0) and the boundary point (1)
RIDGE = 1e-4  # of the mean squared feature: the readout interpolates, and stays finite
JUDGED_AFTER = (25, 25, 25, 25)  # steps of PGD, after each of which its points are judged
STOCHASTIC_JUDGED_AFTER = (40,)  # once: by chance, more looks find more
FITTED = 64  # draws of a stochastic model whose mean a readout is fitted on: it would interpolate the noise of one

Output = Callable[[Tensor], Tensor]  # x (B, C, H, W) -> (B, D) float32
Readout = tuple[Tensor, Tensor]  # weight (D,) and bias (): above 0 for "adversarial", below for "inside"


def outputs(model: nn.Module) -> dict[str, Output]:
    """What a readout can be fitted on, by name, each x -> (B, D): the model's features if it has some, and its logits."""
    named: dict[str, Output] = {}
    if (features := getattr(model, "features", None)) is not None:
        named["features"] = lambda x: features(x.clone()).flatten(1).float()
    return named | {"logits": lambda x: logits_of(model, x).float()}


def joint_view(model: nn.Module, output: Output, readouts: Sequence[Readout]) -> View:
    """N readouts of a model's output as one view, to be attacked together, each by an image of its own: of the logits (B, N + 1)
    the i-th is high where readout i says "inside", the last one is 0."""
    weight, bias = (torch.stack(parts, -1) for parts in zip(*readouts, strict=True))
    return View(model, lambda _, x: F.pad(-(output(x) @ weight + bias), (0, 1)))


def binarised(attacks: AuditAttacks) -> dict[str, tuple[Tensor, Tensor]]:
    """Attacks readouts of each output of the model for each of the first `readouts` examples (Zimmermann et al. 2022, section 3).

    Those of the features cannot see what a head hides, those of the logits can. For each image a linear readout is fitted
    that calls `INNER` random points within half of eps "inside" and one on the ball's surface "adversarial". Where it does
    so exactly, an adversarial example exists; PGD on the readout must find one. Of a stochastic model it is fitted on mean
    outputs, and the majority of fresh draws decides.

    Returns by output two masks (N,): for which examples there is such a readout, and where PGD has success on it.
    """
    tests = {}
    for name, output in outputs(attacks.deployed).items():
        fitted = [fit_readout(attacks, output, i) for i in range(min(attacks.readouts, len(attacks.x)))]
        possible = torch.tensor([readout is not None for readout in fitted], dtype=torch.bool)
        success_mask = torch.zeros_like(possible)
        if certain := [readout for readout in fitted if readout is not None]:
            view, at = joint_view(attacks.deployed, output, certain), possible.nonzero()[:, 0].to(attacks.x.device)
            x, rng, start = attacks.x[at], attacks.rng[at].fold_in(92), None
            for steps in STOCHASTIC_JUDGED_AFTER if attacks.stochastic else JUDGED_AFTER:
                attack = PGD(attacks.threat, steps=steps, objective="nll", eot=attacks.eot)
                start = attack(view, x, torch.arange(len(x), device=x.device), rng=rng, start=start)
                success_mask[possible] |= _outside(attacks, view, start).cpu()
        tests[name] = possible, success_mask
    return tests


def fit_readout(attacks: AuditAttacks, output: Output, i: int) -> Readout | None:
    """The readout of one example; None where no linear readout separates its points."""
    x, rng = attacks.x[i : i + 1], attacks.rng[i : i + 1].fold_in(90)
    count, inner_ball = min(INNER, max(output(x).shape[1] - 2, 2)), attacks.threat.scaled(INNER_RADIUS)
    inner_points = [uniform_point(inner_ball, x, rng.fold_in(k)) for k in range(1, count)]
    points = torch.cat([x, *inner_points, surface_point(attacks, i)])
    with torch.no_grad():
        draws = FITTED if attacks.stochastic else 1
        f = torch.stack([exact(output(points)) for _ in range(draws)]).mean(0)
    centre = f[:-1].mean(0)
    g = f - centre
    aim = torch.full_like(g[:, 0], -1)
    aim[-1] = 1
    # Ridge regression in its dual form: as many unknowns as points.
    gram = g @ g.T + 1
    gram.diagonal().add_(RIDGE * float(g.square().sum(1).mean()) + 1e-12)
    weight = g.T @ torch.linalg.solve(gram, aim)
    scores = g @ weight
    inner, outer = scores[:-1].amax(), scores[-1]
    if not bool(outer > inner):
        return None
    level, scale = inner + CLOSENESS * (outer - inner), 1 / (outer - inner)
    readout = (scale * weight).to(x), (-scale * (centre @ weight + level)).to(x)
    alone = joint_view(attacks.deployed, output, [readout])
    return readout if not attacks.stochastic or bool(_outside(attacks, alone, points[-1:])) else None


def surface_point(attacks: AuditAttacks, i: int) -> Tensor:
    """A random point of the ball's surface round an example: a corner for linf, a direction for l2; clipped to [0, 1]."""
    x, rng, threat = attacks.x[i : i + 1], attacks.rng[i : i + 1].fold_in(91), attacks.threat
    step = 2 * rng.uniform(*x.shape[1:]) - 1 if threat.norm == "linf" else rng.normal(*x.shape[1:])
    return threat.project(x + threat.steepest_step(step, threat.eps), x)


def _outside(attacks: AuditAttacks, view: View, points: Tensor) -> Tensor:
    """(N,) bool: whether each readout calls its own one of the points (N, C, H, W) "adversarial", by the majority of draws."""
    with torch.no_grad():
        votes = torch.stack([view(points).diagonal() < 0 for _ in range(attacks.draws)])
    return exact(votes).mean(0) > 0.5
