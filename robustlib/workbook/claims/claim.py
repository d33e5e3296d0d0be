"""A claim and its verdict: paired differences over seeds, measured by finished runs; interval, p-value, correction for many claims."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, partial
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple, TypeVar, cast

import pandas as pd

from robustlib.errors import InputError, check_fields, check_known, shown
from robustlib.evaluation.metrics import t_interval
from robustlib.runs import Run
from robustlib.workbook.claims.measures import Pairs, measure_of, source_of

T = TypeVar("T")
Key = tuple[str, int]  # a variant and a seed
SIGNED = ("growth/", "metrics/", "overfitting/", "overstated/", "unseen/price")  # may be compared with zero


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper says that `variant` has a higher (or lower) `measure` than `than`; both are trained with the same seeds.

    Without `than` the measure of the one variant is compared with zero: "the gap grows".
    """

    name: str  # short; unique within its study
    text: str  # the claim in a sentence
    source: str  # the paper that makes it, and where
    measure: str  # what is compared; see robustlib/workbook/claims/measures.py
    variant: str  # a method with its changes from the preset, as `variant_of` writes them: "trades", "trades beta=1.0"
    than: str = ""  # the variant it is compared with; "": zero
    direction: Literal["higher", "lower"] = "higher"
    relative: bool = False  # differences as shares of `than`'s value, as distances need: their scale is arbitrary
    smallest: float | None = None  # smallest effect of interest; None: 0.01 (1 point), relative 0.05 (5 %)

    def __post_init__(self) -> None:
        check_fields(self)
        problem = ""
        if self.variant == self.than:
            problem = f" compares {self.variant!r} with itself: give two different variants."
        elif not self.than and (self.relative or not self.measure.startswith(SIGNED)):
            what = "differences as shares" if self.relative else f"{self.measure!r}, which is never below zero,"
            problem = f" compares {what} with zero: give the variant to compare with as `than`."
        elif not self.interest > 0:
            problem = f": smallest={self.smallest!r}: give an effect above 0, e.g. 0.01."
        if problem:
            raise InputError(f"Claim {self.name!r}{problem}")

    @property
    def variants(self) -> tuple[str, ...]:
        """Whose runs decide it: `variant` and, if there is one, `than`."""
        return (self.variant, self.than) if self.than else (self.variant,)

    @property
    def interest(self) -> float:
        """The smallest effect of interest, above 0: a fraction of the images, or a share of a distance."""
        usual = 0.05 if self.unit == "%" else 0.01
        return usual if self.smallest is None else self.smallest

    @property
    def sign(self) -> int:
        """1 where the claim says higher, -1 where it says lower."""
        return 1 if self.direction == "higher" else -1

    @property
    def unit(self) -> str:
        """What a hundredth of an effect is called: "points", or "%" if relative or a growth."""
        return "%" if self.relative or self.measure.startswith("growth/") else "points"


REQUIRED = [field.name for field in fields(Claim) if field.default is MISSING]
KNOWN = [field.name for field in fields(Claim)]


