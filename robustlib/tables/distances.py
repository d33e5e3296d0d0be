"""Adversarial distances for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import percent

if TYPE_CHECKING:
    import pandas as pd

# Attacks that look for the smallest perturbation, by how their repr begins.
MINIMA = {"Tangent": "Tangent (decisions only)", "FAB": "FAB (white box)"}


def distances(compared: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and median L2 adversarial distance of several models on the same images, with 95 % bootstrap intervals.

    Args:
        compared: of `robustlib.evaluation.compare_distances`.
    """
    import pandas as pd

    rows = []
    for row in compared.to_dict("records"):
        images = f"{row['n']} of {row['images']}" + (f" ({row['failed']} failed)" if row["failed"] else "")
        numbers = {kind: _interval(row, kind, f"{kind}_low", f"{kind}_high") for kind in ("mean", "median")}
        rows.append(
            {
                "model": row["model"],
                "accuracy": percent(row["correct"] / row["images"]),
                **numbers,
                "images compared": images,
            }
        )
    return pd.DataFrame(rows)


def strengths(grid: "pd.DataFrame") -> "pd.DataFrame":
    """What each strength of each arm costs and buys on validation images, and which is chosen.

    It says of the chosen one if the grid ends there, so that a better one may lie beyond, and if its distance cannot be told
    from no penalty's (the interval of their difference holds 0) or is a shorter one.

    Args:
        grid: of `robustlib.evaluation.choose_strengths`.
    """
    import pandas as pd

    rows = [
        {
            "arm": row["arm"],
            "strength": f"{row['strength']:g}",
            "seeds": row["seeds"],
            "accuracy": percent(row["accuracy"]),
            "mean distance": _interval(row, "distance", "low", "high"),
            "images compared": row["n"],
            "": _choice(row, grid.loc[grid["arm"] == row["arm"], "strength"]),
        }
        for row in grid.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _choice(row: Mapping[Any, Any], strengths: "pd.Series") -> str:
    """What is said of a strength among those of its arm."""
    if not row["chosen"]:
        return "" if row["allowed"] else "✕ costs too much accuracy"
    told = {"✓ chosen": True, "the only one of the grid": len(strengths) == 1}
    told["largest of the grid"] = row["strength"] == strengths.max() > strengths.min()
    told["smallest of the grid"] = row["strength"] == strengths.min() < strengths.max()
    told["no different from none"] = row["gain_low"] <= 0 <= row["gain_high"]
    told["nearer than none"] = row["gain_high"] < 0
    return ", ".join(words for words, true in told.items() if true)


def distances_over_seeds(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Mean adversarial distances of arms over seeds with 95 % intervals, by Tangent and beside it by FAB.

    Args:
        measured: of `robustlib.batch.arm_distances`.
    """
    import pandas as pd

    rows = [
        {
            "arm": row["arm"],
            "seeds": row["seeds"],
            f"mean distance, {MINIMA['Tangent']}": _interval(row, "distance", "low", "high"),
            f"mean distance, {MINIMA['FAB']}": _interval(row, "fab", "fab_low", "fab_high"),
            "images compared": row["n"],
        }
        for row in measured.to_dict("records")
    ]
    return pd.DataFrame(rows)


CORRELATES = {
    "jacobian": "Frobenius norm of the features' Jacobian, mean over images",
    "sigma": "sum of σ² over the representation's layers",
}


def correlations(family: "pd.DataFrame") -> "pd.DataFrame":
    """Spearman's rank correlation with the mean adversarial distance over runs; runs of one arm are no independent ones.

    Args:
        family: of `robustlib.batch.spectral_family`; of fewer than three runs there is no row.
    """
    import pandas as pd

    ranks = family.rank(numeric_only=True).corr() if len(family) > 2 else pd.DataFrame()
    rows = [
        {"measure": words, "rank correlation with distance": f"{float(ranks['distance'][name]):+.2f}".replace("-", "−")}
        | {"runs": len(family), "arms": family["title"].nunique(), "images": family["n"].min()}
        for name, words in CORRELATES.items()
        if len(ranks)
    ]
    return pd.DataFrame(rows)


def _interval(row: Mapping[Any, Any], name: str, low: str, high: str) -> str:
    value = row[name]
    return "–" if value != value else f"{value:.3f} ({row[low]:.3f}–{row[high]:.3f})"
