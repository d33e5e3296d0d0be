"""What finished runs measured of a claim: one paired difference a seed, and what is missing and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustlib.errors import InputError
from robustlib.runs import Run
from robustlib.workbook.claims.claim import Claim, Key, by_variant
from robustlib.workbook.claims.measures import measure_of, paired_measures, source_of


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
