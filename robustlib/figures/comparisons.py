"""Figures of many runs beside each other: what robustness costs in clean accuracy and in time.

What runs say of a paper's claims, as a picture.

Figures of adversarial distances: their distribution over images, and what they cost in accuracy.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from textwrap import wrap
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
    style,
    styles,
    title_of,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike
    from pandas import DataFrame


COLUMNS = ("method", "seed", "clean", "clean_low", "clean_high", "worst", "worst_low", "worst_high", "minutes")


def trade_off(leaderboard: "DataFrame") -> Figure:
    """Clean against worst-case accuracy, one dot for each run, with 95 % intervals; up and right is better.

    Args:
        leaderboard: one row a run: `method`, `clean`, `worst` (fractions), optionally `title` and the ends of the
            intervals `clean_low`, `clean_high`, `worst_low`, `worst_high`, and `minutes` of training, told in the legend.
    """
    rows = _titled(require_columns("trade-off", leaderboard, ["clean", "worst"]))
    with style():
        fig, (axis,) = axes(height=4.4)
        _dots(axis, rows, "clean", xerr=whiskers(rows, "clean"))
        percent_axis(axis, "x")
        axis.set_xlabel("clean accuracy")
        axis.set_title("Accuracy and robustness of each run")
        legend_below(fig, axis)
    alt = f"Clean against worst-case accuracy of {len(rows)} runs. {_say_methods(rows, 'clean')}"
    return Figure(fig, alt, _numbers(rows))


def cost(leaderboard: "DataFrame") -> Figure:
    """What robustness cost: minutes of training against worst-case accuracy, one dot for each run.

    Args:
        leaderboard: as for `trade_off`, with `minutes` instead of `clean`.
    """
    rows = _titled(require_columns("cost", leaderboard, ["minutes", "worst"]))
    with style():
        fig, (axis,) = axes(height=4.4)
        _dots(axis, rows, "minutes")
        axis.set_xlabel("minutes of training")
        if rows["minutes"].min() > 0 and rows["minutes"].max() > 20 * rows["minutes"].min():
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
        axis.set_title("Robustness against the time it took")
        legend_below(fig, axis)
    alt = f"Training time against worst-case accuracy of {len(rows)} runs. {_say_methods(rows, 'minutes')}"
    return Figure(fig, alt, _numbers(rows))


def _titled(rows: "DataFrame") -> "DataFrame":
    return rows.assign(method=[title_of(row) for row in rows.to_dict("records")], title="", changed="")


def _numbers(rows: "DataFrame") -> "DataFrame":
    return rows[[name for name in COLUMNS if name in rows]]


def _dots(axis: "Axes", rows: "DataFrame", x: str, xerr: Any = None) -> None:
    """Scatter `x` against worst-case accuracy, a colour and marker for each method."""
    yerr = whiskers(rows, "worst")
    for title, look in styles(sorted(rows["method"].unique())).items():
        mine = (rows["method"] == title).to_numpy()
        dot: dict[str, Any] = {
            "marker": look["marker"],
            "color": look["color"],
            "ms": 8,
            "mec": "white",
            "mew": 0.6,
            "ls": "none",
        }
        for name, ends in (("xerr", xerr), ("yerr", yerr)):
            dot[name] = None if ends is None else ends[:, mine]
        label = title + (f", {_minutes(rows['minutes'][mine].mean())}" if x == "clean" and "minutes" in rows else "")
        axis.errorbar(rows[x][mine], rows["worst"][mine], label=label, elinewidth=1.1, **dot)
    percent_axis(axis)
    axis.set_ylabel("worst-case robust accuracy")
    axis.margins(0.12)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.02))  # accuracies below zero are no place for a reader's eye


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes == minutes else "unknown time"


def _say_methods(rows: "DataFrame", x: str) -> str:
    unit = percent if x == "clean" else _minutes
    said = []
    for title, mine in rows.groupby("method"):
        runs = f"mean of {len(mine)} runs: " if len(mine) > 1 else ""
        text = f"{title}: {runs}{unit(mine[x].mean())}{' clean' * (x == 'clean')}, {percent(mine['worst'].mean())} worst case"
        said.append(text + (f", {_minutes(mine['minutes'].mean())}" if x == "clean" and "minutes" in mine else ""))
    return "; ".join(said) + "."


LOOKS = {"supported": ("o", "#0173b2"), "not supported": ("X", "#a84300"), "undecided": ("D", MUTED)}
CLAIM_COLUMNS = ("claim", "effect", "low", "high", "unit", "smallest", "verdict", "words")
LETTERS = 98  # of a claim on one line


def claim_effects(rows: "DataFrame | Sequence[Mapping[str, Any]]") -> Figure:
    """The effect of each claim with its 95 % interval, in the claimed direction: right of 0 speaks for the claim.

    Effects are drawn as multiples of the smallest effect of interest, so that points and shares stand on one axis.

    Args:
        rows: `claim` (its text), `effect`, `low`, `high` (fractions, already turned into the claimed direction), `smallest`
            (effect of interest, > 0), `verdict` ("supported", "not supported", "undecided"), `words` (the verdict with
            its reason) and optionally `unit` (of a hundredth: "points", or "%" of a distance or growth). Claims without any seed (effect NaN) are listed without a dot.
    """
    import pandas as pd

    frame = require_columns("claims", pd.DataFrame(rows), ["claim", "smallest", "verdict"]).reset_index(drop=True)
    every = [row | {"lines": wrap(str(row["claim"]), LETTERS)} for row in frame.to_dict("records")]
    heights = [0.85 + 0.18 * (len(row["lines"]) - 1) for row in every]  # inches
    with style():
        fig, (axis,) = axes(height=0.95 + sum(heights))
        for row, top in zip(every, accumulate(heights, initial=0.0), strict=False):
            _effect(axis, top, row)
        axis.set_ylim(sum(heights), 0)
        axis.set_yticks([])
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.08)
        axis.set_xlabel("effect in the claimed direction; 1: the smallest effect of interest (shaded: smaller ones)")
        axis.set_title("What the runs say of the claims")
    said = [f"{row['claim']} {row['words']} {_number(row)}".strip() for row in frame.to_dict("records")]
    numbers = frame[[name for name in CLAIM_COLUMNS if name in frame]]
    return Figure(fig, "Claims, with effects in the claimed direction: " + "; ".join(said) + ".", numbers)


def _effect(axis: "Axes", top: float, row: Mapping[Any, Any]) -> None:
    """One claim from `top` downwards, in inches: its text, its verdict with the numbers, and its interval."""
    marker, colour = LOOKS[row["verdict"]]
    below = top + 0.06 + 0.18 * len(row["lines"])
    text: dict[str, Any] = {"xycoords": axis.get_yaxis_transform(), "fontsize": 9.5, "va": "top"}
    claim, said = "\n".join(row["lines"]), f"{row['words']}  {_number(row)}"
    for words, y, own in ((claim, top + 0.06, {}), (said, below, {"color": colour, "weight": "bold"})):
        axis.annotate(words, (0.01, y), **(text | own)).set_in_layout(False)  # or long texts would squeeze the axis
    axis.fill_betweenx([below + 0.22, below + 0.46], 0, 1, color="#d9dfe5", lw=0, zorder=1)
    axis.plot([0, 0], [below + 0.22, below + 0.46], color=INK, lw=1.4, zorder=2)
    effect, low, high = (row[name] / row["smallest"] for name in ("effect", "low", "high"))
    if effect == effect:
        dot: dict[str, Any] = {"fmt": marker, "ms": 8, "mec": "white", "color": colour, "elinewidth": 2, "capsize": 3}
        known = high < float("inf")
        axis.errorbar([effect], [below + 0.34], xerr=[[effect - low], [high - effect]] if known else None, **dot)


def _number(row: Mapping[Any, Any]) -> str:
    """The effect with its interval; `unit` where the row has it."""
    if row["effect"] != row["effect"]:
        return ""
    interval = f", interval {100 * row['low']:.1f} to {100 * row['high']:.1f}" if row["high"] < float("inf") else ""
    return f"({100 * row['effect']:.1f}{' ' * ('unit' in row)}{row.get('unit', '')}{interval})".replace("-", "−")


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
        for name, look in styles(sorted_).items():
            values, middle = sorted_[name], float(np.median(sorted_[name]))
            axis.step([0, *values], [0, *share], where="post", color=look["color"], ls=look["ls"])
            axis.plot([middle], [0.5], ms=8, mec="white", label=f"{name}, median {middle:.3f}", **look)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1)
        percent_axis(axis)
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
        grid: of `robustlib.evaluation.select_strength`: `arm`, `strength`, `accuracy` (a fraction), `distance`, `low`, `high`,
            `chosen`; the arm of strength 0 is the unregularised one.
        slack: what accuracy may be lost, a fraction; less is shaded.

    Raises:
        InputError: a column is missing or empty, or there is no row of strength 0.
    """
    columns = ["arm", "strength", "accuracy", "distance", "chosen"]
    rows = require_columns("accuracy-distance", grid, columns).reset_index(drop=True)
    if not (rows["strength"] == 0).any():
        raise InputError("The accuracy-distance figure needs the unregularised arm: a row of strength 0.")
    base = rows[rows["strength"] == 0].iloc[0]
    with style():
        fig, (axis,) = axes(height=4.4)
        for arm, look in styles(rows["arm"].unique()).items():
            _path(axis, str(arm), rows[rows["arm"] == arm].sort_values("strength"), look)
        axis.margins(0.12)
        least, most = axis.get_xlim()
        axis.set_xlim(left := min(least, base["accuracy"] - 2 * slack), most)
        axis.axvspan(left, base["accuracy"] - slack, color=SLACK, zorder=0)
        axis.axhline(base["distance"], color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        percent_axis(axis, "x")
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
    return f"{row['arm']}{at}: accuracy {percent(row['accuracy'])}, distance {row['distance']:.3f}"
