"""Figures of a feature space: distances between pairs, alignment and exclusion."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import Figure, axes, legend_below, looks, needs, panels, style, title_of

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
    kinds = looks(numbers["pair"])
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
    rows = needs("alignment-exclusion", table, ["method", "alignment", exclusion])
    rows = rows.assign(method=[title_of(row) for row in rows.to_dict("records")])
    said = []
    with style():
        fig, (axis,) = axes(height=4.4)
        for title, look in looks(sorted(rows["method"].unique())).items():
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
