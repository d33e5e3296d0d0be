"""Auto-PGD: projected gradient ascent with momentum that sets its own step size (Croce and Hein 2020)."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.active_set import ActiveSet, IterativeAttack
from robustlib.attacks.base import PRECISIONS, AttackBatch, Goal, GradientOracle, Precision
from robustlib.errors import check_choices, check_counts
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat, norms

MOMENTUM = 0.75  # alpha of eq. 3, the share of the new step
FIRST, SHRINK, SHORTEST = (
    0.22,
    0.03,
    0.06,
)  # of all steps: first period between checks, how much the next is shorter, least


@dataclass(frozen=True)
class APGD(IterativeAttack):
    """Auto-PGD (Croce and Hein 2020, algorithm 1).

    The step starts at 2 eps and is halved at checkpoints where the objective rose too rarely or not at all; the example then
    goes on from its best point. An example leaves at its first success. The authors' code compares the objective after the first step
    with 0, by a slip, to count it as a rise; here, as in the algorithm, it is compared with that of the start.

    Args:
        threat: the allowed perturbations.
        steps: gradient steps of each run, >= 1.
        objective: "ce", "nll" (of outputs that are sums of log-probabilities), "dlr" or "margin".
        targets: 0 climbs away from the label; N climbs towards each of the N likeliest wrong classes in turn (K - 1 at most).
        restarts: random starts of each run, >= 1.
        eot: gradient samples averaged at each step, >= 1; for stochastic models.
        rho: share of steps that must raise the objective between two checkpoints, in (0, 1).
        precision: "bf16-mixed" searches in bf16; what it calls a success is verified in float32.

    Raises:
        InputError: at construction, a value outside these ranges; at a call, images outside [0, 1], labels that are no
            class of the model, or fewer classes than the objective needs.
    """

    threat: Threat
    steps: int = 100
    objective: Literal["ce", "nll", "dlr", "margin"] = "ce"
    targets: int = 0
    restarts: int = 1
    eot: int = 1
    rho: float = 0.75
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        check_counts(self, "steps", "restarts", "eot")
        check_counts(self, "targets", least=0)
        check_choices(self, objective=("ce", "nll", "dlr", "margin"), precision=PRECISIONS)

    def _run(self, active: ActiveSet, model: nn.Module) -> None:
        classes = ranked_classes(active.oracle, active.all, self.targets, self.eot)
        for round_ in range(max(1, classes.shape[1]) * self.restarts):
            if not active:
                break
            points = active.points
            if self.targets:
                points = replace(points, target=classes[active.here, round_ // self.restarts])
            active.update(self._climb(active.oracle, points, surface_point(self.threat, points.x, active.rng(round_))))

    def _climb(self, oracle: GradientOracle, points: AttackBatch, start: Tensor) -> Tensor:
        """One run: for each example the first point that fools the model, else the one of the largest objective."""
        found, here = start.clone(), torch.arange(len(start), device=start.device)
        gradient, logits = oracle.gradient(start, points.objective(self.objective), self.eot)
        climb = APGDState.begin(start, gradient, _value(points.objective(self.objective), logits), 2 * self.threat.eps)
        check, period = checkpoints(self.steps), 0
        for step in range(self.steps + 1):
            gone = oracle.success_mask(climb.x, logits, points.y)  # success is any wrong class, also for targeted runs
            if bool(gone.any()):
                found[here[gone]] = climb.x[gone]
                here, points, climb, logits = here[~gone], points[~gone], climb[~gone], logits[~gone]
            if step == self.steps or not len(here):
                break
            x = self._step(climb, points.x, MOMENTUM if step else 1.0)
            goal = points.objective(self.objective)
            if step + 1 < self.steps:
                gradient, logits = oracle.gradient(x, goal, self.eot)
            else:  # nobody steps from the last point
                gradient, logits = climb.gradient, oracle.fast_logits(x, self.eot)
            climb.advance(x, gradient, _value(goal, logits))
            period += 1
            if step + 1 in check:
                climb.adapt(self.rho * period)
                period = 0
        found[here] = climb.best
        return found

    def _step(self, climb: "APGDState", x: Tensor, momentum: float) -> Tensor:
        """Equation 3: a projected step, mixed with the direction of the last one."""
        step = climb.step.view(-1, *[1] * (x.ndim - 1))
        ahead = self.threat.project(climb.x + step * self.threat.steepest_step(climb.gradient, 1.0), x)
        mixed = climb.x + momentum * (ahead - climb.x) + (1 - momentum) * (climb.x - climb.previous)
        return self.threat.project(mixed, x)


@dataclass
class APGDState:
    """Where each example stands in a run, (B, ...): its last points, its best, and what the step size depends on."""

    x: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor  # of the objective at x
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    step: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the objective
    checked: Tensor  # best_value at the last checkpoint
    halved: Tensor  # whether the step was halved there

    @classmethod
    def begin(cls, x: Tensor, gradient: Tensor, value: Tensor, step: float) -> "APGDState":
        """Before the first step, from points `x` of this gradient and value."""
        none = torch.zeros_like(value)
        # The first checkpoint cannot halve for want of progress: nothing came before it to compare with.
        return cls(x, x, gradient, value, x, gradient, value, (none + step).to(x.dtype), none, value, none == 0)

    def __getitem__(self, keep: Tensor) -> "APGDState":
        return APGDState(*(getattr(self, field.name)[keep] for field in fields(self)))

    def advance(self, x: Tensor, gradient: Tensor, value: Tensor) -> None:
        """The next points, with gradient and value there."""
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
        # `value` stays that of the point left behind, as in the authors' code: the first step after it may count as a rise.
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
    at, found = period, set()
    while at <= steps:
        found.add(at)
        period = max(period - shrink, shortest)
        at += period
    return found


def ranked_classes(oracle: GradientOracle, points: AttackBatch, targets: int, samples: int) -> Tensor:
    """The `targets` likeliest wrong classes of each example (B, min(targets, K - 1)), by the logits of its clean image."""
    if not targets:
        return points.y[:, None][:, :0]
    logits = oracle.fast_logits(points.x, samples).scatter(1, points.y[:, None], -torch.inf)
    return logits.topk(min(targets, logits.shape[1] - 1), dim=1).indices


def _value(goal: Goal, logits: Tensor) -> Tensor:
    """The objective (B,); what is no number never counts as progress."""
    return goal(logits.double(), slice(None)).nan_to_num(-torch.inf)


def _mix(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
