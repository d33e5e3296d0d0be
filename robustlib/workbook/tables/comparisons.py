"""Tables of many runs: leaderboards, means over seeds, and what there is.

What runs say of a paper's claims.

Adversarial distances for people.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.figures.labels import ATTACKS, attack_name
from robustlib.workbook.tables.labels import percent, verdict_label, worst_verdict

if TYPE_CHECKING:
    import pandas as pd


FIRST = ("clean", "worst")  # the numbers to compare stand before those of single attacks
BADGES = ("headline", "protocol")


def leaderboard(board: "pd.DataFrame") -> "pd.DataFrame":
    """The runs of a `robustlib.evaluation.leaderboard`, one a row; intervals where the board has them.

    The columns headline and protocol are the badges of the audit: of the worst case, and of the method's own protocol.
    Columns that would say the same of every run (one architecture, no notes) are left out.
    """
    import pandas as pd

    attacks = [name for name in ATTACKS if name in board and name not in FIRST and board[name].notna().any()]
    rows = [
        {
            "method": row["method"],
            "arch": row["arch"],
            **({"threat": row["threat"]} if row.get("threat") else {}),
            "seed": row["seed"],
            "changed": row.get("changed", "") or "",
            **{ATTACKS[name]: _cell(row, name) for name in FIRST},
            **{kind: verdict_label(row[f"{kind}_badge"]) for kind in BADGES if f"{kind}_badge" in row},
            **{ATTACKS[name]: _cell(row, name) for name in attacks},
            "minutes": f"{row['minutes']:.1f}",
            "notes": notes(row),
        }
        for row in board.to_dict("records")
    ]
    return _without_dull(pd.DataFrame(rows))


def _without_dull(table: "pd.DataFrame") -> "pd.DataFrame":
    empty = [name for name in ("changed", "notes") if name in table and not table[name].any()]
    empty += [label for label in ATTACKS.values() if label in table and (table[label] == "–").all()]
    alike = [name for name in ("arch", "threat") if name in table and table[name].nunique() == 1]
    return table.drop(columns=empty + alike)


def _cell(row: Mapping[Any, Any], name: str) -> str:
    return percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))


def notes(row: Mapping[Any, Any]) -> str:
    """What a reader of a leaderboard row must know: stale (its numbers would be others today), warnings."""
    said = row.get("warnings")
    warnings = [said] if isinstance(said, str) and said else list(said) if isinstance(said, list | tuple) else []
    return "; ".join((["stale"] if row.get("stale") else []) + warnings)


def over_seeds(aggregate: "pd.DataFrame", board: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """Mean ± standard deviation over seeds of each method; one seed has no deviation and says so.

    Args:
        aggregate: of `robustlib.evaluation.aggregate`.
        board: the leaderboard it was made of, for the gravest badges of each method's runs.
    """
    import pandas as pd

    rows = []
    for row in aggregate.to_dict("records"):
        numbers: dict[str, Any] = {}
        for name in (*FIRST, *ATTACKS):  # first what matters most
            label = ATTACKS[name]
            mean, std = row.get(f"{name}_mean"), row.get(f"{name}_std")
            if mean is None or mean != mean:  # not every model meets every attack
                numbers[label] = "–"
            else:
                numbers[label] = percent(mean) if std is None or std != std else f"{100 * mean:.1f} ± {100 * std:.1f} %"
            if name == "worst" and board is not None:
                numbers |= _gravest(row, board)
        who: dict[str, Any] = {
            key: row[key] for key in ("method", "arch", "changed", "attack passes", "seeds") if key in row
        }
        rows.append(who | numbers)
    return _without_dull(pd.DataFrame(rows))


def _gravest(row: Mapping[Any, Any], board: "pd.DataFrame") -> dict[str, str]:
    """The gravest badge of each kind among the runs that a row sums up."""
    shared = [key for key in ("dataset", "method", "arch", "changed", "precision", "n") if key in row and key in board]
    mine = board[(board[shared] == [row[key] for key in shared]).all(axis=1)]
    return {kind: verdict_label(worst_verdict(mine[f"{kind}_badge"])) for kind in BADGES if f"{kind}_badge" in mine}


def inventory(runs: Iterable[Any]) -> "pd.DataFrame":
    """All runs, finished or not, as `robustlib list` shows them."""
    import pandas as pd

    rows = []
    for run in runs:
        params, state = run.params(), run.status()["state"]
        by_attack = {row["attack"]: percent(row["accuracy"]) for row in run.results().get("rows", [])}
        rows.append(
            {
                "method": params.get("method", "?"),
                "seed": params.get("seed", "?"),
                "state": state,
                "clean": by_attack.get("clean", "–"),
                "worst case": by_attack.get("worst", "–"),
                "headline": verdict_label(run.audit().get("badges", {}).get("headline", {}).get("verdict", "")),
                "notes": ", ".join(filter(None, [run.changed, "stale" if run.stale else ""])),
                "run directory": run.path,
            }
        )
    return pd.DataFrame(rows)


def incomplete(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The runs that a comparison does not show, or not in full, and what they lack.

    Args:
        frame: of `robustlib.evaluation.incomplete`; the preset is told where there are several.
    """
    shared = [name for name in ("preset",) if frame[name].nunique() > 1]
    return frame[["run", *shared, "missing"]].rename(columns={"missing": "what is missing"}).reset_index(drop=True)


