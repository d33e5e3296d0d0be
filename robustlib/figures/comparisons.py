"""Runs side by side: what robustness costs, what they say of a paper's claims, and how far away adversarial images are."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures.canvas import (
    INK,
    MUTED,
    Figure,
    axes,
    dots,
    legend_below,
    percent_axis,
    require_columns,
    style,
    styles,
    title_of,
    whiskers,
)
from robustlib.figures.labels import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("method", "seed", "clean", "clean_low", "clean_high", "worst", "worst_low", "worst_high", "minutes")


@style()
def trade_off(leaderboard: DataFrame) -> Figure:
    """Clean against worst-case accuracy, one dot for each run, with 95 % intervals; up and right is better.

    Columns are `method`, `clean`, `worst` (fractions), optionally `title` and the ends of the intervals `clean_low`,
    `clean_high`, `worst_low`, `worst_high`, and `minutes` of training, for the legend.
    """
    rows = _titled(require_columns("trade-off", leaderboard, ["clean", "worst"]))
    fig, (axis,) = axes(height=4.4)
    _scatter(axis, rows, "clean")
    percent_axis(axis, "x")
    axis.set(title="Accuracy and robustness of each run", xlabel="clean accuracy")
    legend_below(fig, axis)
    alt = f"Clean against worst-case accuracy of {len(rows)} runs. {_describe_methods(rows, 'clean')}."
    return Figure(fig, alt, rows.filter(COLUMNS))


@style()
def cost(leaderboard: DataFrame) -> Figure:
    """What robustness cost: minutes of training against worst-case accuracy, one dot for each run; columns as for `trade_off`."""
    rows = _titled(require_columns("cost", leaderboard, ["minutes", "worst"]))
    fig, (axis,) = axes(height=4.4)
    _scatter(axis, rows, "minutes")
    axis.set(title="Robustness against the time it took", xlabel="minutes of training")
    if rows["minutes"].min() > 0 and rows["minutes"].max() > 20 * rows["minutes"].min():
        axis.set_xscale("log")
    else:
        axis.set_xlim(left=0)
    legend_below(fig, axis)
    alt = f"Training time against worst-case accuracy of {len(rows)} runs. {_describe_methods(rows, 'minutes')}."
    return Figure(fig, alt, rows.filter(COLUMNS))


def _titled(rows: DataFrame) -> DataFrame:
    return rows.assign(method=[title_of(row) for row in rows.to_dict("records")])


def _scatter(axis: "Axes", rows: DataFrame, x: str) -> None:
    """Dots of `x` against worst-case accuracy, a colour and marker for each method."""
    for title, mark in styles(sorted(rows["method"].unique())).items():
        own = rows[rows["method"] == title]
        label = title + (f", {_minutes(own['minutes'].mean())}" if x == "clean" and "minutes" in own else "")
        ends = {"xerr": whiskers(own, x, f"{x}_"), "yerr": whiskers(own, "worst", "worst_"), "elinewidth": 1.1}
        axis.errorbar(own[x], own["worst"], label=label, **ends, **dots(mark, ms=8, mec="white", mew=0.6))
    percent_axis(axis)
    axis.set_ylabel("worst-case robust accuracy")
    axis.margins(0.12)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.02))  # accuracies below zero are no place for a reader's eye


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes == minutes else "unknown time"


def _describe_methods(rows: DataFrame, x: str) -> str:
    described = []
    for title, own in rows.groupby("method"):
        runs = f"mean of {len(own)} runs: " if len(own) > 1 else ""
        clean = f"{percent(own['clean'].mean())} clean, " if x == "clean" else ""
        time = f"{_minutes(own['minutes'].mean())}" if "minutes" in own else ""
        worst = f"{percent(own['worst'].mean())} worst case"
        parts = [clean + worst, time] if clean else [time, worst]
        described.append(f"{title}: {runs}{', '.join(filter(None, parts))}")
    return "; ".join(described)


VERDICTS = {"supported": ("o", "#0173b2"), "not supported": ("X", "#a84300"), "undecided": ("D", MUTED)}
LETTERS = 98  # of a claim on one line


@style()
def claim_effects(rows: DataFrame | Sequence[Mapping[str, Any]]) -> Figure:
    """The effect of each claim with its 95 % interval, in the claimed direction: right of 0 supports the claim.

    Effects are drawn as multiples of the smallest effect of interest, so that points and shares stand on one axis.

    Args:
        rows: `claim` (its text), `effect`, `low`, `high` (fractions, already turned into the claimed direction), `smallest`
            (effect of interest, > 0), `verdict` ("supported", "not supported", "undecided"), `words` (the verdict with its
            reason) and optionally `unit` (of a hundredth: "points", or "%" of a distance or growth). Claims without any
            seed (effect NaN) are listed without a dot.
    """
    frame = require_columns("claims", DataFrame(rows), ["claim", "smallest", "verdict"]).reset_index(drop=True)
    claims: list[dict[Any, Any]] = frame.to_dict("records")
    texts = [wrap(str(claim["claim"]), LETTERS) for claim in claims]
    heights = [0.85 + 0.18 * (len(text) - 1) for text in texts]  # inches
    fig, (axis,) = axes(height=0.95 + sum(heights))
    for claim, text, top in zip(claims, texts, accumulate(heights, initial=0.0), strict=False):
        _draw_claim(axis, top, claim, text)
    axis.set(ylim=(sum(heights), 0), yticks=[], title="What the runs say of the claims")
    axis.set_xlabel("effect in the claimed direction; 1: the smallest effect of interest (shaded: smaller ones)")
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.08)
    described = [f"{claim['claim']} {claim['words']} {_effect(claim)}".strip() for claim in claims]
    data = frame.filter(["claim", "effect", "low", "high", "unit", "smallest", "verdict", "words"])
    return Figure(fig, f"Claims, with effects in the claimed direction: {'; '.join(described)}.", data)


def _draw_claim(axis: "Axes", top: float, claim: Mapping[Any, Any], text: Sequence[str]) -> None:
    """One claim from `top` downwards, in inches: its text, its verdict with the numbers, and its interval."""
    marker, colour = VERDICTS[claim["verdict"]]
    below = top + 0.06 + 0.18 * len(text)
    options: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "fontsize": 9.5, "va": "top"}
    verdict, bold = f"{claim['words']}  {_effect(claim)}", {"color": colour, "weight": "bold"}
    for words, y, own in (("\n".join(text), top + 0.06, {}), (verdict, below, bold)):
        axis.annotate(words, (0.01, y), **(options | own)).set_in_layout(False)  # or long texts would squeeze the axis
    axis.fill_betweenx([below + 0.22, below + 0.46], 0, 1, color="#d9dfe5", lw=0, zorder=1)
    axis.plot([0, 0], [below + 0.22, below + 0.46], color=INK, lw=1.4, zorder=2)
    effect, low, high = (claim[name] / claim["smallest"] for name in ("effect", "low", "high"))
    if effect == effect:
        dot: dict[str, Any] = {"fmt": marker, "ms": 8, "mec": "white", "color": colour, "elinewidth": 2, "capsize": 3}
        known = high < float("inf")
        axis.errorbar([effect], [below + 0.34], xerr=[[effect - low], [high - effect]] if known else None, **dot)


def _effect(claim: Mapping[Any, Any]) -> str:
    """The effect with its interval; `unit` where the claim has it."""
    if claim["effect"] != claim["effect"]:
        return ""
    effect, low, high = (100 * claim[name] for name in ("effect", "low", "high"))
    interval = f", interval {low:.1f} to {high:.1f}" if high < float("inf") else ""
    return f"({effect:.1f}{' ' * ('unit' in claim)}{claim.get('unit', '')}{interval})".replace("-", "−")


@style()
def distance_distributions(distances: Mapping[str, ArrayLike]) -> Figure:
    """The share of images with an adversarial image within each distance, a line for each model; farther right is better.

    Of each model the adversarial distances (N,) in pixel units, of the same images for all, e.g. those of
    `robustlib.evaluation.compare_distances`; all finite and at least 0.
    """
    ordered = {name: np.sort(np.asarray(values, dtype=float).ravel()) for name, values in distances.items()}
    lengths = {len(values) for values in ordered.values()}
    if len(lengths) != 1 or 0 in lengths or not all(np.isfinite(values).all() for values in ordered.values()):
        given = ", ".join(f"{name} {np.isfinite(values).sum()} of {len(values)}" for name, values in ordered.items())
        raise InputError(
            f"The distance figure needs the same images for all models, and a distance of each; given: {given or 'none'}."
        )
    (n,) = lengths
    share = np.arange(1, n + 1) / n
    fig, (axis,) = axes(height=3.9)
    for name, mark in styles(ordered).items():
        median = float(np.median(ordered[name]))
        axis.step([0, *ordered[name]], [0, *share], where="post", color=mark["color"], ls=mark["ls"])
        axis.plot([median], [0.5], ms=8, mec="white", label=f"{name}, median {median:.3f}", **mark)
    percent_axis(axis)
    axis.set(xlim=(0, None), ylim=(0, 1), ylabel="images with an adversarial\nimage within it")
    axis.set_xlabel("L2 adversarial distance, in pixels of [0, 1]; marks: medians")
    axis.set_title(f"How far away adversarial images are, on the same {n} images")
    legend_below(fig, axis)
    quartiles = {name: np.quantile(values, (0.25, 0.5, 0.75)) for name, values in ordered.items()}
    described = "; ".join(f"{name}: {', '.join(f'{q:.3g}' for q in three)}" for name, three in quartiles.items())
    alt = f"Distribution of L2 adversarial distances over {n} images. Quartiles: {described}."
    data = [DataFrame({"model": name, "distance": values, "share": share}) for name, values in ordered.items()]
    return Figure(fig, alt, pd.concat(data, ignore_index=True))


SLACK = 0.01  # what accuracy may be lost, a fraction; less is shaded


@style()
def accuracy_distance(grid: DataFrame) -> Figure:
    """Mean adversarial distance against accuracy over the strengths of each variant, a ring around the chosen; up and right is better.

    Args:
        grid: of `robustlib.evaluation.select_strength`: `variant`, `strength`, `accuracy` (a fraction), `distance`, `low`, `high`,
            `chosen`; the variant of strength 0 is the unregularised one.
    """
    columns = ["variant", "strength", "accuracy", "distance", "chosen"]
    rows = require_columns("accuracy-distance", grid, columns).reset_index(drop=True)
    if not (rows["strength"] == 0).any():
        raise InputError("The accuracy-distance figure needs the unregularised variant: a row of strength 0.")
    base = rows[rows["strength"] == 0].iloc[0]
    fig, (axis,) = axes(height=4.4)
    for variant, mark in styles(rows["variant"].unique()).items():
        own = rows[rows["variant"] == variant].sort_values("strength")
        ends = whiskers(own, "distance")
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
    percent_axis(axis, "x")
    axis.set(title="What each strength costs and buys; a ring: chosen", ylabel="mean L2 adversarial distance")
    axis.set_xlabel(f"accuracy (shaded: more than {100 * SLACK:g} point below no penalty)")
    legend_below(fig, axis)
    described = []
    for row in rows[rows["chosen"].astype(bool) | (rows["strength"] == 0)].to_dict("records"):
        at = f" at strength {row['strength']:g}, chosen" if row["strength"] else ""
        described.append(f"{row['variant']}{at}: accuracy {percent(row['accuracy'])}, distance {row['distance']:.3f}")
    alt = f"Mean adversarial distance against accuracy for {len(rows)} variants and strengths. {'; '.join(described)}."
    data = rows.filter([*columns[:-1], "low", "high", "chosen"]).astype({"chosen": int})
    return Figure(fig, alt, data)
