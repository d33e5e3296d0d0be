"""Tables of many runs: leaderboards and means over seeds, distances, feature spaces, purifiers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from robustlib.figures.canvas import ATTACKS, attack_name, mean_percent, percent, signed, verdict_label, worst_verdict
from robustlib.runs import Run, recall
from robustlib.runs.files import NO_WEIGHTS
from robustlib.workbook.tables.runs import as_markdown, share

COMMAND = re.compile(r": robustlib .*$", re.DOTALL)  # that completes a run
FIRST = ("clean", "worst")  # the numbers to compare stand before those of single attacks
#: The two verdicts of an audit: on the worst case, and on the attack of the method's paper.
BADGES = ("headline", "protocol")


def leaderboard(board: pd.DataFrame) -> pd.DataFrame:
    """The runs of a `robustlib.evaluation.leaderboard`, one a row; intervals where the board has them.

    Headline and protocol are the badges of the audit, of the worst case and of the method's own protocol; notes: stale
    (its numbers would be others today), warnings. Columns that would say the same of every run are left out.
    """
    attacks = [name for name in ATTACKS if name in board and name not in FIRST and board[name].notna().any()]
    rows = [
        {
            "method": row["title"] if row.get("external") else row["method"],
            "arch": row["arch"],
            **({"threat": row["threat"]} if row.get("threat") else {}),
            "seed": "–" if row.get("external") else row["seed"],
            "changed": row.get("changed", "") or "",
            **{ATTACKS[name]: share(row, name) for name in FIRST},
            **{kind: verdict_label(row[f"{kind}_badge"]) for kind in BADGES if f"{kind}_badge" in row},
            **{ATTACKS[name]: share(row, name) for name in attacks},
            "minutes": f"{row['minutes']:.1f}".replace("nan", "–"),
            "notes": "; ".join(["stale"] * bool(row.get("stale")) + list(row.get("warnings", []))),
        }
        for row in board.to_dict("records")
    ]
    return _without_dull(pd.DataFrame(rows))


def _without_dull(table: pd.DataFrame) -> pd.DataFrame:
    empty = [name for name in ("changed", "notes") if name in table and not table[name].any()]
    empty += [label for label in ATTACKS.values() if label in table and (table[label] == "–").all()]
    alike = [name for name in ("arch", "threat") if name in table and table[name].nunique() == 1]
    return table.drop(columns=empty + alike)


def over_seeds(aggregate: pd.DataFrame, board: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean ± standard deviation over seeds, from `robustlib.evaluation.aggregate`; one seed has no deviation.

    With the leaderboard they were made of, the gravest badges of each method's runs stand beside the worst case.
    """
    rows = []
    for row in aggregate.to_dict("records"):
        names = ("method", "arch", "changed", "attack passes", "seeds")
        cells: dict[str, Any] = {key: row[key] for key in names if key in row}
        for name in (*FIRST, *ATTACKS):  # first what matters most
            cells[ATTACKS[name]] = mean_percent(row.get(f"{name}_mean"), row.get(f"{name}_std"))
            if name == "worst" and board is not None:
                keys = ("dataset", "method", "arch", "changed", "precision", "n")
                shared = [key for key in keys if key in row and key in board]
                runs = board[(board[shared] == [row[key] for key in shared]).all(axis=1)]
                known = [kind for kind in BADGES if f"{kind}_badge" in runs]
                cells |= {kind: verdict_label(worst_verdict(runs[f"{kind}_badge"])) for kind in known}
        rows.append(cells)
    return _without_dull(pd.DataFrame(rows))


