"""Figures of a feature space: distances between pairs, alignment and exclusion.

Where an attack sends the images of each class.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    MUTED,
    Figure,
    axes,
    legend_below,
    panels,
    percent,
    require_columns,
    same_length,
    style,
    styles,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray
    from pandas import DataFrame


EXCLUSIONS = {
    "margin": "nearest of another class less nearest own",
    "nearest": "distance to the nearest of another class",
    "other": "mean distance to others",
}
BINS = 32
LANE = 0.075  # height of the lane of a median, a share of the highest bin
FILLS = (0.30, 0.0, 0.12, 0.0)  # opacity of the histograms: some filled, some lines only


def pair_distances(distances: "Mapping[str, Mapping[str, ArrayLike]]") -> Figure:
    """Histograms of distances between pairs of features, a panel for each method, all on one scale.

    Args:
        distances: method -> kind of pair ("clean to adversarial", "same class", "nearest other class") -> distances (N,), >= 0;
            not finite ones are left out.

    Raises:
        InputError: no distances.
    """
    found = {
        method: {name: _finite(values) for name, values in pairs.items()}
        for method, pairs in distances.items()
        if pairs
    }
    if not found or not all(len(values) for pairs in found.values() for values in pairs.values()):
        raise InputError("The pair-distance figure needs distances for each kind of pair of at least one method.")
    numbers = _histograms(found)
    kinds = styles(numbers["pair"])
    with style():
        fig, every = panels(list(found), height=3.4 if len(found) < 4 else 2.6)
        for axis, method in zip(every, found, strict=True):
            _histogram_panel(axis, numbers[numbers["method"] == method], kinds, numbers["share"].max())
        fig.supylabel("share of the pairs", fontsize=10)
        legend_below(fig, every[0])
    medians = numbers.groupby(["method", "pair"], sort=False)["median"].first()
    said = "; ".join(f"{m}: {', '.join(f'{k} {medians[m, k]:.3g}' for k in pairs)}" for m, pairs in found.items())
    return Figure(fig, f"Histograms of distances between features. Medians: {said}.", numbers)


def _finite(values: "ArrayLike") -> "NDArray[Any]":
    import numpy as np

    flat = np.asarray(values, dtype=float).ravel()
    return flat[np.isfinite(flat)]


def _histograms(found: "Mapping[str, Mapping[str, NDArray[Any]]]") -> "DataFrame":
    """A row for each method, kind of pair and bin; the bins are the same for all."""
    import numpy as np
    import pandas as pd

    most = max(float(values.max()) for pairs in found.values() for values in pairs.values())
    edges = np.linspace(0, most * 1.02 or 1.0, BINS + 1)
    parts = []
    for method, pairs in found.items():
        for name, values in pairs.items():
            share = np.histogram(values, edges)[0] / len(values)
            bins = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "share": share})
            parts.append(bins.assign(method=method, pair=name, median=np.median(values), pairs=len(values)))
    return pd.concat(parts, ignore_index=True)[["method", "pair", "pairs", "median", "from", "to", "share"]]


def _histogram_panel(axis: "Axes", numbers: "DataFrame", kinds: Mapping[str, dict[str, Any]], top: float) -> None:
    """The histograms of one method; their medians in a lane each below them, where they cannot hide each other."""
    for place, (name, look) in enumerate(kinds.items()):
        bins = numbers[numbers["pair"] == name]
        if not bins.empty:
            edges = [*bins["from"], bins["to"].iloc[-1]]
            axis.stairs(bins["share"], edges, lw=1.6, color=look["color"], ls=look["ls"])
            axis.stairs(bins["share"], edges, fill=True, color=look["color"], alpha=FILLS[place % len(FILLS)])
            mark: dict[str, Any] = {"ms": 7, "mec": "white", "label": name, **look}
            axis.plot([bins["median"].iloc[0]], [-(place + 0.7) * LANE * top], **mark)
    axis.axhline(0, color="#b8c1cb", lw=0.8)
    axis.set_ylim(-(len(kinds) + 0.4) * LANE * top, 1.04 * top)
    axis.set_xlim(left=0)
    axis.set_xlabel("distance; marks: medians")
    axis.set_yticks([])
    axis.grid(visible=False, axis="y")


def alignment_exclusion(table: "DataFrame", exclusion: str = "margin") -> Figure:
    """How near each run keeps an image to its adversarial one, and how far from other classes: up and left is better.

    Args:
        table: one row a run, e.g. of `robustlib.representation.measure_runs` for one layer: `method`, `alignment` (squared
            distance of a clean image to its adversarial one, the smaller the better), the exclusion (the larger the better), and
            optionally `title`.
        exclusion: "margin" (nearest other class less nearest own), "nearest" (other class) or "other" (mean of other classes)
            of clean images; with "adversarial_" before it, of adversarial ones.

    Raises:
        InputError: an unknown exclusion, or a column that is missing or empty.
    """
    kind = exclusion.removeprefix("adversarial_")
    if kind not in EXCLUSIONS:
        raise InputError(
            f"exclusion={exclusion!r}: choose among {', '.join(EXCLUSIONS)}, or adversarial_ before these."
        )
    whose = "adversarial" if kind != exclusion else "clean"
    rows = require_columns("alignment-exclusion", table, ["method", "alignment", exclusion])
    rows = rows.assign(method=[title_of(row) for row in rows.to_dict("records")])
    said = []
    with style():
        fig, (axis,) = axes(height=4.4)
        for title, look in styles(sorted(rows["method"].unique())).items():
            mine = rows[rows["method"] == title]
            dot: dict[str, Any] = {"marker": look["marker"], "color": look["color"], "ls": "none"}
            axis.plot(mine["alignment"], mine[exclusion], ms=7.5, mec="white", mew=0.6, label=title, **dot)
            centre = mine["alignment"].mean(), mine[exclusion].mean()
            if len(mine) > 1:
                axis.plot(*[[value] for value in centre], ms=13, mfc="none", mew=1.8, **dot)
            said.append(f"{title} (runs: {len(mine)}) alignment {centre[0]:.3g}, exclusion {centre[1]:.3g}")
        axis.set_xlabel("alignment: squared distance of clean to adversarial  (← is better)")
        axis.set_ylabel(f"exclusion of {whose} images  (↑ is better)\n{EXCLUSIONS[kind]}")
        rings = ", a ring at the mean of a method" if rows["method"].duplicated().any() else ""
        axis.set_title(f"Alignment and exclusion, a dot for each run{rings}")
        axis.margins(0.12)
        legend_below(fig, axis)
    numbers = rows[[name for name in ("method", "seed", "layer", "alignment", exclusion) if name in rows]]
    alt = f"Alignment (smaller is better) and exclusion (larger is better), means: {'; '.join(said)}."
    return Figure(fig, alt, numbers)


GAP = 0.012  # white between two classes, a share of all images
LINE = 0.2  # inches from one label to the next, at least
STAYED = "#cdd4db"
MOST = 15  # classes whose bands can still be followed
OTHERS = 10**9  # stands after all classes
LETTERS = 20  # of a name


def confusion_flow(clean: "ArrayLike", adversarial: "ArrayLike", class_names: Sequence[str] = ()) -> Figure:
    """From what a model says of clean images to what it says of the adversarial ones: bands as wide as their share.

    Predictions that stay are grey; those that change have the colour of where they come from. Of more than 15 classes,
    those that change least are one band, "other classes".

    Args:
        clean, adversarial: predictions (N,) for the same images, whole numbers; adversarial ones below 0 are no answer.
        class_names: by label; numbers if not given.

    Raises:
        InputError: none, or not as many of both.
    """
    import numpy as np
    import pandas as pd

    before, after = np.asarray(clean), np.asarray(adversarial)
    same_length("confusion-flow", clean=before, adversarial=after)
    changed = float(np.mean(np.maximum(before, -1) != np.maximum(after, -1)))
    before, after = _few(before, after)
    classes = np.unique(np.concatenate([before, after]))
    share = np.array([[np.mean((before == a) & (after == b)) for b in classes] for a in classes])
    names = [_class_name(int(k), class_names) for k in classes]
    with style():
        fig, (axis,) = axes(height=_inches(len(classes)))
        _flows(axis, share, names)
        axis.set_axis_off()
        axis.set_title(f"What the attack makes of each class: {percent(changed)} of the answers change")
    moves = [(names[a], names[b], share[a, b]) for a, b in zip(*np.nonzero(share), strict=True)]
    data = pd.DataFrame(moves, columns=["clean answer", "adversarial answer", "share"])
    return Figure(fig, _say(share, names, changed), data)


def _inches(classes: int) -> float:
    """The height of the figure."""
    return max(3.6, 0.46 * classes + 0.8)


def _few(before: "NDArray[Any]", after: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """The answers; of too many classes, those that change most often by themselves and the rest as one."""
    import numpy as np

    before, after = (np.where(side < 0, -1, side) for side in (before, after))
    classes, places = np.unique(np.concatenate([before, after]), return_inverse=True)
    if len(classes) <= MOST:
        return before, after
    moved = np.bincount(places, np.tile(before != after, 2), len(classes))
    kept = classes[np.argsort(-moved, kind="stable")[: MOST - 1]]
    return np.where(np.isin(before, kept), before, OTHERS), np.where(np.isin(after, kept), after, OTHERS)


def _class_name(label: int, names: Sequence[str]) -> str:
    if label < 0 or label == OTHERS:
        return "no answer" if label < 0 else "other classes"
    return str(names[label]) if label < len(names) else str(label)


def _flows(axis: "Axes", share: "NDArray[Any]", names: Sequence[str]) -> None:
    """The bands, those that stay first, below the others."""
    import numpy as np

    left, right = (_starts(totals) for totals in (share.sum(1), share.sum(0)))
    offsets = [left[:, None] + np.cumsum(share, 1) - share, right[None, :] + np.cumsum(share, 0) - share]
    look = styles([str(k) for k in range(10)])
    moves = [(a, b) for a in range(len(names)) for b in range(len(names)) if share[a, b] > 0]
    for a, b in sorted(moves, key=lambda move: move[0] != move[1]):
        colour = STAYED if a == b else look[str(a % 10)]["color"]
        _band(axis, offsets[0][a, b], offsets[1][a, b], share[a, b], colour, 0.6 if a == b else 0.8)
    for x, starts, totals in ((0, left, share.sum(1)), (1, right, share.sum(0))):
        heights = _apart(starts + totals / 2, LINE / _inches(len(names)))
        for k, name in enumerate(names):
            name = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
            if totals[k] > 0:
                axis.add_patch(_bar(x, starts[k], totals[k], look[str(k % 10)]["color"]))
                text = f"{name}   {100 * totals[k]:.0f} %" if x else f"{100 * totals[k]:.0f} %   {name}"
                axis.text(
                    1.025 * x - 0.025 * (1 - x),
                    heights[k],
                    text,
                    ha="left" if x else "right",
                    va="center",
                    fontsize=9.5,
                )
        words = f"answer to the {'adversarial' if x else 'clean'} image"
        axis.text(x, -0.02, words, ha="right" if x else "left", va="bottom", color=MUTED, fontsize=9)
    side = max(0.22, 0.015 * (min(LETTERS, max(map(len, names))) + 5))
    axis.set_xlim(-side, 1 + side)
    axis.set_ylim(1 + GAP * len(names), -0.06)


def _starts(totals: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    return np.cumsum(totals) - totals + GAP * np.arange(len(totals))


def _apart(heights: "NDArray[Any]", least: float) -> "NDArray[Any]":
    """The heights of labels, moved so that neighbours are at least so far apart and the last stays where it was."""
    import numpy as np

    steps = least * np.arange(len(heights))
    down = np.maximum.accumulate(heights - steps) + steps
    low = np.minimum.accumulate((np.minimum(down, heights[-1]) - steps)[::-1])[::-1] + steps
    return low


def _bar(x: float, start: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.012, start), 0.024, height, color=colour, lw=0, zorder=4)


def _band(axis: "Axes", start: float, end: float, width: float, colour: str, alpha: float) -> None:
    """A band of equal width from the left bar to the right one, an S in between."""
    import numpy as np

    x = np.linspace(0, 1, 60)
    y = start + (end - start) * (3 * x**2 - 2 * x**3)
    axis.fill_between(0.012 + 0.976 * x, y, y + width, color=colour, alpha=alpha, lw=0)


def _say(share: "NDArray[Any]", names: Sequence[str], changed: float) -> str:
    moves = [(share[a, b], a, b) for a in range(len(names)) for b in range(len(names)) if a != b and share[a, b] > 0]
    largest = [f"{names[a]} to {names[b]} {percent(part)}" for part, a, b in sorted(moves, reverse=True)[:5]]
    text = f"Answers to clean and to adversarial images: {percent(changed)} change."
    return text + (f" The most frequent changes, of all images: {', '.join(largest)}." if largest else "")
