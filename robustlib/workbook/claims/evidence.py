"""What finished runs measured of a claim: one paired difference a seed, and what is missing and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.runs import Run, read_json
from robustlib.threat import Threat
from robustlib.workbook.claims.claim import Claim, variant_of

if TYPE_CHECKING:
    pass
from robustlib.workbook.claims.measures import (
    attacks_met,
    by_gradients,
    distances,
    epoch_measure,
    facts_of,
    last_look,
    of_distances,
    of_epochs,
    of_unseen,
    shared_images,
    unseen,
)

SAME = (
    "dataset",
    "split",
    "n",
    "checkpoint",
    "threat",
    "seed",
    "autoattack",
    "look",
    "attack",
)  # or nothing is compared
WORDS = {
    "n": "images",
    "seed": "attack seed",
    "autoattack": "met AutoAttack",
    "look": "features of",
    "checkpoint": "weights",
}
LACKING = {"distance": "has no measured distances", "unseen": "has not met unseen attacks"}


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


def measure_of(run: Run, measure: str) -> float:
    """One number of an evaluated run.

    Args:
        run: evaluated by `evaluate_run`, except for "metrics/...", "growth/...", "distance/..." and "unseen/...".
        measure: "clean", "worst" or the name of an attack: accuracy of the best weights, a fraction; "last/worst":
            of the last epoch's weights; "overfitting/pgd20": best less last; "overstated/pgd20": accuracy under the
            attack less worst case; "representation/relative_l2": of the penultimate features, and
            "representation/<layer>/relative_l2": of another layer, as `robustlib.representation.measure_runs` last stored it;
            "metrics/<column>", "growth/<column>": see `epoch_measure`; "distance/mean", "distance/median": see `distances`, here
            of this run alone, in a claim on the images that both variants of a seed have right; "unseen/stadv",
            "unseen/loss/stadv": see `unseen`.

    Raises:
        InputError: the run has no such number.
    """
    kind, _, name = measure.partition("/")
    if of_epochs(measure):
        return epoch_measure(run, kind, name)
    if of_distances(measure):
        return distances([run], name)[0]
    if of_unseen(measure):
        return unseen(run, name)
    results = run.results()
    best = _accuracies(results)
    parts = {"last": _accuracies(results.get("last", {})), "representation": _representation(run)}
    try:
        if kind == "overfitting":
            return float(best[name] - parts["last"][name])
        if kind == "overstated":
            return float(best[name] - best["worst"])
        return float(parts[kind][name] if name else best[kind])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{run.path} has no measure {measure!r}: {_remedy(results, best, parts)}") from None


def _accuracies(results: Mapping[str, Any]) -> dict[str, float]:
    return {row["attack"]: row["accuracy"] for row in results.get("rows", [])}


def _last_look(run: Run) -> dict[str, Any]:
    """What was measured last of the run's feature space under its own threat: attack, layers, n, seed, measures.

    Measures under other threats, which a notebook of another run may have asked for, are passed over.
    """
    looks = list(read_json(run.path / "representation.json").values())
    facts = run.params().get("threat")
    own = [look for look in looks if facts and repr(Threat(**facts)) in look.get("attack", "")]
    return (own or looks or [{}])[-1]


def _representation(run: Run) -> dict[str, float]:
    """ "<layer>/<measure>" -> value; the layer may be left out for the penultimate features."""
    measures: dict[str, dict[str, float]] = _last_look(run).get("measures", {})
    named = {f"{layer}/{name}": value for layer, numbers in measures.items() for name, value in numbers.items()}
    return {**measures.get("features", {}), **named}


def _remedy(results: Mapping[str, Any], best: Mapping[str, float], parts: Mapping[str, Mapping[str, Any]]) -> str:
    if not results:
        return "it is not evaluated; `robustlib evaluate` does it."
    there = [*best, *(f"{kind}/{name}" for kind, names in parts.items() for name in names)]
    return f"it has {', '.join(there)}."


def gather(claim: Claim, runs: Iterable[Run], seeds: Sequence[int]) -> Evidence:
    """Pairs the runs of both variants by seed; without `than`, each stands alone. Of several runs of a variant and seed the first one counts.

    Only runs that were judged alike are paired: same data set, images, threat, weights (best), attack seed. Which ones
    is what most of them share. Nothing is dropped in silence: see `Evidence.missing`.
    """
    found: dict[tuple[str, int], Run] = {}
    for run in runs:
        found.setdefault((variant_of(run), run.params().get("seed", -1)), run)
    mine = {key: run for key, run in found.items() if key[0] in claim.variants and key[1] in seeds}
    facts = {key: _facts(run, claim.measure) for key, run in mine.items() if _judged(run, claim.measure)}
    usual = Counter(tuple(fact.items()) for fact in facts.values()).most_common(1)
    shared = dict(usual[0][0]) if usual else {}
    differences, missing = {}, []
    for seed in seeds:
        pair = [(name, seed) for name in claim.variants]
        reasons = [reason for key in pair if (reason := _unfit(key, mine, facts, shared, claim.measure))]
        try:
            if not reasons:
                differences[seed] = _difference(claim, *_paired([mine[key] for key in pair], claim.measure))
        except InputError as error:
            reasons = [str(error).rstrip(".")]
        missing += [f"seed {seed}: {', '.join(reasons)}"] if reasons else []
    pairs = [[mine[name, seed] for name in claim.variants] for seed in differences]
    counted = not claim.relative and not claim.measure.startswith(("representation/", "distance/"))
    step = 1 / shared["n"] if counted and shared.get("n") else 0.0
    return Evidence(differences, len(seeds), tuple(missing), tuple(_notes(pairs, claim.measure)), step)


def _paired(runs: Sequence[Run], measure: str) -> list[float]:
    """The measure of each of the runs that are compared."""
    kind = measure.partition("/")[2]
    return distances(runs, kind) if of_distances(measure) else [measure_of(run, measure) for run in runs]


def _judged(run: Run, measure: str) -> bool:
    there = last_look(run) if of_unseen(measure) else run.distances() if of_distances(measure) else run.results()
    return run.finished and (of_epochs(measure) or bool(there))


def _facts(run: Run, measure: str) -> dict[str, Any]:
    """What must be the same for two numbers to be of the same images under the same attacks."""
    params = run.params()
    if of_epochs(measure):  # on validation images, whatever the evaluation did
        threat = " ".join(map(str, params.get("threat", {}).values()))
        return dict.fromkeys(SAME) | {"dataset": params.get("dataset"), "threat": threat}
    if of_distances(measure):
        look = run.distances()
        own = {name: look.get(name) for name in ("split", "n", "seed", "attack")}
        return dict.fromkeys(SAME) | {"dataset": params.get("dataset")} | own
    if of_unseen(measure):
        return dict.fromkeys(SAME) | {"dataset": params.get("dataset")} | facts_of(run)
    results = run.results()
    if measure.startswith("representation/"):
        look = _last_look(run)
        results = results | {"look": ", ".join(f"{name} {look.get(name)}" for name in ("attack", "n", "seed"))}
    known = results | {"dataset": params.get("dataset"), "autoattack": "autoattack" in _accuracies(results)}
    return {name: known.get(name) for name in SAME}


def _unfit(
    key: tuple[str, int],
    runs: Mapping[tuple[str, int], Run],
    facts: Mapping[tuple[str, int], Mapping[str, Any]],
    shared: Mapping[str, Any],
    measure: str,
) -> str:
    """Why the run of a variant and seed cannot be compared; "" if it can."""
    variant, _ = key
    if key not in runs:
        return f"no run of {variant}"
    if not runs[key].finished:
        return f"{variant} is {runs[key].status()['state']}"
    if key not in facts:
        return f"{variant} {LACKING.get(measure.partition('/')[0], 'is not evaluated')}"
    try:
        measure_of(runs[key], measure)
    except InputError:
        return f"{variant} has no {measure}"
    odd = [name for name in SAME if facts[key][name] != shared[name]]
    told = [f"{WORDS.get(name, name)} {facts[key][name]} and not {shared[name]}" for name in odd]
    return f"{variant} was judged otherwise ({', '.join(told)})" if odd else ""


def _difference(claim: Claim, variant: float, than: float = 0.0) -> float:
    if claim.relative and than <= 0:
        raise InputError(f"{claim.measure} of {claim.than} is {than:g}, and nothing is a share of it")
    return (variant - than) / (than if claim.relative else 1.0)


def _notes(pairs: Sequence[Sequence[Run]], measure: str) -> Iterable[str]:
    """What must be said of the runs that a claim rests on, a pair (or a single one) for each seed."""
    runs = [run for pair in pairs for run in pair]
    if of_distances(measure):
        sizes = sorted(len(shared_images(pair)) for pair in pairs)
        if sizes:
            yield f"on {sizes[0]} to {sizes[-1]} of {runs[0].distances()['n']} images"
        if (gain := by_gradients(pairs, measure.partition("/")[2])) is not None:
            yield f"by FAB, which sees gradients, {100 * gain:+.1f} %".replace("-", "−")
        return
    if (
        of_unseen(measure)
        and measure not in ("unseen/clean", "unseen/price")
        and len({attacks_met(run) for run in runs}) > 1
    ):
        yield "a model that answers at random met shorter attacks, averaged over its draws, than one that does not"
    made = {str(sorted(run.results().get("numerics", {}).items())) for run in runs}
    if len(made) > 1:
        yield f"evaluated by {len(made)} versions of attacks or measures"
    warned = [run for run in runs if run.audit().get("badges", {}).get("headline", {}).get("verdict") == "red"]
    if warned:
        yield f"the audit believes {len(warned)} of {len(runs)} headlines not"
