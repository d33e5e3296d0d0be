"""Accuracies under each attack, runs side by side, a paper's claims, and how far away adversarial images are."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures import canvas
from robustlib.figures.canvas import ATTACKS, DOTS, INK, MUTED, Figure, percent, require_columns

# Beside a bar there is room to say what a restart is, and none for "version".
BARS = ATTACKS | {"pgd50x10": "PGD-50, 10 restarts", "aa_standard": "AutoAttack, standard"}
CLEAN, LEFT, TAKEN = "#56b4e9", "#0173b2", "#de8f05"  # of the colour-blind safe palette; what was taken is hatched too
MANY = 12  # names beside a square of numbers that can still be read
LANE = 0.27  # inches between two series of one row of dots


@canvas.style()
def accuracy_bars(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """One run's accuracy under each attack, with 95 % Wilson intervals.

    Attacks on surrogates ("pgd20@denoiser") are not drawn: the worst case, which counts them, is then called adaptive
    minimum. Columns are `attack`, `accuracy` and optionally `low` and `high` (fractions); the order is kept.
    """
    given = require_columns("accuracy", DataFrame(rows), ["attack", "accuracy"])
    frame = given[~given["attack"].str.contains("@", regex=False)].reset_index(drop=True)
    names = BARS if len(frame) == len(given) else {**BARS, "worst": "adaptive minimum"}
    labels = [names.get(str(name), str(name)) for name in frame["attack"]]
    colours = [INK if name == "worst" else CLEAN if name == "clean" else LEFT for name in frame["attack"]]
    error: dict[str, Any] = {"xerr": _whiskers(frame, "accuracy"), "error_kw": {"ecolor": "#8a949e", "lw": 1.4}}
    fig, axis = _draw_bars(labels, frame["accuracy"], 1.1, color=colours, **error)
    for place, (value, end) in enumerate(_ends(frame)):
        axis.text(end + 0.012, place, percent(value), va="center", fontsize=9.5)
    axis.set(title="Accuracy under each attack", xlabel="accuracy, with 95 % interval")
    data = frame.assign(attack=labels).filter(["attack", "accuracy", "low", "high"])
    return Figure(fig, f"Accuracy on the test images: {_list_shares(labels, frame['accuracy'])}.", data)


@canvas.style()
def cascade(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """What each step of AutoAttack left of the accuracy, and what it took from what the steps before it had left.

    Rows are those of `robustlib.evaluation.cascade_steps`, "clean" first; of several, the first cascade is drawn.
    """
    frame = require_columns("cascade", DataFrame(rows), ["component", "accuracy"])
    for column in ("attack", "surrogate"):
        frame = frame[frame[column] == frame[column].iloc[0]] if column in frame else frame
    labels, left = list(map(str, frame["component"])), list(map(float, frame["accuracy"]))
    taken = [0.0, *(before - after for before, after in pairwise(left))]
    fig, axis = _draw_bars(labels, left, 1.2, color=[CLEAN] + [LEFT] * (len(labels) - 1))
    axis.barh(labels, taken, left=left, color="white", edgecolor=TAKEN, hatch="////", height=0.62, lw=0)
    for place, (value, loss) in enumerate(zip(left, taken, strict=True)):
        end = axis.text(value + loss + 0.012, place, percent(value), va="center", fontsize=9.5)
        if loss > 0:
            text = f"−{100 * loss:.1f}"
            axis.annotate(text, (1.08, 0.5), xycoords=end, color=MUTED, va="center", fontsize=9.5)
    axis.set(title="AutoAttack, step by step", xlabel="accuracy left (hatched: taken by this step)")
    data = DataFrame({"step": labels, "accuracy": left, "taken": taken})
    return Figure(fig, f"Accuracy left after each step of AutoAttack: {_list_shares(labels, left)}.", data)


@canvas.style()
def accuracy_dots(table: DataFrame, title: str) -> Figure:
    """Accuracies as dots with intervals and numbers: several series (attacks, models) in each of several rows.

    Columns are `row`, `series`, `accuracy` and optionally `low` and `high` (fractions); in order, the first row on top.
    """
    given = require_columns("accuracy-dots", table, ["row", "series", "accuracy"]).reset_index(drop=True)
    rows, marks = list(dict.fromkeys(given["row"])), canvas.styles(map(str, given["series"]))
    step = LANE * (len(marks) + 0.7)
    fig, (axis,) = canvas.axes(height=1.3 + step * len(rows))
    for lane, (name, mark) in enumerate(marks.items()):
        own = given[given["series"].astype(str) == name]
        heights = [rows.index(row) * step + lane * LANE for row in own["row"]]
        if {"low", "high"} <= set(own):
            axis.hlines(heights, own["low"], own["high"], color=mark["color"], lw=1.6)
        axis.plot(own["accuracy"], heights, label=name, ms=7, mew=0.8, **mark | DOTS)
        for height, (value, end) in zip(heights, _ends(own), strict=True):
            axis.text(end + 0.015, height, percent(value), va="center", fontsize=9)
    middle = LANE * (len(marks) - 1) / 2
    axis.set_yticks([k * step + middle for k in range(len(rows))], [str(name) for name in rows])
    axis.set_ylim(step * (len(rows) - 1) + LANE * len(marks), -LANE)
    _accuracy_axis(axis, -0.01, 1.1)
    axis.set(title=title, xlabel="accuracy, with 95 % interval")
    canvas.legend_below(fig, axis)
    groups = given.groupby("row", sort=False)
    described = [f"{name}: {_list_shares(part['series'], part['accuracy'])}" for name, part in groups]
    return Figure(fig, f"{title}. {'; '.join(described)}.", given.filter(["row", "series", "accuracy", "low", "high"]))


def _draw_bars(labels: Sequence[str], shares: Any, end: float, **options: Any) -> tuple["canvas.Canvas", "canvas.Axes"]:
    """A bar for each accuracy, the first on top, and room for numbers up to `end`."""
    fig, (axis,) = canvas.axes(height=0.9 + 0.42 * len(labels))
    axis.barh(labels, shares, height=0.62, **options)
    axis.invert_yaxis()
    _accuracy_axis(axis, 0, end)
    return fig, axis


def _accuracy_axis(axis: "canvas.Axes", start: float, end: float) -> None:
    axis.set(xlim=(start, end), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    canvas.percent_axis(axis, "x")
    axis.grid(visible=False, axis="y")


def _ends(frame: DataFrame) -> list[tuple[float, float]]:
    """Each accuracy, and where its interval ends."""
    tops = frame.get("high", frame["accuracy"]).fillna(frame["accuracy"])
    return [(value, max(value, top)) for value, top in zip(frame["accuracy"], tops, strict=True)]


def _list_shares(names: Iterable[Any], shares: Iterable[float]) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in zip(names, shares, strict=True))


def _whiskers(rows: DataFrame, name: str, prefix: str = "") -> Any:
    """Distances (2, rows) from column `name` to its ends, `low` and `high` behind `prefix`; None without them."""
    low, high = f"{prefix}low", f"{prefix}high"
    if not {low, high} <= set(rows):
        return None
    ends = np.stack([rows[name] - rows[low], rows[high] - rows[name]]).astype(float)
    return np.nan_to_num(ends).clip(min=0)


def trade_off(leaderboard: DataFrame) -> Figure:
    """Clean against worst-case accuracy, one dot for each run, with 95 % intervals; up and right is better.

    Of more than nine variants those that `canvas.precedence` puts first are drawn; `data` have all.
    Columns are `method`, `clean`, `worst` (fractions), optionally `title`, `clean_low` ... `worst_high`, and `minutes`.
    """
    return _draw_runs(leaderboard, "clean", "trade-off", "Clean against worst-case accuracy")


def cost(leaderboard: DataFrame) -> Figure:
    """What robustness cost: minutes of training against worst-case accuracy of each run; columns as for `trade_off`."""
    return _draw_runs(leaderboard, "minutes", "cost", "Training time against worst-case accuracy")


@canvas.style()
def _draw_runs(leaderboard: DataFrame, x: str, what: str, alt: str) -> Figure:
    """Dots of `x`, "clean" or "minutes", against worst-case accuracy, a colour and marker for each method."""
    rows = require_columns(what, leaderboard, [x, "worst"])
    drawn, left_out = canvas.first_variants(rows)
    rows = rows.assign(method=canvas.titles(rows))
    fig, (axis,) = canvas.axes(height=4.4)
    described = []
    for name, mark in canvas.styles(drawn).items():
        own = rows[rows["method"] == name]
        minutes = own["minutes"].mean() if "minutes" in own else None
        time = [] if minutes is None else [f"{minutes:.1f} minutes" if minutes == minutes else "unknown time"]
        worst = f"{percent(own['worst'].mean())} worst case"
        parts = [f"{percent(own['clean'].mean())} clean", worst, *time] if x == "clean" else [*time, worst]
        described.append(f"{name}: {f'mean of {len(own)} runs: ' * (len(own) > 1)}{', '.join(parts)}")
        label = ", ".join([name, *time]) if x == "clean" else name
        ends = {"xerr": _whiskers(own, x, f"{x}_"), "yerr": _whiskers(own, "worst", "worst_"), "elinewidth": 1.1}
        axis.errorbar(own[x], own["worst"], label=label, ms=8, mew=0.6, **ends, **mark | DOTS)
    axis.margins(0.12)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.02))  # accuracies below zero are no place for a reader's eye
    axis.set_ylabel("worst-case robust accuracy")
    canvas.percent_axis(axis)
    if x == "clean":
        canvas.percent_axis(axis, "x")
        axis.set(title="Accuracy and robustness of each run", xlabel="clean accuracy")
    else:
        axis.set(title="Robustness against the time it took", xlabel="minutes of training")
        times = rows["minutes"][rows["method"].isin(drawn)]
        if 0 < 20 * times.min() < times.max():
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
    canvas.legend_below(fig, axis)
    columns = ["method", "seed", *(f"{name}{end}" for name in ("clean", "worst") for end in ("", "_low", "_high"))]
    data = rows.filter([*columns, "minutes"])
    return Figure(fig, f"{alt} of {len(rows)} runs. {'; '.join(described)}.", data, left_out)


VERDICTS = {"supported": ("o", "#0173b2"), "not supported": ("X", "#a84300"), "undecided": ("D", MUTED)}
LETTERS = 98  # of a claim on one line


@canvas.style()
def claim_effects(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """The effect of each claim with its 95 % interval, in the claimed direction: right of 0 supports the claim.

    Effects are drawn as multiples of the smallest effect of interest, so that points and shares stand on one axis.
    Columns are `claim` (its text), `effect` (NaN: no seed, no dot), `low`, `high` (fractions, in the claimed direction),
    `smallest` (effect of interest, > 0), `verdict`, `words` (the verdict with its reason) and optionally `unit` ("points", or "%").
    """
    frame = require_columns("claims", DataFrame(rows), ["claim", "smallest", "verdict"]).reset_index(drop=True)
    claims: list[dict[Any, Any]] = frame.to_dict("records")
    texts = [wrap(str(claim["claim"]), LETTERS) for claim in claims]
    heights = [0.85 + 0.18 * (len(text) - 1) for text in texts]  # inches
    fig, (axis,) = canvas.axes(height=0.95 + sum(heights))
    form: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "fontsize": 9.5, "va": "top"}
    dot: dict[str, Any] = {"ms": 8, "mec": "white", "elinewidth": 2, "capsize": 3}
    for claim, text, top in zip(claims, texts, accumulate(heights, initial=0.0), strict=False):  # from top downwards
        (marker, colour), below = VERDICTS[claim["verdict"]], top + 0.06 + 0.18 * len(text)
        words = axis.annotate("\n".join(text), (0.01, top + 0.06), **form)
        verdict = f"{claim['words']}  {_effect(claim)}"
        for part in (words, axis.annotate(verdict, (0.01, below), color=colour, weight="bold", **form)):
            part.set_in_layout(False)  # or long texts would squeeze the axis
        axis.fill_betweenx([below + 0.22, below + 0.46], 0, 1, color="#d9dfe5", lw=0, zorder=1)
        axis.plot([0, 0], [below + 0.22, below + 0.46], color=INK, lw=1.4, zorder=2)
        effect, low, high = (claim[name] / claim["smallest"] for name in ("effect", "low", "high"))
        if effect == effect:
            ends = [[effect - low], [high - effect]] if high < float("inf") else None
            axis.errorbar([effect], [below + 0.34], xerr=ends, fmt=marker, color=colour, **dot)
    axis.set(ylim=(sum(heights), 0), yticks=[], title="What the runs say of the claims")
    axis.set_xlabel("effect in the claimed direction; 1: the smallest effect of interest (shaded: smaller ones)")
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.08)
    described = [f"{claim['claim']} {claim['words']} {_effect(claim)}".strip() for claim in claims]
    data = frame.filter(["claim", "effect", "low", "high", "unit", "smallest", "verdict", "words"])
    return Figure(fig, f"Claims, with effects in the claimed direction: {'; '.join(described)}.", data)


def _effect(claim: Mapping[Any, Any]) -> str:
    """The effect with its interval; `unit` where the claim has it."""
    if claim["effect"] != claim["effect"]:
        return ""
    effect, low, high = (100 * claim[name] for name in ("effect", "low", "high"))
    interval = f", interval {low:.1f} to {high:.1f}" if high < float("inf") else ""
    return f"({effect:.1f}{' ' * ('unit' in claim)}{claim.get('unit', '')}{interval})".replace("-", "−")


@canvas.style()
def distance_distributions(distances: Mapping[str, ArrayLike]) -> Figure:
    """The share of images with an adversarial image within each distance, a line a model; farther right is better.

    By model distances (N,) in pixel units, >= 0, of the same images, e.g. of `robustlib.evaluation.compare_distances`.
    """
    ordered = {name: np.sort(np.asarray(values, dtype=float).ravel()) for name, values in distances.items()}
    n = min(map(len, ordered.values()), default=0)
    if not n or any(len(values) > n or not np.isfinite(values).all() for values in ordered.values()):
        given = ", ".join(f"{name} {np.isfinite(values).sum()} of {len(values)}" for name, values in ordered.items())
        wanted = "the same images for all models, and a distance of each"
        raise InputError(f"The distance figure needs {wanted}; given: {given or 'none'}.")
    share = np.arange(1, n + 1) / n
    described = []
    fig, (axis,) = canvas.axes(height=3.9)
    for name, mark in canvas.styles(ordered).items():
        quartiles = np.quantile(ordered[name], (0.25, 0.5, 0.75))
        described.append(f"{name}: {', '.join(f'{value:.3g}' for value in quartiles)}")
        median = float(np.median(ordered[name]))
        axis.step([0, *ordered[name]], [0, *share], where="post", color=mark["color"], ls=mark["ls"])
        axis.plot([median], [0.5], ms=8, mec="white", label=f"{name}, median {median:.3f}", **mark)
    canvas.percent_axis(axis)
    axis.set(xlim=(0, None), ylim=(0, 1), ylabel="images with an adversarial\nimage within it")
    axis.set_xlabel("L2 adversarial distance, in pixels of [0, 1]; marks: medians")
    axis.set_title(f"How far away adversarial images are, on the same {n} images")
    canvas.legend_below(fig, axis)
    alt = f"Distribution of L2 adversarial distances over {n} images. Quartiles: {'; '.join(described)}."
    data = [DataFrame({"model": name, "distance": values, "share": share}) for name, values in ordered.items()]
    return Figure(fig, alt, pd.concat(data, ignore_index=True))


SLACK = 0.01  # what accuracy may be lost, a fraction; less is shaded


@canvas.style()
def accuracy_distance(grid: DataFrame) -> Figure:
    """Mean adversarial distance against accuracy over strengths, from `select_strength`; up and right is better, 0 is no penalty."""
    columns = ["variant", "strength", "accuracy", "distance", "chosen"]
    rows = require_columns("accuracy-distance", grid, columns).reset_index(drop=True)
    if not (rows["strength"] == 0).any():
        raise InputError("The accuracy-distance figure needs the unregularised variant: a row of strength 0.")
    base = rows[rows["strength"] == 0].iloc[0]
    fig, (axis,) = canvas.axes(height=4.4)
    for variant, mark in canvas.styles(rows["variant"]).items():
        own = rows[rows["variant"] == variant].sort_values("strength")
        ends = _whiskers(own, "distance")
        axis.errorbar(own["accuracy"], own["distance"], yerr=ends, label=str(variant), ms=7, elinewidth=1.0, **mark)
        rings = own[own["chosen"].astype(bool)]
        axis.plot(rings["accuracy"], rings["distance"], "o", ms=15, mfc="none", mec=mark["color"], mew=1.8)
        for strength, x, y in own[["strength", "accuracy", "distance"]].itertuples(index=False):
            text = f"{strength:g}" if strength else ""
            axis.annotate(text, (x, y), (7, 5), textcoords="offset points", fontsize=8, color=INK)
    axis.margins(0.12)
    least, most = axis.get_xlim()
    axis.set_xlim(left := min(least, base["accuracy"] - 2 * SLACK), most)
    axis.axvspan(left, base["accuracy"] - SLACK, color="#f3f5f7", zorder=0)
    axis.axhline(base["distance"], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
    canvas.percent_axis(axis, "x")
    axis.set(title="What each strength costs and buys; a ring: chosen", ylabel="mean L2 adversarial distance")
    axis.set_xlabel(f"accuracy (shaded: more than {100 * SLACK:g} point below no penalty)")
    canvas.legend_below(fig, axis)
    described = []
    for row in rows[rows["chosen"].astype(bool) | (rows["strength"] == 0)].to_dict("records"):
        at = f" at strength {row['strength']:g}, chosen" if row["strength"] else ""
        described.append(f"{row['variant']}{at}: accuracy {percent(row['accuracy'])}, distance {row['distance']:.3f}")
    alt = f"Mean adversarial distance against accuracy for {len(rows)} variants and strengths. {'; '.join(described)}."
    return Figure(fig, alt, rows.filter([*columns[:-1], "low", "high", "chosen"]).astype({"chosen": int}))


@canvas.style()
def agreement(shares: DataFrame) -> Figure:
    """Who fails where: of the images that the row fails on, the share that the column withstands; a square frame of at most 12 names.

    NaN, where a row fails on no image, stays blank.
    """
    if shares.empty or shares.shape[0] != shares.shape[1] or len(shares) > MANY:
        raise InputError(f"The agreement figure needs a square of 1 to {MANY} names; given {shares.shape}.")
    names, values = ["\n".join(wrap(str(name), 22)) for name in shares], shares.to_numpy(dtype=float)
    fig, (axis,) = canvas.axes(height=1.6 + 0.55 * len(names))
    axis.imshow(np.nan_to_num(values), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if row != column and value == value:
            axis.text(
                column,
                row,
                percent(value),
                ha="center",
                va="center",
                color="white" if value > 0.6 else INK,
                fontsize=9.5,
            )
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set(
        title="Images that one fails on and another withstands", xlabel="withstood by", ylabel="of those that fail"
    )
    axis.grid(visible=False)
    pairs = [(a, b, values[i, j]) for i, a in enumerate(shares) for j, b in enumerate(shares) if i != j]
    said = [f"of the images that {a} fails on, {b} withstands {percent(value)}" for a, b, value in pairs]
    data = DataFrame(pairs, columns=["fails", "withstands", "share"])
    return Figure(fig, f"Who fails where: {'; '.join(said) or 'a single model'}.", data)
