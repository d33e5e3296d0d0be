"""Which strength of a regulariser to take: the one that moves adversarial images farthest and costs hardly any accuracy."""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.evaluation.distances import RESAMPLES, compare_distances

if TYPE_CHECKING:
    import pandas as pd

SLACK = 0.01  # accuracy that may be lost: 1 point
NONE = ("none", 0.0)
Cell = tuple[str, float]  # an arm and its strength


def choose_strengths(
    none: "Mapping[int, pd.DataFrame]",
    cells: "Mapping[Cell, Mapping[int, pd.DataFrame]]",
    *,
    slack: float = SLACK,
) -> "pd.DataFrame":
    """The grid of arms and strengths; of each arm, the strength of the largest mean distance is chosen among those allowed.

    Allowed is what keeps the accuracy (mean over seeds) of the unregularised arm, less `slack`. Distances of a seed are
    means over the images that all its allowed cells have right and no attack failed on; for a cell that is not allowed,
    over those of them that it has right too.

    Args:
        none: of the unregularised arm, by seed, frames of `measure_distances` on **validation** images.
        cells: the same of each (arm, strength), all of the same seeds and images.
        slack: what accuracy may be lost, in [0, 1].

    Returns:
        A row each, "none" first: arm, strength, seeds, accuracy (in [0, 1], mean over seeds), n (images that count, the least of
        a seed), distance (mean over seeds, in pixel units), low, high (95 % t interval over seeds; of a single seed, bootstrap
        over images), allowed, chosen. Distances are NaN where n is 0.

    Raises:
        InputError: no seeds, cells of other seeds, or other images.
    """
    import pandas as pd

    every = {NONE: none, **cells}
    for (arm, strength), frames in every.items():
        if not frames or set(frames) != set(none):
            raise InputError(f"{arm} at strength {strength:g} has the seeds {sorted(frames)}, none has {sorted(none)}.")
    accuracy = {cell: _mean([float(frame["correct"].mean()) for frame in f.values()]) for cell, f in every.items()}
    allowed = [cell for cell in every if accuracy[cell] >= accuracy[NONE] - slack - 1e-9]
    resamples = RESAMPLES if len(none) == 1 else 1  # of several seeds the interval is another

    def compared(cells: list[Cell]) -> "list[pd.DataFrame]":
        of = [{str(cell): every[cell][seed] for cell in cells} for seed in none]
        return [compare_distances(frames, resamples=resamples).set_index("model") for frames in of]

    shared, rows = compared(allowed), []
    for cell in every:
        parts = [part.loc[str(cell)].to_dict() for part in (shared if cell in allowed else compared([*allowed, cell]))]
        facts = {"arm": cell[0], "strength": cell[1], "seeds": len(none), "accuracy": accuracy[cell]}
        rows.append({**facts, **_over_seeds(parts), "allowed": cell in allowed})
    table = pd.DataFrame(rows)
    best = table[table["allowed"] & (table["arm"] != NONE[0])].dropna(subset=["distance"])
    return table.assign(chosen=table.index.isin(best.groupby("arm")["distance"].idxmax()))


def _over_seeds(parts: list[Any]) -> dict[str, Any]:
    """How many images count, and the distance with its interval, from a row of `compare_distances` a seed."""
    from scipy.stats import t

    means, seeds = [float(part["mean"]) for part in parts], len(parts)
    found = {"n": min(int(part["n"]) for part in parts), "distance": _mean(means)}
    if seeds == 1:
        return found | {"low": parts[0]["mean_low"], "high": parts[0]["mean_high"]}
    spread = sqrt(sum((mean - found["distance"]) ** 2 for mean in means) / (seeds - 1))
    half = float(t.ppf(0.975, seeds - 1)) * spread / sqrt(seeds)
    return found | {"low": found["distance"] - half, "high": found["distance"] + half}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