def read_claims(rows: object, place: str) -> list[Claim]:
    """Claims from a list of mappings with the fields of `Claim`, as the YAML file `place` gives them."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{place}: write claims as a list of mappings with {', '.join(REQUIRED)}.")
    claims: list[Claim] = []
    for row in rows:
        row = {"variant" if key == "arm" else key: value for key, value in row.items()}  # its name in version 0.1
        for key in row:
            check_known(f"field of a claim in {place}", key, KNOWN)
        if lacking := [key for key in REQUIRED if key not in row]:
            raise InputError(f"{place}: the claim {shown(row.get('name', row))} has no {lacking[0]!r}: add it.")
        if row["name"] in [claim.name for claim in claims]:
            raise InputError(f"{place} has two claims called {row['name']!r}: give each a name of its own.")
        try:
            claims.append(Claim(**row))
        except InputError as error:
            raise InputError(f"{place}, the claim {shown(row['name'])}: {error}") from error
    return claims


def variant_of(run: Run) -> str:
    """The variant of a method that a run is: the method and what was changed from its preset, "trades beta=1.0"."""
    return str(run.brief()["variant"])


def by_variant(runs: Iterable[Run]) -> dict[Key, Run]:
    """The first run of each variant and seed."""
    first: dict[Key, Run] = {}
    for run in runs:
        brief = run.brief()
        first.setdefault((brief["variant"], -1 if brief["seed"] is None else brief["seed"]), run)
    return first


@dataclass(frozen=True)
class ReadOnce(Run):
    """A run whose files are read and checked once, while claims ask for each of them many times."""

    known: dict[str, Any] = field(default_factory=dict, compare=False)

    def _once(self, what: str, read: Callable[[], T]) -> T:
        if what not in self.known:
            self.known[what] = read()
        return cast(T, self.known[what])

    def read(self, name: str) -> dict[str, Any]:
        return self._once(name, partial(super().read, name))

    def params(self) -> dict[str, Any]:
        return self._once("parameters", super().params)

    def metrics(self) -> pd.DataFrame:
        return self._once("metrics", super().metrics)


@dataclass(frozen=True)
class Evidence:
    """The paired differences of a claim, or the variant's own values if it is compared with zero."""

    differences: Mapping[int, float]  # seed -> variant minus than (a share of than's value if the claim is relative)
    wanted: int  # how many seeds the study asks for
    missing: tuple[str, ...] = ()  # why seeds have no difference, a sentence each
    notes: tuple[str, ...] = ()  # what a reader must know of those that have
    step: float = 0.0  # of differences: one image where they are accuracies; 0 for what is continuous

    @property
    def complete(self) -> bool:
        """Whether all seeds of the study are there, two at least."""
        return len(self.differences) == self.wanted > 1


def gather(claim: Claim, runs: Iterable[Run] | Mapping[Key, Run], seeds: Sequence[int]) -> Evidence:
    """Pairs the runs of both variants by seed (see `by_variant`); without `than`, each stands alone.

    Only runs that were measured in the same setting are paired: same data set, images, threat, weights (best), attack seed. Which
    setting is what most of them share. What is left out stands in `Evidence.missing`.
    """
    source, every = source_of(claim.measure), runs if isinstance(runs, Mapping) else by_variant(runs)
    own = {key: run for key, run in every.items() if key[0] in claim.variants and key[1] in seeds}
    settings = {key: source.setting(run) for key, run in own.items() if run.finished and source.stored(run)}
    common = Counter(tuple(setting.items()) for setting in settings.values()).most_common(1)
    shared = dict(common[0][0]) if common else {}
    differences, missing, pairs = {}, [], []
    for seed in seeds:
        keys = [(name, seed) for name in claim.variants]
        reasons = [_unfit(key[0], own.get(key), settings.get(key), shared, claim.measure) for key in keys]
        reasons = [reason for reason in reasons if reason]
        if not reasons:
            pair = [own[key] for key in keys]
            try:
                value, than = [*(measure_of(run, claim.measure, pair) for run in pair), 0.0][:2]
                if claim.relative and than <= 0:
                    raise InputError(f"{claim.measure} of {claim.than} is {than:g}, and nothing is a share of it")
                differences[seed] = (value - than) / (than if claim.relative else 1.0)
                pairs.append(pair)
            except InputError as error:
                reasons = [str(error).rstrip(".")]
        missing += [f"seed {seed}: {', '.join(reasons)}"] if reasons else []
    notes = [*source.notes(pairs, claim.measure.partition("/")[2]), *_precision_notes(pairs)]
    step = 1 / shared["images"] if source.fractions and not claim.relative and shared.get("images") else 0.0
    return Evidence(differences, len(seeds), tuple(missing), tuple(notes), step)


def _precision_notes(pairs: Pairs) -> Iterable[str]:
    """In which pairs the trainings differ in precision as well."""
    for pair in pairs:
        kinds = [str(run.params().get("precision")) for run in pair]
        if len(set(kinds)) > 1:
            yield f"seed {pair[0].params()['seed']}: trained in {' and in '.join(kinds)}"


def _unfit(name: str, run: Run | None, setting: Any, shared: Mapping[str, Any], measure: str) -> str:
    """Why the run of a variant and seed cannot be compared; "" if it can."""
    if run is None:
        return f"no run of {name}"
    if not run.finished:
        return f"{name} is {run.status()['state']}"
    if setting is None:
        return f"{name} {source_of(measure).lacking}"
    try:
        measure_of(run, measure)
    except InputError:
        return f"{name} has no {measure}"
    odd = [f"{what} {value} and not {shared[what]}" for what, value in setting.items() if value != shared[what]]
    return f"{name} was judged otherwise ({', '.join(odd)})" if odd else ""


