"""What attacks leave of the accuracy, what each step of AutoAttack takes, and where the images of each class go."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from robustlib.figures.canvas import (
    INK,
    MUTED,
    Figure,
    axes,
    dots,
    legend_below,
    percent_axis,
    require_columns,
    same_length,
    style,
    styles,
    whiskers,
)
from robustlib.figures.labels import BARS, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN, LEFT, TAKEN = "#56b4e9", "#0173b2", "#de8f05"  # of the colour-blind safe palette; what was taken is hatched too
LANE = 0.27  # inches between two series of one row of dots


@style()
def accuracy_bars(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """One run's accuracy under each attack, with 95 % Wilson intervals.

    Attacks on surrogates ("pgd20@denoiser") are not drawn: the worst case, which counts them, is then called adaptive minimum.
    Columns are `attack`, `accuracy` and optionally `low` and `high` (fractions); the order is kept.
    """
    given = require_columns("accuracy", DataFrame(rows), ["attack", "accuracy"])
    frame = given[~given["attack"].str.contains("@", regex=False)].reset_index(drop=True)
    names = BARS if len(frame) == len(given) else {**BARS, "worst": "adaptive minimum"}
    labels = [names.get(str(name), str(name)) for name in frame["attack"]]
    colours = [INK if name == "worst" else CLEAN if name == "clean" else LEFT for name in frame["attack"]]
    fig, (axis,) = axes(height=0.9 + 0.42 * len(frame))
    error: dict[str, Any] = {"xerr": whiskers(frame, "accuracy"), "error_kw": {"ecolor": "#8a949e", "lw": 1.4}}
    axis.barh(labels, frame["accuracy"], color=colours, height=0.62, **error)
    for place, (value, end) in enumerate(_ends(frame)):
        axis.text(end + 0.012, place, percent(value), va="center", fontsize=9.5)
    _accuracy_axis(axis, 0, 1.1)
    axis.invert_yaxis()
    axis.set(title="Accuracy under each attack", xlabel="accuracy, with 95 % interval")
    described = ", ".join(f"{label} {percent(value)}" for label, value in zip(labels, frame["accuracy"], strict=True))
    data = frame.assign(attack=labels).filter(["attack", "accuracy", "low", "high"])
    return Figure(fig, f"Accuracy on the test images: {described}.", data)


@style()
def cascade(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """What each step of AutoAttack left of the accuracy, and what it took from what the steps before it had left.

    Rows are those of `robustlib.evaluation.cascade_steps`: `component`, `accuracy` after it (fraction of all images), in order,
    the first one "clean"; and optionally `attack` and `surrogate`, of which only the cascade of the first is drawn.
    """
    frame = require_columns("cascade", DataFrame(rows), ["component", "accuracy"])
    for column in ("attack", "surrogate"):
        frame = frame[frame[column] == frame[column].iloc[0]] if column in frame else frame
    labels, left = [str(name) for name in frame["component"]], [float(value) for value in frame["accuracy"]]
    taken = [0.0, *(before - after for before, after in pairwise(left))]
    fig, (axis,) = axes(height=0.9 + 0.42 * len(labels))
    axis.barh(labels, left, color=[CLEAN] + [LEFT] * (len(labels) - 1), height=0.62)
    axis.barh(labels, taken, left=left, color="white", edgecolor=TAKEN, hatch="////", height=0.62, lw=0)
    for place, (value, loss) in enumerate(zip(left, taken, strict=True)):
        end = axis.text(value + loss + 0.012, place, percent(value), va="center", fontsize=9.5)
        if loss > 0:
            text = f"−{100 * loss:.1f}"
            axis.annotate(text, (1.08, 0.5), xycoords=end, color=MUTED, va="center", fontsize=9.5)
    _accuracy_axis(axis, 0, 1.2)
    axis.invert_yaxis()
    axis.set(title="AutoAttack, step by step", xlabel="accuracy left (hatched: taken by this step)")
    described = ", ".join(f"{name} {percent(value)}" for name, value in zip(labels, left, strict=True))
    data = DataFrame({"step": labels, "accuracy": left, "taken": taken})
    return Figure(fig, f"Accuracy left after each step of AutoAttack: {described}.", data)


@style()
def accuracy_dots(table: DataFrame, title: str) -> Figure:
    """Accuracies as dots with intervals and numbers: several series (attacks, models) in each of several rows.

    Columns are `row`, `series`, `accuracy` and optionally `low` and `high` (fractions); in order, the first row on top.
    """
    given = require_columns("accuracy-dots", table, ["row", "series", "accuracy"]).reset_index(drop=True)
    rows, marks = list(dict.fromkeys(given["row"])), styles(dict.fromkeys(map(str, given["series"])))
    step = LANE * (len(marks) + 0.7)
    fig, (axis,) = axes(height=1.3 + step * len(rows))
    for lane, (name, mark) in enumerate(marks.items()):
        own = given[given["series"].astype(str) == name]
        heights = [rows.index(row) * step + lane * LANE for row in own["row"]]
        if {"low", "high"} <= set(own):
            axis.hlines(heights, own["low"], own["high"], color=mark["color"], lw=1.6)
        axis.plot(own["accuracy"], heights, label=name, **dots(mark, ms=7, mec="white", mew=0.8))
        for height, (value, end) in zip(heights, _ends(own), strict=True):
            axis.text(end + 0.015, height, percent(value), va="center", fontsize=9)
    middle = LANE * (len(marks) - 1) / 2
    axis.set_yticks([k * step + middle for k in range(len(rows))], [str(name) for name in rows])
    axis.set_ylim(step * (len(rows) - 1) + LANE * len(marks), -LANE)
    _accuracy_axis(axis, -0.01, 1.1)
    axis.set(title=title, xlabel="accuracy, with 95 % interval")
    legend_below(fig, axis)
    words = given["series"].astype(str) + " " + given["accuracy"].map(percent)
    described = "; ".join(f"{name}: {', '.join(part)}" for name, part in words.groupby(given["row"], sort=False))
    return Figure(fig, f"{title}. {described}.", given.filter(["row", "series", "accuracy", "low", "high"]))


def _ends(frame: DataFrame) -> list[tuple[float, float]]:
    """Each accuracy, and where its interval ends."""
    tops = frame.get("high", frame["accuracy"]).fillna(frame["accuracy"])
    return [(value, max(value, top)) for value, top in zip(frame["accuracy"], tops, strict=True)]


def _accuracy_axis(axis: "Axes", start: float, end: float) -> None:
    """Accuracies from left to right, with room for numbers up to `end`."""
    axis.set(xlim=(start, end), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    percent_axis(axis, "x")
    axis.grid(visible=False, axis="y")


GAP = 0.012  # white between two classes, a share of all images
LINE = 0.2  # inches from one label to the next, at least
STAYED = "#cdd4db"
MOST = 15  # classes whose bands can still be followed
OTHERS = 10**9  # sorts after all classes
LETTERS = 20  # of a name


@style()
def confusion_flow(clean: ArrayLike, adversarial: ArrayLike, class_names: Sequence[str] = ()) -> Figure:
    """From what a model says of clean images to what it says of the adversarial ones: bands as wide as their share.

    Predictions that stay are grey; those that change have the colour of where they come from. Of more than 15 classes,
    those that change least are one band, "other classes".
    Predictions (N,) are whole numbers for the same images; adversarial ones below 0 are no answer.
    """
    before, after = (np.maximum(np.asarray(side), -1) for side in (clean, adversarial))
    same_length("confusion-flow", clean=before, adversarial=after)
    changed = float(np.mean(before != after))
    before, after = _merge_others(before, after)
    classes = np.unique(np.concatenate([before, after]))
    share = np.array([[np.mean((before == a) & (after == b)) for b in classes] for a in classes])
    names = [_class_name(int(k), class_names) for k in classes]
    height = max(3.6, 0.46 * len(classes) + 0.8)
    fig, (axis,) = axes(height=height)
    _draw_flows(axis, share)
    _draw_classes(axis, share, names, LINE / height)
    axis.set_axis_off()
    axis.set_title(f"What the attack makes of each class: {percent(changed)} of the answers change")
    moves = [(names[a], names[b], share[a, b]) for a, b in zip(*np.nonzero(share), strict=True)]
    data = DataFrame(moves, columns=["clean answer", "adversarial answer", "share"])
    return Figure(fig, _describe_flows(share, names, changed), data)


def _merge_others(before: NDArray[Any], after: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The answers; of too many classes, those that change most often by themselves and the rest as one."""
    classes, places = np.unique(np.concatenate([before, after]), return_inverse=True)
    if len(classes) <= MOST:
        return before, after
    changes = np.bincount(places, np.tile(before != after, 2), len(classes))
    kept = classes[np.argsort(-changes, kind="stable")[: MOST - 1]]
    return np.where(np.isin(before, kept), before, OTHERS), np.where(np.isin(after, kept), after, OTHERS)


