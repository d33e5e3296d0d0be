"""Readers of published data sets: each returns the arrays as their authors split them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

DIGITS_TEST = 500  # examples held out for the test of digits, which is published without one

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W) that the caller may overwrite, labels int64 (N,)


class Arrays(NamedTuple):
    """A published data set: training and test data (None if there is none) and a name for each label."""

    train: Pair
    test: Pair | None
    class_names: tuple[str, ...]


def digits(root: Path, download: bool) -> Arrays:
    """Scikit-learn's embedded 1797 handwritten digits (UCI, Alpaydin and Kaynak 1998), 8 x 8, 17 grey levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Arrays((images, bunch.target.astype(np.int64)), None, tuple("0123456789"))