LEVEL = 0.05  # of error: intervals are 95 % intervals
POWER = 0.8  # with which the minimal detectable effect would have been found


class Interval(NamedTuple):
    """The mean of paired differences with its Student t interval."""

    effect: float  # the mean
    low: float  # ends of the interval; infinite for one difference
    high: float
    sd: float  # over seeds, n - 1 in its denominator; NaN for one difference


def paired_interval(differences: Sequence[float], *, step: float = 0.0) -> Interval:
    """mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n) (Student 1908): it holds the mean over all seeds in 95 % of studies.

    A seed is the unit: the interval speaks of other trainings judged on these same images, not of other images. Of differences in
    steps (1 / 500 for accuracies of 500 images) sd is at least that of rounding, step / sqrt(12): equal ones are no certainty.
    """
    n, mean, sd = _moments(differences, step)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, math.nan)
    return Interval(mean, *t_interval(differences, 1 - LEVEL, least_sd=step / math.sqrt(12)), sd)


def p_value(differences: Sequence[float], against: float = 0.0, *, step: float = 0.0) -> float:
    """Two-sided p-value, in [0, 1], of a t-test that the mean difference is `against`; 1 for a single difference."""
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

    Solves power = P(T > t(1 - level / 2, n - 1)), T noncentral t with n - 1 degrees of freedom and noncentrality effect sqrt(n) / sd
    (Cohen 1988, section 2), `sd` that of the differences over seeds. A claim among m is tested at LEVEL / m in Holm's first step.
    """
    return math.inf if n < 2 else _noncentrality(n, level) * sd / math.sqrt(n)


@cache  # all claims of a study ask for the same one
def _noncentrality(n: int, level: float) -> float:
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    bar = float(t.ppf(1 - level / 2, n - 1))
    most = bar + 4 * max(bar, 1.0) + 10.0 / math.sqrt(n)  # beyond it the power is 1 in all but 1e-3 of studies
    return float(brentq(lambda shift: float(nct.sf(bar, n - 1, shift)) - POWER, 0.0, most, xtol=1e-6))


@dataclass(frozen=True)
class Finding:
    """What the runs of a study say of one claim. Effects are variant minus than (or zero): below 0 for a true claim of "lower"."""

    claim: Claim
    evidence: Evidence
    interval: Interval  # of the differences, 95 %; NaN without any
    p: float  # Holm-adjusted, of "no difference", over all claims of the study
    detectable: float  # the smallest true effect that these seeds find with 80 % power, at the study's strictest level
    verdict: Literal["supported", "not supported", "undecided"]
    reason: str = ""  # why it is undecided, or what must be said of a verdict

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
    """
    every = by_variant(ReadOnce(run.path) for run in runs)
    evidence = [gather(claim, every, seeds) for claim in claims]
    beyond_zero = holm([_p(part, 0.0) for part in evidence])
    below_interest = holm([_p(part, c.sign * c.interest) for c, part in zip(claims, evidence, strict=True)])
    parts = zip(claims, evidence, beyond_zero, below_interest, strict=True)
    return [_finding(*part, level=LEVEL / len(claims)) for part in parts]


def _p(evidence: Evidence, against: float) -> float:
    """1 until all seeds are there: what is not decided yet cannot make others significant."""
    return p_value(list(evidence.differences.values()), against, step=evidence.step) if evidence.complete else 1.0


def _finding(claim: Claim, evidence: Evidence, p_zero: float, p_interest: float, level: float) -> Finding:
    values = list(evidence.differences.values())
    interval = paired_interval(values, step=evidence.step) if values else Interval(*[math.nan] * 4)
    detectable = minimal_detectable(interval.sd, len(values), level=level)
    effect, interest = claim.sign * interval.effect, claim.interest
    beyond, below = p_zero <= LEVEL, effect < interest and p_interest <= LEVEL
    made = partial(Finding, claim, evidence, interval, p_zero, detectable)
    if not evidence.complete:
        return made("undecided", f"{len(values)} of {evidence.wanted} seeds")
    if effect > 0 and beyond:
        return made("supported", f"but by less than {100 * interest:g} {claim.unit}" if below else "")
    if below:
        return made("not supported", "the opposite holds" if effect < 0 and beyond else "")
    return made("undecided", f"effects below {100 * detectable:.1f} {claim.unit} would go unseen")