def _class_name(label: int, names: Sequence[str]) -> str:
    if label < 0 or label == OTHERS:
        return "no answer" if label < 0 else "other classes"
    return str(names[label]) if label < len(names) else str(label)


def _starts(totals: NDArray[Any]) -> NDArray[Any]:
    """Where the bar of each class begins."""
    return np.cumsum(totals) - totals + GAP * np.arange(len(totals))


def _colour(k: int) -> str:
    return styles(map(str, range(10)))[str(k % 10)]["color"]


def _draw_flows(axis: "Axes", share: NDArray[Any]) -> None:
    """Bands of equal width from the left bar to the right one, an S in between; those that stay first, below the others."""
    starts = _starts(share.sum(1))[:, None] + np.cumsum(share, 1) - share
    ends = _starts(share.sum(0))[None, :] + np.cumsum(share, 0) - share
    x = np.linspace(0, 1, 60)
    for a, b in sorted(zip(*np.nonzero(share), strict=True), key=lambda move: move[0] != move[1]):
        y = starts[a, b] + (ends[a, b] - starts[a, b]) * (3 * x**2 - 2 * x**3)
        colour, alpha = (STAYED, 0.6) if a == b else (_colour(a), 0.8)
        axis.fill_between(0.012 + 0.976 * x, y, y + share[a, b], color=colour, alpha=alpha, lw=0)


