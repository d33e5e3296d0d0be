"""Auto-PGD: projected gradient ascent with momentum that sets its own step size (Croce and Hein 2020)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustlib.attacks.active_set import ActiveSet, IterativeAttack
from robustlib.attacks.base import AttackBatch, GradientOracle, Precision, others
from robustlib.errors import Count, Share, Whole
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat, norms

MOMENTUM = 0.75  # alpha of eq. 3, the share of the new step
CANDIDATES = 100  # likeliest classes that MALT ranks (section 5)
FIRST, SHRINK, SHORTEST = 0.22, 0.03, 0.06  # periods between checkpoints, as shares of all steps (section 3.1)


@dataclass(frozen=True)
class APGD(IterativeAttack):
    """Auto-PGD (Croce and Hein 2020, algorithm 1).

    The step starts at 2 eps and is halved at checkpoints where the objective rose too rarely or not at all; the example then
    goes on from its best point. Successes leave at once. The authors' code counts the first step as a rise, by a slip, where the
    objective exceeds 0; here, as in the algorithm, where it exceeds that of the start.
    """

    threat: Threat
    steps: Count = 100  # gradient steps of each run
    # nll: of outputs that are sums of log-probabilities
    objective: Literal["ce", "nll", "dlr", "margin", "probability_margin"] = "ce"
    targets: Whole = 0  # 0: away from the label; N: towards each of N wrong classes (K - 1 at most) in turn
    # which and in what order: the likeliest, or (MALT) those nearest to the image if the model were linear
    ranking: Literal["logits", "malt"] = "logits"
    restarts: Count = 1  # random starts of each run
    eot: Count = 1  # gradient samples averaged at each step; for stochastic models
    rho: Share = 0.75  # share of steps that must raise the objective between two checkpoints
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def _run(self, active_set: ActiveSet) -> None:
        oracle = active_set.oracle
        malt = self.threat if self.ranking == "malt" else None
        classes = ranked_classes(oracle, active_set.all, self.targets, self.eot, malt)
        for round_ in active_set.rounds(max(1, classes.shape[1]) * self.restarts):
            batch = active_set.batch
            if self.targets:
                batch = replace(batch, target=classes[active_set.active, round_ // self.restarts])
            start = surface_point(self.threat, batch.x, active_set.rng(round_))
            active_set.update(self._ascend(oracle, batch, start))

    def _ascend(self, oracle: GradientOracle, batch: AttackBatch, start: Tensor) -> Tensor:
        """One run: for each example the first adversarial point, else the one of the largest objective."""
        x_adv, active = start.clone(), torch.arange(len(start), device=start.device)
        gradient, logits = oracle.gradient(start, batch.objective(self.objective), self.eot)
        state = APGDState(start, gradient, batch.value(self.objective, logits), 2 * self.threat.eps)
        check, period = checkpoints(self.steps), 0
        for step in range(self.steps + 1):
            success = oracle.successes(state.x, logits, batch.y)  # any wrong class, also for targeted runs
            if len(success):
                x_adv[active[success]], stay = state.x[success], others(success, len(active))
                active, batch, logits = active[stay], batch[stay], logits[stay]
                state.keep(stay)
            if step == self.steps or not len(active):
                break
            # equation 3: a projected step, mixed with the direction of the last one
            length, momentum = state.step.view(-1, *[1] * (start.ndim - 1)), MOMENTUM if step else 1.0
            ahead = self.threat.project(state.x + length * self.threat.steepest_step(state.gradient, 1.0), batch.x)
            mixed = state.x + momentum * (ahead - state.x) + (1 - momentum) * (state.x - state.previous)
            x = self.threat.project(mixed, batch.x)
            if step + 1 < self.steps:
                gradient, logits = oracle.gradient(x, batch.objective(self.objective), self.eot)
            else:  # no step is taken from the last point
                gradient, logits = state.gradient, oracle.fast_logits(x, self.eot)
            state.advance(x, gradient, batch.value(self.objective, logits))
            period += 1
            if step + 1 in check:
                state.adapt(self.rho * period)
                period = 0
        x_adv[active] = state.best
        return x_adv


class APGDState:
    """A run's state for each example, (B, ...): its last points, its best, and what the step size depends on."""

    def __init__(self, x: Tensor, gradient: Tensor, value: Tensor, step: float) -> None:
        self.x = self.previous = self.best = x
        self.gradient = self.best_gradient = gradient
        self.value = self.best_value = value  # of the objective
        self.step = torch.full_like(value, step).to(x.dtype)
        self.rises = torch.zeros_like(value)  # steps since the last checkpoint that raised the objective
        self.checked = value  # best_value at the last checkpoint
        # Whether the step was halved there. The first one cannot halve for want of progress: nothing came before it.
        self.halved = torch.ones_like(value, dtype=torch.bool)

    def keep(self, rows: Tensor) -> None:
        """Forgets all other examples."""
        vars(self).update({name: values[rows] for name, values in vars(self).items()})

    def advance(self, x: Tensor, gradient: Tensor, value: Tensor) -> None:
        """Takes the next points."""
        self.rises = self.rises + (value > self.value)
        self.previous, self.x, self.gradient, self.value = self.x, x, gradient, value
        better = value > self.best_value
        self.best, self.best_gradient = _mix(better, x, self.best), _mix(better, gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def adapt(self, needed: float) -> None:
        """At a checkpoint: halves the step and goes back to the best point where progress was too small."""
        stuck = (self.best_value <= self.checked) & ~self.halved
        halve = (self.rises <= needed) | stuck
        self.step = torch.where(halve, self.step / 2, self.step)
        self.x, self.gradient = _mix(halve, self.best, self.x), _mix(halve, self.best_gradient, self.gradient)
        # `value` stays that of the former point, as in the authors' code: the first step after it may count as a rise.
        self.rises, self.checked, self.halved = torch.zeros_like(self.rises), self.best_value, halve


def surface_point(threat: Threat, x: Tensor, rng: ExampleRNG) -> Tensor:
    """A random point on the ball's surface: uniform noise scaled until it touches for linf, a direction for l2."""
    shape = x.shape[1:]
    noise = (2 * rng.uniform(*shape) - 1 if threat.norm == "linf" else rng.normal(*shape)).to(x.dtype)
    return (x + threat.eps * noise / norms(noise, threat.norm)).clamp(0, 1)


def checkpoints(steps: int) -> set[int]:
    """The numbers of steps after which step sizes are checked (section 3.1): p_0 = 0, p_1 = 0.22, then
    p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), in whole steps of at least one."""
    period, shrink, shortest = (max(int(share * steps), 1) for share in (FIRST, SHRINK, SHORTEST))
    at, checked = period, set()
    while at <= steps:
        checked.add(at)
        period = max(period - shrink, shortest)
        at += period
    return checked


def ranked_classes(
    oracle: GradientOracle, batch: AttackBatch, targets: int, samples: int, malt: Threat | None = None
) -> Tensor:
    """`targets` wrong classes of each example (B, min(targets, K - 1)), by the logits of its clean image: the likeliest or, given
    the norm of a threat, of CANDIDATES likely ones the nearest by `linear_distances` (MALT; Melamed et al. 2024, algorithm 1)."""
    if not targets:
        return batch.y[:, None][:, :0]
    logits = oracle.fast_logits(batch.x, samples).scatter(1, batch.y[:, None], -torch.inf)
    wanted = min(targets, logits.shape[1] - 1)
    if malt is None:
        return logits.topk(wanted, dim=1).indices
    likely = logits.topk(min(max(wanted, CANDIDATES), logits.shape[1] - 1), dim=1).indices
    nearest = linear_distances(oracle, batch, likely, samples, malt).topk(wanted, dim=1, largest=False).indices
    return likely.gather(1, nearest)


def linear_distances(
    oracle: GradientOracle, batch: AttackBatch, classes: Tensor, samples: int, threat: Threat
) -> Tensor:
    """(z_y - z_k) / |gradient of it| at the images, in the norm dual to the threat's, for each of `classes` (B, C): (B, C). Of a
    linear model without the box it is the distance to class k. Infinite without a gradient."""
    distances = []
    for target in classes.unbind(1):
        towards = replace(batch, target=target)
        slope, logits = oracle.gradient(batch.x, towards.objective("gap"), samples)
        steepness = torch.linalg.vector_norm(slope.flatten(1), 1 if threat.norm == "linf" else 2, dim=1)
        distances.append(-towards.value("gap", logits) / steepness)
    return torch.stack(distances, 1)


def _mix(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
