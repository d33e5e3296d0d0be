"""What training measured on the way, for several methods: probes over epochs, and what a hyper-parameter changes."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from robustlib.errors import InputError
from robustlib.figures.canvas import MUTED, Figure, legend_below, looks, needs, panels, pc, percent, style
from robustlib.figures.seeds import GAPS, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Curves = Mapping[str, "DataFrame"]


def probe_curves(
    metrics: "Mapping[str, DataFrame | Sequence[DataFrame]]",
    columns: Sequence[str],
    labels: Mapping[str, str] | None = None,
    first: int = 1,
) -> Figure:
    """Columns of the metrics over the epochs of the last stage (or all, if none is told), a panel for each; seeds as 95 % band.

    Args:
        metrics: method -> `Run.metrics()` of one run or of several seeds. Methods without a column are left out of its panel.
        columns: e.g. "probe/h/relative_l2", "probe/f1/cosine", "confused/agreement".
        labels: column -> its title, where the usual one ("h: relative L2 distance") does not tell.
        first: epoch to begin with, counted within the stage; 0 also shows the model before it.

    Raises:
        InputError: no methods or columns, or a column that none of them has.
    """
    import pandas as pd

    if not metrics or not columns:
        raise InputError("The probes figure needs at least one method and one column.")
    table = pd.concat([_last_stage(*part, first) for part in metrics.items()], ignore_index=True)
    curves = {column: over_seeds(table, "epoch", column, "probes") for column in columns}
    titles = {column: (labels or {}).get(column) or _title(column) for column in columns}
    every = looks(sorted({name for part in curves.values() for name in part}))
    with style():
        fig, axes = panels(list(titles.values()), height=3.3)
        for axis, part in zip(axes, curves.values(), strict=True):
            for name, look in every.items():
                axis.plot([], [], label=name, **look)  # so that one legend knows them all
            _over_epochs(axis, part, {name: every[name] for name in part})
        legend_below(fig, axes[0])
    said = [f"{titles[column]}: {_ends(part)}" for column, part in curves.items()]
    which = " of the last stage" * ("stage" in table)
    return Figure(fig, f"Measures over the epochs{which}. {'. '.join(said)}.", _long(curves))


def _last_stage(name: str, given: "DataFrame | Sequence[DataFrame]", first: int) -> "DataFrame":
    """The rows of one method's last stage, its runs numbered."""
    import pandas as pd

    frames = [given] if isinstance(given, pd.DataFrame) else list(given)
    kept = [needs("probes", frame, ["epoch"]).assign(method=name, seed=k) for k, frame in enumerate(frames)]
    last = [rows[rows["stage"] == rows["stage"].iloc[-1]] if "stage" in rows else rows for rows in kept]
    return pd.concat([rows[rows["epoch"] >= first] for rows in last]) if last else pd.DataFrame()


def _title(column: str) -> str:
    """ "probe/f1/relative_l2" is "f1: relative L2 distance"."""
    *place, last = column.removeprefix("probe/").split("/")
    return ": ".join([*place, GAPS.get(last, re.sub("_", " ", last))])


