"""Measures that a training left in its metrics: where a column ended, and how it grew."""

from typing import TYPE_CHECKING

from robustlib.errors import InputError
from robustlib.runs import Run

if TYPE_CHECKING:
    from pandas import DataFrame

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
