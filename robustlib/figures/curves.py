"""Curves: a training over its epochs, accuracy and feature gaps against the attack, probes, and hyper-parameters.

Of several seeds the mean is drawn, with its 95 % t interval as a band.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas import DataFrame, Series

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    MUTED,
    Figure,
    axes,
    legend_below,
    legends_below,
    panels,
    percent_axis,
    require_columns,
    style,
    styles,
    title_of,
)
from robustlib.figures.labels import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, DataFrame]  # by name: x, y, low and high, in this order
DASHES = (0, (2, 2))


def _draw(axis: "Axes", x: Any, curve: DataFrame, y: str, mark: Mapping[str, Any], **options: Any) -> None:
    """A curve with its interval, where it has one."""
    axis.plot(x, curve[y], **mark, **options)
    if {"low", "high"} <= set(curve):
        axis.fill_between(x, curve["low"], curve["high"], color=mark["color"], alpha=0.15, lw=0)


def _epoch_axis(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_xlabel("epoch")


ACCURACIES = {  # metric -> label
    "clean_val": "clean (validation)",
    "robust_val": "robust (validation)",
    "fgsm_val": "FGSM (validation)",
    "robust_train": "robust (training)",
}
NO_LOSS = {"epoch", "epoch_total", "lr", "seconds", "warnings", "stage", "pass", "gradient_alignment"}


@style()
def training_curves(metrics: DataFrame) -> Figure:
    """Losses and accuracies of one run over its epochs.

    Metrics have one row an epoch (the first may be the model before training, which has no loss): `epoch_total` (or `epoch`),
    losses and their parts, and any of ACCURACIES (fractions). `stage` and `warnings`, where given, are marked.
    """
    clock = "epoch_total" if "epoch_total" in metrics else "epoch"
    rows = require_columns("training", metrics, [clock]).reset_index(drop=True)
    epochs, warnings = rows[clock], _warnings(rows)
    parts = _parts(rows)
    words = {name: re.sub("[_/]", " ", name) for name in parts}
    losses = {name: label for name, label in words.items() if not name.endswith("accuracy")}
    curves = {name: label for name, label in ACCURACIES.items() if name in rows and rows[name].notna().any()}
    curves |= {name: f"{words[name]} (training)" for name in parts if name not in losses}  # of a head's batches
    fig, (left, right) = axes(2)
    for axis, lines in ((left, losses), (right, curves)):
        every = max(1, len(rows) // 12)  # markers tell lines apart; one on each of 200 epochs would hide them
        for name, mark in styles(lines).items():
            axis.plot(epochs, rows[name], label=lines[name], markevery=every, **mark)
    right.set_ylim(-0.02, 1.02)
    percent_axis(right)
    stages = rows["stage"] if "stage" in rows and rows["stage"].nunique() > 1 else None
    for axis, title in ((left, "Training loss"), (right, "Accuracy")):
        axis.set_title(title, pad=None if stages is None else 24)
        _epoch_axis(axis)
        if stages is not None:
            _mark_stages(axis, epochs.groupby(stages, sort=False).min() - 0.5)
    if marked := [epoch for epoch, texts in zip(epochs, warnings, strict=True) if texts]:
        triangles: dict[str, Any] = {"ls": "none", "marker": "v", "ms": 7, "color": "#b3261e", "clip_on": False}
        right.plot(marked, [1.0] * len(marked), label="warning", **triangles)
    legends_below(fig, (left, right))
    columns = [clock, *(["stage"] if "stage" in rows else []), *losses, *curves]
    data = rows[columns].rename(columns={clock: "epoch"}).assign(warnings=["; ".join(texts) for texts in warnings])
    return Figure(fig, _describe_training(epochs, rows, losses, curves, warnings), data)


def _warnings(rows: DataFrame) -> list[list[str]]:
    """The warnings of each epoch."""
    column = rows["warnings"] if "warnings" in rows else [()] * len(rows)
    return [list(map(str, texts)) if isinstance(texts, list | tuple) else [] for texts in column]


def _parts(rows: DataFrame) -> list[str]:
    """The losses and what goes with them: every number that is not measured on the validation images and counts nothing."""
    named = [str(name) for name in rows if name not in NO_LOSS]
    parts = [name for name in named if not name.startswith("probe/") and not name.endswith(("_val", "_train"))]
    return [name for name in parts if rows[name].dtype.kind in "fiu" and rows[name].notna().any()]


def _mark_stages(axis: "Axes", starts: Series) -> None:
    """A line where each stage begins, its name above the axes; of neighbours the second stands higher."""
    options: dict[str, Any] = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
    for place, (stage, start) in enumerate(starts.items()):
        axis.axvline(start, color="#b8c1cb", lw=1, ls=DASHES, zorder=1)
        height = 3 + 9 * (place % 2)
        axis.annotate(str(stage), (start, 1), (0, height), color=MUTED, annotation_clip=False, **options)


def _describe_training(
    epochs: Series, rows: DataFrame, losses: Mapping[str, str], curves: Mapping[str, str], warnings: list[list[str]]
) -> str:
    text = f"Training over {epochs.max():g} epochs."
    for name in list(losses)[:1]:
        loss = rows[name].dropna()
        text += f" The {losses[name]} goes from {loss.iloc[0]:.3g} to {loss.iloc[-1]:.3g}."
    ends = [f"{words} {percent(rows[name].dropna().iloc[-1])}" for name, words in curves.items()]
    text += f" Accuracy at the end: {', '.join(ends)}." if ends else ""
    if "robust_val" in curves:
        best = rows["robust_val"].argmax()
        text += f" Robust validation accuracy is best at epoch {epochs.iloc[best]:g}:"
        text += f" {percent(rows['robust_val'].iloc[best])}."
    different = dict.fromkeys(text for texts in warnings for text in texts)
    return text + (f" Warnings: {'; '.join(different)}." if different else "")


@style()
def robustness_curves(curves: Curves, x: str = "eps", threat_eps: float | None = None) -> Figure:
    """Accuracy under attack against its strength, one line (with its band) for each entry of `curves`.

    Args:
        curves: name -> frame with columns `x`, `accuracy` and, for the band, `low` and `high` (fractions).
        x: "eps" (radius of the ball, in [0, 1]) or "steps" (iterations of the attack).
        threat_eps: the radius of the threat model, marked when x is "eps".
    """
    if x not in ("eps", "steps"):
        raise InputError(f"x={x!r} is not an axis of the robustness figure: choose 'eps' or 'steps'.")
    if not curves:
        raise InputError("The robustness figure needs at least one curve; none given.")
    frames = {n: require_columns("robustness", frame, [x, "accuracy"]).sort_values(x) for n, frame in curves.items()}
    fig, (axis,) = axes(height=4.0)
    for name, mark in styles(frames).items():
        _draw(axis, frames[name][x], frames[name], "accuracy", mark, label=name)
    if x == "steps":
        axis.set_xlabel("steps of the attack")
        axis.set_xscale("symlog", linthresh=1)
        ticks = sorted({step for frame in frames.values() for step in frame["steps"]})
        axis.set_xticks(ticks, [f"{step:g}" for step in ticks])
        axis.minorticks_off()
    else:
        axis.set_xlabel("radius of the attack, eps")
        if threat_eps is not None:
            axis.axvline(threat_eps, color=MUTED, lw=1.2, ls=DASHES, zorder=1)
            text = f"threat model, eps {_radius(threat_eps)}"
            axis.annotate(text, (threat_eps, 1.03), color=MUTED, fontsize=9, ha="center", annotation_clip=False)
    axis.set_ylim(-0.02, 1.02)
    percent_axis(axis)
    axis.set_title("Accuracy under attack")
    legend_below(fig, axis)
    data = pd.concat([frame.assign(curve=name) for name, frame in frames.items()], ignore_index=True)
    described = []
    for name, frame in frames.items():
        ends = [f"{percent(row['accuracy'])} at {x} {row[x]:.3g}" for _, row in frame.iloc[[0, -1]].iterrows()]
        if x == "eps" and threat_eps is not None:
            nearest = frame.iloc[int((frame[x] - threat_eps).abs().to_numpy().argmin())]
            ends.insert(1, f"{percent(nearest['accuracy'])} at the threat model's eps {_radius(nearest[x])}")
        described.append(f"{name} goes from {', to '.join(ends)}")
    alt = f"Accuracy under attack against its {'radius' if x == 'eps' else 'number of steps'}: {'; '.join(described)}."
    return Figure(fig, alt, data.filter(["curve", x, "accuracy", "low", "high"]))


def _radius(eps: float) -> str:
    grey = eps * 255
    return f"{grey:.0f}/255" if eps and abs(grey - round(grey)) < 1e-6 and grey < 33 else f"{eps:g}"


def over_seeds(table: DataFrame, x: str, value: str, what: str) -> dict[str, DataFrame]:
    """For each method, "TITLE (8 seeds)", the mean of `value` at each `x`, with its 95 % t interval over seeds in `low` and `high`.

    Of a single seed, these are those of the table, or NaN. One row a seed and point: `method`, `seed`, `x`, `value`, optionally
    `title`, `low` and `high`. Messages name the figure `what`.
    """
    from scipy.stats import t

    rows = require_columns(what, table, ["method", "seed", x, value])
    titles = [title_of(row) for row in rows.to_dict("records")]
    curves = {}
    for title, own in sorted(rows.groupby(pd.Index(titles)), key=lambda group: str(group[0])):
        per_seed = own.groupby([x, "seed"], sort=False)[value].mean()
        points = per_seed.groupby(level=0, sort=False).agg(["mean", "std", "count"])
        half = t.ppf(0.975, points["count"].clip(lower=2) - 1) * points["std"] / points["count"] ** 0.5
        points = points.assign(low=points["mean"] - half, high=points["mean"] + half)
        seeds = own["seed"].nunique()
        if seeds == 1 and {"low", "high"} <= set(own):  # the interval that the images of this one run leave
            points[["low", "high"]] = own.groupby(x, sort=False)[["low", "high"]].mean()
        curve = points.reset_index().rename(columns={"mean": value})[[x, value, "low", "high"]]
        curve = curve if x == "layer" else curve.sort_values(x, ignore_index=True)  # layers stand in their order
        curves[f"{title} ({seeds} seed{'s' * (seeds > 1)})"] = curve
    return curves


def _ends(curves: Curves, write: Callable[[float], str], at: str = "") -> str:
    """Where each curve begins and ends, in words."""
    described = []
    for name, curve in curves.items():
        points = curve.iloc[[0, -1] if len(curve) > 1 else [0], :2].itertuples(index=False)
        ends = [f"{write(y)} at {at}{x if isinstance(x, str) else format(x, 'g')}" for x, y in points]
        described.append(f"{name} {', '.join(ends)}")
    return "; ".join(described)


def _stack(curves: Mapping[str, Curves], panel: str, value: str) -> DataFrame:
    """The curves of all panels in one table: `panel`, curve, x, `value`, low, high."""
    parts = [
        curve.rename(columns={curve.columns[1]: value}).assign(**{panel: key, "curve": name})
        for key, part in curves.items()
        for name, curve in part.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[[panel, "curve", table.columns[0], value, "low", "high"]]


def robustness_over_seeds(table: DataFrame, threat_eps: float | None = None) -> Figure:
    """Accuracy under attack against its radius: the mean over seeds of each method, with 95 % bands over seeds.

    One row a run and point: `method`, `seed`, `eps`, `accuracy` (a fraction), optionally `title`. `threat_eps` is marked.
    """
    curves = over_seeds(table, "eps", "accuracy", "robustness")
    for curve in curves.values():
        curve[["low", "high"]] = curve[["low", "high"]].clip(0, 1)
    fig, alt, data = robustness_curves(curves, "eps", threat_eps)
    single = [name.endswith("(1 seed)") for name in curves]
    bands = "over seeds, of the images where there is one seed" if any(single) else "over seeds"
    bands = "of the images" if all(single) else bands
    fig.axes[0].set_ylabel("accuracy, 95 % interval" if all(single) else "accuracy: mean over seeds, 95 % band")
    return Figure(fig, f"{alt} Bands are 95 % intervals {bands}.", data)


# How far clean and adversarial features of an image lie apart; the first two are comparable between models.
GAPS = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine distance",
    "l1": "L1 distance (raw)",
    "l2": "L2 distance (raw)",
    "linf": "L∞ distance (raw)",
}
GAP_AXES = {"eps": "radius of the attack, eps", "layer": "layer, from input to output"}


@style()
def feature_gap_curves(table: DataFrame, x: str) -> Figure:
    """How far clean and adversarial features of an image lie apart, over radius or depth: relative to their length, and by angle.

    Args:
        table: of `robustlib.representation.gap_table`, or any with `method`, `seed`, `x`, `relative_l2` and `cosine`, and
            optionally `title`; of one layer or radius, and not split by class, or a mean would mean nothing.
        x: "eps" or "layer" (in the order of the table).
    """
    if x not in GAP_AXES:
        raise InputError(f"x={x!r} is not an axis of the feature-gap figure: choose {', '.join(GAP_AXES)}.")
    rows = require_columns("feature-gap", table, [x, "relative_l2", "cosine"])
    for other in ("layer", "eps", "class"):
        if other != x and other in rows and rows[other].nunique(dropna=False) > 1:
            there = ", ".join(map(repr, rows[other].unique()))
            raise InputError(f"The feature-gap figure over {x} needs one {other}, the table has {there}: choose one.")
    curves = {measure: over_seeds(rows, x, measure, "feature-gap") for measure in ("relative_l2", "cosine")}
    fig, both = axes(2, height=3.9)
    for axis, (measure, part) in zip(both, curves.items(), strict=True):
        if x == "layer":
            places = list(dict.fromkeys(name for curve in part.values() for name in curve[x]))
            words = [str(name).removeprefix("encoder.") for name in places]
            turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, words)) > 36 else {}
            axis.set_xticks(range(len(places)), words, **turned)
        for name, mark in styles(part).items():
            curve = part[name].assign(low=lambda rows: rows["low"].clip(lower=0))
            at = [places.index(layer) for layer in curve[x]] if x == "layer" else curve[x]
            _draw(axis, at, curve, measure, mark, label=name, markevery=max(1, len(curve) // 10))
        axis.set(ylim=(0, None), xlabel=GAP_AXES[x], title=GAPS[measure][0].upper() + GAPS[measure][1:])
    legend_below(fig, both[0])
    described = [f"{GAPS[measure]}: {_ends(part, '{:.3g}'.format, f'{x} ')}" for measure, part in curves.items()]
    alt = f"Feature gap between clean and adversarial images against {x}. {'. '.join(described)}."
    return Figure(fig, alt, _stack(curves, "measure", "gap"))


def _shared_panels(names: Sequence[str], curves: Mapping[str, Curves]) -> tuple[Any, list["Axes"], dict[str, Any]]:
    """A figure with a panel for each entry of `curves`, whose first one knows the legend of all; and the styles."""
    marks = styles(sorted({name for part in curves.values() for name in part}))
    fig, every = panels(names, height=3.3)
    for axis in every:
        for name, mark in marks.items():
            axis.plot([], [], label=name, **mark)
    return fig, every, marks


@style()
def probe_curves(
    metrics: Mapping[str, DataFrame | Sequence[DataFrame]],
    columns: Sequence[str],
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Columns of the metrics over the epochs of the last stage (or all, without stages), a panel for each; seeds as 95 % band.

    Args:
        metrics: method -> `Run.metrics()` of one run or of several seeds. Methods without a column are left out of its panel.
        columns: e.g. "probe/h/relative_l2", "probe/f1/cosine", "confused/agreement".
        labels: column -> its title, where the usual one ("h: relative L2 distance") does not say enough.
    """
    if not metrics or not columns:
        raise InputError("The probes figure needs at least one method and one column.")
    table = pd.concat([_last_stage(*part) for part in metrics.items()], ignore_index=True)
    curves = {column: over_seeds(table, "epoch", column, "probes") for column in columns}
    titles = {column: (labels or {}).get(column) or _title(column) for column in columns}
    fig, every, marks = _shared_panels(list(titles.values()), curves)
    for axis, (column, part) in zip(every, curves.items(), strict=True):
        for name, curve in part.items():
            _draw(axis, curve["epoch"], curve, column, marks[name], markevery=max(1, len(curve) // 10))
        if all(curve[column].min() >= 0 for curve in part.values()):
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])  # so that the highest marker is whole
        else:
            axis.axhline(0, color=MUTED, lw=1, zorder=1)
        _epoch_axis(axis)
    legend_below(fig, every[0])
    described = [
        f"{titles[c]}: {_ends(part, lambda v: f'{v:.3g}'.replace('-', '−'), 'epoch ')}" for c, part in curves.items()
    ]
    which = " of the last stage" * ("stage" in table)
    return Figure(fig, f"Measures over the epochs{which}. {'. '.join(described)}.", _stack(curves, "measure", "value"))


