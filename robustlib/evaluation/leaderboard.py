"""The leaderboard of evaluated runs, and its means over seeds."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from robustlib.errors import InputError
from robustlib.evaluation.metrics import by_attack
from robustlib.figures import labels
from robustlib.runs import Run

# What runs must share for a mean over their seeds to mean something.
KIND = ["dataset", "method", "title", "arch", "changed", "precision", "n"]
ELSEWHERE = ("pgd100x5", "cw100x5", "square", "aa_standard", "known", "l2", "stadv")
# The attacks of the common protocol; what only randomised models, surrogates or a measurement meet is no column.
ATTACKS = tuple(name for name in labels.ATTACKS if name not in ELSEWHERE)
FACTS = ("preset", "dataset", "method", "title", "arch", "changed", "precision", "seed")
BADGES = ("headline_badge", "headline_text", "protocol_badge", "protocol_text")
COLUMNS = (
    *(*FACTS, "threat", *ATTACKS, "clean_low", "clean_high", "worst_low", "worst_high", "last_worst", "n", "minutes"),
    *("epochs", "path", "stale", "warnings", "checkpoint", *BADGES),
)


def leaderboard(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each evaluated run, the best worst case first.

    Returns:
        Columns preset, dataset, method, title, arch, changed (from the preset, e.g. "beta=3.0"), precision, seed, threat (such
        as "Linf 0.2"), the ATTACKS (fractions, NaN where not measured; clean and worst with _low and _high),
        last_worst (of the last epoch), n, minutes, epochs, path, stale, warnings, checkpoint, and what the audit says of
        the headline and of the method's own protocol: headline_badge, protocol_badge ("pass", "amber", "red" or "n/a"; ""
        before an audit), headline_text, protocol_text.
    """
    rows = [_row(run) for run in runs if run.results()]
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("worst", ascending=False, ignore_index=True)


def _row(run: Run) -> dict[str, Any]:
    params, results, metrics, audit = run.params(), run.results(), run.metrics(), run.audit().get("badges", {})
    rows = {row["attack"]: row for row in results["rows"]}
    badges = {kind: audit.get(kind, {}) for kind in ("headline", "protocol")}
    return {
        **{name: params.get(name) for name in FACTS},
        "changed": run.changed,
        "threat": results["threat"],
        **{name: rows[name]["accuracy"] if name in rows else float("nan") for name in ATTACKS},
        **{f"{name}_{side}": rows[name][side] for name in ("clean", "worst") for side in ("low", "high")},
        "last_worst": next(row["accuracy"] for row in results["last"]["rows"] if row["attack"] == "worst"),
        "n": results["n"],
        "minutes": run.provenance().get("wall_seconds", float("nan")) / 60,
        "epochs": int(metrics["epoch_total"].iloc[-1]) if len(metrics) else 0,
        "path": str(run.path),
        "stale": run.stale,
        "warnings": [text for at in (0, -1) for text in metrics["warnings"].iloc[at]] if len(metrics) else [],
        "checkpoint": results["checkpoint"],
        **{f"{kind}_badge": badge.get("verdict", "") for kind, badge in badges.items()},
        **{f"{kind}_text": badge.get("text", "") for kind, badge in badges.items()},
    }


def incomplete(runs: Iterable[Run]) -> pd.DataFrame:
    """The runs that lack something: run, preset, dataset, path and missing (what, and the command that makes it)."""
    rows = []
    for run in runs:
        if missing := _missing(run):
            facts = {name: run.params().get(name) for name in ("preset", "dataset")}
            rows.append({"run": run.name, **facts, "path": str(run.path), "missing": missing})
    return pd.DataFrame(rows, columns=["run", "preset", "dataset", "path", "missing"])


def _missing(run: Run) -> str:
    """What a run lacks, and the command that makes it; "" if nothing."""
    again = "robustlib run --rerun"
    try:
        again = f"{run.provenance().get('command') or 'robustlib run'} --rerun"
        if not run.finished:
            return f"training {run.status()['state']}: {again.removesuffix(' --rerun')}"
        run.model()
        results, _ = run.results(), run.metrics()
        if not results:
            begun = "evaluation interrupted" if run.evaluation.exists() else "not evaluated"
            return f"{begun}: robustlib evaluate {run.path}"
        records = run.records()
        kept = {name: part["index"].nunique() for name, part in by_attack(records)} if len(records) else {}
        counted = {row["attack"]: row["n"] for row in results["rows"] if row["attack"] != "worst"}
        if short := [attack for attack, n in counted.items() if kept.get(attack, 0) < n]:
            return f"records of {', '.join(short)} are incomplete: {again}"
        return "" if run.audit() else f"not audited: robustlib audit {run.path}"
    except (InputError, OSError, ValueError) as error:  # a damaged file, by whichever library reads it
        return f"a file cannot be read ({' '.join(str(error).split())}): {again}"


def aggregate(board: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds for each kind of run in a leaderboard (see KIND); std is NaN for one seed."""
    groups = board.groupby(KIND, sort=False)
    measured = [name for name in ATTACKS if name in board]  # leaderboards of version 0.1 have no autoattack
    table = groups[[*measured, "minutes"]].agg(["mean", "std"])
    table.columns = table.columns.map("_".join)
    return table.assign(seeds=groups.seed.nunique()).reset_index()