# As with the verdicts of audits, a sign and a word, so that colour is never all there is.
SIGNS = {"supported": "✓", "not supported": "✕", "undecided": "–"}
KINDS = {
    "last": "{}, last epoch",
    "overfitting": "{}, best less last epoch",
    "overstated": "{} less worst case",
    "metrics": "{}, end of training",
    "growth": "{}, growth over the epochs from 2 on",
    "distance": "{} adversarial distance (Tangent, L2)",
    "unseen": "{}",
}
FEATURES = {"relative_l2": "relative L2 feature gap", "cosine": "cosine feature gap", "linf": "L∞ feature gap"}
COLUMNS = ["claim", "effect", "verdict", "p (Holm)", "detectable", "notes", "compared", "source"]


def claims(findings: Iterable[Any], reference: Sequence[Any] | None = None) -> "pd.DataFrame":
    """One row for each claim: who says so, what was compared, the effect with its 95 % interval, and the verdict.

    Effects are the first variant less the second (or zero), in points; in % of the second where the measure is a distance, and in %
    where it is a growth.
    Detectable is the smallest true effect that these seeds would have found with 80 % power.

    Args:
        findings: of `robustlib.workbook.claims.evaluate_claims`.
        reference: findings of the committed reference results; their verdicts, by the name of the claim, stand in a column
            of their own. Without any there is no such column.
    """
    import pandas as pd

    findings = list(findings)
    table = pd.DataFrame([_row(finding) for finding in findings], columns=COLUMNS)
    if reference:
        known = {other.claim.name: _verdict(other) for other in reference}
        told = [known.get(finding.claim.name, "–") for finding in findings]
        table.insert(COLUMNS.index("verdict") + 1, "reference", told)
    return table if table["notes"].any() else table.drop(columns="notes")


def _verdict(finding: Any) -> str:
    return f"{SIGNS[finding.verdict]} {finding.summary}"


def _row(finding: Any) -> dict[str, str]:
    claim, (effect, low, high, _) = finding.claim, finding.interval
    detectable = f"{100 * finding.detectable:.1f} {claim.unit}" if finding.detectable < float("inf") else "–"
    return {
        "claim": claim.text,
        "source": claim.source,
        "compared": f"{claim.variant} − {claim.than or 'zero'}: {measure_name(claim.measure)}",
        "effect": _effect(effect, low, high, claim.unit),
        "p (Holm)": f"{finding.p:.3f}" if finding.p >= 0.001 else "< 0.001",
        "detectable": detectable,
        "verdict": _verdict(finding),
        "notes": "; ".join([*finding.evidence.notes, *_gaps(finding.evidence.missing)]),
    }