def _over_epochs(axis: "Axes", curves: Curves, every: Mapping[str, dict[str, object]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, frame in curves.items():
        rows, look = frame.sort_values("epoch"), every[name]
        column = rows.columns[1]
        axis.plot(rows["epoch"], rows[column], markevery=max(1, len(rows) // 10), **look)  # type: ignore[arg-type]
        axis.fill_between(rows["epoch"], rows["low"], rows["high"], color=look["color"], alpha=0.15, lw=0)
    if all(frame.iloc[:, 1].min() >= 0 for frame in curves.values()):
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])  # so that the highest marker is whole
    else:
        axis.axhline(0, color=MUTED, lw=1, zorder=1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_xlabel("epoch")


def _ends(curves: Curves) -> str:
    said = []
    for name, frame in curves.items():
        (a, first), (b, last) = frame.sort_values("epoch").iloc[[0, -1], :2].to_numpy().tolist()
        said.append(f"{name} " + f"{first:.3g} at epoch {a:g}, {last:.3g} at epoch {b:g}".replace("-", "−"))
    return "; ".join(said)


def _long(curves: Mapping[str, Curves]) -> "DataFrame":
    """A row for each measure, method and epoch."""
    import pandas as pd

    parts = [
        frame.rename(columns={column: "value"}).assign(measure=column, curve=name)
        for column, part in curves.items()
        for name, frame in part.items()
    ]
    return pd.concat(parts, ignore_index=True)[["measure", "curve", "epoch", "value", "low", "high"]]


def sweep(
    table: "DataFrame",
    usual: Mapping[str, float] | None = None,
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Clean and robust accuracy against the value of a hyper-parameter, a panel for each hyper-parameter.

    Values stand at equal distances, in rising order, since such grids are rarely even and often hold 0.

    Args:
        table: one row a run: `method`, `parameter`, `value` (a number), `clean` and `robust` (fractions), optionally `seed`:
            of several seeds the mean is drawn with its 95 % band.
        usual: parameter -> the value of the preset or paper, marked where the sweep has it.
        names: what "clean" and "robust" are called, e.g. {"robust": "PGD-20"}.

    Raises:
        InputError: a column is missing or empty.
    """
    import pandas as pd

    rows = needs("sweep", table, ["method", "parameter", "value", "clean", "robust"])
    rows = rows.assign(seed=rows.get("seed", 0))
    words = {"clean": "clean", "robust": "robust", **(names or {})}
    parts = {str(name): part for name, part in rows.groupby("parameter", sort=False)}
    curves = {name: _accuracies(part, words) for name, part in parts.items()}
    every = looks(sorted({line for part in curves.values() for line in part}))
    with style():
        fig, axes = panels(list(curves), height=3.3)
        for axis, (name, part) in zip(axes, curves.items(), strict=True):
            for line, look in every.items():
                axis.plot([], [], label=line, **look)
            _over_values(axis, part, {line: every[line] for line in part}, (usual or {}).get(name))
        low, high = (f(end(axis.get_ylim()) for axis in axes) for f, end in ((min, min), (max, max)))
        for axis in axes:
            axis.set_ylim(low, high)  # or panels could not be compared
        axes[0].set_ylabel("accuracy")
        legend_below(fig, axes[0])
    data = [frame.assign(parameter=name, curve=line) for name, part in curves.items() for line, frame in part.items()]
    numbers = pd.concat(data, ignore_index=True)[["parameter", "curve", "value", "accuracy", "low", "high"]]
    said = [f"{name}: {_span(part)}" for name, part in curves.items()]
    return Figure(fig, f"Accuracy against hyper-parameters. {'. '.join(said)}.", numbers)


def _accuracies(rows: "DataFrame", words: Mapping[str, str]) -> dict[str, "DataFrame"]:
    """The curves of one hyper-parameter: "AFD, PGD-20 (3 seeds)" -> value, accuracy, low, high."""
    curves: dict[str, DataFrame] = {}
    for kind in ("clean", "robust"):
        renamed = rows.assign(accuracy=rows[kind], title=[f"{name}, {words[kind]}" for name in rows["method"]])
        curves |= over_seeds(renamed, "value", "accuracy", "sweep")
    return {name: frame.sort_values("value", ignore_index=True) for name, frame in curves.items()}


def _over_values(axis: "Axes", curves: Curves, every: Mapping[str, dict[str, object]], usual: float | None) -> None:
    values = sorted({value for frame in curves.values() for value in frame["value"]})
    for name, frame in curves.items():
        look, at = every[name], [values.index(value) for value in frame["value"]]
        axis.plot(at, frame["accuracy"], **look)  # type: ignore[arg-type]
        axis.fill_between(at, frame["low"], frame["high"], color=look["color"], alpha=0.15, lw=0)
    if usual in values:
        axis.axvline(values.index(usual), color=MUTED, lw=1.2, ls=(0, (2, 2)), zorder=1)
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.set_xlabel("value" + (" (dashed: usual)" if usual in values else ""))
    percent(axis)


def _span(curves: Curves) -> str:
    """Between which values and accuracies each curve runs."""
    said = []
    for name, frame in curves.items():
        ends = [f"{pc(row['accuracy'])} at {row['value']:g}" for _, row in frame.iloc[[0, -1]].iterrows()]
        said.append(f"{name} {', '.join(ends)}")
    return "; ".join(said)
