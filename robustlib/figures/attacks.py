"""Figures of one run under attack: what each attack left, and what each step of AutoAttack took.

Images before and after an attack.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    INK,
    MUTED,
    Figure,
    axes,
    legend_below,
    percent,
    percent_axis,
    require_columns,
    same_length,
    style,
    styles,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import ArrayLike, NDArray
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

    every = require_columns("accuracy", pd.DataFrame(rows), ["attack", "accuracy"])
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
            axis.text(max(value, top) + 0.012, place, percent(value), va="center", fontsize=9.5)
        _bars_downwards(axis, 1.1)
        axis.set_title("Accuracy under each attack")
        axis.set_xlabel("accuracy, with 95 % interval")
    said = ", ".join(f"{label} {percent(value)}" for label, value in zip(labels, frame["accuracy"], strict=True))
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

    frame = require_columns("cascade", pd.DataFrame(rows), ["component", "accuracy"])
    for column in ("attack", "surrogate"):
        frame = frame[frame[column] == frame[column].iloc[0]] if column in frame else frame
    labels, left = [str(name) for name in frame["component"]], [float(value) for value in frame["accuracy"]]
    taken = [0.0, *(before - after for before, after in pairwise(left))]
    with style():
        fig, (axis,) = axes(height=0.9 + 0.42 * len(labels))
        axis.barh(labels, left, color=[CLEAN] + [LEFT] * (len(labels) - 1), height=0.62)
        axis.barh(labels, taken, left=left, color="white", edgecolor=TAKEN, hatch="////", height=0.62, lw=0)
        for place, (value, loss) in enumerate(zip(left, taken, strict=True)):
            end = axis.text(value + loss + 0.012, place, percent(value), va="center", fontsize=9.5)
            if loss > 0:
                words = f"−{100 * loss:.1f}"
                axis.annotate(words, (1.08, 0.5), xycoords=end, color=MUTED, va="center", fontsize=9.5)
        _bars_downwards(axis, 1.2)
        axis.set_title("AutoAttack, step by step")
        axis.set_xlabel("accuracy left (hatched: taken by this step)")
    said = [f"{name} {percent(value)}" for name, value in zip(labels, left, strict=True)]
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
    given = require_columns("accuracy-dots", table, ["row", "series", "accuracy"]).reset_index(drop=True)
    names, every = list(dict.fromkeys(given["row"])), styles(dict.fromkeys(map(str, given["series"])))
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
        percent_axis(axis, "x")
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("accuracy, with 95 % interval")
        axis.set_title(title)
        legend_below(fig, axis)
    told = [f"{row['series']} {percent(row['accuracy'])}" for row in given.to_dict("records")]
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
        axis.text(max(value, end) + 0.015, height, percent(value), va="center", fontsize=9)


def _bars_downwards(axis: "Axes", end: float) -> None:
    """Horizontal bars of accuracies, the first on top, with room for their numbers up to `end`."""
    axis.set_xlim(0, end)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    percent_axis(axis, "x")
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")


MOST, LONG = 10, 9  # images side by side that can still be seen, and letters of a class from which on it is two fewer
ROOM = 740.0  # letters of 1 point that fit on one line beside the words of a row
FACTORS = (10.0, 5.0, 2.0)
WRONG = "#b3261e"


def example_strips(
    clean: "ArrayLike",
    adversarial: "ArrayLike",
    labels: "ArrayLike",
    predictions: "tuple[ArrayLike, ArrayLike]",
    class_names: Sequence[str] = (),
    *,
    magnify: float | None = None,
) -> Figure:
    """Clean images, what the attack added (magnified, grey is nothing), the adversarial images, and what the model says.

    Args:
        clean, adversarial: (N, C, H, W) in [0, 1], C 1 or 3; the first ten are shown (eight if names are long).
        labels: (N,) true classes.
        predictions: for the clean and for the adversarial images, (N,) each.
        class_names: by label; numbers if not given.
        magnify: the factor on the perturbation; None = 10, or less where 10 times it would leave the grey scale.

    Raises:
        InputError: no images, not as many of each, or not of this shape.
    """
    import numpy as np
    import pandas as pd

    before, after, y = np.asarray(clean, dtype=float), np.asarray(adversarial, dtype=float), np.asarray(labels)
    said = [np.asarray(part) for part in predictions]
    same_length(
        "example",
        clean=before,
        adversarial=after,
        labels=y,
        predictions=said[0],
        **{"adversarial predictions": said[1]},
    )
    if before.ndim != 4 or before.shape != after.shape or before.shape[1] not in (1, 3):
        raise InputError(
            f"The example figure needs images (N, 1 or 3, H, W), both alike; given {before.shape}, {after.shape}."
        )
    columns = {"label": y, "before": said[0], "after": said[1]}
    told = pd.DataFrame({key: [name_of(int(k), class_names) for k in part[:MOST]] for key, part in columns.items()})
    count = len(told) if told.map(len).to_numpy().max() < LONG else min(len(told), MOST - 2)
    data = told[:count].rename_axis("example").reset_index()
    noise, factor = magnified(after[:count] - before[:count], magnify)
    with style():
        fig = _strips((before, noise, after), data, f"perturbation\n× {factor:g}")
    return Figure(fig, _say(data, factor), data)


def _strips(rows: "Sequence[NDArray[Any]]", data: "DataFrame", added: str) -> "Canvas":
    """A row each of clean images, perturbations and adversarial images; the classes above, the answers below."""
    words = ["clean\n(above: class,\nbelow: answer)", added, "adversarial\n(below: answer)"]
    count = len(data)
    fig, every = axes(count, rows=3, height=3 * 6.6 / count + 0.9 if count > 3 else 5.6)
    for row, images in enumerate(rows):
        for column, told in enumerate(data.to_dict("records")):
            axis = every[row * count + column]
            picture(axis, images[column])
            if row == 0:
                axis.set_title(**_fit(told["label"], count, "label"), loc="center")
            if row != 1:
                answer(axis, told["after" if row else "before"], told["label"], count)
        every[row * count].set_ylabel(words[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
    return fig


def _fit(text: str, count: int, key: str) -> dict[str, Any]:
    """The text in the size that fits above or below one of so many images side by side; cut where it would be too small."""
    room = ROOM / count  # letters of 1 point
    size = min(9.5, max(6.5, room / len(text)))
    return {key: text if len(text) * size <= room + 1 else f"{text[: int(room / size) - 1]}…", "fontsize": size}


def magnified(change: "NDArray[Any]", magnify: float | None) -> "tuple[NDArray[Any], float]":
    """What was added, magnified, around grey; and the factor."""
    import numpy as np

    most = float(np.abs(change).max())
    factor = next((f for f in FACTORS if f * most <= 0.5 + 1e-6), 1.0) if magnify is None else magnify
    return np.clip(0.5 + factor * change, 0, 1), factor


def picture(axis: "Axes", image: "NDArray[Any]") -> None:
    """Draws an image (C, H, W) in [0, 1], C 1 or 3, into axes without ticks."""
    grey: dict[str, Any] = {"cmap": "gray"} if image.shape[0] == 1 else {}
    axis.imshow(image.transpose(1, 2, 0).squeeze(-1) if grey else image.transpose(1, 2, 0), vmin=0, vmax=1, **grey)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color("#b8c1cb")


def answer(axis: "Axes", said: str, label: str, count: int) -> None:
    """The answer below its image; a wrong one has a cross and a red frame, so that colour is not all there is."""
    right = said == label
    how: dict[str, Any] = {"color": INK if right else WRONG, "weight": "normal" if right else "bold", "labelpad": 3}
    axis.set_xlabel(**_fit(f"{'✓' if right else '✕'} {said}", count, "xlabel"), **how)
    if not right:
        for spine in axis.spines.values():
            spine.set_color(WRONG)
            spine.set_linewidth(1.8)


def name_of(label: int, names: Sequence[str]) -> str:
    """The class of a label: its name, its number if it has none, "no answer" below 0."""
    return "no answer" if label < 0 else str(names[label]) if label < len(names) else str(label)


def _say(data: "DataFrame", magnify: float) -> str:
    told = [f"{row['label']} is called {row['before']}, then {row['after']}" for row in data.to_dict("records")]
    return (
        f"{len(data)} images, clean and adversarial, and the perturbation times {magnify:g}. "
        f"Before and after the attack: {'; '.join(told)}."
    )
