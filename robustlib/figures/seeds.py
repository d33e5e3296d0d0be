"""Curves of many runs: the mean over seeds of each method, with what it varies by."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import Figure, axes, legend_below, looks, needs, style, title_of
from robustlib.figures.run import robustness_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

# How far clean and adversarial features of an image lie apart; the first two are comparable between models.
GAPS = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine distance",
    "l1": "L1 distance (raw)",
    "l2": "L2 distance (raw)",
    "linf": "L∞ distance (raw)",
}
MIXED = ("layer", "eps", "class", "stage", "snapshot")
DEPTHS = {"epoch": "epoch", "eps": "radius of the attack, eps", "layer": "layer, from input to output"}


def over_seeds(table: "DataFrame", x: str, value: str, what: str = "curves") -> dict[str, "DataFrame"]:
    """For each method the mean of `value` at each `x`, with its 95 % t interval over seeds.

    Args:
        table: one row a seed and point: `method`, `seed`, `x`, `value`, optionally `title`, `low` and `high`.
        x, value: columns.
        what: the figure, for messages.

    Returns:
        By "TITLE (8 seeds)": columns x, value, low, high, in the order of appearance of x. Of a single seed, low and high are
        those of the table, or NaN.

    Raises:
        InputError: a column is missing or empty.
    """
    from scipy.stats import t

    rows = needs(what, table, ["method", "seed", x, value])
    rows = rows.assign(_title=[title_of(row) for row in rows.to_dict("records")])
    curves = {}
    for title, mine in sorted(rows.groupby("_title"), key=lambda group: str(group[0])):
        per_seed = mine.groupby([x, "seed"], sort=False)[value].mean()
        points = per_seed.groupby(level=0, sort=False).agg(["mean", "std", "count"])
        half = t.ppf(0.975, points["count"].clip(lower=2) - 1) * points["std"] / points["count"] ** 0.5
        seeds = mine["seed"].nunique()
        if seeds == 1 and {"low", "high"} <= set(mine):  # what one run is known by: the interval its images leave
            ends = mine.groupby(x, sort=False)[["low", "high"]].mean()
        else:
            ends = points.assign(low=points["mean"] - half, high=points["mean"] + half)[["low", "high"]]
        frame = points.join(ends).reset_index()
        name = f"{title} ({seeds} seed{'s' * (seeds > 1)})"
        curves[name] = frame.rename(columns={"mean": value})[[x, value, "low", "high"]]
    return curves


def robustness_over_seeds(table: "DataFrame", x: str = "eps", threat_eps: float | None = None) -> Figure:
    """Accuracy under attack against its strength: the mean over seeds of each method, with 95 % bands over seeds.

    Args:
        table: one row a run and point: `method`, `seed`, `x`, `accuracy` (a fraction), optionally `title`.
        x: "eps" or "steps".
        threat_eps: the radius of the threat model, marked when x is "eps".
    """
    curves = over_seeds(table, x, "accuracy", "robustness")
    for frame in curves.values():
        frame[["low", "high"]] = frame[["low", "high"]].clip(0, 1)
    fig, alt, numbers = robustness_curves(curves, x, threat_eps)
    single = [name.endswith("(1 seed)") for name in curves]
    bands = "95 % intervals " + ("of the images" if all(single) else "over seeds")
    bands += ", of the images where there is one seed" if any(single) and not all(single) else ""
    fig.axes[0].set_ylabel("accuracy, 95 % interval" if all(single) else "accuracy: mean over seeds, 95 % band")
    return Figure(fig, f"{alt} Bands are {bands}.", numbers)


def feature_gap_curves(
    table: "DataFrame", x: str = "epoch", measures: Sequence[str] = ("relative_l2", "cosine")
) -> Figure:
    """How far clean and adversarial features of an image lie apart, over training, radius or depth.

    Args:
        table: of `robustlib.representation.gap_table`, or any with `method`, `seed`, `x`, the measures, and optionally `title`.
        x: "epoch", "eps" or "layer" (in the order of the table).
        measures: a panel for each; L1, L2 and L∞ are raw: they grow with the scale of the features.

    Raises:
        InputError: an unknown x or measure, a column that is missing or empty, or a table that mixes layers, radii, classes
            or stages, whose mean would mean nothing.
    """
    import pandas as pd

    if x not in DEPTHS:
        raise InputError(f"x={x!r} is not an axis of the feature-gap figure: choose {', '.join(DEPTHS)}.")
    for measure in measures:
        if measure not in GAPS:
            raise InputError(f"{measure!r} is no feature gap: choose among {', '.join(GAPS)}.")
    rows = needs("feature-gap", table, [x, *measures])
    for other in MIXED:
        if (
            other != x
            and other in rows
            and rows[other].nunique(dropna=False) > 1
            and (x, other) != ("epoch", "snapshot")
        ):
            there = ", ".join(map(repr, rows[other].unique()))
            raise InputError(f"The feature-gap figure over {x} needs one {other}, the table has {there}: choose one.")
    said, numbers = [], []
    with style():
        fig, panels = axes(len(measures), height=3.9)
        for axis, measure in zip(panels, measures, strict=True):
            curves = over_seeds(rows, x, measure, "feature-gap")
            _draw(axis, curves, x, measure)
            said.append(
                f"{GAPS[measure]}: {'; '.join(_ends(name, frame, x, measure) for name, frame in curves.items())}"
            )
            numbers += [
                frame.rename(columns={measure: "gap"}).assign(curve=name, measure=measure)
                for name, frame in curves.items()
            ]
        legend_below(fig, panels[0])
    data = pd.concat(numbers, ignore_index=True)[["measure", "curve", x, "gap", "low", "high"]]
    return Figure(fig, f"Feature gap between clean and adversarial images against {x}. {'. '.join(said)}.", data)


def _draw(axis: "Axes", curves: "dict[str, DataFrame]", x: str, measure: str) -> None:
    from matplotlib.ticker import MaxNLocator

    if x == "layer":
        places = list(dict.fromkeys(name for frame in curves.values() for name in frame[x]))
        words = [str(name).removeprefix("encoder.") for name in places]
        turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, words)) > 36 else {}
        axis.set_xticks(range(len(places)), words, **turn)
    for name, look in looks(curves).items():
        frame = curves[name] if x == "layer" else curves[name].sort_values(x)
        at = [places.index(layer) for layer in frame[x]] if x == "layer" else frame[x]
        axis.plot(at, frame[measure], label=name, markevery=max(1, len(frame) // 10), **look)
        axis.fill_between(at, frame["low"].clip(lower=0), frame["high"], color=look["color"], alpha=0.15, lw=0)
    if x == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_ylim(bottom=0)
    axis.set_xlabel(DEPTHS[x])
    axis.set_title(GAPS[measure][0].upper() + GAPS[measure][1:])


def _ends(name: str, frame: "DataFrame", x: str, measure: str) -> str:
    rows = frame if x == "layer" else frame.sort_values(x)
    first, last = rows.iloc[0], rows.iloc[-1]
    at = [f"{row[measure]:.3g} at {x} {row[x] if x == 'layer' else format(row[x], 'g')}" for row in (first, last)]
    return f"{name} {at[0]}" + (f", {at[1]}" if len(rows) > 1 else "")