def measure_name(measure: str) -> str:
    """A measure of a claim for people: "overfitting/pgd20" is "PGD-20, best less last epoch"."""
    kind, _, name = measure.partition("/")
    if name.startswith("loss/"):
        return f"{attack_name('known')}, less {attack_name(name.removeprefix('loss/'))}"
    if measure == "unseen/price":
        return "clean accuracy without purifier, less with it"
    layer, _, last = (name or kind).removeprefix("probe/").rpartition("/")
    named = FEATURES.get(last) or attack_name(last).replace("_", " ")
    named += f" of {layer}" if layer else ""
    return KINDS.get(kind, "{}").format(named)


def _effect(effect: float, low: float, high: float, unit: str) -> str:
    """ "+2.4 points (1.0 to 3.8)"; one seed has no interval, and says so."""
    if effect != effect:
        return "–"
    interval = f"{_signed(low)} to {_signed(high)}" if high < float("inf") else "one seed"
    return f"{_signed(effect)} {unit} ({interval})"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _gaps(missing: Iterable[str]) -> list[str]:
    """Seeds without a difference; those with the same reason are told together."""
    seeds: dict[str, list[str]] = {}
    for sentence in missing:
        seed, _, reason = sentence.removeprefix("seed ").partition(": ")
        seeds.setdefault(reason, []).append(seed)
    return [f"seed{'s' * (len(some) > 1)} {', '.join(some)}: {reason}" for reason, some in seeds.items()]


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


def strength_grid(grid: "pd.DataFrame") -> "pd.DataFrame":
    """What each strength of each variant costs and buys on validation images, and which is chosen.

    It says of the chosen one if the grid ends there, so that a better one may lie beyond, and if its distance cannot be told
    from no penalty's (the interval of their difference holds 0) or is a shorter one.

    Args:
        grid: of `robustlib.evaluation.select_strength`.
    """
    import pandas as pd

    rows = [
        {
            "variant": row["variant"],
            "strength": f"{row['strength']:g}",
            "seeds": row["seeds"],
            "accuracy": percent(row["accuracy"]),
            "mean distance": _interval(row, "distance", "low", "high"),
            "images compared": row["n"],
            "": _choice(row, grid.loc[grid["variant"] == row["variant"], "strength"]),
        }
        for row in grid.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _choice(row: Mapping[Any, Any], strengths: "pd.Series") -> str:
    """What is said of a strength among those of its variant."""
    if not row["chosen"]:
        return "" if row["allowed"] else "✕ costs too much accuracy"
    told = {"✓ chosen": True, "the only one of the grid": len(strengths) == 1}
    told["largest of the grid"] = row["strength"] == strengths.max() > strengths.min()
    told["smallest of the grid"] = row["strength"] == strengths.min() < strengths.max()
    told["no different from none"] = row["gain_low"] <= 0 <= row["gain_high"]
    told["nearer than none"] = row["gain_high"] < 0
    return ", ".join(words for words, true in told.items() if true)


def distances_over_seeds(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Mean adversarial distances of variants over seeds with 95 % intervals, by Tangent and beside it by FAB.

    Args:
        measured: of `robustlib.workbook.experiments.variant_distances`.
    """
    import pandas as pd

    rows = [
        {
            "variant": row["variant"],
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
    """Spearman's rank correlation with the mean adversarial distance over runs; runs of one variant are no independent ones.

    Args:
        family: of `robustlib.workbook.experiments.spectral_family`; of fewer than three runs there is no row.
    """
    import pandas as pd

    ranks = family.rank(numeric_only=True).corr() if len(family) > 2 else pd.DataFrame()
    rows = [
        {"measure": words, "rank correlation with distance": f"{float(ranks['distance'][name]):+.2f}".replace("-", "−")}
        | {"runs": len(family), "variants": family["title"].nunique(), "images": family["n"].min()}
        for name, words in CORRELATES.items()
        if len(ranks)
    ]
    return pd.DataFrame(rows)


def _interval(row: Mapping[Any, Any], name: str, low: str, high: str) -> str:
    value = row[name]
    return "–" if value != value else f"{value:.3f} ({row[low]:.3f}–{row[high]:.3f})"
