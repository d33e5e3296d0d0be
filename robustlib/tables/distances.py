"""Adversarial distances for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import percent

if TYPE_CHECKING:
    import pandas as pd

# By the kind of attack, as its repr begins.
MINIMA = {"Tangent": "Tangent (decisions only)", "FAB": "FAB (white box)"}


def distances(compared: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and median L2 adversarial distance of several models on the same images, with 95 % bootstrap intervals.

    Args:
        compared: of `robustlib.evaluation.compare_distances`. With a column `attack` ("Tangent" or "FAB") its rows say by
            which it was measured.
    """
    import pandas as pd

    rows = []
    for row in compared.to_dict("records"):
        who = {"model": row["model"], **({"attack": MINIMA[row["attack"]]} if "attack" in row else {})}
        images = f"{row['n']} of {row['images']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
        numbers = {kind: _interval(row, kind, f"{kind}_low", f"{kind}_high") for kind in ("mean", "median")}
        rows.append({**who, "accuracy": percent(row["correct"] / row["images"]), **numbers, "images compared": images})
    return pd.DataFrame(rows)


def strengths(grid: "pd.DataFrame") -> "pd.DataFrame":
    """What each strength of each arm costs and buys on validation images, and which is chosen.

    Args:
        grid: of `robustlib.evaluation.choose_strengths`.
    """
    import pandas as pd

    signs = {(True, True): "✓ chosen", (True, False): "", (False, False): "✕ costs too much accuracy"}
    rows = [
        {
            "arm": row["arm"],
            "strength": f"{row['strength']:g}",
            "seeds": row["seeds"],
            "accuracy": percent(row["accuracy"]),
            "mean distance": _interval(row, "distance", "low", "high"),
            "images compared": row["n"],
            "": signs[row["allowed"], row["chosen"]],
        }
        for row in grid.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _interval(row: Mapping[Any, Any], name: str, low: str, high: str) -> str:
    value = row[name]
    return "–" if value != value else f"{value:.3f} ({row[low]:.3f}–{row[high]:.3f})"
