"""The verdict on each claim of a study, from paired differences over seeds: interval, p-value, correction for many claims."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from robustlib.errors import InputError
from robustlib.evaluation.metrics import t_interval
from robustlib.runs import Run
from robustlib.workbook.claims.claim import Claim, Evidence, by_variant, gather

LEVEL = 0.05  # of error: intervals are 95 % intervals
POWER = 0.8  # with which the minimal detectable effect would have been found


class Interval(NamedTuple):
    """The mean of paired differences with its Student t interval.

    Attributes:
        effect: the mean.
        low, high: ends of the interval; infinite for one difference.
        sd: standard deviation over seeds, n - 1 in its denominator; NaN for one difference.
    """

    effect: float
    low: float
    high: float
    sd: float


def paired_interval(differences: Sequence[float], level: float = LEVEL, *, step: float = 0.0) -> Interval:
    """mean(d) ± t(1 - level / 2, n - 1) sd(d) / sqrt(n) (Student 1908): it holds the mean over all seeds in 1 - level of studies.

    A seed is the unit: the interval speaks of other trainings judged on these same images, not of other images.

    Args:
        differences: one for each seed, (n,), any unit.
        level: of error, in (0, 1).
        step: in which differences are measured, 1 / 500 for accuracies of 500 images: sd is at least step / sqrt(12), the
            deviation of rounding, so that equal differences of few seeds are not taken for certainty.
    """
    n, mean, sd = _moments(differences, step)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, math.nan)
    return Interval(mean, *t_interval(differences, 1 - level, least_sd=step / math.sqrt(12)), sd)


def p_value(differences: Sequence[float], against: float = 0.0, *, step: float = 0.0) -> float:
    """Two-sided p-value, in [0, 1], of a t-test that the mean difference is `against`; 1 for a single difference.

    At most `level` exactly where `paired_interval(differences, level, step=step)` does not hold `against`.
    """
    from scipy.stats import t

    n, mean, sd = _moments(differences, step)
    if n == 1 or mean == against:
        return 1.0
    return float(2 * t.sf(abs(mean - against) * math.sqrt(n) / sd, n - 1)) if sd > 0 else 0.0


def _moments(differences: Sequence[float], step: float) -> tuple[int, float, float]:
    """How many, their mean, and their standard deviation (0 where only rounding tells them apart)."""
    n = len(differences)
    if n == 0 or not all(map(math.isfinite, differences)):
        raise InputError(f"Paired differences {list(differences)} need at least one number, and only finite ones.")
    sd = stdev(differences) if n > 1 else 0.0
    sd = sd if sd > 1e-12 * max(map(abs, differences)) else 0.0
    return n, fmean(differences), max(sd, step / math.sqrt(12))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the given order: if all at most 0.05 are believed, 5 % of studies err at all.

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_j).
    """
    adjusted, highest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(m), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def minimal_detectable(sd: float, n: int, *, level: float = LEVEL) -> float:
    """The smallest true mean difference that a two-sided paired t-test over n seeds finds with a power of 80 %; infinite for one seed.

    Solves power = P(T > t(1 - level / 2, n - 1)), T noncentral t with n - 1 degrees of freedom and noncentrality
    effect sqrt(n) / sd (Cohen 1988, section 2). In the unit of `sd`, the deviation of the differences over seeds. A claim among
    m is tested at LEVEL / m in Holm's first step.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if n < 2:
        return math.inf
    bar = float(t.ppf(1 - level / 2, n - 1))
    most = bar + 4 * max(bar, 1.0) + 10.0 / math.sqrt(n)  # beyond it the power is 1 in all but 1e-3 of studies
    missed = brentq(lambda shift: float(nct.sf(bar, n - 1, shift)) - POWER, 0.0, most, xtol=1e-6)
    return float(missed) * sd / math.sqrt(n)


Verdict = Literal["supported", "not supported", "undecided"]
NOTHING = Interval(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Finding:
    """What the runs of a study say of one claim. Effects are variant minus than (or zero): below 0 for a true claim of "lower".

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
    verdict: Verdict
    reason: str = ""

    @property
    def summary(self) -> str:
        """The verdict with its reason: "supported", "undecided: 1 of 8 seeds"."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict

    def in_direction(self) -> dict[str, object]:
        """A row for `robustlib.figures.claim_effects`: the effect and its interval, above 0 where they speak for the claim."""
        low, high = sorted(self.claim.sign * end for end in self.interval[1:3])
        effect = {"effect": self.claim.sign * self.interval.effect, "low": low, "high": high}
        facts = {"claim": self.claim.text, "smallest": self.claim.interest, "unit": self.claim.unit}
        return {**facts, "verdict": self.verdict, "words": self.summary, **effect}


def evaluate_claims(claims: Sequence[Claim], runs: Iterable[Run], seeds: Sequence[int]) -> list[Finding]:
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
    found = by_variant(runs)
    evidence = [gather(claim, found, seeds) for claim in claims]
    beyond_zero = holm([_p(part, 0.0) for part in evidence])
    below_interest = holm([_p(part, c.sign * c.interest) for c, part in zip(claims, evidence, strict=True)])
    parts = zip(claims, evidence, beyond_zero, below_interest, strict=True)
    return [_finding(*part, level=LEVEL / len(claims)) for part in parts]


def _p(evidence: Evidence, against: float) -> float:
    """1 until all seeds are there: what is not decided yet cannot make others significant."""
    return p_value(evidence.values, against, step=evidence.step) if evidence.complete else 1.0


def _finding(claim: Claim, evidence: Evidence, p_zero: float, p_interest: float, level: float) -> Finding:
    count = len(evidence.values)
    interval = paired_interval(evidence.values, step=evidence.step) if count else NOTHING
    detectable = minimal_detectable(interval.sd, count, level=level)
    effect, interest = claim.sign * interval.effect, claim.interest
    verdict: Verdict = "undecided"
    reason = ""
    if not evidence.complete:
        reason = f"{count} of {evidence.wanted} seeds"
    elif effect > 0 and p_zero <= LEVEL:
        verdict = "supported"
        if effect < interest and p_interest <= LEVEL:
            reason = f"but by less than {100 * interest:g} {claim.unit}"
    elif effect < interest and p_interest <= LEVEL:
        verdict = "not supported"
        reason = "the opposite holds" if effect < 0 and p_zero <= LEVEL else ""
    else:
        reason = f"effects below {100 * detectable:.1f} {claim.unit} would go unseen"
    return Finding(claim, evidence, interval, p_zero, detectable, verdict, reason)
