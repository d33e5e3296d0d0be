"""Tables of many runs: leaderboards and means over seeds, claims, distances, feature spaces, purifiers."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from robustlib.figures.canvas import ATTACKS, attack_name, mean_percent, percent, signed, verdict_label, worst_verdict

FIRST = ("clean", "worst")  # the numbers to compare stand before those of single attacks
BADGES = ("headline", "protocol")


def leaderboard(board: pd.DataFrame) -> pd.DataFrame:
    """The runs of a `robustlib.evaluation.leaderboard`, one a row; intervals where the board has them.

    The columns headline and protocol are the badges of the audit: of the worst case, and of the method's own protocol.
    Columns that would say the same of every run (one architecture, no notes) are left out.
    """
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


def _without_dull(table: pd.DataFrame) -> pd.DataFrame:
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


def over_seeds(aggregate: pd.DataFrame, board: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean ± standard deviation over seeds of each method; one seed has no deviation and says so.

    Args:
        aggregate: of `robustlib.evaluation.aggregate`.
        board: the leaderboard it was made of, for the gravest badges of each method's runs.
    """
    rows = []
    for row in aggregate.to_dict("records"):
        numbers: dict[str, Any] = {}
        for name in (*FIRST, *ATTACKS):  # first what matters most
            numbers[ATTACKS[name]] = mean_percent(row.get(f"{name}_mean"), row.get(f"{name}_std"))
            if name == "worst" and board is not None:
                numbers |= _worst_badges(row, board)
        names = ("method", "arch", "changed", "attack passes", "seeds")
        rows.append({key: row[key] for key in names if key in row} | numbers)
    return _without_dull(pd.DataFrame(rows))


def _worst_badges(row: Mapping[Any, Any], board: pd.DataFrame) -> dict[str, str]:
    """The gravest badge of each kind among the runs that a row sums up."""
    shared = [key for key in ("dataset", "method", "arch", "changed", "precision", "n") if key in row and key in board]
    own = board[(board[shared] == [row[key] for key in shared]).all(axis=1)]
    return {kind: verdict_label(worst_verdict(own[f"{kind}_badge"])) for kind in BADGES if f"{kind}_badge" in own}


def objections(board: pd.DataFrame) -> str:
    """What the badges of a leaderboard say against its numbers, as Markdown; that there is nothing, if so.

    From `robustlib.evaluation.leaderboard`.
    """
    said: dict[str, list[str]] = {}
    for row in board.to_dict("records"):
        names = ["method", "changed"] + ["arch"] * (board["arch"].nunique() > 1)
        who = " ".join(str(row[key]) for key in names if row.get(key) not in ("", None))
        for kind in ("headline", "protocol"):
            if row.get(f"{kind}_badge") in ("amber", "red"):
                text = f"{verdict_label(row[f'{kind}_badge'])}, seed {row['seed']}: {escape(str(row[f'{kind}_text']), quote=False)}"
                said.setdefault(f"**{who}, {kind}**", []).append(text)
    lines = [f"- {who}: {' '.join(texts)}" for who, texts in said.items()]
    silent = sum(word not in ("pass", "amber", "red", "n/a") for word in board.get("headline_badge", [""] * len(board)))
    if silent:
        lines.append(f"- {silent} of {len(board)} runs are not audited; `robustlib audit RUN` does it.")
    return "\n".join(lines) or "All runs are audited, and no check objects to a headline or a protocol."


def inventory(runs: Iterable[Any]) -> pd.DataFrame:
    """All runs, finished or not, as `robustlib list` shows them."""
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


