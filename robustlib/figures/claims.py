"""What runs say of a paper's claims, as a picture."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from robustlib.figures.canvas import INK, MUTED, Figure, axes, needs, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

LOOKS = {"supported": ("o", "#0173b2"), "not supported": ("X", "#a84300"), "undecided": ("D", MUTED)}
COLUMNS = ("claim", "effect", "low", "high", "unit", "smallest", "verdict", "words")
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

    frame = needs("claims", pd.DataFrame(rows), ["claim", "smallest", "verdict"]).reset_index(drop=True)
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
    numbers = frame[[name for name in COLUMNS if name in frame]]
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
