"""Learning-rate schedules: pure functions of the (fractional) epoch, so that resuming needs no state of theirs."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

Schedule = Callable[[float], float]  # epoch, e.g. 3.5 in the middle of the fourth -> factor of the learning rate


def constant() -> Schedule:
    """Factor 1."""
    return lambda epoch: 1.0


def step(milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Multiplied by `gamma` at each milestone epoch."""
    return lambda epoch: gamma ** bisect_right(milestones, epoch)


def cosine(epochs: float, final: float = 0.0) -> Schedule:
    """From 1 to `final` along half a cosine."""
    return lambda epoch: final + (1 - final) * (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def piecewise(points: Sequence[tuple[float, float]]) -> Schedule:
    """Straight lines through (epoch, factor) points; two points at one epoch make a jump, the later one holds."""

    def factor(epoch: float) -> float:
        if epoch < points[0][0]:
            return points[0][1]
        for (start, low), (end, high) in pairwise(points):
            if start <= epoch < end:
                return low + (high - low) * (epoch - start) / (end - start)
        return points[-1][1]

    return factor


def one_cycle(epochs: float, peak: float = 0.3) -> Schedule:
    """Linear from 0 to 1 at the fraction `peak` of training, then linear to 0 (the cyclic schedule of Wong et al. 2020)."""
    return piecewise([(0, 0.0), (peak * epochs, 1.0), (epochs, 0.0)])


SCHEDULES = ("constant", "step", "cosine", "one_cycle", "piecewise")
