"""What a claim is, how it is read from data, and what finished runs measured of it: one paired difference a seed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from robustlib.errors import InputError, check_fields, unknown
from robustlib.runs import Run, changes_text
from robustlib.workbook.claims.measures import measure_of, paired_measures, source_of

Key = tuple[str, int]  # a variant and a seed
POINT, SHARE = 0.01, 0.05  # smallest effects of interest: 1 point of accuracy, 5 % of a distance
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
        if self.variant == self.than:
            raise InputError(f"Claim {self.name!r} compares {self.variant!r} with itself: give two different variants.")
        if not self.than and (self.relative or not self.measure.startswith(SIGNED)):
            what = "differences as shares" if self.relative else f"{self.measure!r}, which is never below zero,"
            raise InputError(
                f"Claim {self.name!r} compares {what} with zero: give the variant to compare with as `than`."
            )
        if not self.interest > 0:
            raise InputError(f"Claim {self.name!r}: smallest={self.smallest!r}: give an effect above 0, e.g. 0.01.")

    @property
    def variants(self) -> tuple[str, ...]:
        """Whose runs decide it: `variant` and, if there is one, `than`."""
        return (self.variant, self.than) if self.than else (self.variant,)

    @property
    def interest(self) -> float:
        """The smallest effect of interest, above 0: a fraction of the images, or a share of a distance."""
        return (SHARE if self.unit == "%" else POINT) if self.smallest is None else self.smallest

    @property
    def sign(self) -> int:
        """1 where the claim says higher, -1 where it says lower."""
        return 1 if self.direction == "higher" else -1

    @property
    def unit(self) -> str:
        """What a hundredth of an effect is called: "points", or "%" if relative or a growth."""
        return "%" if self.relative or self.measure.startswith("growth/") else "points"


def read_claims(rows: object, place: str) -> list[Claim]:
    """Claims from a list of mappings with the fields of `Claim`, as the YAML file `place` gives them."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{place}: write claims as a list of mappings with {', '.join(_required())}.")
    claims = [_claim(row, place) for row in rows]
    names = [claim.name for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{place} has two claims called {name!r}: give each a name of its own.")
    return claims


def _required() -> list[str]:
    return [field.name for field in fields(Claim) if field.type is str and field.default is MISSING]


def _claim(row: Mapping[str, Any], place: str) -> Claim:
    row = {"variant" if key == "arm" else key: value for key, value in row.items()}  # its name in version 0.1
    known = [field.name for field in fields(Claim)]
    for key in row:
        if key not in known:
            raise unknown(f"field of a claim in {place}", key, known)
    kinds: dict[str, Any] = {**dict.fromkeys([*_required(), "than"], str), "relative": bool, "smallest": (int, float)}
    for key, kind in kinds.items():
        if key not in row and key in _required():
            raise InputError(f"{place}: the claim {row.get('name', row)!r} has no {key!r}: add it.")
        if key in row and (not isinstance(row[key], kind) or (key == "smallest" and isinstance(row[key], bool))):
            raise InputError(f"{place}: {key}={row[key]!r} of the claim {row.get('name')!r} is of the wrong kind.")
    return Claim(**row)


def variant_of(run: Run) -> str:
    """The variant of a method that a run is: the method and what was changed from its preset, "trades beta=1.0"."""
    return f"{run.params().get('method', '?')} {changes_text(run.changes())}".strip()


def by_variant(runs: Iterable[Run]) -> dict[Key, Run]:
    """The first run of each variant and seed."""
    first: dict[Key, Run] = {}
    for run in runs:
        first.setdefault((variant_of(run), run.params().get("seed", -1)), run)
    return first


@dataclass(frozen=True)
class Evidence:
    """The paired differences of a claim, or the variant's own values if it is compared with zero.

    Attributes:
        differences: seed -> variant minus than (a share of than's value if the claim is relative); variant alone without than.
        wanted: how many seeds the study asks for.
        missing: why seeds have no difference, a sentence each.
        notes: what a reader must know of those that have.
        step: in which the differences are measured: one image where they are accuracies; 0 for what is continuous.
    """

    differences: Mapping[int, float]
    wanted: int
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    step: float = 0.0

    @property
    def values(self) -> list[float]:
        """The differences alone."""
        return list(self.differences.values())

    @property
    def complete(self) -> bool:
        """Whether all seeds of the study are there, two at least."""
        return len(self.differences) == self.wanted > 1


def gather(claim: Claim, runs: Iterable[Run] | Mapping[Key, Run], seeds: Sequence[int]) -> Evidence:
    """Pairs the runs of both variants by seed (see `by_variant`); without `than`, each stands alone.

    Only runs that were measured in the same setting are paired: same data set, images, threat, weights (best), attack seed. Which
    setting is what most of them share. What is left out stands in `Evidence.missing`.
    """
    source, found = source_of(claim.measure), runs if isinstance(runs, Mapping) else by_variant(runs)
    own = {key: run for key, run in found.items() if key[0] in claim.variants and key[1] in seeds}
    settings = {key: source.setting(run) for key, run in own.items() if run.finished and source.stored(run)}
    common = Counter(tuple(setting.items()) for setting in settings.values()).most_common(1)
    shared = dict(common[0][0]) if common else {}
    differences, missing, pairs = {}, [], []
    for seed in seeds:
        keys = [(name, seed) for name in claim.variants]
        reasons = [reason for key in keys if (reason := _unfit(key, own, settings, shared, claim.measure))]
        if not reasons:
            pair = [own[key] for key in keys]
            try:
                differences[seed] = _difference(claim, *paired_measures(pair, claim.measure))
                pairs.append(pair)
            except InputError as error:
                reasons = [str(error).rstrip(".")]
        missing += [f"seed {seed}: {', '.join(reasons)}"] if reasons else []
    notes = source.notes(pairs, claim.measure.partition("/")[2])
    step = 1 / shared["images"] if source.fractions and not claim.relative and shared.get("images") else 0.0
    return Evidence(differences, len(seeds), tuple(missing), tuple(notes), step)


def _unfit(
    key: Key,
    runs: Mapping[Key, Run],
    settings: Mapping[Key, Mapping[str, Any]],
    shared: Mapping[str, Any],
    measure: str,
) -> str:
    """Why the run of a variant and seed cannot be compared; "" if it can."""
    name, _ = key
    if key not in runs:
        return f"no run of {name}"
    if not runs[key].finished:
        return f"{name} is {runs[key].status()['state']}"
    if key not in settings:
        return f"{name} {source_of(measure).lacking}"
    try:
        measure_of(runs[key], measure)
    except InputError:
        return f"{name} has no {measure}"
    odd = [f"{what} {value} and not {shared[what]}" for what, value in settings[key].items() if value != shared[what]]
    return f"{name} was judged otherwise ({', '.join(odd)})" if odd else ""


def _difference(claim: Claim, value: float, than: float = 0.0) -> float:
    if claim.relative and than <= 0:
        raise InputError(f"{claim.measure} of {claim.than} is {than:g}, and nothing is a share of it")
    return (value - than) / (than if claim.relative else 1.0)
