"""Attacks in several rounds: who still stands, and the best that was found for each.

Attacks that look for the smallest perturbation: what they find and how they are called for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.attacks.base import AttackBatch, GradientOracle, Precision, attack_context, check_inputs
from robustlib.attacks.objectives import is_adversarial, margin
from robustlib.errors import InputError
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

VOTES = 8  # draws of a stochastic model by which two of its adversarial examples are compared


class ActiveSet:
    """Rounds of an attack on a batch. An example leaves at its first success, judged by the deciding model.

    Of a stochastic model nobody leaves, since one draw proves nothing, and each example keeps the image with the largest mean
    share of probability on wrong classes. Examples that are misclassified from the start are kept as they are.

    Args:
        search: the borrowed model.
        x: images (B, C, H, W).
        y: labels (B,).
        rng: one stream of random numbers an example.
        eps: radius of the threat; nobody is hunted at 0.
    """

    def __init__(self, oracle: GradientOracle, x: Tensor, y: Tensor, rng: ExampleRNG, eps: float) -> None:
        self.oracle, self.all, self.found, self._rng = oracle, AttackBatch(x, y), x.clone(), rng
        self.here = torch.arange(len(x) if eps > 0 else 0, device=x.device)
        self._score = torch.full((len(x),), -torch.inf, device=x.device)
        if len(self.here):
            self.update(x)

    def __bool__(self) -> bool:
        """Whether anyone still stands."""
        return len(self.here) > 0

    @property
    def points(self) -> AttackBatch:
        """Images and labels of those who still stand."""
        return self.all[self.here]

    def rng(self, round_: int) -> ExampleRNG:
        """Fresh streams of random numbers for those who still stand, the same in every batching."""
        return self._rng[self.here].fold_in(round_)

    def update(self, x_adv: Tensor) -> None:
        """Takes what a round found for those who still stand (S, C, H, W): keeps what is better, lets the broken leave."""
        score, gone = self._judge(x_adv, self.points.y)
        better = score > self._score[self.here]
        self.found[self.here[better]], self._score[self.here[better]] = x_adv[better], score[better]
        self.here = self.here[~gone]

    def _judge(self, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.oracle.stochastic:
            right = self.oracle.target_logits(x_adv, VOTES).softmax(2)[:, range(len(y)), y]
            return 1 - right.nan_to_num(0.0).mean(0).float(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
        logits = self.oracle.logits(x_adv)
        gone = is_adversarial(logits, y)
        return torch.where(gone, torch.inf, margin(logits, y)).float(), gone


class IterativeAttack:
    """What the attacks of AutoAttack, and AutoAttack itself, have in common: a call is one active."""

    threat: Threat
    precision: Precision

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        rng: ExampleRNG | None = None,
    ) -> Tensor:
        """x_adv (B, C, H, W) in the ball around `x` and in [0, 1]; see `Attack`."""
        check_inputs(x, y)
        if not len(x):
            return x.clone()
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        with attack_context(model, x, (y,), self.precision) as oracle:
            active = ActiveSet(oracle, x, y, rng, self.threat.eps)
            self._run(active, model)
        return active.found

    def _run(self, active: ActiveSet, model: nn.Module) -> None:
        """Rounds of `active.offer` until nobody stands or nothing is left to try."""
        raise NotImplementedError


@dataclass(frozen=True)
class MinNormResult:
    """The nearest adversarial images that were found: their distances are upper bounds of the true ones.

    Args:
        x_adv: (B, C, H, W) in [0, 1]; the image itself where none was found, and where the model is wrong without attack.
        distance: (B,) in the attack's norm, in pixel units of [0, 1]; NaN where none was found, since a failed search proves no
            robustness; 0 where the model is wrong without attack.
        queries: (B,) int64, how often the model was asked about each example.
    """

    x_adv: Tensor
    distance: Tensor
    queries: Tensor


class MinimumNorm(IterativeAttack):
    """What attacks that can also say how near the nearest adversarial image is have in common: `nearest`."""

    def nearest(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        starts: Tensor | None = None,
        generator: torch.Generator | None = None,
        rng: ExampleRNG | None = None,
    ) -> MinNormResult:
        """The nearest adversarial image that was found for each of a batch; the threat's norm measures, its radius has no part.

        The deployed model judges, in float32, what is found.

        Args:
            model: x -> logits (B, K), or a SurrogateModel.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
            starts: (B, C, H, W) in [0, 1], where the search starts (FAB: the first towards each class); None for the attack's own
                way, which Tangent also takes where a start is not adversarial.
            generator, rng: of random numbers; see `Attack`.

        Raises:
            InputError: images or starts outside [0, 1], labels that are no class of the model, or a stochastic model.
        """
        check_inputs(x, y)
        if starts is not None:
            check_inputs(starts, y)
        found, distance = x.clone(), x.new_zeros(len(x))
        queries = torch.zeros_like(y)
        if not len(x):
            return MinNormResult(found, distance, queries)
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        with attack_context(model, x, (y,), self.precision) as oracle:
            check_decided(oracle)
            here = (~is_adversarial(oracle.logits(x), y)).nonzero()[:, 0]
            if len(here):
                first = None if starts is None else starts[here]
                found[here], queries[here] = self._nearest(oracle, AttackBatch(x[here], y[here]), rng[here], first)
                won = is_adversarial(oracle.logits(found[here]), y[here])
                distance[here] = torch.where(won, self.threat.distance(found[here], x[here]), torch.nan)
        return MinNormResult(found, distance, queries)

    def _nearest(
        self, oracle: GradientOracle, points: AttackBatch, rng: ExampleRNG, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The points (B, ...) that the search of images which the model has right ends at, and the queries (B,) spent."""
        raise NotImplementedError


def check_decided(oracle: GradientOracle) -> None:
    """Raises InputError for a stochastic model."""
    if oracle.stochastic:
        raise InputError(
            "A stochastic model answers the same image differently each time, so there is no boundary between its decisions "
            "to measure a distance to: attack it with PGDEOT, APGD or Square, which average its answers."
        )
