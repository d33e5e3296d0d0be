"""Curves over epochs, attacks and hyper-parameters. Of several seeds the mean is drawn, with its 95 % t interval as a band."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame, Index, Series

from robustlib.errors import InputError, check_known
from robustlib.figures import canvas
from robustlib.figures.canvas import MUTED, Figure, percent, require_columns

Curves = Mapping[str, DataFrame]  # by name: x, y, low and high, in this order
Metrics = Mapping[str, DataFrame | Sequence[DataFrame]]  # of one run or several seeds, by method
ACCURACIES = {  # metric -> label
    "clean_val": "clean (validation)",
    "robust_val": "robust (validation)",
    "fgsm_val": "FGSM (validation)",
    "robust_train": "robust (training)",
}
NO_LOSS = {"epoch", "epoch_total", "lr", "seconds", "warnings", "stage", "pass", "gradient_alignment"}
MARK: dict[str, Any] = {"color": MUTED, "lw": 1.2, "ls": (0, (2, 2)), "zorder": 1}  # a line at a usual value


@canvas.style()
def training_curves(metrics: DataFrame) -> Figure:
    """Losses and accuracies of one run over its epochs.

    Metrics have one row an epoch (the first may be the model before training): `epoch_total` (or `epoch`), losses and
    their parts, any of ACCURACIES (fractions), and optionally `stage` and `warnings`.
    """
    clock = "epoch_total" if "epoch_total" in metrics else "epoch"
    rows = require_columns("training", metrics, [clock]).reset_index(drop=True)
    epochs, column = rows[clock], rows.get("warnings", [()] * len(rows))
    warnings = [list(map(str, texts)) if isinstance(texts, list | tuple) else [] for texts in column]
    named = [str(name) for name in rows if name not in NO_LOSS]
    named = [name for name in named if not name.startswith("probe/") and not name.endswith(("_val", "_train"))]
    parts = [name for name in named if rows[name].dtype.kind in "fiu" and rows[name].notna().any()]
    words = {name: re.sub("[_/]", " ", name) for name in parts}
    losses = {name: label for name, label in words.items() if not name.endswith("accuracy")}
    curves = {name: label for name, label in ACCURACIES.items() if name in rows and rows[name].notna().any()}
    curves |= {name: f"{words[name]} (training)" for name in parts if name not in losses}
    fig, (left, right) = canvas.axes(2)
    every = max(1, len(rows) // 12)  # markers tell lines apart; one on each of 200 epochs would hide them
    stages = rows["stage"] if rows.get("stage", Series()).nunique() > 1 else None
    for axis, lines, title in ((left, losses, "Training loss"), (right, curves, "Accuracy")):
        for name, mark in canvas.styles(lines).items():
            measured = rows[name].notna()  # accuracies may be of some epochs only
            axis.plot(epochs[measured], rows[name][measured], label=lines[name], markevery=every, **mark)
        axis.set_title(title, pad=None if stages is None else 24)
        _epoch_axis(axis)
        if stages is not None:
            _mark_stages(axis, epochs.groupby(stages, sort=False).min() - 0.5)
    right.set_ylim(-0.02, 1.02)
    canvas.percent_axis(right)
    if marked := [epoch for epoch, texts in zip(epochs, warnings, strict=True) if texts]:
        triangles: dict[str, Any] = {"ls": "none", "marker": "v", "ms": 7, "color": canvas.ALARM, "clip_on": False}
        right.plot(marked, [1.0] * len(marked), label="warning", **triangles)
    canvas.legend_below(fig, left, right)
    text = _describe_training(epochs, rows, losses, curves)
    if different := dict.fromkeys(text for texts in warnings for text in texts):
        text += f" Warnings: {'; '.join(different)}."
    data = rows.filter([clock, "stage", *losses, *curves]).rename(columns={clock: "epoch"})
    return Figure(fig, text, data.assign(warnings=["; ".join(texts) for texts in warnings]))


def _epoch_axis(axis: "canvas.Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_xlabel("epoch")


def _mark_stages(axis: "canvas.Axes", starts: Series) -> None:
    """A line where each stage begins, its name above the axes; of neighbours the second stands higher."""
    options: dict[str, Any] = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 8}
    for place, (stage, start) in enumerate(starts.items()):
        axis.axvline(start, **MARK | {"color": canvas.PALE, "lw": 1})
        height = 3 + 9 * (place % 2)
        axis.annotate(str(stage), (start, 1), (0, height), color=MUTED, annotation_clip=False, **options)


def _describe_training(epochs: Series, rows: DataFrame, losses: Mapping[str, str], curves: Mapping[str, str]) -> str:
    text = f"Training over {epochs.max():g} epochs."
    for name in list(losses)[:1]:
        loss = rows[name].dropna()
        text += f" The {losses[name]} goes from {loss.iloc[0]:.3g} to {loss.iloc[-1]:.3g}."
    if ends := [f"{words} {percent(rows[name].dropna().iloc[-1])}" for name, words in curves.items()]:
        text += f" Accuracy at the end: {', '.join(ends)}."
    if "robust_val" in curves:
        best, robust = rows["robust_val"].argmax(), rows["robust_val"]
        text += f" Robust validation accuracy is best at epoch {epochs.iloc[best]:g}: {percent(robust.iloc[best])}."
    return text


def _draw(axis: "canvas.Axes", x: Any, curve: DataFrame, y: str, mark: Mapping[str, Any], **options: Any) -> None:
    """A curve with its interval, where it has one, with at most twenty markers."""
    axis.plot(x, curve[y], markevery=max(1, len(curve) // 10), **mark, **options)
    if {"low", "high"} <= set(curve):
        axis.fill_between(x, curve["low"], curve["high"], color=mark["color"], alpha=0.15, lw=0)


@canvas.style()
def robustness_curves(curves: Curves, x: str = "eps", threat_eps: float | None = None) -> Figure:
    """Accuracy under attack against its "eps" (radius of the ball, in [0, 1]) or "steps": a line for each of `curves`.

    Columns are `x`, `accuracy` and, for the band, `low` and `high`; over eps the radius of the threat model is marked.
    """
    check_known("axis of the robustness figure", x, ("eps", "steps"))
    if not curves:
        raise InputError("The robustness figure needs at least one curve; none given.")
    frames = {n: require_columns("robustness", frame, [x, "accuracy"]).sort_values(x) for n, frame in curves.items()}
    marked = None if x == "steps" else threat_eps
    described = []
    fig, (axis,) = canvas.axes(height=4.0)
    for name, mark in canvas.styles(frames).items():
        frame = frames[name]
        _draw(axis, frame[x], frame, "accuracy", mark, label=name)
        ends = [f"{percent(row['accuracy'])} at {x} {row[x]:.3g}" for _, row in frame.iloc[[0, -1]].iterrows()]
        if marked is not None:
            nearest = frame.iloc[int((frame[x] - marked).abs().to_numpy().argmin())]
            ends.insert(1, f"{percent(nearest['accuracy'])} at the threat model's eps {_radius(nearest[x])}")
        described.append(f"{name} goes from {', to '.join(ends)}")
    axis.set_xlabel("radius of the attack, eps" if x == "eps" else "steps of the attack")
    if x == "steps":
        axis.set_xscale("symlog", linthresh=1)
        ticks = sorted({step for frame in frames.values() for step in frame["steps"]})
        axis.set_xticks(ticks, [f"{step:g}" for step in ticks])
        axis.minorticks_off()
    if marked is not None:
        axis.axvline(marked, **MARK)
        text = f"threat model, eps {_radius(marked)}"
        axis.annotate(text, (marked, 1.03), color=MUTED, fontsize=9, ha="center", annotation_clip=False)
    axis.set_ylim(-0.02, 1.02)
    canvas.percent_axis(axis)
    axis.set_title("Accuracy under attack")
    canvas.legend_below(fig, axis)
    alt = f"Accuracy under attack against its {'radius' if x == 'eps' else 'number of steps'}: {'; '.join(described)}."
    return Figure(fig, alt, _curve_rows(frames, x))


def _curve_rows(curves: Curves, x: str) -> DataFrame:
    data = pd.concat([curve.assign(curve=name) for name, curve in curves.items()], ignore_index=True)
    return data.filter(["curve", x, "accuracy", "low", "high"])


def _radius(eps: float) -> str:
    grey = eps * 255
    return f"{grey:.0f}/255" if eps and abs(grey - round(grey)) < 1e-6 and grey < 33 else f"{eps:g}"


def robustness_over_seeds(table: DataFrame, threat_eps: float | None = None) -> Figure:
    """Mean accuracy over seeds under attack against its radius, with 95 % bands, from the rows of `over_seeds`.

    Of more than nine variants as `trade_off`.
    """
    curves = over_seeds(table, "eps", "accuracy", "robustness")
    for curve in curves.values():
        curve[["low", "high"]] = curve[["low", "high"]].clip(0, 1)
    few, left_out = _first(curves, table)
    fig, alt, *_ = robustness_curves(few, "eps", threat_eps)
    single = [name.endswith("(1 seed)") for name in few]
    bands = "over seeds, of the images where there is one seed" if any(single) else "over seeds"
    bands = "of the images" if all(single) else bands
    fig.axes[0].set_ylabel("accuracy, 95 % interval" if all(single) else "accuracy: mean over seeds, 95 % band")
    return Figure(fig, f"{alt} Bands are 95 % intervals {bands}.", _curve_rows(curves, "eps"), left_out)


def _first(curves: Curves, table: DataFrame) -> tuple[Curves, list[str]]:
    """Those curves of `over_seeds` whose variants `canvas.first_variants` draws, and the variants that it leaves out."""
    drawn, left_out = canvas.first_variants(table)
    return {name: curve for name, curve in curves.items() if name.rpartition(" (")[0] in drawn}, left_out


def over_seeds(table: DataFrame, x: str, value: str, what: str) -> dict[str, DataFrame]:
    """For each method, "TITLE (8 seeds)", the mean of `value` at each `x`, and its 95 % t interval in `low` and `high`.

    Of a single seed, the interval is that of the table, or NaN. One row a seed and point: `method`, `seed`, `x`,
    `value`, optionally `title`, `low` and `high`. Messages name the figure `what`.
    """
    from scipy.stats import t

    rows = require_columns(what, table, ["method", "seed", x, value])
    curves = {}
    for title, own in sorted(rows.groupby(Index(canvas.titles(rows))), key=lambda group: str(group[0])):
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


def _describe(curves: Mapping[str, Curves], titles: Mapping[str, str], write: Callable[[float], str], at: str) -> str:
    """Where each curve of each panel begins and ends, in words."""
    panels = []
    for panel, part in curves.items():
        described = []
        for name, curve in part.items():
            points = curve.iloc[[0, -1] if len(curve) > 1 else [0], :2].itertuples(index=False)
            ends = [f"{write(y)} at {at}{x if isinstance(x, str) else format(x, 'g')}" for x, y in points]
            described.append(f"{name} {', '.join(ends)}")
        panels.append(f"{titles.get(panel, panel)}: {'; '.join(described)}")
    return f"{'. '.join(panels)}."


def _stack(curves: Mapping[str, Curves], panel: str, value: str) -> DataFrame:
    """The curves of all panels in one table: `panel`, curve, x, `value`, low, high."""
    parts = {
        (key, name): curve.rename(columns={curve.columns[1]: value})
        for key, part in curves.items()
        for name, curve in part.items()
    }
    return pd.concat(parts, names=[panel, "curve"]).reset_index([0, 1]).reset_index(drop=True)


# How far clean and adversarial features of an image lie apart; the first two are comparable between models.
GAPS = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine distance",
    "l1": "L1 distance (raw)",
    "l2": "L2 distance (raw)",
    "linf": "L∞ distance (raw)",
}
GAP_AXES = {"eps": "radius of the attack, eps", "layer": "layer, from input to output"}


@canvas.style()
def feature_gap_curves(table: DataFrame, x: str) -> Figure:
    """How far clean and adversarial features lie apart, over radius or depth: relative to their length, and by angle.

    From `robustlib.representation.gap_table`, of one layer or radius and not split by class, or means say nothing.
    """
    check_known("axis of the feature-gap figure", x, GAP_AXES)
    rows = require_columns("feature-gap", table, [x, "relative_l2", "cosine"])
    for other in ("layer", "eps", "class"):
        if other != x and other in rows and rows[other].nunique(dropna=False) > 1:
            there = ", ".join(map(repr, rows[other].unique()))
            raise InputError(f"The feature-gap figure over {x} needs one {other}, the table has {there}: choose one.")
    every = {measure: over_seeds(rows, x, measure, "feature-gap") for measure in ("relative_l2", "cosine")}
    curves, left_out = {measure: _first(part, rows)[0] for measure, part in every.items()}, _first({}, rows)[1]
    fig, both = canvas.axes(2, height=3.9)
    for axis, (measure, part) in zip(both, curves.items(), strict=True):
        if x == "layer":
            places = list(dict.fromkeys(name for curve in part.values() for name in curve[x]))
            words = [str(name).removeprefix("encoder.") for name in places]
            turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, words)) > 36 else {}
            axis.set_xticks(range(len(places)), words, **turned)
        for name, mark in canvas.styles(part).items():
            curve = part[name].assign(low=part[name]["low"].clip(lower=0))
            at = [places.index(layer) for layer in curve[x]] if x == "layer" else curve[x]
            _draw(axis, at, curve, measure, mark, label=name)
        axis.set(ylim=(0, None), xlabel=GAP_AXES[x], title=GAPS[measure][0].upper() + GAPS[measure][1:])
    canvas.legend_below(fig, both[0])
    described = _describe(curves, GAPS, "{:.3g}".format, f"{x} ")
    alt = f"Feature gap between clean and adversarial images against {x}. {described}"
    return Figure(fig, alt, _stack(every, "measure", "gap"), left_out)


def _shared_panels(names: Sequence[str], curves: Mapping[str, Curves]) -> tuple[Any, list[Any], dict[str, Any]]:
    """A figure with a panel for each entry of `curves`, whose first one knows the legend of all; and the styles."""
    marks = canvas.styles(sorted({name for part in curves.values() for name in part}))
    fig, every = canvas.panels(names, height=3.3)
    for axis in every:
        for name, mark in marks.items():
            axis.plot([], [], label=name, **mark)
    return fig, every, marks


@canvas.style()
def probe_curves(metrics: Metrics, columns: Sequence[str], labels: Mapping[str, str] | None = None) -> Figure:
    """Columns of the metrics over the epochs of the last stage (or all), a panel for each; seeds as 95 % band.

    Metrics are `Run.metrics()` of one run or several seeds, by method; one without a column is left out of its panel.
    Labels are titles by column, where the usual one ("h: relative L2 distance") does not say enough.
    """
    if not metrics or not columns:
        raise InputError("The probes figure needs at least one method and one column.")
    stages = []
    for name, runs in metrics.items():
        for seed, frame in enumerate([runs] if isinstance(runs, DataFrame) else runs):
            rows = require_columns("probes", frame, ["epoch"]).assign(method=name, seed=seed)
            last = rows[rows["stage"] == rows["stage"].iloc[-1]] if "stage" in rows else rows
            stages.append(last[last["epoch"] >= 1])  # without the model before it
    table = pd.concat(stages, ignore_index=True) if stages else DataFrame()
    curves = {column: over_seeds(table, "epoch", column, "probes") for column in columns}
    titles = {}
    for column in columns:
        *place, last = column.removeprefix("probe/").split("/")
        usual = ": ".join([*place, GAPS.get(last, last.replace("_", " "))])
        titles[column] = (labels or {}).get(column) or usual
    fig, every, marks = _shared_panels(list(titles.values()), curves)
    for axis, (column, part) in zip(every, curves.items(), strict=True):
        for name, curve in part.items():
            _draw(axis, curve["epoch"], curve, column, marks[name])
        if all(curve[column].min() >= 0 for curve in part.values()):
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])  # so that the highest marker is whole
        else:
            axis.axhline(0, color=MUTED, lw=1, zorder=1)
        _epoch_axis(axis)
    canvas.legend_below(fig, every[0])
    described = _describe(curves, titles, lambda value: f"{value:.3g}".replace("-", "−"), "epoch ")
    which = " of the last stage" * ("stage" in table)
    return Figure(fig, f"Measures over the epochs{which}. {described}", _stack(curves, "measure", "value"))


@canvas.style()
def sweep(table: DataFrame, usual: Mapping[str, float] | None = None, names: Mapping[str, str] | None = None) -> Figure:
    """Clean and robust accuracy against the value of a hyper-parameter, a panel for each hyper-parameter.

    Values stand at equal distances, since such grids are rarely even and often hold 0. One row a run: `method`,
    `parameter`, `value`, `clean` and `robust` (fractions, called as `names` says), optionally `seed`: of several the mean
    is drawn with its 95 % band. The `usual` value of a parameter is marked where the sweep has it.
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
            axis.axvline(values.index(usual[parameter]), **MARK)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_xlabel("value" + " (dashed: usual)" * marked)
        canvas.percent_axis(axis)
    limits = [axis.get_ylim() for axis in every]
    for axis in every:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))  # or panels could not be compared
    every[0].set_ylabel("accuracy")
    canvas.legend_below(fig, every[0])
    described = _describe(curves, {}, percent, "")
    return Figure(fig, f"Accuracy against hyper-parameters. {described}", _stack(curves, "parameter", "accuracy"))


