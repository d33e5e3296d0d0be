"""Attacks in several rounds: the examples still active, and the best image for each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor, nn

from robustlib.attacks.base import AttackBatch, BaseAttack, GradientOracle, attack_context, missed_by_bf16
from robustlib.attacks.inputs import check_inputs, search
from robustlib.attacks.objectives import is_adversarial, margin
from robustlib.errors import InputError
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

VOTES = 8  # draws of a stochastic model by which two of its adversarial examples are compared


class ActiveSet:
    """The examples of a batch without a success; one leaves at its first, as the deployed model sees it.

    Of a stochastic model none leaves, since one draw proves nothing, and each example keeps the image with the largest mean
    share of probability on wrong classes.
    """

    def __init__(self, oracle: GradientOracle, batch: AttackBatch, rng: ExampleRNG) -> None:
        self.oracle, self.all, self.x_adv, self._rng = oracle, batch, batch.x.clone(), rng
        self.active = torch.arange(len(batch.x), device=batch.x.device)
        self.score = torch.full((len(batch.x),), -torch.inf, dtype=torch.float32, device=batch.x.device)

    def rounds(self, count: int) -> Iterator[int]:
        """0 to `count` - 1, ending early when no example is active."""
        return takewhile(lambda _: len(self.active) > 0, range(count))

    @property
    def batch(self) -> AttackBatch:
        """The active examples."""
        return self.all[self.active]

    def rng(self, round_: int) -> ExampleRNG:
        """Random numbers of a round for the active examples, the same in every batching."""
        return self._rng[self.active].fold_in(round_)

    def update(self, x_adv: Tensor) -> None:
        """Takes a round's images (S, C, H, W) of the active examples: keeps the better ones; successes leave."""
        y = self.batch.y
        if self.oracle.stochastic:
            right = (
                self.oracle.deployed_logits(x_adv, VOTES).softmax(2).gather(2, y.expand(VOTES, -1)[..., None])[..., 0]
            )
            score, success = 1 - right.nan_to_num(0.0).mean(0).float(), torch.zeros_like(y, dtype=torch.bool)
        else:
            logits = self.oracle.logits(x_adv)
            success = is_adversarial(logits, y)
            score = torch.where(success, torch.inf, margin(logits, y)).float()
        better = score > self.score[self.active]
        self.x_adv[self.active[better]], self.score[self.active[better]] = x_adv[better], score[better]
        self.active = self.active[~success]


class IterativeAttack(BaseAttack):
    """The attacks of AutoAttack, and AutoAttack itself: rounds on an ActiveSet. Misclassified images are kept as they are."""

    threat: Threat

    def _attack(self, oracle: GradientOracle, batch: AttackBatch, rng: ExampleRNG) -> Tensor:
        active_set = ActiveSet(oracle, batch, rng)
        if self.threat.eps > 0:
            active_set.update(batch.x)
            self._run(active_set)
            if self.precision == "bf16-mixed" and not oracle.stochastic and not hasattr(self, "components"):
                self._search_again(active_set, rng)
        return active_set.x_adv

    def _search_again(self, active_set: ActiveSet, rng: ExampleRNG) -> None:
        """In float32 what a search in bf16 may have missed."""
        at, oracle = active_set.active, active_set.oracle
        active_set.active = at[missed_by_bf16(oracle, active_set.x_adv[at], active_set.batch.y)]
        if len(active_set.active):
            exact, near = replace(self, precision="32-true"), active_set.batch  # type: ignore[type-var]
            active_set.update(exact(oracle.source, near.x, near.y, rng=rng[active_set.active]))

    def _run(self, active_set: ActiveSet) -> None:
        """All rounds, each ending in `active_set.update`."""
        raise NotImplementedError


@dataclass(frozen=True)
class MinNormResult:
    """The nearest known adversarial images: their distances are upper bounds of the true ones.

    Else the image itself: with distance NaN after a failed search (no proof of robustness), and 0 where already misclassified.
    """

    x_adv: Tensor  # (B, C, H, W) in [0, 1]
    distance: Tensor  # (B,) in the attack's norm, in pixel units of [0, 1]
    queries: Tensor  # (B,) int64, forward passes spent on each example


class MinimumNorm(IterativeAttack):
    """Attacks that can also look for the nearest adversarial image, with `nearest`."""

    @search
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
        """The nearest adversarial image for each of a batch (see `Attack`) in the threat's norm; its radius plays no part.

        The deployed model decides, in float32, what is adversarial. A stochastic model is refused. The search begins at
        `starts` (B, C, H, W) in [0, 1] (FAB: the first towards each class; Tangent: where adversarial) or as usual.
        """
        x, y = check_inputs(x, y)
        if starts is not None:
            starts, _ = check_inputs(starts, y)
        x_adv, distance, queries = x.clone(), x.new_zeros(len(x)), torch.zeros_like(y)
        if not len(x):
            return MinNormResult(x_adv, distance, queries)
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        with attack_context(model, x, (y,), self.precision) as oracle:
            check_deterministic(oracle)
            right = (~is_adversarial(oracle.logits(x), y)).nonzero()[:, 0]
            if len(right):
                batch, least = AttackBatch(x[right], y[right]), x.new_full((len(right),), torch.inf)
                best, starts = batch.x.clone(), None if starts is None else starts[right]
                for points, spent in self._searches(ActiveSet(oracle, batch, rng[right]), starts, nearest=True):
                    far = self.threat.distance(points, batch.x)
                    closer = (far > 0) & (far < least)
                    best[closer], least[closer] = points[closer], far[closer]
                    queries[right] += spent
                x_adv[right] = best
                success = is_adversarial(oracle.logits(best), batch.y)
                distance[right] = torch.where(success, self.threat.distance(best, batch.x), torch.nan)
        return MinNormResult(x_adv, distance, queries)

    def _run(self, active_set: ActiveSet) -> None:
        for x_adv, _ in self._searches(active_set):
            active_set.update(x_adv)

    def _searches(
        self, active_set: ActiveSet, starts: Tensor | None = None, nearest: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | int]]:
        """For each search images of the active examples within the threat, and queries spent on them.

        `nearest`: the nearest adversarial images, wherever they are, and the image itself where there is none.
        """
        raise NotImplementedError


def check_deterministic(oracle: GradientOracle) -> None:
    """Raises InputError for a stochastic model."""
    if oracle.stochastic:
        reason = (
            "answers the same image differently each time, so its decisions have no boundary to measure a distance to"
        )
        raise InputError(
            f"A stochastic model {reason}: attack it with PGDEOT, APGD or Square, which average its answers."
        )
