"""Attacks in several rounds: who still stands, and the best that was found for each."""

import torch
from torch import Tensor, nn

from robustlib.attacks.draws import Draws
from robustlib.attacks.inputs import check_inputs
from robustlib.attacks.objectives import fooled, margin
from robustlib.attacks.points import Points
from robustlib.attacks.search import Precision, Search, searching
from robustlib.threat import Threat

VOTES = 8  # draws of a stochastic model by which two of its adversarial examples are compared


class Hunt:
    """Rounds of an attack on a batch. An example leaves at its first success, judged by the deciding model.

    Of a stochastic model nobody leaves, since one draw proves nothing, and each example keeps the image with the largest mean
    share of probability on wrong classes. Examples that are misclassified from the start are kept as they are.

    Args:
        search: the borrowed model.
        x: images (B, C, H, W).
        y: labels (B,).
        draws: one stream of random numbers an example.
        eps: radius of the threat; nobody is hunted at 0.
    """

    def __init__(self, search: Search, x: Tensor, y: Tensor, draws: Draws, eps: float) -> None:
        self.search, self.all, self.found, self._draws = search, Points(x, y), x.clone(), draws
        self.here = torch.arange(len(x) if eps > 0 else 0, device=x.device)
        self._score = torch.full((len(x),), -torch.inf, device=x.device)
        if len(self.here):
            self.offer(x)

    def __bool__(self) -> bool:
        """Whether anyone still stands."""
        return len(self.here) > 0

    @property
    def points(self) -> Points:
        """Images and labels of those who still stand."""
        return self.all[self.here]

    def draws(self, round_: int) -> Draws:
        """Fresh streams of random numbers for those who still stand, the same in every batching."""
        return self._draws[self.here].fork(round_)

    def offer(self, x_adv: Tensor) -> None:
        """Takes what a round found for those who still stand (S, C, H, W): keeps what is better, lets the broken leave."""
        score, gone = self._judge(x_adv, self.points.y)
        better = score > self._score[self.here]
        self.found[self.here[better]], self._score[self.here[better]] = x_adv[better], score[better]
        self.here = self.here[~gone]

    def _judge(self, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.search.stochastic:
            right = self.search.verdicts(x_adv, VOTES).softmax(2)[:, range(len(y)), y]
            return 1 - right.nan_to_num(0.0).mean(0).float(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
        logits = self.search.logits(x_adv)
        gone = fooled(logits, y)
        return torch.where(gone, torch.inf, margin(logits, y)).float(), gone


class Hunter:
    """What the attacks of AutoAttack, and AutoAttack itself, have in common: a call is one hunt."""

    threat: Threat
    precision: Precision

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """x_adv (B, C, H, W) in the ball around `x` and in [0, 1]; see `Attack`."""
        check_inputs(x, y)
        if not len(x):
            return x.clone()
        draws = draws or Draws.from_generator(generator, len(x), x.device)
        with searching(model, x, (y,), self.precision) as search:
            hunt = Hunt(search, x, y, draws, self.threat.eps)
            self._hunt(hunt, model)
        return hunt.found

    def _hunt(self, hunt: Hunt, model: nn.Module) -> None:
        """Rounds of `hunt.offer` until nobody stands or nothing is left to try."""
        raise NotImplementedError