def _last_stage(name: str, metrics: DataFrame | Sequence[DataFrame]) -> DataFrame:
    """The epochs of one method's last stage, without the model before it, its runs numbered."""
    frames = [metrics] if isinstance(metrics, DataFrame) else list(metrics)
    kept = [require_columns("probes", frame, ["epoch"]).assign(method=name, seed=k) for k, frame in enumerate(frames)]
    last = [rows[rows["stage"] == rows["stage"].iloc[-1]] if "stage" in rows else rows for rows in kept]
    return pd.concat([rows[rows["epoch"] >= 1] for rows in last]) if last else DataFrame()


def _title(column: str) -> str:
    """ "probe/f1/relative_l2" is "f1: relative L2 distance"."""
    *place, last = column.removeprefix("probe/").split("/")
    return ": ".join([*place, GAPS.get(last, last.replace("_", " "))])


@style()
def sweep(table: DataFrame, usual: Mapping[str, float] | None = None, names: Mapping[str, str] | None = None) -> Figure:
    """Clean and robust accuracy against the value of a hyper-parameter, a panel for each hyper-parameter.

    Values stand at equal distances, in rising order, since such grids are rarely even and often hold 0.

    Args:
        table: one row a run: `method`, `parameter`, `value` (a number), `clean` and `robust` (fractions), optionally `seed`:
            of several seeds the mean is drawn with its 95 % band.
        usual: parameter -> the value of the preset or paper, marked where the sweep has it.
        names: what "clean" and "robust" are called, e.g. {"robust": "PGD-20"}.
    """
    rows = require_columns("sweep", table, ["method", "parameter", "value", "clean", "robust"])
    rows, usual, names = rows.assign(seed=rows.get("seed", 0)), usual or {}, names or {}
    curves: dict[str, dict[str, DataFrame]] = {}
    for parameter, own in rows.groupby("parameter", sort=False):
        part = curves.setdefault(str(parameter), {})
        for kind in ("clean", "robust"):
            titles = own["method"] + f", {names.get(kind, kind)}"
            part |= over_seeds(own.assign(accuracy=own[kind], title=titles), "value", "accuracy", "sweep")
    fig, every, marks = _shared_panels(list(curves), curves)
    for axis, (parameter, part) in zip(every, curves.items(), strict=True):
        values = sorted({value for curve in part.values() for value in curve["value"]})
        for name, curve in part.items():
            _draw(axis, [values.index(value) for value in curve["value"]], curve, "accuracy", marks[name])
        if marked := usual.get(parameter) in values:
            axis.axvline(values.index(usual[parameter]), color=MUTED, lw=1.2, ls=DASHES, zorder=1)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_xlabel("value" + " (dashed: usual)" * marked)
        percent_axis(axis)
    limits = [axis.get_ylim() for axis in every]
    for axis in every:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))  # or panels could not be compared
    every[0].set_ylabel("accuracy")
    legend_below(fig, every[0])
    described = [f"{parameter}: {_ends(part, percent)}" for parameter, part in curves.items()]
    data = _stack(curves, "parameter", "accuracy")
    return Figure(fig, f"Accuracy against hyper-parameters. {'. '.join(described)}.", data)
