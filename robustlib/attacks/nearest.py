"""Attacks that look for the smallest perturbation: what they find and how they are called for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robustlib.attacks.draws import Draws
from robustlib.attacks.objectives import fooled
from robustlib.attacks.points import Points
from robustlib.attacks.search import Precision, Search, check_inputs, searching
from robustlib.errors import InputError
from robustlib.threat import Threat

# A borrowed model, the images it has right, streams and starts -> the points it ends at (B, ...) and the queries spent (B,).
Finder = Callable[[Search, Points, Draws, Tensor | None], tuple[Tensor, Tensor]]


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


class MinimumNorm(Protocol):
    """An attack that can also say how near the nearest adversarial image is; see `Tangent.nearest`."""

    @property
    def threat(self) -> Threat: ...

    def nearest(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        starts: Tensor | None = None,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Nearest: ...


def check_decided(search: Search) -> None:
    """Raises InputError for a stochastic model."""
    if search.stochastic:
        raise InputError(
            "A stochastic model answers the same image differently each time, so there is no boundary between its decisions "
            "to measure a distance to: attack it with PGDEOT, APGD or Square, which average its answers."
        )


def nearest(
    finder: Finder,
    threat: Threat,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    starts: Tensor | None,
    generator: torch.Generator | None,
    draws: Draws | None,
    precision: Precision,
) -> Nearest:
    """Lends the model to a `finder` for the images that it has right; the deployed model judges, in float32, what is found.

    Args:
        finder: the search.
        threat: its norm measures; its radius has no part.
        model: x -> logits (B, K), or a View.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        starts: adversarial images (B, C, H, W) in [0, 1] to start from.
        generator, draws: of random numbers; see `Attack`.
        precision: of the search.

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
    with searching(model, x, (y,), precision) as search:
        check_decided(search)
        here = (~fooled(search.logits(x), y)).nonzero()[:, 0]
        if len(here):
            first = None if starts is None else starts[here]
            found[here], queries[here] = finder(search, Points(x[here], y[here]), draws[here], first)
            won = fooled(search.logits(found[here]), y[here])
            distance[here] = torch.where(won, threat.distance(found[here], x[here]), torch.nan)
    return Nearest(found, distance, queries)
