"""Adversarial distances as measures of a claim: of each arm on the images that all of its arms have right."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from robustlib.errors import InputError, unknown
from robustlib.runs import Run

KIND = "distance/"
STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "median": median}


def of_distances(measure: str) -> bool:
    """Whether `distances` knows such a measure."""
    return measure.startswith(KIND)


def distances(runs: Sequence[Run], name: str, attack: str = "Tangent") -> list[float]:
    """The mean or median adversarial distance of each run, in pixel units, on their `shared_images`.

    Args:
        runs: measured by `robustlib.evaluation.measure_distances` on test images: the last look by this attack counts.
        name: "mean" or "median".
        attack: "Tangent", the papers', or "FAB", which sees gradients. Both are upper bounds of the true distance.

    Raises:
        InputError: a run that is not measured, runs measured on different images or with none in common, an unknown name.
    """
    if name not in STATISTICS:
        raise unknown("statistic of distances", name, STATISTICS)
    images = shared_images(runs, attack)
    if not images:
        raise InputError(
            f"No image that {' and '.join(run.name for run in runs)} have right has a known distance: measure more."
        )
    return [STATISTICS[name](column) for column in zip(*images, strict=True)]


def by_gradients(pairs: Sequence[Sequence[Run]], name: str) -> float | None:
    """The mean of what `distances` by FAB say of each pair, the first's excess as a share of the second's; None unless all have them."""
    if not pairs or not all(len(pair) == 2 and run.distances(attack="FAB") for pair in pairs for run in pair):
        return None
    try:
        found = [distances(pair, name, "FAB") for pair in pairs]
    except InputError:  # other images, or none in common
        return None
    return fmean((arm - than) / than for arm, than in found)


def shared_images(runs: Sequence[Run], attack: str = "Tangent") -> list[tuple[float, ...]]:
    """For each image that all runs have right and no attack failed on, its distance in each of them.

    Raises:
        InputError: see `distances`.
    """
    looks = [run.distances(attack=attack) for run in runs]
    for run, look in zip(runs, looks, strict=True):
        if not look:
            raise InputError(
                f"{run.path} has no measured distances: its notebook measures them, or "
                "`robustlib.evaluation.measure_distances`."
            )
        if look["index"] != looks[0]["index"]:
            raise InputError(f"{run.path} and {runs[0].path} were measured on different images: measure both alike.")
    parts = [zip(look["correct"], look["distance"], strict=True) for look in looks]
    images = zip(*parts, strict=True)
    return [
        tuple(far for _, far in image) for image in images if all(right and far is not None for right, far in image)
    ]
