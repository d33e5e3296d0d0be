"""Figures of one run: its training, and how its accuracy falls as attacks grow.

Curves of many runs: the mean over seeds of each method, with what it varies by.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    MUTED,
    Figure,
    axes,
    legend_below,
    legends_below,
    percent,
    percent_axis,
    require_columns,
    style,
    styles,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series


CURVES = {  # metric -> label
    "clean_val": "clean (validation)",
    "robust_val": "robust (validation)",
    "fgsm_val": "FGSM (validation)",
    "robust_train": "robust (training)",
}
ACCURACY = "accuracy"  # how the parts of a loss end that are none: a head's accuracy on its batches
NO_LOSS = {"epoch", "epoch_total", "lr", "seconds", "warnings", "stage", "pass", "gradient_alignment"}


def training_curves(metrics: "DataFrame") -> Figure:
    """Losses and accuracies of one run over its epochs.

    Args:
        metrics: one row an epoch (the first may be the model before training, which has no loss): `epoch_total` (or
            `epoch`), losses and their parts, and any of `clean_val`, `robust_val`, `fgsm_val`, `robust_train`
            (fractions). `stage` and `warnings`, where given, are marked.
    """
    from matplotlib.ticker import MaxNLocator

    clock = "epoch_total" if "epoch_total" in metrics else "epoch"
    rows = require_columns("training", metrics, [clock]).reset_index(drop=True)
    epochs = rows[clock]
    parts = _parts(rows)
    heads = [name for name in parts if name.endswith(ACCURACY)]
    losses = [name for name in parts if name not in heads]
    curves = {name: CURVES[name] for name in CURVES if name in rows and rows[name].notna().any()}
    curves |= {name: f"{_words(name)} (training)" for name in heads}
    with style():
        fig, (left, right) = axes(2)
        _lines(left, epochs, rows, {name: _words(name) for name in losses})
        _lines(right, epochs, rows, curves)
        right.set_ylim(-0.02, 1.02)
        percent_axis(right)
        stages = _stages(epochs, rows)
        for axis, title in ((left, "Training loss"), (right, "Accuracy")):
            axis.set_title(title, pad=24 if stages else None)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            _mark_stages(axis, stages)
        warned = _mark_warnings(right, epochs, rows)
        legends_below(fig, (left, right))
    return Figure(fig, _say_training(epochs, rows, losses, curves, warned), _numbers(rows, clock, [*losses, *curves]))


def _numbers(rows: "DataFrame", clock: str, drawn: list[str]) -> "DataFrame":
    """What the curves show, a row an epoch; the warnings of an epoch in one text."""
    numbers = rows[[clock, *(["stage"] if "stage" in rows else []), *drawn]].rename(columns={clock: "epoch"})
    return numbers.assign(warnings=["; ".join(map(str, said)) for said in _warnings(rows)])


def _warnings(rows: "DataFrame") -> list[list[Any]]:
    column = rows["warnings"] if "warnings" in rows else [()] * len(rows)
    return [list(said) if isinstance(said, list | tuple) else [] for said in column]


def _parts(rows: "DataFrame") -> list[str]:
    """The losses and what goes with them: every number that is not measured on the validation images and counts nothing."""
    named = [str(name) for name in rows if name not in NO_LOSS]
    parts = [name for name in named if not name.startswith("probe/") and not name.endswith(("_val", "_train"))]
    return [name for name in parts if rows[name].dtype.kind in "fiu" and rows[name].notna().any()]


def _words(name: str) -> str:
    return re.sub("[_/]", " ", name)


def _lines(axis: "Axes", x: "Series", rows: "DataFrame", labels: Mapping[str, str]) -> None:
    every = max(1, len(rows) // 12)  # markers tell lines apart; one on each of 200 epochs would hide them
    for name, look in styles(labels).items():
        axis.plot(x, rows[name], label=labels[name], markevery=every, **look)


def _stages(epochs: "Series", rows: "DataFrame") -> dict[str, float]:
    """Where each stage begins, if there are several."""
    if "stage" not in rows or rows["stage"].nunique() < 2:
        return {}
    return {str(stage): start - 0.5 for stage, start in epochs.groupby(rows["stage"], sort=False).min().items()}


def _mark_stages(axis: "Axes", stages: Mapping[str, float]) -> None:
    """A line where each stage begins, its name above the axes; of neighbours the second stands higher."""
    for place, (stage, start) in enumerate(stages.items()):
        axis.axvline(start, color="#b8c1cb", lw=1, ls=(0, (2, 2)), zorder=1)
        how: dict[str, Any] = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
        axis.annotate(stage, (start, 1), (0, 3 + 9 * (place % 2)), color=MUTED, annotation_clip=False, **how)


def _mark_warnings(axis: "Axes", epochs: "Series", rows: "DataFrame") -> list[str]:
    """A triangle at the top for each epoch with a warning; returns the different warnings."""
    lists = _warnings(rows)
    at = [epoch for epoch, said in zip(epochs, lists, strict=True) if said]
    if at:
        axis.plot(at, [1.0] * len(at), ls="none", marker="v", ms=7, color="#b3261e", label="warning", clip_on=False)
    return list(dict.fromkeys(str(text) for said in lists for text in said))


def _say_training(
    epochs: "Series", rows: "DataFrame", losses: Sequence[str], curves: Mapping[str, str], warned: list[str]
) -> str:
    text = f"Training over {epochs.max():g} epochs."
    for name in losses[:1]:
        loss = rows[name].dropna()
        text += f" The {_words(name)} goes from {loss.iloc[0]:.3g} to {loss.iloc[-1]:.3g}."
    ends = [f"{words} {percent(rows[name].dropna().iloc[-1])}" for name, words in curves.items()]
    text += f" Accuracy at the end: {', '.join(ends)}." if ends else ""
    if "robust_val" in curves:
        best = rows.loc[[rows["robust_val"].idxmax()]]
        text += f" Robust validation accuracy is best at epoch {epochs[best.index].iloc[0]:g}:"
        text += f" {percent(best['robust_val'].iloc[0])}."
    return text + (f" Warnings: {'; '.join(warned)}." if warned else "")


def robustness_curves(curves: Mapping[str, "DataFrame"], x: str = "eps", threat_eps: float | None = None) -> Figure:
    """Accuracy under attack against its strength, one line (with its band) for each entry of `curves`.

    Args:
        curves: name -> frame with columns `x`, `accuracy` and, for the band, `low` and `high` (fractions).
        x: "eps" (radius of the ball, in [0, 1]) or "steps" (iterations of the attack).
        threat_eps: the radius of the threat model, marked when x is "eps".
    """
    import pandas as pd

    if x not in ("eps", "steps"):
        raise InputError(f"x={x!r} is not an axis of the robustness figure: choose 'eps' or 'steps'.")
    if not curves:
        raise InputError("The robustness figure needs at least one curve; none given.")
    frames = {
        name: require_columns("robustness", frame, [x, "accuracy"]).sort_values(x) for name, frame in curves.items()
    }
    with style():
        fig, (axis,) = axes(height=4.0)
        for name, look in styles(frames).items():
            _curve(axis, frames[name], x, name, look)
        _strength_axis(axis, frames, x, threat_eps)
        axis.set_ylim(-0.02, 1.02)
        percent_axis(axis)
        axis.set_title("Accuracy under attack")
        legend_below(fig, axis)
    numbers = pd.concat([frame.assign(curve=name) for name, frame in frames.items()], ignore_index=True)
    columns = [name for name in ("curve", x, "accuracy", "low", "high") if name in numbers]
    return Figure(fig, _say_robustness(frames, x, threat_eps), numbers[columns])


def _curve(axis: "Axes", frame: "DataFrame", x: str, name: str, look: dict[str, Any]) -> None:
    axis.plot(frame[x], frame["accuracy"], label=name, **look)
    if {"low", "high"} <= set(frame):
        axis.fill_between(frame[x], frame["low"], frame["high"], color=look["color"], alpha=0.15, lw=0)


def _strength_axis(axis: "Axes", frames: Mapping[str, "DataFrame"], x: str, threat_eps: float | None) -> None:
    if x == "steps":
        axis.set_xlabel("steps of the attack")
        axis.set_xscale("symlog", linthresh=1)
        ticks = sorted({step for frame in frames.values() for step in frame["steps"]})
        axis.set_xticks(ticks, [f"{step:g}" for step in ticks])
        axis.minorticks_off()
        return
    axis.set_xlabel("radius of the attack, eps")
    if threat_eps is not None:
        axis.axvline(threat_eps, color=MUTED, lw=1.2, ls=(0, (2, 2)), zorder=1)
        said = f"threat model, eps {_radius(threat_eps)}"
        axis.annotate(said, (threat_eps, 1.03), color=MUTED, fontsize=9, ha="center", annotation_clip=False)


def _radius(eps: float) -> str:
    grey = eps * 255
    return f"{grey:.0f}/255" if eps and abs(grey - round(grey)) < 1e-6 and grey < 33 else f"{eps:g}"


def _say_robustness(frames: Mapping[str, "DataFrame"], x: str, threat_eps: float | None) -> str:
    said = []
    for name, frame in frames.items():
        ends = [f"{percent(row['accuracy'])} at {x} {row[x]:.3g}" for _, row in frame.iloc[[0, -1]].iterrows()]
        if x == "eps" and threat_eps is not None:
            nearest = frame.iloc[int((frame[x] - threat_eps).abs().to_numpy().argmin())]
            ends.insert(1, f"{percent(nearest['accuracy'])} at the threat model's eps {_radius(nearest[x])}")
        said.append(f"{name} goes from {', to '.join(ends)}")
    kind = "its radius" if x == "eps" else "its number of steps"
    return f"Accuracy under attack against {kind}: {'; '.join(said)}."


# How far clean and adversarial features of an image lie apart; the first two are comparable between models.
GAPS = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine distance",
    "l1": "L1 distance (raw)",
    "l2": "L2 distance (raw)",
    "linf": "L∞ distance (raw)",
}
MIXED = ("layer", "eps", "class")
DEPTHS = {"eps": "radius of the attack, eps", "layer": "layer, from input to output"}


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

    rows = require_columns(what, table, ["method", "seed", x, value])
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


def feature_gap_curves(table: "DataFrame", x: str, measures: Sequence[str] = ("relative_l2", "cosine")) -> Figure:
    """How far clean and adversarial features of an image lie apart, over radius or depth.

    Args:
        table: of `robustlib.representation.gap_table`, or any with `method`, `seed`, `x`, the measures, and optionally `title`.
        x: "eps" or "layer" (in the order of the table).
        measures: a panel for each; L1, L2 and L∞ are raw: they grow with the scale of the features.

    Raises:
        InputError: an unknown x or measure, a column that is missing or empty, or a table that mixes layers, radii or
            classes, whose mean would mean nothing.
    """
    import pandas as pd

    if x not in DEPTHS:
        raise InputError(f"x={x!r} is not an axis of the feature-gap figure: choose {', '.join(DEPTHS)}.")
    for measure in measures:
        if measure not in GAPS:
            raise InputError(f"{measure!r} is no feature gap: choose among {', '.join(GAPS)}.")
    rows = require_columns("feature-gap", table, [x, *measures])
    for other in MIXED:
        if other != x and other in rows and rows[other].nunique(dropna=False) > 1:
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
    if x == "layer":
        places = list(dict.fromkeys(name for frame in curves.values() for name in frame[x]))
        words = [str(name).removeprefix("encoder.") for name in places]
        turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, words)) > 36 else {}
        axis.set_xticks(range(len(places)), words, **turn)
    for name, look in styles(curves).items():
        frame = curves[name] if x == "layer" else curves[name].sort_values(x)
        at = [places.index(layer) for layer in frame[x]] if x == "layer" else frame[x]
        axis.plot(at, frame[measure], label=name, markevery=max(1, len(frame) // 10), **look)
        axis.fill_between(at, frame["low"].clip(lower=0), frame["high"], color=look["color"], alpha=0.15, lw=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel(DEPTHS[x])
    axis.set_title(GAPS[measure][0].upper() + GAPS[measure][1:])


def _ends(name: str, frame: "DataFrame", x: str, measure: str) -> str:
    rows = frame if x == "layer" else frame.sort_values(x)
    first, last = rows.iloc[0], rows.iloc[-1]
    at = [f"{row[measure]:.3g} at {x} {row[x] if x == 'layer' else format(row[x], 'g')}" for row in (first, last)]
    return f"{name} {at[0]}" + (f", {at[1]}" if len(rows) > 1 else "")