def objections(board: pd.DataFrame) -> str:
    """What the badges of a leaderboard say against its numbers, as Markdown; that there is nothing, if so."""
    said: dict[str, list[str]] = {}
    for row in board.to_dict("records"):
        names = ["method", "changed"] + ["arch"] * (board["arch"].nunique() > 1)
        who = as_markdown(" ".join(str(row[key]) for key in names if row.get(key) not in ("", None)))
        for kind in BADGES:
            if (badge := row.get(f"{kind}_badge")) in ("amber", "red"):
                text = as_markdown(row[f"{kind}_text"])
                said.setdefault(f"**{who}, {kind}**", []).append(f"{verdict_label(badge)}, seed {row['seed']}: {text}")
    lines = [f"- {who}: {' '.join(texts)}" for who, texts in said.items()]
    silent = sum(word not in ("pass", "amber", "red", "n/a") for word in board.get("headline_badge", [""] * len(board)))
    if silent:
        lines.append(f"- {silent} of {len(board)} runs are not audited; `robustlib audit RUN` does it.")
    return "\n".join(lines) or "All runs are audited, and no check objects to a headline or a protocol."


def inventory(runs: Iterable[Run]) -> pd.DataFrame:
    """All runs, finished, damaged or neither, as `robustlib list` shows them."""
    rows = []
    for run in runs:
        cells = recall(run.path, "inventory", partial(_cells, run))
        cells |= {"state": run.status()["state"]} if cells["state"] == "running" else {}  # unless its process is gone
        rows.append({**cells, "run directory": run.path})
    return pd.DataFrame(rows)


def _cells(run: Run) -> dict[str, Any]:
    dashes = dict.fromkeys(("clean", "worst case", "headline"), "–")
    cells = {"method": run.path.parent.name, "seed": "?", "state": "damaged", **dashes, "notes": run.damage}
    if not run.damage:
        params, named = run.params(), {"clean": "clean", "worst": "worst case"}
        cells |= {"method": params.get("method", "?"), "seed": params.get("seed", "?")}
        cells["state"] = run.read("status.json").get("state", "new")
        measured = {row["attack"]: percent(row["accuracy"]) for row in run.results().get("rows", [])}
        cells |= {name: measured[attack] for attack, name in named.items() if attack in measured}
        cells["headline"] = verdict_label(run.audit().get("badges", {}).get("headline", {}).get("verdict", ""))
        cells["notes"] = ", ".join(filter(None, [run.changed, "stale" if run.stale else ""]))
    return cells


def paired(differences: pd.DataFrame) -> pd.DataFrame:
    """The rows of `robustlib.evaluation.paired_differences`, in points."""
    rows = []
    for row in differences.to_dict("records"):
        low, high = (signed(100 * row[end]) for end in ("low", "high"))
        told = "one" if row["low"] > 0 else "other" if row["high"] < 0 else ""
        better = {"one": row["one"], "other": row["other"], "": "undecided"}[told]
        alone = {
            f"only the {side} one": f"{row[f'only_{key}']:g}" for side, key in (("first", "one"), ("second", "other"))
        }
        difference = f"{signed(100 * row['difference'])} ({low} to {high})"
        rows.append(
            {
                "first": row["one"],
                "second": row["other"],
                "images": row["n"],
                **alone,
                "points": difference,
                "better": better,
            }
        )
    return pd.DataFrame(rows)


def lacks(frame: pd.DataFrame) -> str:
    """What the runs of `robustlib.evaluation.incomplete` lack, as Markdown: each reason once, with how many have it; "" without runs."""
    whys = [missing.replace(path, "…") for path, missing in zip(frame["path"], frame["missing"], strict=True)]
    said = []
    for why, count in Counter(COMMAND.sub("", why) for why in whys).most_common():
        words = f": {as_markdown(why)}"
        if why == NO_WEIGHTS:
            words = (
                " have no weights; their numbers are shown" if count > 1 else " has no weights; its numbers are shown"
            )
        said.append(f"{count} run{'s' * (count > 1)}{words}.")
    return " ".join(said)


def incomplete(frame: pd.DataFrame) -> pd.DataFrame:
    """What the runs of `robustlib.evaluation.incomplete` lack, and of which preset they are where there are several."""
    shared = ["preset"] if frame["preset"].nunique() > 1 else []
    return frame[["run", *shared, "missing"]].rename(columns={"missing": "what is missing"}).reset_index(drop=True)


