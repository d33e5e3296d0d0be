"""Tables of what papers claim: what a study found, what the runs at hand say, and where presets differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from robustlib.figures.canvas import attack_name, signed

ABSENT = "no run of "  # how the commonest reason for a gap begins
SIGNS = {"supported": "✓", "not supported": "✕", "undecided": "–"}
KINDS = {
    "last": "{}, last epoch",
    "overfitting": "{}, best less last epoch",
    "overstated": "{} less worst case",
    "metrics": "{}, end of training",
    "growth": "{}, growth over the epochs from 2 on",
    "distance": "{} adversarial distance (Tangent, L2)",
}
FEATURES = {"relative_l2": "relative L2 feature gap", "cosine": "cosine feature gap", "linf": "L∞ feature gap"}
STUDY, HERE = "what the study found", "these runs"
COLUMNS = ["claim", STUDY, HERE, "effect", "verdict", "p (Holm)", "detectable", "notes", "compared", "source"]


def claims(findings: Iterable[Any], reference: Sequence[Any] | None = None) -> pd.DataFrame:
    """One row for each claim: who says so, what was compared, the effect with its 95 % interval, and the verdict.

    Effects are the first variant less the second (or zero), in points; in % of the second for a distance, in % for a
    growth. Detectable is the smallest true effect that these seeds would have found with 80 % power. Where there is a
    `reference`, findings of the committed results, they come first, and what these runs say is one short cell beside them.
    """
    known = {other.claim.name: other for other in reference or ()}
    rows = []
    for finding in findings:
        claim, told = finding.claim, known.get(finding.claim.name, finding)
        cells = {
            "claim": claim.text,
            STUDY: _found(told),
            HERE: _here(finding, told),
            "effect": _effect(finding),
            "verdict": _verdict(finding),
            "p (Holm)": f"{told.p:.3f}" if told.p >= 0.001 else "< 0.001",
            "detectable": f"{100 * told.detectable:.1f} {claim.unit}" if told.detectable < float("inf") else "–",
            "notes": "; ".join([*finding.evidence.notes, *_gaps(finding, but=ABSENT if known else "\n")]),
            "compared": f"{claim.variant} − {claim.than or 'zero'}: {_measure_name(claim.measure)}",
            "source": claim.source,
        }
        rows.append(cells)
    table = pd.DataFrame(rows, columns=COLUMNS).drop(columns=["effect", "verdict"] if known else [STUDY, HERE])
    return table if table["notes"].any() else table.drop(columns="notes")


def _gaps(finding: Any, but: str) -> list[str]:
    """Why seeds have no difference, those with the same reason together: "seeds 1–7: no run of trades"; reasons that begin with `but` are left out."""
    seeds: dict[str, list[int]] = {}
    for sentence in finding.evidence.missing:
        seed, _, reason = sentence.removeprefix("seed ").partition(": ")
        seeds.setdefault(reason, []).append(int(seed))
    return [
        f"seed{'s' * (len(some) > 1)} {_ranges(some)}: {why}" for why, some in seeds.items() if not why.startswith(but)
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """ "0, 2–5" for 0, 2, 3, 4, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        runs = [*runs[:-1], [*runs[-1], number]] if runs and runs[-1][-1] == number - 1 else [*runs, [number]]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _found(finding: Any) -> str:
    return f"{_verdict(finding)} · {_effect(finding)}"


def _here(finding: Any, told: Any) -> str:
    """What the runs at hand say beside what is `told` of the claim, in a few words: "1 of 8 seeds: +2.0 points".

    Where both have the same differences the verdicts may differ all the same: here fewer claims have runs, and Holm is stricter.
    """
    if finding is not told and finding.evidence.complete and finding.evidence.differences == told.evidence.differences:
        return "the same"
    seen, wanted = len(finding.evidence.differences), finding.evidence.wanted
    if finding.evidence.complete:
        return _found(finding)
    effect = f"{signed(100 * finding.interval.effect)} {finding.claim.unit}" if seen else "–"
    return f"{seen} of {wanted} seeds: {effect}" if seen else effect


def claims_by_preset(findings: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """One row for each claim that several presets' findings measure: the claim, in a column a preset its effect and verdict ("–": not
    measured), and whether the decided verdicts "agree" or "differ"; "open" where fewer than two are."""
    measured = {
        preset: {(one.claim.name, one.claim.text): one for one in found if one.evidence.differences}
        for preset, found in findings.items()
    }
    rows = []
    for asked in dict.fromkeys(asked for found in measured.values() for asked in found):
        each = {preset: found.get(asked) for preset, found in measured.items()}
        known = [one for one in each.values() if one is not None]
        if len(known) > 1:
            cells = {preset: "–" if one is None else _found(one) for preset, one in each.items()}
            decided = [one.verdict for one in known if one.verdict != "undecided"]
            word = ("agree" if len(set(decided)) == 1 else "differ") if len(decided) > 1 else "open"
            rows.append({"claim": asked[1], **cells, "verdicts": word})
    return pd.DataFrame(rows)


def _effect(finding: Any) -> str:
    """ "+2.0 points (+0.8 to +3.2)"; "–" where there is none."""
    effect, low, high, _ = finding.interval
    interval = f"{signed(100 * low)} to {signed(100 * high)}" if high < float("inf") else "one seed"
    return f"{signed(100 * effect)} {finding.claim.unit} ({interval})" if effect == effect else "–"


def _verdict(finding: Any) -> str:
    return f"{SIGNS[finding.verdict]} {finding.summary}"


def _measure_name(measure: str) -> str:
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
