"""The verdict on each claim of a study."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from robustlib.claims.claim import Claim
from robustlib.claims.evidence import Evidence, gather
from robustlib.claims.statistics import LEVEL, Interval, holm, minimal_detectable, p_value, paired_interval
from robustlib.runs import Run

NOTHING = Interval(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Finding:
    """What the runs of a study say of one claim. Effects are arm minus than (or zero): below 0 for a true claim of "lower".

    Attributes:
        claim, evidence: what was asked, and the paired differences.
        interval: their mean with its 95 % t interval; NaN without any.
        p: Holm-adjusted p-value of "no difference", over all claims of the study.
        detectable: the smallest true effect that these seeds find with 80 % power, at the study's strictest level.
        verdict: "supported", "not supported" or "undecided".
        reason: why it is undecided, or what must be said of a verdict; "" if nothing.
    """

    claim: Claim
    evidence: Evidence
    interval: Interval
    p: float
    detectable: float
    verdict: Literal["supported", "not supported", "undecided"]
    reason: str = ""

    @property
    def words(self) -> str:
        """The verdict with its reason: "supported", "undecided: 1 of 8 seeds"."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict

    def in_direction(self) -> dict[str, object]:
        """A row for `robustlib.figures.claim_effects`: the effect and its interval, above 0 where they speak for the claim."""
        ends = sorted(self.claim.sign * end for end in self.interval[1:3])
        row = {"claim": self.claim.text, "smallest": self.claim.interest, "verdict": self.verdict, "words": self.words}
        row["unit"] = self.claim.unit
        return row | {"effect": self.claim.sign * self.interval.effect, "low": ends[0], "high": ends[1]}


def judge(claims: Sequence[Claim], runs: Iterable[Run], seeds: Sequence[int]) -> list[Finding]:
    """The verdict on each claim of a study, from runs that are there; nothing is trained.

    *Supported*: the 95 % interval of the effect lies beyond 0 in the claimed direction. *Not supported*: it lies wholly
    below the smallest effect of interest. Both must hold after Holm's correction over all claims of the study, also over
    those without runs, so at most 5 % of studies support a claim that is false. *Undecided*: everything else. Verdicts
    wait for all seeds of the study: who looks after each new seed and stops when pleased errs far more often.

    Args:
        claims: all claims of the study.
        runs: finished runs, e.g. of `find_runs`; others are told as missing.
        seeds: of the study.
    """
    runs = list(runs)
    evidence = [gather(claim, runs, seeds) for claim in claims]
    beyond_zero = holm([_p(part, 0.0) for part in evidence])
    below_interest = holm([_p(part, c.sign * c.interest) for c, part in zip(claims, evidence, strict=True)])
    parts = zip(claims, evidence, beyond_zero, below_interest, strict=True)
    return [_finding(*part, level=LEVEL / len(claims)) for part in parts]


def _p(evidence: Evidence, against: float) -> float:
    """1 until all seeds are there: what is not decided yet cannot make others significant."""
    return p_value(_values(evidence), against, step=evidence.step) if _complete(evidence) else 1.0


def _values(evidence: Evidence) -> list[float]:
    return list(evidence.differences.values())


def _complete(evidence: Evidence) -> bool:
    return len(evidence.differences) == evidence.wanted > 1


def _finding(claim: Claim, evidence: Evidence, p_zero: float, p_interest: float, level: float) -> Finding:
    values = _values(evidence)
    interval = paired_interval(values, step=evidence.step) if values else NOTHING
    detectable = minimal_detectable(interval.sd, len(values), level=level)
    effect, interest = claim.sign * interval.effect, claim.interest

    def finding(verdict: Literal["supported", "not supported", "undecided"], reason: str = "") -> Finding:
        return Finding(claim, evidence, interval, p_zero, detectable, verdict, reason)

    if not _complete(evidence):
        return finding("undecided", f"{len(values)} of {evidence.wanted} seeds")
    if effect > 0 and p_zero <= LEVEL:
        size = f"{100 * interest:g} {claim.unit}"
        below = f"but by less than {size}" if effect < interest and p_interest <= LEVEL else ""
        return finding("supported", below)
    if effect < interest and p_interest <= LEVEL:
        return finding("not supported", "the opposite holds" if effect < 0 and p_zero <= LEVEL else "")
    return finding("undecided", f"effects below {100 * detectable:.1f} {claim.unit} would go unseen")