# As with the verdicts of audits, a sign and a word, so that colour is never all there is.
#: Attacks that look for the smallest perturbation, by how their repr begins.
MINIMA = {"Tangent": "Tangent (decisions only)", "FAB": "FAB (white box)"}


def distances(compared: pd.DataFrame) -> pd.DataFrame:
    """Mean and median L2 distances of `robustlib.evaluation.compare_distances`, with 95 % bootstrap intervals."""
    rows = []
    for row in compared.to_dict("records"):
        cells = {"model": row["model"], "accuracy": percent(row["correct"] / row["images"])}
        cells |= {kind: _distance(row, kind, f"{kind}_") for kind in ("mean", "median")}
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        rows.append({**cells, "images compared": f"{row['n']} of {row['images']}{failed}"})
    return pd.DataFrame(rows)


def _distance(row: Mapping[Any, Any], name: str, prefix: str = "") -> str:
    """A distance with its interval, "0.412 (0.398–0.426)"; "–" for one that is not there."""
    value, low, high = row[name], row[f"{prefix}low"], row[f"{prefix}high"]
    return "–" if value != value else f"{value:.3f} ({low:.3f}–{high:.3f})"


def strength_grid(grid: pd.DataFrame) -> pd.DataFrame:
    """What each strength of each variant costs and buys on validation images, and which is chosen.

    Of the chosen one it says if the grid ends there, so that a better one may lie beyond, and if its distance cannot be told
    from no penalty's (the interval of their difference holds 0) or is shorter. From `robustlib.evaluation.select_strength`.
    """
    rows = []
    for row in grid.to_dict("records"):
        strengths = grid.loc[grid["variant"] == row["variant"], "strength"]
        remarks = {"✓ chosen": True, "the only one of the grid": len(strengths) == 1}
        remarks["largest of the grid"] = row["strength"] == strengths.max() > strengths.min()
        remarks["smallest of the grid"] = row["strength"] == strengths.min() < strengths.max()
        remarks["no different from none"] = row["gain_low"] <= 0 <= row["gain_high"]
        remarks["nearer than none"] = row["gain_high"] < 0
        if not row["chosen"]:
            remarks = {"✕ costs too much accuracy": not row["allowed"]}
        cells = {
            "variant": row["variant"],
            "strength": f"{row['strength']:g}",
            "seeds": row["seeds"],
            "accuracy": percent(row["accuracy"]),
            "mean distance": _distance(row, "distance"),
            "images compared": row["n"],
            "": ", ".join(words for words, true in remarks.items() if true),
        }
        rows.append(cells)
    return pd.DataFrame(rows)


def distances_over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean distances over seeds of `experiments.variant_distances`, by Tangent and by FAB, with 95 % intervals."""
    rows = measured.to_dict("records")
    table = measured[["variant", "seeds"]].reset_index(drop=True)
    table[f"mean distance, {MINIMA['Tangent']}"] = [_distance(row, "distance") for row in rows]
    table[f"mean distance, {MINIMA['FAB']}"] = [_distance(row, "fab", "fab_") for row in rows]
    return table.assign(**{"images compared": measured["n"].to_numpy()})


CORRELATES = {
    "jacobian": "Frobenius norm of the features' Jacobian, mean over images",
    "sigma": "sum of σ² over the representation's layers",
}


def correlations(family: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation with the mean adversarial distance over runs; those of a variant are not independent.

    From `robustlib.workbook.experiments.spectral_family`; of fewer than three runs there is no row.
    """
    if len(family) < 3:
        return pd.DataFrame()
    ranks = family.rank(numeric_only=True).corr()["distance"]
    counts = {"runs": len(family), "variants": family["title"].nunique(), "images": family["n"].min()}
    return pd.DataFrame(
        {"measure": words, "rank correlation with distance": signed(float(ranks[name]), 2), **counts}
        for name, words in CORRELATES.items()
    )