@canvas.style()
def checkpoint_curves(table: DataFrame) -> Figure:
    """Checkpoints of one training over epochs: clean and worst-case accuracy (left), and the feature gap under attack (right).

    Columns are `epoch`, `clean`, `worst` (fractions) and `relative_l2` (at least 0; may be missing), a row a checkpoint.
    """
    rows = require_columns("checkpoint", table, ["epoch", "clean", "worst"]).sort_values("epoch")
    gap = "relative_l2" in rows and bool(rows["relative_l2"].notna().any())
    fig, (left, *right) = canvas.axes(1 + gap)
    described = []
    for (name, label), mark in zip(
        {"clean": "clean", "worst": "worst case"}.items(), canvas.styles(("a", "b")).values(), strict=True
    ):
        _draw(
            left,
            rows["epoch"],
            rows.rename(columns={f"{name}_low": "low", f"{name}_high": "high"}),
            name,
            mark,
            label=label,
        )
        described.append(f"{label} accuracy from {percent(rows[name].iloc[0])} to {percent(rows[name].iloc[-1])}")
    left.set_ylim(-0.02, 1.02)
    canvas.percent_axis(left)
    left.set_title("Accuracy of each checkpoint")
    for axis in right:
        axis.plot(rows["epoch"], rows["relative_l2"], **canvas.styles(("gap",))["gap"])
        axis.set(title="Feature gap under attack", ylabel="relative L2 distance", ylim=(0, None))
        described.append(f"feature gap from {rows['relative_l2'].iloc[0]:.2f} to {rows['relative_l2'].iloc[-1]:.2f}")
    for axis in (left, *right):
        _epoch_axis(axis)
    canvas.legend_below(fig, left, *right)
    best, at = float(rows["worst"].max()), rows["epoch"].iloc[int(rows["worst"].to_numpy().argmax())]
    peak = f"The worst case is best at epoch {at:g}, {percent(best)}"
    data = rows.filter(["epoch", "clean", "worst", "relative_l2"])
    return Figure(fig, f"{len(rows)} checkpoints: {', '.join(described)}. {peak}.", data)
