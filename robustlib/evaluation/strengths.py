"""Which strength of a regulariser to take: the one that moves adversarial images farthest and costs hardly any accuracy."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, TypeVar

from robustlib.errors import InputError
from robustlib.evaluation.distances import bootstrap, shared_distances

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SLACK = 0.01  # accuracy that may be lost: 1 point
NONE = ("none", 0.0)
Cell = tuple[str, float]  # an arm and its strength
Name = TypeVar("Name", bound=Hashable)


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
        over images), gain_low, gain_high (the same interval of the distance less none's on the same images; NaN for none
        itself and what is not allowed), allowed, chosen. Distances are NaN where n is 0.

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
    shared, rows = _shared({cell: every[cell] for cell in allowed}, none), []
    for cell in every:
        rest = {} if cell in allowed else _shared({name: every[name] for name in [*allowed, cell]}, none)
        row = {"arm": cell[0], "strength": cell[1], "seeds": len(none), "accuracy": accuracy[cell]}
        row |= _over_seeds((rest or shared)[cell]) | {"gain_low": float("nan"), "gain_high": float("nan")}
        if cell in allowed and cell != NONE:
            pairs = zip(shared[cell], shared[NONE], strict=True)
            row["gain_low"], row["gain_high"] = _interval([far - near for far, near in pairs])
        rows.append(row | {"allowed": cell in allowed})
    table = pd.DataFrame(rows)
    best = table[table["allowed"] & (table["arm"] != NONE[0])].dropna(subset=["distance"])
    return table.assign(chosen=table.index.isin(best.groupby("arm")["distance"].idxmax()))


def distances_over_seeds(arms: "Mapping[str, Mapping[int, pd.DataFrame]]") -> "pd.DataFrame":
    """The mean adversarial distance of each arm, over the seeds that all arms have.

    Distances of a seed are means over the images that all its arms have right and no attack failed on.

    Args:
        arms: by name and seed, frames of `measure_distances`, all of the same images.

    Returns:
        A row each: arm, seeds, n (images that count, the least of a seed), distance, low, high as of `choose_strengths`. No row
        where no seed has all arms.

    Raises:
        InputError: other images.
    """
    import pandas as pd

    seeds = sorted(set.intersection(*(set(frames) for frames in arms.values()))) if arms else []
    shared = _shared(arms, seeds) if seeds else {}
    return pd.DataFrame([{"arm": arm, "seeds": len(seeds)} | _over_seeds(parts) for arm, parts in shared.items()])


def _shared(
    frames: "Mapping[Name, Mapping[int, pd.DataFrame]]", seeds: Iterable[int]
) -> "dict[Name, list[np.ndarray]]":
    """By name, for each seed the distances (n,) of the images that all have right and no attack failed on."""
    parts = [shared_distances({str(name): f[seed] for name, f in frames.items()}) for seed in seeds]
    return {name: [part[str(name)] for part in parts] for name in frames}


def _over_seeds(parts: "Sequence[np.ndarray]") -> dict[str, Any]:
    """How many images count, and the mean distance with its interval, of the distances (n,) of each seed."""
    low, high = _interval(parts)
    found = {"n": min(len(part) for part in parts), "distance": _mean(_means(parts))}
    return found | {"low": max(low, 0.0) if low == low else low, "high": high}


def _interval(parts: "Sequence[np.ndarray]") -> tuple[float, float]:
    """The 95 % interval of the mean of the seeds' means: Student's t over seeds; of one seed, bootstrap over its images."""
    import numpy as np
    from scipy.stats import t

    if len(parts) == 1:
        return bootstrap(np.mean, parts[0])
    means, seeds = _means(parts), len(parts)
    middle = _mean(means)
    spread = sqrt(sum((mean - middle) ** 2 for mean in means) / (seeds - 1))
    half = float(t.ppf(0.975, seeds - 1)) * spread / sqrt(seeds)
    return middle - half, middle + half


def _means(parts: "Sequence[np.ndarray]") -> list[float]:
    return [float(part.mean()) if len(part) else float("nan") for part in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
