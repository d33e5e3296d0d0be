"""Fast adaptive boundary attack: steps to the linearised decision boundary (Croce and Hein 2020, "Minimally distorted ...")."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustlib.attacks.active_set import ActiveSet, MinimumNorm
from robustlib.attacks.apgd import ranked_classes, surface_point
from robustlib.attacks.base import PRECISIONS, AttackBatch, GradientOracle, Precision
from robustlib.attacks.objectives import is_adversarial
from robustlib.errors import check_choices, check_counts
from robustlib.rng import ExampleRNG
from robustlib.threat import TINY, Norm, Threat, norms


@dataclass(frozen=True)
class FAB(MinimumNorm):
    """Targeted FAB: towards each of the likeliest wrong classes, onto the boundary and along it towards the clean image.

    FAB looks for small perturbations and knows no radius. Called as an attack, an example leaves as soon as one of them lies
    within eps; `nearest` goes on to the end.

    Args:
        threat: the allowed perturbations.
        steps: iterations for each target and restart, >= 1.
        targets: how many of the likeliest wrong classes are tried (K - 1 at most), >= 1.
        restarts: the first starts from the image itself, others from a random point within eps / 2; >= 1.
        alpha_max: largest share of the pull towards the clean image (eq. 9), in [0, 1].
        eta: overshoot beyond the boundary, >= 1.
        beta: how far an adversarial point is drawn back towards the clean image, in (0, 1).
        eot: gradient samples averaged at each step, >= 1; for stochastic models.
        precision: "bf16-mixed" searches in bf16; what it calls a success is verified in float32.

    Raises:
        InputError: at construction, a value outside these ranges; at a call, images outside [0, 1] or labels that are no
            class of the model.
    """

    threat: Threat
    steps: int = 100
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    eot: int = 1
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        check_counts(self, "steps", "targets", "restarts", "eot")
        check_choices(self, precision=PRECISIONS)

    def _run(self, active: ActiveSet, model: nn.Module) -> None:
        classes = ranked_classes(active.oracle, active.all, self.targets, self.eot)
        for round_ in range(classes.shape[1] * self.restarts):
            if not active:
                break
            points = replace(active.points, target=classes[active.here, round_ // self.restarts])
            active.update(self._descend(active.oracle, points, self._start(round_, points, active.rng(round_))))

    def _nearest(
        self, oracle: GradientOracle, points: AttackBatch, rng: ExampleRNG, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        classes = ranked_classes(oracle, points, self.targets, self.eot)
        best, least = points.x.clone(), points.x.new_full((len(points.x),), torch.inf)
        rounds = classes.shape[1] * self.restarts
        for round_ in range(rounds):
            aimed = replace(points, target=classes[:, round_ // self.restarts])
            start = self._start(round_, aimed, rng.fold_in(round_))
            if starts is not None and round_ % self.restarts == 0:
                start = starts
            found = self._descend(oracle, aimed, start, anywhere=True)
            distance = self.threat.distance(found, points.x)
            closer = is_adversarial(oracle.logits(found), points.y) & (distance < least)
            best[closer], least[closer] = found[closer], distance[closer]
        asked = 2 * self.eot * self.steps * rounds  # a gradient and an answer at each step
        return best, torch.full_like(points.y, asked)

    def _start(self, round_: int, points: AttackBatch, rng: ExampleRNG) -> Tensor:
        """Where a run starts: from the images, or from a random point within eps / 2."""
        if round_ % self.restarts == 0:
            return points.x
        return surface_point(self.threat.scaled(0.5), points.x, rng)

    def _descend(self, oracle: GradientOracle, points: AttackBatch, start: Tensor, anywhere: bool = False) -> Tensor:
        """One run: for each example the first adversarial point within eps, else the nearest in that direction inside it;
        `anywhere`, the nearest of all steps, wherever it lies."""
        found, here, x = start.clone(), torch.arange(len(start), device=start.device), start
        nearest = start.new_full((len(start),), torch.inf)
        for _ in range(self.steps):
            x = self._step(oracle, points, x)
            logits, distance = oracle.fast_logits(x, self.eot), self.threat.distance(x, points.x)
            wrong = is_adversarial(logits, points.y)
            inside = x if anywhere else self.threat.project(x, points.x)
            gone = wrong & (distance <= self.threat.eps) & (not anywhere)
            gone[gone.clone()] = oracle.success_mask(inside[gone], logits[gone], points.y[gone])
            closer = wrong & (distance < nearest[here])
            nearest[here[closer]] = distance[closer]
            best = gone | closer | nearest[here].isinf()  # before the first crossing, the last point
            found[here[best]] = inside[best]
            x = torch.where(wrong.view(-1, *[1] * (x.ndim - 1)), points.x + self.beta * (x - points.x), x)
            here, points, x = here[~gone], points[~gone], x[~gone]
            if not len(here):
                break
        return found

    def _step(self, oracle: GradientOracle, points: AttackBatch, x: Tensor) -> Tensor:
        """Equation 9: a mean of the projections of the point and of the clean image on the linearised boundary."""
        slope, gap = self._boundary(oracle, points, x)
        offset = (slope * x).flatten(1).sum(1) - gap  # the hyperplane {z: slope . z = offset}
        mine = to_hyperplane(x, slope, offset, self.threat.norm)
        clean = to_hyperplane(points.x, slope, offset, self.threat.norm)
        lengths = [norms(d, self.threat.norm).clamp_min(1e-8) for d in (mine, clean)]
        alpha = (lengths[0] / (lengths[0] + lengths[1])).clamp_max(self.alpha_max)
        return ((1 - alpha) * (x + self.eta * mine) + alpha * (points.x + self.eta * clean)).clamp(0, 1)

    def _boundary(self, oracle: GradientOracle, points: AttackBatch, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (B, ...) and value (B,) of z_target - z_y at x."""
        assert points.target is not None
        target = points.target

        def gap(logits: Tensor, rows: slice | Tensor) -> Tensor:
            return (logits.gather(1, target[rows][:, None]) - logits.gather(1, points.y[rows][:, None]))[:, 0]

        slope, logits = oracle.gradient(x, gap, self.eot)
        return slope, gap(logits, slice(None)).nan_to_num(0.0)


