"""What runs say of a paper's claims."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import attack_name

if TYPE_CHECKING:
    import pandas as pd

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

    Effects are the first arm less the second (or zero), in points; in % of the second where the measure is a distance, and in %
    where it is a growth.
    Detectable is the smallest true effect that these seeds would have found with 80 % power.

    Args:
        findings: of `robustlib.claims.judge`.
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
    return f"{SIGNS[finding.verdict]} {finding.words}"


def _row(finding: Any) -> dict[str, str]:
    claim, (effect, low, high, _) = finding.claim, finding.interval
    detectable = f"{100 * finding.detectable:.1f} {claim.unit}" if finding.detectable < float("inf") else "–"
    return {
        "claim": claim.text,
        "source": claim.source,
        "compared": f"{claim.arm} − {claim.than or 'zero'}: {measure_name(claim.measure)}",
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
