"""Measures of a claim beside plain accuracies: under unseen attacks, of adversarial distances, and of a training's own metrics."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError, unknown
from robustlib.runs import Run, read_json

if TYPE_CHECKING:
    from pandas import DataFrame


UNSEEN = "unseen/"


def of_unseen(measure: str) -> bool:
    """Whether `unseen` knows such a measure."""
    return measure.startswith(UNSEEN)


def last_look(run: Run) -> dict[str, Any]:
    """What `robustlib.evaluation.measure_unseen` stored last of a run: protocol and accuracies; {} before it."""
    looks = list(read_json(run.path / "unseen.json").values())
    return looks[-1] if looks else {}


def unseen(run: Run, name: str) -> float:
    """An accuracy of `last_look`, or a difference of two.

    Args:
        run: measured by `robustlib.evaluation.measure_unseen`.
        name: "clean", "known" (the worst case of the evaluation), "l2" or "stadv", all on the same images; "loss/l2",
            "loss/stadv": known less unseen, below 0 where the unseen attack is the weaker one; "price": what clean accuracy a purifier
            takes from the classifier behind it.

    Raises:
        InputError: a run that is not measured, or an unknown name.
    """
    look = last_look(run)
    if not look:
        raise InputError(
            f"{run.path} has no accuracies under unseen attacks: `robustlib evaluate {run.path} --unseen` measures them."
        )
    shares = {attack: float(row["accuracy"]) for attack, row in look["accuracies"].items()}
    losses = {f"loss/{attack}": shares["known"] - share for attack, share in shares.items()}
    price = {"price": float(look["bare"]["accuracy"]) - shares["clean"]} if look.get("bare") else {}
    found = {**shares, **losses, **price}
    if name not in found:
        raise unknown("accuracy under unseen attacks", name, found)
    return found[name]


def facts_of(run: Run) -> dict[str, Any]:
    """What two looks must share to be compared."""
    look = last_look(run)
    own = {name: look.get(name) for name in ("split", "n", "seed")}
    return own | {"attack": str(look.get("strengths")), "look": look.get("images")}


def attacks_met(run: Run) -> tuple[str, ...]:
    """The unseen attacks of `last_look` as they were run: those on a model that answers at random are others."""
    rows = last_look(run).get("accuracies", {})
    return tuple(row.get("protocol", "") for name, row in rows.items() if name not in ("clean", "known"))


DISTANCE = "distance/"
STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "median": median}


def of_distances(measure: str) -> bool:
    """Whether `distances` knows such a measure."""
    return measure.startswith(DISTANCE)


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
    return fmean((variant - than) / than for variant, than in found)


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


KINDS = ("metrics/", "growth/")
FIRST = 2  # epoch from which growth counts: a fine-tuning's first one leaves the natural model behind


def of_epochs(measure: str) -> bool:
    """Whether `epoch_measure` knows such a measure."""
    return measure.startswith(KINDS)


def epoch_measure(run: Run, kind: str, column: str) -> float:
    """One number of the last stage of a training that measured it: what a head's stage does not watch, the stage before may have.

    Args:
        run: with metrics; it need not be evaluated.
        kind: "metrics": the column's value after the last epoch, in its own unit. "growth": the slope b of the least-squares
            line over the k epochs from 2 on, as a share of their mean: b (k - 1) / mean (0.12: the line rose by 12 % of it).
        column: of `Run.metrics`, e.g. "probe/h/relative_l2".

    Raises:
        InputError: no such column of numbers; for growth, fewer than two epochs from 2 on, or a mean
            that is not above 0.
    """
    stage = _last_stage(run, column)
    numbers = [name for name in stage if stage[name].dtype.kind in "fiu" and stage[name].notna().all()]
    if column not in numbers:
        there = ", ".join(f"{kind}/{name}" for name in numbers) or "no finished epoch"
        raise InputError(f"{run.path} has no measure {f'{kind}/{column}'!r}: of its last stage it has {there}.")
    if kind == "metrics":
        return float(stage[column].iloc[-1])
    return _growth(stage[stage["epoch"] >= FIRST], column, run)


def _last_stage(run: Run, column: str) -> "DataFrame":
    """The trained epochs of the last stage that has the column, or of the last one: without the row of the model before it."""
    rows = run.metrics()
    if not len(rows):
        return rows
    trained = rows[rows["epoch"] > 0]
    having = trained[trained[column].notna()] if column in trained else trained
    stages = (having if len(having) else rows)["stage"]
    return trained[trained["stage"] == stages.iloc[-1]]


def _growth(stage: "DataFrame", column: str, run: Run) -> float:
    import numpy as np

    values, mean = stage[column].to_numpy(float), float(stage[column].mean()) if len(stage) else 0.0
    if len(values) < 2:
        raise InputError(
            f"{run.path} has {len(values)} epoch(s) from {FIRST} on, and growth needs two: train at least {FIRST + 1} epochs."
        )
    if not mean > 0:
        raise InputError(f"{column} of {run.path} is {mean:g} on average, and nothing grows as a share of it.")
    slope = float(np.polyfit(stage["epoch"].to_numpy(float), values, 1)[0])
    return slope * (len(values) - 1) / mean
