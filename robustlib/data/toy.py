"""Points of a plane as images of two pixels: the toys of rep-spectral, on which a whole decision can be seen.

A point's coordinates are the grey levels of its image (1, 1, 2), on the grid of 255 steps that all images have: 0.016 of XOR's
coordinates where its noise is 0.2, 0.008 of the sinusoid's. Labels are those of the points on the grid.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from robustlib.data.sources import Arrays, Pair

SEED = 0  # every toy is drawn with this seed, once and for all
CORNERS = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
XOR_REACH, XOR_STD, XOR_EACH = 2.0, 0.2, 20  # half the width of the square, and points a corner
SINUSOID_TRAIN, SINUSOID_TEST = 800, 800  # half of the release's 40 x 40 points each


def xor(root: Path, download: bool) -> Arrays:
    """Four clouds N((+-1, +-1), 0.2^2 I) in [-2, 2]^2, labelled by whether the signs differ (Yang et al. 2024, noisy XOR).

    Twenty points a corner are left for training after a fifth went to validation (which is drawn by class, so a corner may have
    some more or fewer); ten times as many for the test.
    """
    rng = np.random.default_rng(SEED)

    def draw(each: int) -> Pair:
        points = np.tile(CORNERS, (each, 1)) + XOR_STD * rng.normal(size=(4 * each, 2))
        return _pair(points, XOR_REACH, lambda x: x[:, 0] * x[:, 1] < 0)

    return Arrays(draw(XOR_EACH * 5 // 4), draw(XOR_EACH * 10), ("equal signs", "opposite signs"))


def sinusoid(root: Path, download: bool) -> Arrays:
    """Uniform points of [-1, 1]^2, labelled by whether they lie above 0.6 sin(7 x_1 - 1) (Yang et al. 2024, the release's
    load_sin_random): 800 for training besides a fifth for validation, 800 for the test."""
    rng = np.random.default_rng(SEED)

    def draw(count: int) -> Pair:
        return _pair(rng.uniform(-1, 1, (count, 2)), 1.0, lambda x: x[:, 1] > 0.6 * np.sin(7 * x[:, 0] - 1))

    return Arrays(draw(SINUSOID_TRAIN * 5 // 4), draw(SINUSOID_TEST), ("below", "above"))


def _pair(points: np.ndarray, reach: float, is_second: Callable[[np.ndarray], np.ndarray]) -> Pair:
    """Images uint8 (N, 1, 1, 2) of points (N, 2) of [-reach, reach]^2, and the labels of what the images show."""
    levels = np.rint((points / reach).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8)
    shown = (levels / 127.5 - 1) * reach
    return levels[:, None, None, :], is_second(shown).astype(np.int64)