def to_hyperplane(x: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """The smallest d (B, ...) in `norm` with normal . (x + d) = offset and x + d in [0, 1] (section 2.2 of the paper).

    Every coordinate moves at a rate v_i (1 for linf, |normal_i| for l2) until it meets its side of the box; the moment at
    which the hyperplane is reached solves a piecewise linear equation, exactly, by sorting the moments of the meetings.
    Where the box does not reach the hyperplane, d ends in the corner nearest to it.

    Args:
        x: points (B, ...) of the box.
        normal: normals (B, ...) of the hyperplanes.
        offset: (B,).
        norm: "linf" or "l2".
    """
    flat, w = x.flatten(1).double(), normal.flatten(1).double()
    missing = offset.double() - (w * flat).sum(1)
    direction = w.sign() * missing.sign()[:, None]
    room = torch.where(direction > 0, 1 - flat, flat) * direction.abs()
    rate = direction.abs() if norm == "linf" else w.abs()
    met, order = torch.where(rate > 0, room / rate.clamp_min(TINY), torch.inf).sort(1)
    gain, speed = ((w.abs() * part).gather(1, order) for part in (room, rate))
    # At moment met_k those before k stand still at their side and all others still move.
    still, moving = gain.cumsum(1) - gain, speed.flip(1).cumsum(1).flip(1)
    reached = still + torch.where(moving > 0, met.nan_to_num(posinf=0.0) * moving, torch.zeros_like(met))
    first = (reached < missing.abs()[:, None]).sum(1).clamp_max(w.shape[1] - 1)[:, None]
    moment = (missing.abs()[:, None] - still.gather(1, first)) / moving.gather(1, first).clamp_min(TINY)
    d = direction * torch.minimum(rate * moment.clamp_min(0), room)
    return d.view_as(x).to(x.dtype)
