"""Figures of one run under attack: what each attack left, and what each step of AutoAttack took."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from robustlib.figures.canvas import (
    INK,
    MUTED,
    Figure,
    axes,
    legend_below,
    looks,
    needs,
    pc,
    percent,
    style,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

NAMES = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd50x10": "PGD-50, 10 restarts",
    "cw50": "CW-50",
    "pgd_eot": "PGD+EOT",
    "square": "Square",
    "aa_standard": "AutoAttack, standard",
    "autoattack": "AutoAttack",
    "worst": "worst case",
}
LANE = 0.27  # inches between two series of one row
CLEAN, LEFT, TAKEN = "#56b4e9", "#0173b2", "#de8f05"  # of the colour-blind safe palette; what was taken is hatched too


def accuracy_bars(rows: "DataFrame | Sequence[Mapping[str, Any]]") -> Figure:
    """One run's accuracy under each attack, with 95 % Wilson intervals.

    Args:
        rows: `attack`, `accuracy` and optionally `low` and `high` (fractions) of each; the order is kept. Of those on
            surrogates ("pgd20@denoiser") none is drawn: the worst case, which counts them, is then called adaptive minimum.
    """
    import pandas as pd

    every = needs("accuracy", pd.DataFrame(rows), ["attack", "accuracy"])
    frame = every[~every["attack"].str.contains("@", regex=False)].reset_index(drop=True)
    names = NAMES if len(frame) == len(every) else {**NAMES, "worst": "adaptive minimum"}
    labels = [names.get(str(name), str(name)) for name in frame["attack"]]
    colours = [INK if name == "worst" else CLEAN if name == "clean" else LEFT for name in frame["attack"]]
    ends = whiskers(frame.rename(columns={"low": "accuracy_low", "high": "accuracy_high"}), "accuracy")
    with style():
        fig, (axis,) = axes(height=0.9 + 0.42 * len(frame))
        axis.barh(
            labels, frame["accuracy"], xerr=ends, color=colours, height=0.62, error_kw={"ecolor": "#8a949e", "lw": 1.4}
        )
        tops = frame["high"] if "high" in frame else frame["accuracy"]
        for place, (value, top) in enumerate(zip(frame["accuracy"], tops.fillna(frame["accuracy"]), strict=True)):
            axis.text(max(value, top) + 0.012, place, pc(value), va="center", fontsize=9.5)
        _bars_downwards(axis, 1.1)
        axis.set_title("Accuracy under each attack")
        axis.set_xlabel("accuracy, with 95 % interval")
    said = ", ".join(f"{label} {pc(value)}" for label, value in zip(labels, frame["accuracy"], strict=True))
    numbers = frame[[name for name in ("accuracy", "low", "high") if name in frame]]
    return Figure(fig, f"Accuracy on the test images: {said}.", numbers.assign(attack=labels)[["attack", *numbers]])


def cascade(rows: "DataFrame | Sequence[Mapping[str, Any]]") -> Figure:
    """What each step of AutoAttack left of the accuracy, and what it took from what the steps before it had left.

    Args:
        rows: of `robustlib.evaluation.cascade` or `results["cascade"]`: `component`, `accuracy` after it (fraction of all
            images), in order, the first one "clean"; and optionally `attack` and `surrogate`, of which only the cascade
            of the first is drawn.
    """
    import pandas as pd

    frame = needs("cascade", pd.DataFrame(rows), ["component", "accuracy"])
    for column in ("attack", "surrogate"):
        frame = frame[frame[column] == frame[column].iloc[0]] if column in frame else frame
    labels, left = [str(name) for name in frame["component"]], [float(value) for value in frame["accuracy"]]
    taken = [0.0, *(before - after for before, after in pairwise(left))]
    with style():
        fig, (axis,) = axes(height=0.9 + 0.42 * len(labels))
        axis.barh(labels, left, color=[CLEAN] + [LEFT] * (len(labels) - 1), height=0.62)
        axis.barh(labels, taken, left=left, color="white", edgecolor=TAKEN, hatch="////", height=0.62, lw=0)
        for place, (value, loss) in enumerate(zip(left, taken, strict=True)):
            end = axis.text(value + loss + 0.012, place, pc(value), va="center", fontsize=9.5)
            if loss > 0:
                words = f"−{100 * loss:.1f}"
                axis.annotate(words, (1.08, 0.5), xycoords=end, color=MUTED, va="center", fontsize=9.5)
        _bars_downwards(axis, 1.2)
        axis.set_title("AutoAttack, step by step")
        axis.set_xlabel("accuracy left (hatched: taken by this step)")
    said = [f"{name} {pc(value)}" for name, value in zip(labels, left, strict=True)]
    numbers = pd.DataFrame({"step": labels, "accuracy": left, "taken": taken})
    return Figure(fig, f"Accuracy left after each step of AutoAttack: {', '.join(said)}.", numbers)


def accuracy_dots(table: "DataFrame", title: str) -> Figure:
    """Accuracies as dots with their intervals: several series (attacks, models) in each of several rows, told by number too.

    Args:
        table: `row`, `series`, `accuracy` and optionally `low` and `high` (fractions); in order, the first row on top.
        title: of the figure.

    Raises:
        InputError: a column is missing or empty.
    """
    given = needs("accuracy-dots", table, ["row", "series", "accuracy"]).reset_index(drop=True)
    names, every = list(dict.fromkeys(given["row"])), looks(dict.fromkeys(map(str, given["series"])))
    step = LANE * (len(every) + 0.7)
    with style():
        fig, (axis,) = axes(height=1.3 + step * len(names))
        for place, (name, look) in enumerate(every.items()):
            mine = given[given["series"].astype(str) == name]
            heights = [names.index(row) * step + place * LANE for row in mine["row"]]
            _dots(axis, mine, heights, name, look)
        middle = LANE * (len(every) - 1) / 2
        axis.set_yticks([k * step + middle for k in range(len(names))], [str(name) for name in names])
        axis.set_ylim(step * (len(names) - 1) + LANE * len(every), -LANE)
        axis.set_xlim(-0.01, 1.1)
        axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        percent(axis, "x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("accuracy, with 95 % interval")
        axis.set_title(title)
        legend_below(fig, axis)
    told = [f"{row['series']} {pc(row['accuracy'])}" for row in given.to_dict("records")]
    said = "; ".join(
        f"{name}: {', '.join(told[k] for k in part.index)}" for name, part in given.groupby("row", sort=False)
    )
    kept = ["row", "series", *(name for name in ("accuracy", "low", "high") if name in given)]
    return Figure(fig, f"{title}. {said}.", given[kept])


def _dots(axis: "Axes", mine: "DataFrame", heights: Sequence[float], name: str, look: dict[str, Any]) -> None:
    """One series, each dot with its interval and its number behind it."""
    ends = mine.get("high", mine["accuracy"]).fillna(mine["accuracy"])
    if {"low", "high"} <= set(mine):
        axis.hlines(heights, mine["low"], mine["high"], color=look["color"], lw=1.6)
    dot: dict[str, Any] = {"marker": look["marker"], "color": look["color"], "ls": "none"}
    axis.plot(mine["accuracy"], heights, ms=7, mec="white", mew=0.8, label=name, **dot)
    for value, end, height in zip(mine["accuracy"], ends, heights, strict=True):
        axis.text(max(value, end) + 0.015, height, pc(value), va="center", fontsize=9)


def _bars_downwards(axis: "Axes", end: float) -> None:
    """Horizontal bars of accuracies, the first on top, with room for their numbers up to `end`."""
    axis.set_xlim(0, end)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    percent(axis, "x")
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