def incomplete(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that a comparison does not show, or not in full, and what they lack.

    From `robustlib.evaluation.incomplete`; the preset is told where there are several.
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


def claims(findings: Iterable[Any], reference: Sequence[Any] | None = None) -> pd.DataFrame:
    """One row for each claim: who says so, what was compared, the effect with its 95 % interval, and the verdict.

    Effects are the first variant less the second (or zero), in points; in % of the second where the measure is a distance, and in %
    where it is a growth. Detectable is the smallest true effect that these seeds would have found with 80 % power. Verdicts of
    `reference`, findings of the committed results, stand in a column of their own.
    """
    findings = list(findings)
    table = pd.DataFrame([_row(finding) for finding in findings], columns=COLUMNS)
    if reference:
        known = {other.claim.name: _verdict(other) for other in reference}
        verdicts = [known.get(finding.claim.name, "–") for finding in findings]
        table.insert(COLUMNS.index("verdict") + 1, "reference", verdicts)
    return table if table["notes"].any() else table.drop(columns="notes")


def _verdict(finding: Any) -> str:
    return f"{SIGNS[finding.verdict]} {finding.summary}"


def _row(finding: Any) -> dict[str, str]:
    claim, (effect, low, high, _) = finding.claim, finding.interval
    interval = f"{signed(100 * low)} to {signed(100 * high)}" if high < float("inf") else "one seed"
    return {
        "claim": claim.text,
        "source": claim.source,
        "compared": f"{claim.variant} − {claim.than or 'zero'}: {measure_name(claim.measure)}",
        "effect": f"{signed(100 * effect)} {claim.unit} ({interval})" if effect == effect else "–",
        "p (Holm)": f"{finding.p:.3f}" if finding.p >= 0.001 else "< 0.001",
        "detectable": f"{100 * finding.detectable:.1f} {claim.unit}" if finding.detectable < float("inf") else "–",
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


def _gaps(missing: Iterable[str]) -> list[str]:
    """Seeds without a difference, those with the same reason together."""
    seeds: dict[str, list[str]] = {}
    for sentence in missing:
        seed, _, reason = sentence.removeprefix("seed ").partition(": ")
        seeds.setdefault(reason, []).append(seed)
    return [f"seed{'s' * (len(some) > 1)} {', '.join(some)}: {reason}" for reason, some in seeds.items()]


# Attacks that look for the smallest perturbation, by how their repr begins.
MINIMA = {"Tangent": "Tangent (decisions only)", "FAB": "FAB (white box)"}


def distances(compared: pd.DataFrame) -> pd.DataFrame:
    """Mean and median L2 adversarial distance of several models on the same images, with 95 % bootstrap intervals.

    From `robustlib.evaluation.compare_distances`.
    """
    rows = []
    for row in compared.to_dict("records"):
        cells = {"model": row["model"], "accuracy": percent(row["correct"] / row["images"])}
        cells |= {kind: _number(row[kind], row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("mean", "median")}
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        rows.append({**cells, "images compared": f"{row['n']} of {row['images']}{failed}"})
    return pd.DataFrame(rows)


def strength_grid(grid: pd.DataFrame) -> pd.DataFrame:
    """What each strength of each variant costs and buys on validation images, and which is chosen.

    It says of the chosen one if the grid ends there, so that a better one may lie beyond, and if its distance cannot be told
    from no penalty's (the interval of their difference holds 0) or is a shorter one.

    Args:
        grid: of `robustlib.evaluation.select_strength`.
    """
    rows = [
        {
            "variant": row["variant"],
            "strength": f"{row['strength']:g}",
            "seeds": row["seeds"],
            "accuracy": percent(row["accuracy"]),
            "mean distance": _number(row["distance"], row["low"], row["high"]),
            "images compared": row["n"],
            "": _choice(row, grid.loc[grid["variant"] == row["variant"], "strength"]),
        }
        for row in grid.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _choice(row: Mapping[Any, Any], strengths: pd.Series) -> str:
    """What is said of a strength among those of its variant."""
    if not row["chosen"]:
        return "" if row["allowed"] else "✕ costs too much accuracy"
    remarks = {"✓ chosen": True, "the only one of the grid": len(strengths) == 1}
    remarks["largest of the grid"] = row["strength"] == strengths.max() > strengths.min()
    remarks["smallest of the grid"] = row["strength"] == strengths.min() < strengths.max()
    remarks["no different from none"] = row["gain_low"] <= 0 <= row["gain_high"]
    remarks["nearer than none"] = row["gain_high"] < 0
    return ", ".join(words for words, true in remarks.items() if true)


def distances_over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean adversarial distances of variants over seeds with 95 % intervals, by Tangent and beside it by FAB.

    From `robustlib.workbook.experiments.variant_distances`.
    """
    rows = [
        {
            "variant": row["variant"],
            "seeds": row["seeds"],
            f"mean distance, {MINIMA['Tangent']}": _number(row["distance"], row["low"], row["high"]),
            f"mean distance, {MINIMA['FAB']}": _number(row["fab"], row["fab_low"], row["fab_high"]),
            "images compared": row["n"],
        }
        for row in measured.to_dict("records")
    ]
    return pd.DataFrame(rows)


CORRELATES = {
    "jacobian": "Frobenius norm of the features' Jacobian, mean over images",
    "sigma": "sum of σ² over the representation's layers",
}


def correlations(family: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation with the mean adversarial distance over runs; runs of one variant are no independent ones.

    From `robustlib.workbook.experiments.spectral_family`; of fewer than three runs there is no row.
    """
    ranks = family.rank(numeric_only=True).corr() if len(family) > 2 else pd.DataFrame()
    rows = [
        {"measure": words, "rank correlation with distance": signed(float(ranks["distance"][name]), 2)}
        | {"runs": len(family), "variants": family["title"].nunique(), "images": family["n"].min()}
        for name, words in CORRELATES.items()
        if len(ranks)
    ]
    return pd.DataFrame(rows)


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

    Gaps, alignment and NC1 are the better the smaller, exclusion margins the better the larger; a method of one seed has no
    mean. Measures that the frame lacks are left out; "–" is a number that is not there.

    Args:
        frame: of `robustlib.representation.measure_runs`, a row a run (and layer): `method`, `seed`, the measures, and
            optionally `title`, `changed` and `layer`.
    """
    rows = frame.assign(method=frame.get("title", frame["method"]).fillna(frame["method"]))
    names = [name for name in MEASURES if name in rows]
    who = ["method", *(name for name in ("changed", "layer") if name in rows and rows[name].nunique() > 1)]
    means: list[dict[Any, Any]] = [
        dict(zip(who, key, strict=True)) | {"seed": f"mean of {len(part)}"} | _geometry_cells(part, names)
        for key, part in rows.groupby(who, sort=False, dropna=False)
        if len(part) > 1
    ]
    single: list[dict[Any, Any]] = [
        row[who].to_dict() | {"seed": str(row["seed"])} | _geometry_cells(row.to_frame().T, names)
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(means + single, columns=[*who, "seed", *(MEASURES[name][0] for name in names)])


def consistency(frame: pd.DataFrame) -> pd.DataFrame:
    """How far copies of images move in the feature spaces of models, for people, from `robustlib.representation.measures`."""
    same = [percent(share) for share in frame["same answer"]]
    cells = {MEASURES["relative_l2"][0]: [f"{value:.3f}" for value in frame["relative_l2"]]}
    cells |= {"alignment with the image": [f"{value:.3f}" for value in frame["alignment"]], "same answer": same}
    return frame[["model", "copy"]].assign(**cells)


def _geometry_cells(rows: pd.DataFrame, names: list[str]) -> dict[str, str]:
    """The measures of one run, or the means of several with their standard deviations."""
    cells = {}
    for name in names:
        heading, digits = MEASURES[name]
        values = rows[name].astype(float)
        spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        mean = f"{values.mean():.{digits}f}".replace("-", "−")
        cells[heading] = mean + spread if values.notna().all() else "–"
    return cells


def unseen(measured: pd.DataFrame) -> pd.DataFrame:
    """Known worst case and unseen attacks of several runs on the same images, and what each run loses from one to the other.

    From `robustlib.evaluation.measure_unseen`.
    """
    rows = []
    for name, run in measured.groupby("run", sort=False):
        cells = {
            attack_name(row["attack"]): percent(row["accuracy"], row.get("low"), row.get("high"))
            for row in run.to_dict("records")
        }
        lost = {
            f"lost to {attack_name(row['attack']).removeprefix('unseen: ')}": signed(100 * row["loss"])
            for row in run.to_dict("records")
            if row["attack"] not in ("clean", "known")
        }
        rows.append({"run": name, **cells, **lost, "images": int(run["n"].iloc[0])})
    return pd.DataFrame(rows)


def inflation(grid: pd.DataFrame) -> pd.DataFrame:
    """Purifiers by transform and fine-tuning: what a weak attack says of each, what a strong one, and how far these are apart.

    From `robustlib.workbook.experiments.purifier_grid`.
    """
    rows = []
    for row in grid.to_dict("records"):
        cells = {kind: percent(row[kind], row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("weak", "strong")}
        cells = {"model": row["row"], "clean": percent(row["clean"]), **cells}
        cells |= {"weak less strong": f"{signed(100 * (row['weak'] - row['strong']))} points"}
        rows.append({**cells, "worst case": percent(row["worst"]), "seeds": row["seeds"], "images": row["n"]})
    return pd.DataFrame(rows)


def cost(frame: pd.DataFrame) -> pd.DataFrame:
    """What the purifier costs each image, for people, from `robustlib.representation.forward_cost`."""
    sides = {f"{side}, ms an image": [f"{value:.3g}" for value in frame[side]] for side in ("classifier", "purified")}
    return frame[["pass"]].assign(**sides, ratio=[f"{value:.1f}×" for value in frame["ratio"]])


def _number(value: float, low: float, high: float) -> str:
    """A number with its interval, "0.412 (0.398–0.426)"; "–" for one that is not there."""
    return "–" if value != value else f"{value:.3f} ({low:.3f}–{high:.3f})"