def _draw_classes(axis: "Axes", share: NDArray[Any], names: Sequence[str], line: float) -> None:
    """A bar for each class on both sides, with its name and share; labels are at least `line` apart."""
    from matplotlib.patches import Rectangle

    for x, totals in ((0, share.sum(1)), (1, share.sum(0))):
        starts = _starts(totals)
        heights = _spread_labels(starts + totals / 2, line)
        for k, name in enumerate(names):
            name = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
            if totals[k] > 0:
                axis.add_patch(Rectangle((x - 0.012, starts[k]), 0.024, totals[k], color=_colour(k), lw=0, zorder=4))
                text = f"{name}   {100 * totals[k]:.0f} %" if x else f"{100 * totals[k]:.0f} %   {name}"
                place = 1.025 * x - 0.025 * (1 - x), heights[k]
                axis.text(*place, text, ha="left" if x else "right", va="center", fontsize=9.5)
        text = f"answer to the {'adversarial' if x else 'clean'} image"
        axis.text(x, -0.02, text, ha="right" if x else "left", va="bottom", color=MUTED, fontsize=9)
    side = max(0.22, 0.015 * (min(LETTERS, max(map(len, names))) + 5))
    axis.set(xlim=(-side, 1 + side), ylim=(1 + GAP * len(names), -0.06))


def _spread_labels(heights: NDArray[Any], least: float) -> NDArray[Any]:
    """The heights of labels, changed so that neighbours are at least `least` apart and the last stays where it was."""
    steps = least * np.arange(len(heights))
    down = np.maximum.accumulate(heights - steps) + steps
    return np.minimum.accumulate((np.minimum(down, heights[-1]) - steps)[::-1])[::-1] + steps


def _describe_flows(share: NDArray[Any], names: Sequence[str], changed: float) -> str:
    moves = [(share[a, b], a, b) for a, b in zip(*np.nonzero(share), strict=True) if a != b]
    largest = [f"{names[a]} to {names[b]} {percent(part)}" for part, a, b in sorted(moves, reverse=True)[:5]]
    text = f"Answers to clean and to adversarial images: {percent(changed)} change."
    return text + (f" The most frequent changes, of all images: {', '.join(largest)}." if largest else "")
