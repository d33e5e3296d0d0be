"""Figures of adversarial distances: their distribution over images, and what they cost in accuracy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, MUTED, Figure, axes, legend_below, looks, needs, pc, percent, style, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike
    from pandas import DataFrame

SLACK = "#f3f5f7"  # behind accuracies that are not allowed


def distance_distributions(distances: "Mapping[str, ArrayLike]") -> Figure:
    """The share of images with an adversarial image within each distance, a line for each model; farther right is better.

    Args:
        distances: model -> adversarial distances (N,) in pixel units, of the same images for all, e.g. those of
            `robustlib.evaluation.compare_distances`; all finite and at least 0.

    Raises:
        InputError: no models, other numbers of images, none, or a distance that is not known.
    """
    import numpy as np
    import pandas as pd

    sorted_ = {name: np.sort(np.asarray(values, dtype=float).ravel()) for name, values in distances.items()}
    lengths = {len(values) for values in sorted_.values()}
    if len(lengths) != 1 or 0 in lengths or not all(np.isfinite(values).all() for values in sorted_.values()):
        told = ", ".join(f"{name} {np.isfinite(values).sum()} of {len(values)}" for name, values in sorted_.items())
        raise InputError(
            f"The distance figure needs the same images for all models, and a distance of each; given: {told or 'none'}."
        )
    share = np.arange(1, max(lengths) + 1) / max(lengths)
    with style():
        fig, (axis,) = axes(height=3.9)
        for name, look in looks(sorted_).items():
            values, middle = sorted_[name], float(np.median(sorted_[name]))
            axis.step([0, *values], [0, *share], where="post", color=look["color"], ls=look["ls"])
            axis.plot([middle], [0.5], ms=8, mec="white", label=f"{name}, median {middle:.3f}", **look)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1)
        percent(axis)
        axis.set_xlabel("L2 adversarial distance, in pixels of [0, 1]; marks: medians")
        axis.set_ylabel("images with an adversarial\nimage within it")
        axis.set_title(f"How far away adversarial images are, on the same {max(lengths)} images")
        legend_below(fig, axis)
    rows = [pd.DataFrame({"model": name, "distance": v, "share": share}) for name, v in sorted_.items()]
    said = "; ".join(
        f"{n}: {', '.join(f'{q:.3g}' for q in np.quantile(v, (0.25, 0.5, 0.75)))}" for n, v in sorted_.items()
    )
    alt = f"Distribution of L2 adversarial distances over {max(lengths)} images. Quartiles: {said}."
    return Figure(fig, alt, pd.concat(rows, ignore_index=True))


def accuracy_distance(grid: "DataFrame", slack: float = 0.01) -> Figure:
    """Mean adversarial distance against accuracy over the strengths of each arm, a ring around what is chosen; up and right is
    better.

    Args:
        grid: of `robustlib.evaluation.choose_strengths`: `arm`, `strength`, `accuracy` (a fraction), `distance`, `low`, `high`,
            `chosen`; the arm of strength 0 is the unregularised one.
        slack: what accuracy may be lost, a fraction; less is shaded.

    Raises:
        InputError: a column is missing or empty, or there is no row of strength 0.
    """
    columns = ["arm", "strength", "accuracy", "distance", "chosen"]
    rows = needs("accuracy-distance", grid, columns).reset_index(drop=True)
    if not (rows["strength"] == 0).any():
        raise InputError("The accuracy-distance figure needs the unregularised arm: a row of strength 0.")
    base = rows[rows["strength"] == 0].iloc[0]
    with style():
        fig, (axis,) = axes(height=4.4)
        for arm, look in looks(rows["arm"].unique()).items():
            _path(axis, str(arm), rows[rows["arm"] == arm].sort_values("strength"), look)
        axis.margins(0.12)
        least, most = axis.get_xlim()
        axis.set_xlim(left := min(least, base["accuracy"] - 2 * slack), most)
        axis.axvspan(left, base["accuracy"] - slack, color=SLACK, zorder=0)
        axis.axhline(base["distance"], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        percent(axis, "x")
        axis.set_xlabel(f"accuracy (shaded: more than {100 * slack:g} point below no penalty)")
        axis.set_ylabel("mean L2 adversarial distance")
        axis.set_title("What each strength costs and buys; a ring: chosen")
        legend_below(fig, axis)
    told = [_say(row) for row in rows.to_dict("records") if row["chosen"] or row["strength"] == 0]
    alt = f"Mean adversarial distance against accuracy for {len(rows)} arms and strengths. {'; '.join(told)}."
    kept = [*columns[:-1], *(name for name in ("low", "high") if name in rows), "chosen"]
    return Figure(fig, alt, rows[kept].astype({"chosen": int}))


def _path(axis: "Axes", arm: str, mine: "DataFrame", look: dict[str, Any]) -> None:
    """One arm from its weakest to its strongest penalty, each point with its strength."""
    renamed = mine.rename(columns={"low": "distance_low", "high": "distance_high"})
    axis.errorbar(
        mine["accuracy"], mine["distance"], yerr=whiskers(renamed, "distance"), label=arm, ms=7, elinewidth=1.0, **look
    )
    chosen = mine[mine["chosen"].astype(bool)]
    axis.plot(chosen["accuracy"], chosen["distance"], "o", ms=15, mfc="none", mec=look["color"], mew=1.8)
    for _, row in mine.iterrows():
        words = f"{row['strength']:g}" if row["strength"] else ""
        axis.annotate(
            words, (row["accuracy"], row["distance"]), (7, 5), textcoords="offset points", fontsize=8, color=INK
        )


def _say(row: Mapping[Any, Any]) -> str:
    at = f" at strength {row['strength']:g}, chosen" if row["strength"] else ""
    return f"{row['arm']}{at}: accuracy {pc(row['accuracy'])}, distance {row['distance']:.3f}"
