"""What runs say of a paper's claims, as a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.figures.canvas import INK, MUTED, Figure, axes, needs, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

LOOKS = {"supported": ("o", "#0173b2"), "not supported": ("X", "#d55e00"), "undecided": ("D", MUTED)}


def claim_effects(rows: "DataFrame | Sequence[Mapping[str, Any]]") -> Figure:
    """The effect of each claim with its 95 % interval, in the claimed direction: right of 0 speaks for the claim.

    The shaded range is smaller than the smallest effect of interest.

    Args:
        rows: `claim` (its text), `effect`, `low`, `high` (fractions, already turned into the claimed direction), `smallest`
            (effect of interest, > 0), `verdict` ("supported", "not supported", "undecided") and `words` (the verdict with
            its reason). Claims without any seed (effect NaN) are listed without a dot.
    """
    import pandas as pd

    frame = needs("claims", pd.DataFrame(rows), ["claim", "smallest", "verdict"]).reset_index(drop=True)
    with style():
        fig, (axis,) = axes(height=0.9 + 0.95 * len(frame))
        for place, row in enumerate(frame.to_dict("records")):
            _effect(axis, place, row)
        axis.set_ylim(len(frame) - 0.5, -0.6)
        axis.set_yticks([])
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.08)
        axis.set_xlabel("effect in the claimed direction, points (or % where the measure is a distance)")
        axis.set_title("What the runs say of the claims")
    said = [f"{row['claim']} {row['words']} {_number(row)}".strip() for row in frame.to_dict("records")]
    return Figure(fig, "Claims, with effects in the claimed direction: " + "; ".join(said) + ".")


def _effect(axis: "Axes", place: int, row: Mapping[Any, Any]) -> None:
    marker, colour = LOOKS[row["verdict"]]
    small, effect = 100 * row["smallest"], 100 * row["effect"]
    axis.fill_betweenx([place + 0.02, place + 0.34], 0, small, color="#d9dfe5", lw=0, zorder=1)
    axis.plot([0, 0], [place + 0.02, place + 0.34], color=INK, lw=1.4, zorder=2)
    side, words = axis.get_yaxis_transform(), str(row["words"])
    axis.annotate(str(row["claim"]), (0.01, place - 0.4), xycoords=side, va="center", fontsize=9.5)
    axis.annotate(words, (0.01, place - 0.16), xycoords=side, va="center", fontsize=9.5, color=colour, weight="bold")
    if effect == effect:
        ends = [[effect - 100 * row["low"]], [100 * row["high"] - effect]]
        known = row["high"] < float("inf")
        dot: dict[str, Any] = {"fmt": marker, "ms": 8, "mec": "white", "color": colour, "elinewidth": 2, "capsize": 3}
        axis.errorbar([effect], [place + 0.18], xerr=ends if known else None, **dot)


def _number(row: Mapping[Any, Any]) -> str:
    if row["effect"] != row["effect"]:
        return ""
    interval = f", interval {100 * row['low']:.1f} to {100 * row['high']:.1f}" if row["high"] < float("inf") else ""
    return f"({100 * row['effect']:.1f}{interval})"