MEASURES = {  # of `robustlib.representation.measures` -> heading, decimals
    "relative_l2": ("relative L2 gap", 3),
    "cosine": ("cosine gap", 3),
    "alignment": ("alignment, clean to adversarial", 3),
    "margin": ("exclusion margin, clean", 3),
    "adversarial_margin": ("exclusion margin, adversarial", 3),
    "cka": ("CKA, clean with adversarial", 3),
    "effective_rank": ("effective rank, clean", 1),
    "adversarial_effective_rank": ("effective rank, adversarial", 1),
    "variability": ("within-class spread (NC1)", 3),
}


def geometry(frame: pd.DataFrame) -> pd.DataFrame:
    """The feature spaces of runs side by side: mean ± standard deviation over the seeds of each method, then each run.

    Gaps, alignment and NC1 are the better the smaller, exclusion margins the better the larger. The frame is that of
    `robustlib.representation.measure_runs`, with `method`, `seed` and optionally `title`, `changed` and `layer`.
    """
    rows = frame.assign(method=frame.get("title", frame["method"]).fillna(frame["method"]))
    names = [name for name in MEASURES if name in rows]
    who = ["method", *(name for name in ("changed", "layer") if name in rows and rows[name].nunique() > 1)]
    several = [part for _, part in rows.groupby(who, sort=False, dropna=False) if len(part) > 1]
    table: list[dict[Any, Any]] = []
    for part in (*several, *(rows.iloc[[k]] for k in range(len(rows)))):
        mean = f"mean of {len(part)}"
        cells = part[who].iloc[0].to_dict() | {"seed": mean if len(part) > 1 else str(part["seed"].iloc[0])}
        for heading, digits, values in ((*MEASURES[name], part[name].astype(float)) for name in names):
            number = f"{values.mean():.{digits}f}".replace("-", "−")
            spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
            cells[heading] = number + spread if values.notna().all() else "–"
        table.append(cells)
    return pd.DataFrame(table, columns=[*who, "seed", *(MEASURES[name][0] for name in names)])


def consistency(frame: pd.DataFrame) -> pd.DataFrame:
    """How far copies of images move in the feature spaces of models, from `robustlib.representation.consistency`."""
    cells = {MEASURES["relative_l2"][0]: [f"{value:.3f}" for value in frame["relative_l2"]]}
    cells |= {"alignment with the image": [f"{value:.3f}" for value in frame["alignment"]]}
    return frame[["model", "copy"]].assign(**cells, **{"same answer": list(map(percent, frame["same answer"]))})


def unseen(measured: pd.DataFrame) -> pd.DataFrame:
    """Known worst case, unseen attacks, and what a run loses to them, from `robustlib.evaluation.measure_unseen`."""
    rows = []
    for name, run in measured.groupby("run", sort=False):
        cells, lost = {"run": name}, {}
        for row in run.to_dict("records"):
            attack = attack_name(row["attack"])
            cells[attack] = share(row)
            if row["attack"] not in ("clean", "known"):
                lost[f"lost to {attack.removeprefix('unseen: ')}"] = signed(100 * row["loss"])
        rows.append({**cells, **lost, "images": int(run["n"].iloc[0])})
    return pd.DataFrame(rows)


def inflation(grid: pd.DataFrame) -> pd.DataFrame:
    """What a weak and a strong attack say of each purifier of `experiments.purifier_grid`, and their difference."""
    return pd.DataFrame(
        {
            "model": row["row"],
            "clean": percent(row["clean"]),
            "weak": share(row, "weak"),
            "strong": share(row, "strong"),
            "weak less strong": f"{signed(100 * (row['weak'] - row['strong']))} points",
            "worst case": percent(row["worst"]),
            "seeds": row["seeds"],
            "images": row["n"],
        }
        for row in grid.to_dict("records")
    )


def cost(frame: pd.DataFrame) -> pd.DataFrame:
    """What the purifier costs each image, from `robustlib.representation.forward_cost`."""
    sides = {f"{side}, ms an image": [f"{value:.3g}" for value in frame[side]] for side in ("classifier", "purified")}
    return frame[["pass"]].assign(**sides, ratio=[f"{value:.1f}×" for value in frame["ratio"]])
