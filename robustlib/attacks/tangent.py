"""Tangent Attack: the smallest l2 perturbation, from decisions alone (Ma et al. 2021, NeurIPS, arXiv 2111.07492)."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log, sqrt

import torch
from torch import Tensor

from robustlib.attacks.active_set import ActiveSet, MinimumNorm, check_deterministic
from robustlib.attacks.base import Precision
from robustlib.attacks.objectives import is_adversarial
from robustlib.errors import Count, InputError, Length, typed
from robustlib.rng import ExampleRNG
from robustlib.threat import TINY, Threat, exact, norms, widest

SPREAD, TRIES = 0.5, 100  # standard deviation of the noise in which a start is looked for, and how often
TOLERANCE = 1e-5  # of a place on a line, as a share of its length
PARTS = 4  # a line is cut into at a time: three queries in one call, where halving would take two calls
CUTS = ceil(log(1 / TOLERANCE, PARTS))
BISECTION = CUTS * (PARTS - 1)  # queries of a search on a line
RADII, ROUNDS = 4, 6  # halved radii that are tried at a time, and how often
FIRST = 0.1  # standard deviation of the first probes, in pixels
BLOCK = 2**14  # random numbers per example at a time: those of a small batch stay in a CPU's cache
LEAST = 200  # queries of a walk: a start, a way to the boundary and a step


@dataclass(frozen=True)
class Tangent(MinimumNorm):
    """Tangent Attack on a hemisphere: from a point on the decision boundary to the tangent point, and back to the boundary.

    As an attack it is through with an example whose point lies within eps; `nearest` knows no radius. It starts from Gaussian
    noise around the image. A step that leads farther away is not taken, unlike in the released code. A stochastic model is
    refused: its decisions have no boundary.
    """

    threat: Threat  # in l2
    queries: Count = 18_000  # of the model for each example, at most: about 40 steps of one walk
    restarts: Count = 1  # walks from other noise, which share the queries: one often ends at a farther class
    probes: Count = (
        100  # directions that estimate the boundary's normal in the first step; step t takes sqrt(t) as many
    )
    gamma: Length = 1.0  # probes of later steps are Gaussian of standard deviation gamma * distance / dimensions
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def __post_init__(self) -> None:
        super().__post_init__()
        typed(self.queries, int, "Tangent queries", f"[{LEAST * self.restarts}, inf)")
        if self.threat.norm != "l2":
            raise InputError(f"Tangent measures distances in l2, got a threat in {self.threat.norm!r}: give 'l2'.")

    def _searches(
        self, active_set: ActiveSet, starts: Tensor | None = None, nearest: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        check_deterministic(active_set.oracle)
        for restart in active_set.rounds(self.restarts):
            state = TangentState(self, active_set, restart, None if restart else starts)
            x_adv = state.walk(0.0 if nearest else self.threat.eps)
            yield x_adv if nearest else self.threat.project(x_adv, state.x), state.spent


class TangentState:
    """Images that the model has right, and where they are on their walks along the boundary; from adversarial `starts`."""

    def __init__(self, attack: Tangent, active_set: ActiveSet, restart: int, starts: Tensor | None) -> None:
        self.oracle, self.x, self.y = active_set.oracle, active_set.batch.x, active_set.batch.y
        self.rng = active_set.rng(restart)
        self.queries, self.probes, self.gamma = attack.queries // attack.restarts, attack.probes, attack.gamma
        self.now = self.x.clone()  # points on the boundary; the images themselves where there is no start
        self.spent = torch.zeros_like(self.y)  # queries; the verification of a point in float32 is none of its own
        self.active = self._begin(starts)

    def walk(self, eps: float) -> Tensor:
        """The adversarial points (B, C, H, W) that it ends at, no farther than `eps` or as near as the queries allow."""
        begun, step = self.active, 0
        while len(self.active):
            step += 1
            cost = int(self.probes * sqrt(step)) + RADII * ROUNDS + BISECTION + 1  # and one for the last
            far = (1 + TOLERANCE) * norms(self.now[self.active] - self.x[self.active], "l2").flatten() > eps
            self.active = self.active[far & (self.spent[self.active] + cost <= self.queries)]
            if len(self.active):
                self._step(step)
        if len(begun):  # beyond the boundary by the tolerance, lest rounding in another batch undoes them
            now = self.now[begun]
            across = (now + TOLERANCE * (now - self.x[begun])).clamp(0, 1)
            success = self._adversarial(across, begun)
            self.now[begun[success]] = across[success]
        return self.now

    def _begin(self, starts: Tensor | None) -> Tensor:
        """Puts all on the boundary; the rows that have a start."""
        todo = torch.arange(len(self.x), device=self.x.device)
        for attempt in range(-1 if starts is not None else 0, TRIES):
            if not len(todo):
                break
            if attempt < 0 and starts is not None:
                start = starts[todo]
            else:
                noise = self.rng[todo].fold_in(0).fold_in(attempt).quick_normal(*self.x.shape[1:]).to(self.x.dtype)
                start = (self.x[todo] + SPREAD * noise).clamp(0, 1)
            success = self._adversarial(start, todo)
            self.now[todo[success]] = start[success]
            todo = todo[~success]
        begun = torch.ones_like(self.y, dtype=torch.bool).index_fill(0, todo, False).nonzero()[:, 0]
        if len(begun):
            self.now[begun] = self._to_boundary(self.now[begun], begun)
        return begun

    def _step(self, step: int) -> None:
        """One step of the active examples: the boundary's normal, the tangent point, and back to the boundary."""
        rows, x, now = self.active, self.x[self.active], self.now[self.active]
        distance = norms(now - x, "l2").flatten()
        reach = self.gamma * distance / x[0].numel() if step > 1 else torch.full_like(distance, FIRST)
        normal = self._normal_at(rows, now, reach, int(self.probes * sqrt(step)), self.rng[rows].fold_in(step))
        radius, after = distance / sqrt(step), now.clone()
        todo = torch.arange(len(rows), device=rows.device)
        halved = 0.5 ** torch.arange(RADII, dtype=x.dtype, device=rows.device)
        for _ in range(ROUNDS):
            each = todo.repeat_interleave(RADII)
            radii = (radius[todo, None] * halved).flatten()
            points = tangent_point(x[each], now[each], normal[each], radii).clamp(0, 1)
            success = self._adversarial(points, rows[each]).view(-1, RADII)
            some, first = success.any(1), success.int().argmax(1)  # the largest radius
            after[todo[some]] = points.view(-1, RADII, *x.shape[1:])[some, first[some]]
            todo = todo[~some]
            radius[todo] *= halved[-1] / 2
            if not len(todo):
                break
        done = torch.ones(len(rows), dtype=torch.bool, device=rows.device).index_fill(0, todo, False)
        if bool(done.any()):
            after[done] = self._to_boundary(after[done], rows[done])
            closer = norms(after - x, "l2") < norms(now - x, "l2")
            self.now[rows] = torch.where(closer, after, now)

    def _normal_at(self, rows: Tensor, now: Tensor, reach: Tensor, count: int, rng: ExampleRNG) -> Tensor:
        """The estimated direction (S, ...) of length 1 into the adversarial region: the mean of the probes, each weighted by
        what the model decides there, +1 or -1, less the mean decision."""
        size, block = now[0].numel(), max(1, BLOCK // now[0].numel())
        signed, plain = torch.zeros(2, len(rows), size, dtype=widest(now.device), device=now.device)
        balance = torch.zeros(len(rows), 1, dtype=widest(now.device), device=now.device)
        for start in range(0, count, block):
            n = min(block, count - start)
            probes = rng.fold_in(start).quick_normal(n, size).to(now.dtype).mul_(reach[:, None, None])
            base = now.flatten(1)[:, None]
            points = probes.add_(base).clamp_(0, 1)
            logits = self.oracle.fast_logits(points.view(-1, *now.shape[1:]))
            sign = 2.0 * is_adversarial(logits, self.y[rows].repeat_interleave(n)).view(-1, n).to(now.dtype) - 1
            deltas = points.sub_(base)  # clipped
            signed += (sign[:, None] @ deltas)[:, 0]
            plain += deltas.sum(1)
            balance += sign.sum(1, keepdim=True)
        self.spent[rows] += count
        mean = torch.where(balance.abs() == count, torch.zeros_like(balance), balance / count)
        total = (signed - mean * plain).to(now.dtype)
        return (total / norms(total, "l2").clamp_min(TINY)).view_as(now)

    def _to_boundary(self, outside: Tensor, rows: Tensor) -> Tensor:
        """Searches the lines between the images and adversarial points (S, ...): adversarial points on the boundary."""
        x, shape = self.x[rows], (len(rows), *[1] * (outside.ndim - 1))
        low, width = outside.new_zeros(len(rows), 1), 1.0
        steps = torch.arange(1, PARTS, dtype=x.dtype, device=x.device) / PARTS
        each = torch.arange(len(rows), device=x.device).repeat_interleave(PARTS - 1)
        for _ in range(CUTS):
            shares = (low + width * steps).view(-1, *shape[1:])
            points = torch.lerp(x[each], outside[each], shares.expand_as(x[each]))
            success = self._adversarial(points, rows[each]).view(len(rows), -1)
            before = torch.where(success.any(1), success.int().argmax(1), PARTS - 1)  # parts before the first success
            width /= PARTS
            low = low + width * before[:, None].to(low)
        return torch.lerp(x, outside, (low + width).view(shape).expand_as(x))

    def _adversarial(self, points: Tensor, rows: Tensor) -> Tensor:
        """(S,) bool: whether the `points` (S, ...) are adversarial; a query each."""
        self.spent.index_add_(0, rows, torch.ones_like(rows))
        success = self.oracle.successes(points, self.oracle.fast_logits(points), self.y[rows])
        return torch.zeros_like(rows, dtype=torch.bool).index_fill(0, success, True)


def tangent_point(x: Tensor, now: Tensor, normal: Tensor, radius: Tensor) -> Tensor:
    """Where the tangent from `x` touches the sphere of `radius` (B,) around `now`, on the side of the unit `normal`, (B, ...).

    Hemisphere version, as in rep-spectral's release: with a the angle by which x lies below the boundary, e the direction along
    it towards x and cos b = radius / |x - now|, it is now + radius (cos(b - a) e + sin(b - a) normal).
    """
    back = exact((x - now).flatten(1))
    up, length = exact(normal.flatten(1)), torch.linalg.vector_norm(back, dim=1, keepdim=True).clamp_min(TINY)
    rise = (back * up).sum(1, keepdim=True)
    along = back - rise * up
    along = along / torch.linalg.vector_norm(along, dim=1, keepdim=True).clamp_min(TINY)
    wide = exact(radius[:, None])
    angle = (wide / length).clamp_max(1).acos() - (-rise / length).clamp(-1, 1).asin()
    return now + (wide * (angle.cos() * along + angle.sin() * up)).to(now).view_as(now)
