"""Attacks that look for the smallest perturbation: what they find and how they are called for it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.attacks.draws import Draws
from robustlib.attacks.hunt import Hunter
from robustlib.attacks.inputs import check_inputs
from robustlib.attacks.objectives import fooled
from robustlib.attacks.points import Points
from robustlib.attacks.search import Search, searching
from robustlib.errors import InputError


@dataclass(frozen=True)
class Nearest:
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


class MinimumNorm(Hunter):
    """What attacks that can also say how near the nearest adversarial image is have in common: `nearest`."""

    def nearest(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        starts: Tensor | None = None,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Nearest:
        """The nearest adversarial image that was found for each of a batch; the threat's norm measures, its radius has no part.

        The deployed model judges, in float32, what is found.

        Args:
            model: x -> logits (B, K), or a View.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
            starts: (B, C, H, W) in [0, 1], where the search starts (FAB: the first towards each class); None for the attack's own
                way, which Tangent also takes where a start is not adversarial.
            generator, draws: of random numbers; see `Attack`.

        Raises:
            InputError: images or starts outside [0, 1], labels that are no class of the model, or a stochastic model.
        """
        check_inputs(x, y)
        if starts is not None:
            check_inputs(starts, y)
        found, distance = x.clone(), x.new_zeros(len(x))
        queries = torch.zeros_like(y)
        if not len(x):
            return Nearest(found, distance, queries)
        draws = draws or Draws.from_generator(generator, len(x), x.device)
        with searching(model, x, (y,), self.precision) as search:
            check_decided(search)
            here = (~fooled(search.logits(x), y)).nonzero()[:, 0]
            if len(here):
                first = None if starts is None else starts[here]
                found[here], queries[here] = self._nearest(search, Points(x[here], y[here]), draws[here], first)
                won = fooled(search.logits(found[here]), y[here])
                distance[here] = torch.where(won, self.threat.distance(found[here], x[here]), torch.nan)
        return Nearest(found, distance, queries)

    def _nearest(self, search: Search, points: Points, draws: Draws, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """The points (B, ...) that the search of images which the model has right ends at, and the queries (B,) spent."""
        raise NotImplementedError


def check_decided(search: Search) -> None:
    """Raises InputError for a stochastic model."""
    if search.stochastic:
        raise InputError(
            "A stochastic model answers the same image differently each time, so there is no boundary between its decisions "
            "to measure a distance to: attack it with PGDEOT, APGD or Square, which average its answers."
        )
