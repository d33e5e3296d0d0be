"""Fast adaptive boundary attack: steps to the linearised decision boundary (Croce and Hein 2020, "Minimally distorted ...")."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from robustlib.attacks.active_set import ActiveSet, MinimumNorm
from robustlib.attacks.apgd import ranked_classes, surface_point
from robustlib.attacks.base import AttackBatch, GradientOracle, Precision, others
from robustlib.attacks.objectives import is_adversarial
from robustlib.errors import Count, Share
from robustlib.threat import TINY, Norm, Threat, norms

UNSEEN = 8  # Newton's steps after which a GPU is asked whether any is left: idle ones change nothing
ROUNDING = 32  # units in the last place that a sum over pixels may be off


@dataclass(frozen=True)
class FAB(MinimumNorm):
    """Targeted FAB: towards each of the likeliest wrong classes, onto the boundary and along it towards the clean image.

    FAB looks for small perturbations and knows no radius. Called as an attack, an example leaves as soon as one of them lies
    within eps; `nearest` goes on to the end.
    """

    threat: Threat
    steps: Count = 100  # iterations for each target and restart
    targets: Count = 9  # how many of the likeliest wrong classes are tried (K - 1 at most)
    restarts: Count = 1  # the first starts from the image itself, others from a random point within eps / 2
    alpha_max: Share = 0.1  # largest share of the pull towards the clean image (eq. 9)
    eta: Annotated[float, "[1, 100]"] = 1.05  # overshoot beyond the boundary
    beta: Share = 0.9  # share of its perturbation that an adversarial point keeps when it is drawn back
    eot: Count = 1  # gradient samples averaged at each step; for stochastic models
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def _searches(
        self, active_set: ActiveSet, starts: Tensor | None = None, nearest: bool = False
    ) -> Iterator[tuple[Tensor, int]]:
        oracle = active_set.oracle
        classes = ranked_classes(oracle, active_set.all, self.targets, self.eot)
        for round_ in active_set.rounds(classes.shape[1] * self.restarts):
            batch = replace(active_set.batch, target=classes[active_set.active, round_ // self.restarts])
            start = batch.x if starts is None else starts
            if round_ % self.restarts:
                start = surface_point(self.threat.scaled(0.5), batch.x, active_set.rng(round_))
            x_adv = self._descend(oracle, batch, start, nearest)
            if nearest:
                success = is_adversarial(oracle.logits(x_adv), batch.y)
                x_adv[~success] = batch.x[~success]
            yield x_adv, 2 * self.eot * self.steps  # a gradient and an answer at each step

    def _descend(self, oracle: GradientOracle, batch: AttackBatch, start: Tensor, anywhere: bool) -> Tensor:
        """One run: for each example the first adversarial point within eps, else the nearest in that direction inside it;
        `anywhere`, the nearest of all steps, wherever it lies."""
        x_adv, active, x = start.clone(), torch.arange(len(start), device=start.device), start
        nearest = start.new_full((len(start),), torch.inf)
        for _ in range(self.steps):
            x = self._step(oracle, batch, x)
            logits, distance = oracle.fast_logits(x, self.eot), self.threat.distance(x, batch.x)
            wrong = is_adversarial(logits, batch.y)
            inside, known, each = (
                x if anywhere else self.threat.project(x, batch.x),
                nearest[active],
                (-1, *[1] * (x.ndim - 1)),
            )
            success = active.new_empty(0)
            if not anywhere:
                success = (wrong & (distance <= self.threat.eps)).nonzero()[:, 0]
            if len(success):
                success = success[oracle.successes(inside[success], logits[success], batch.y[success])]
            closer = wrong & (distance < known)
            nearest[active] = known = torch.where(closer, distance, known)
            best = (closer | known.isinf()).index_fill(0, success, True)  # before the first crossing, the last point
            x_adv[active] = torch.where(best.view(each), inside, x_adv[active])
            x = torch.where(wrong.view(each), batch.x + self.beta * (x - batch.x), x)
            if len(success):
                stay = others(success, len(active))
                active, batch, x = active[stay], batch[stay], x[stay]
            if not len(active):
                break
        return x_adv

    def _step(self, oracle: GradientOracle, batch: AttackBatch, x: Tensor) -> Tensor:
        """Equation 9: a mean of the projections of the point and of the clean image on the linearised boundary."""
        gap = batch.objective("gap")
        slope, logits = oracle.gradient(x, gap, self.eot)
        # along the slope, to the hyperplane on which both classes have the same logit, from here and from the clean image
        way = -gap(logits, slice(None)).nan_to_num(0.0)
        back = way + (slope * (x - batch.x)).flatten(1).sum(1)
        points, slopes, missing = torch.cat((x, batch.x)), torch.cat((slope, slope)), torch.cat((way, back))
        own, clean = to_hyperplane(points, slopes, missing, self.threat.norm).chunk(2)
        far, near = (norms(d, self.threat.norm).clamp_min(1e-8) for d in (own, clean))
        alpha = (far / (far + near)).clamp_max(self.alpha_max)
        return ((1 - alpha) * (x + self.eta * own) + alpha * (batch.x + self.eta * clean)).clamp(0, 1)


def to_hyperplane(x: Tensor, normal: Tensor, missing: Tensor, norm: Norm) -> Tensor:
    """The smallest d (B, ...) in `norm` with normal . d = missing (B,) and x + d in [0, 1] (section 2.2).

    Every coordinate moves at a rate v_i (1 for linf, |normal_i| for l2) until it meets its side of the box. How far all are along the
    normal is a concave, piecewise linear function of the moment; Newton's steps from 0 stay before the moment at which it reaches the
    hyperplane and, after a few, are there. Where the box does not reach the hyperplane, d ends in the corner nearest to it.
    """
    flat, w, missing = x.flatten(1), normal.flatten(1), missing.to(x.dtype)
    direction = w.sign() * missing.sign()[:, None]
    room = torch.where(direction > 0, 1 - flat, flat) * direction.abs()
    rate, weight, goal = direction.abs() if norm == "linf" else w.abs(), w.abs(), missing.abs()
    speed, moved = weight * rate, torch.zeros_like(w)  # speed along the normal
    moment, rounding = torch.zeros_like(goal), ROUNDING * torch.finfo(x.dtype).eps * goal
    for step in range(w.shape[1] + 1):  # a step passes a side of the box, or is the last
        left, now = goal - (weight * moved).sum(1), (speed * (moved < room)).sum(1)
        going = (left > rounding) & (now > 0)
        if (x.device.type == "cpu" or step % UNSEEN == UNSEEN - 1) and not bool(going.any()):
            break
        moment = moment + torch.where(going, left / now.clamp_min(TINY), 0)
        moved = torch.minimum(rate * moment[:, None], room)
    return (direction * moved).view_as(x).to(x.dtype)
