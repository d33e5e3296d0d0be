"""What training measured on the way, for several methods: probes over epochs, and what a hyper-parameter changes.

What a randomised purifier does to images: step by step, and how far its random transform moves them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.attacks import answer, magnified, name_of, picture
from robustlib.figures.canvas import (
    INK,
    MUTED,
    Figure,
    axes,
    legend_below,
    panels,
    percent,
    percent_axis,
    require_columns,
    style,
    styles,
)
from robustlib.figures.runs import GAPS, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import ArrayLike, NDArray
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
    every = styles(sorted({name for part in curves.values() for name in part}))
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
    kept = [require_columns("probes", frame, ["epoch"]).assign(method=name, seed=k) for k, frame in enumerate(frames)]
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

    rows = require_columns("sweep", table, ["method", "parameter", "value", "clean", "robust"])
    rows = rows.assign(seed=rows.get("seed", 0))
    words = {"clean": "clean", "robust": "robust", **(names or {})}
    parts = {str(name): part for name, part in rows.groupby("parameter", sort=False)}
    curves = {name: _accuracies(part, words) for name, part in parts.items()}
    every = styles(sorted({line for part in curves.values() for line in part}))
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
    percent_axis(axis)


def _span(curves: Curves) -> str:
    """Between which values and accuracies each curve runs."""
    said = []
    for name, frame in curves.items():
        ends = [f"{percent(row['accuracy'])} at {row['value']:g}" for _, row in frame.iloc[[0, -1]].iterrows()]
        said.append(f"{name} {', '.join(ends)}")
    return "; ".join(said)


MOST = 3  # images side by side, three pictures each, that can still be seen
KINDS = ("clean", "attacked")
CELL = 0.82  # inches of a picture
GREYS = 255  # levels of a pixel
SHADES = "cividis"  # from dark to light, the same to colour-blind eyes
SURFACES = {
    "apart": ("What is left of the attack", "$|t(x') - t(x)|$, both by one draw"),
    "changed": ("What the transform changes", "$|t(x') - x'|$"),
}


def purification_steps(
    clean: "Mapping[str, ArrayLike]",
    adversarial: "Mapping[str, ArrayLike]",
    labels: "ArrayLike",
    answers: "Mapping[str, tuple[ArrayLike, ArrayLike]] | None" = None,
    class_names: Sequence[str] = (),
) -> Figure:
    """A clean image and its attacked copy through the steps of a purifier, a row each, and beside them their difference.

    Differences are magnified around grey by one factor: 10, or less where 10 times the attack would leave the grey scale.

    Args:
        clean, adversarial: step -> images (N, C, H, W) in [0, 1], C 1 or 3, in order, the images themselves first; the first three
            of each are shown.
        labels: (N,) true classes.
        answers: step -> answers (N,) to the clean and to the attacked images as they are after it, told below them.
        class_names: by label; numbers if not given.

    Raises:
        InputError: no images, other steps for clean and attacked ones, or images of another shape.
    """
    import numpy as np

    y = np.asarray(labels)[:MOST]
    steps = {
        name: tuple(np.asarray(side[name], dtype=float)[:MOST] for side in (clean, adversarial) if name in side)
        for name in {**clean, **adversarial}
    }
    wanted = (len(y), 1), (len(y), 3)
    if not len(y) or not all(len(pair) == 2 and all(x.shape[:2] in wanted for x in pair) for pair in steps.values()):
        shapes = ", ".join(f"{name} {' and '.join(str(x.shape) for x in pair)}" for name, pair in steps.items())
        raise InputError(f"The purification figure needs clean and attacked images of every step; given: {shapes}.")
    told = {
        name: [[name_of(int(k), class_names) for k in np.asarray(side)[:MOST]] for side in pair]
        for name, pair in (answers or {}).items()
    }
    names = [name_of(int(k), class_names) for k in y]
    first, second = next(iter(steps.values()))
    factor = magnified(second - first, None)[1]
    with style():
        fig = _steps(steps, names, told, factor)
    data = _steps_table(steps, names, told)
    return Figure(fig, _say_steps(data, factor), data)


def _steps(
    steps: "Mapping[str, tuple[NDArray[Any], ...]]",
    names: Sequence[str],
    answers: Mapping[str, Sequence[Sequence[str]]],
    factor: float,
) -> "Canvas":
    """A row a step; for each image three columns, then a gap."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    widths = ([1.0] * len(KINDS) + [1.0, 0.12]) * len(names)
    fig = Canvas(layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    fig.set_size_inches((8.0, CELL * len(steps) + 0.19 * len(answers) + 0.62))
    grid = fig.add_gridspec(len(steps), len(widths) - 1, width_ratios=widths[:-1])
    for row, (step, pair) in enumerate(steps.items()):
        for image, name in enumerate(names):
            shown = (pair[0][image], pair[1][image], magnified(pair[1][image] - pair[0][image], factor)[0])
            for kind, content in enumerate(shown):
                axis = fig.add_subplot(grid[row, 4 * image + kind])
                picture(axis, content)
                if row == 0:
                    axis.set_title(_heading(kind, name, factor), loc="center", fontsize=8, weight="normal")
                if step in answers and kind < len(KINDS):
                    answer(axis, answers[step][kind][image], name, 3 * len(names))
                if image == kind == 0:
                    words = f"{step}\n(below: what the\nclassifier says)" if step in answers else step
                    axis.set_ylabel(words, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    return fig


def _heading(kind: int, name: str, factor: float) -> str:
    """Above the pictures of one image; the class stands above the middle one."""
    return (KINDS[0], f"class {name}\n{KINDS[1]}", f"change × {factor:g}")[kind]


def _steps_table(
    steps: "Mapping[str, tuple[NDArray[Any], ...]]", names: Sequence[str], answers: Mapping[str, Any]
) -> "DataFrame":
    """A row for each image and step: how far clean and attacked lie apart, and what is answered where it is told."""
    import numpy as np
    import pandas as pd

    rows = []
    for step, (before, after) in steps.items():
        for image, name in enumerate(names):
            said = {kind: answers[step][k][image] if step in answers else "" for k, kind in enumerate(KINDS)}
            apart = float(np.abs(after[image] - before[image]).mean())
            rows.append({"example": image, "label": name, "step": step, "difference": apart, **said})
    return pd.DataFrame(rows)


def _say_steps(data: "DataFrame", factor: float) -> str:
    means = ", ".join(
        f"{step} {value:.3f}" for step, value in data.groupby("step", sort=False)["difference"].mean().items()
    )
    told = [
        f"after {row['step']}, {row['label']} is called {row['clean']} and, attacked, {row['attacked']}"
        for row in data[data["clean"] != ""].to_dict("records")
    ]
    text = (
        f"{data['example'].nunique()} images and their attacked copies through {data['step'].nunique()} steps of the purifier, "
        f"differences times {factor:g}. Mean absolute difference between both after each step: {means}."
    )
    return text + (f" Answers: {'; '.join(told)}." if told else "")


def transform_surface(table: "DataFrame") -> Figure:
    """How far a random transform moves images, against missing rate and number of mixed copies; two heat maps, one colour scale.

    Args:
        table: of `robustlib.representation.transform_surface`: `missing` (share), `mixes`, `apart`, `changed` (mean absolute
            difference of a pixel, in [0, 1]); a full grid.

    Raises:
        InputError: a column is missing or empty, or there is no full grid.
    """
    import numpy as np

    rows = require_columns("transform", table, ["missing", "mixes", *SURFACES]).sort_values(["mixes", "missing"])
    rates, mixes = (np.unique(rows[name]) for name in ("missing", "mixes"))
    if len(rows) != len(rates) * len(mixes) or rows.duplicated(["missing", "mixes"]).any():
        raise InputError(
            f"The transform figure needs each missing rate with each number of mixes once: {len(rows)} rows for "
            f"{len(rates)} x {len(mixes)}."
        )
    grids = {name: GREYS * rows[name].to_numpy(float).reshape(len(mixes), len(rates)) for name in SURFACES}
    top = max(float(grid.max()) for grid in grids.values()) or 1.0
    with style():
        fig, every = axes(len(SURFACES), height=1.9 + 0.34 * len(mixes))
        for axis, (name, grid) in zip(every, grids.items(), strict=True):
            mesh = _heat(axis, grid, top)
            axis.set_title("\n".join(SURFACES[name]), fontsize=10)
            axis.set_xticks(range(len(rates)), [f"{100 * rate:.3g}" for rate in rates])
            axis.set_yticks(range(len(mixes)), [f"{count:g}" for count in mixes])
            axis.set_xlabel("missing rate, % of the blocks")
        every[0].set_ylabel("mixed copies")
        fig.colorbar(mesh, ax=every, label=f"grey levels of {GREYS},\nmean over pixels", shrink=0.9)
    ends = [(k, n) for k in (0, -1) for n in (0, -1)]
    said = "; ".join(
        f"{SURFACES[name][0].lower()} "
        + ", ".join(f"{grid[k, n]:.3g} at {mixes[k]:g} copies and {percent(rates[n])} missing" for k, n in ends)
        for name, grid in grids.items()
    )
    alt = f"Mean absolute difference of a pixel in grey levels of {GREYS}: {said}."
    return Figure(fig, alt, rows[["missing", "mixes", *SURFACES]].reset_index(drop=True))


def _heat(axis: "Axes", grid: "NDArray[Any]", top: float) -> Any:
    """One surface as cells with their numbers."""
    import numpy as np

    mesh = axis.imshow(grid, cmap=SHADES, vmin=0, vmax=top, aspect="auto", origin="lower")
    for (up, across), value in np.ndenumerate(grid):
        ink = "white" if value < 0.55 * top else INK
        words = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
        axis.text(across, up, words, ha="center", va="center", color=ink, size=8)
    axis.grid(visible=False)
    return mesh
