"""What a claim may compare: numbers that finished runs hold, by the name of a measure.

clean, worst, pgd20, ...      accuracy of the best weights, a fraction
last/pgd20                    of the last epoch's weights
overfitting/pgd20             best less last
overstated/pgd20              accuracy under the attack less the worst case
representation/relative_l2    of the penultimate features, as `robustlib.representation.measure_runs` stored it last under
                              the run's own threat; representation/<layer>/relative_l2: of another layer
metrics/<column>              a column of `Run.metrics` after the last epoch, in its own unit
growth/<column>               slope b of its least-squares line over the k epochs from 2 on, as a share of their mean:
                              b (k - 1) / mean (0.12: the line rose by 12 % of it)
distance/mean, /median        adversarial distance by decisions (Tangent), in pixel units
unseen/stadv, /l2, /known, /clean    accuracy under unseen attacks, on the images of `robustlib.evaluation.measure_unseen`
unseen/loss/stadv, /loss/l2   known less unseen, below 0 where the unseen attack is the weaker one
unseen/price                  clean accuracy that a purifier takes from the classifier behind it
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from robustlib.errors import InputError, check_known
from robustlib.runs import Run
from robustlib.threat import Threat

Pairs = Sequence[Sequence[Run]]  # the runs that were compared, or single ones


@dataclass(frozen=True)
class Source:
    """Measures that are read and paired in one way."""

    stored: Callable[[Run], Mapping[str, Any]]  # what a run holds of them; empty before it was measured
    lacking: str  # what is said of a run without
    shared: Mapping[str, str]  # what two runs must share to be compared: by its name for people, where `stored` has it
    value: Callable[[Run, str, str, Sequence[Run]], float]  # "<kind>/<name>" of a run among those that are compared
    notes: Callable[[Pairs, str], Iterable[str]]  # what must be said of those that were compared
    fractions: bool = False  # of the images, measured in steps of one

    def setting(self, run: Run) -> dict[str, Any]:
        """What the run shares with those that it may be compared with."""
        stored = self.stored(run)
        return {"dataset": run.params().get("dataset"), **{name: stored.get(key) for name, key in self.shared.items()}}


def source_of(measure: str) -> Source:
    """Where a measure is read from."""
    return SOURCES.get(measure.partition("/")[0], ACCURACIES)


def measure_of(run: Run, measure: str, among: Sequence[Run] = ()) -> float:
    """One number of a run, or an InputError; distances on the images that count in all runs `among` which it is compared."""
    kind, _, name = measure.partition("/")
    return source_of(measure).value(run, kind, name, among or [run])


def _accuracies(results: Mapping[str, Any]) -> dict[str, float]:
    return {row["attack"]: row["accuracy"] for row in results.get("rows", [])}


def _evaluation(run: Run) -> dict[str, Any]:
    results = run.results()
    return results and {**results, "met AutoAttack": "autoattack" in _accuracies(results)}


def _features(run: Run) -> dict[str, Any]:
    """The last measurement of the feature space; those under other threats, which the notebook of another run made, are passed over."""
    measured = list(run.read("representation.json").values())
    threat = run.params().get("threat")
    own = [one for one in measured if threat and repr(Threat(**threat)) in one.get("attack", "")]
    return (own or measured or [{}])[-1]


def _evaluated_features(run: Run) -> dict[str, Any]:
    protocol = ", ".join(f"{name} {_features(run).get(name)}" for name in ("attack", "n", "seed"))
    return (evaluated := _evaluation(run)) and evaluated | {"features of": protocol}


def _evaluated(run: Run, kind: str, name: str, _: object) -> float:
    measure = f"{kind}/{name}" if name else kind
    results, layers = run.results(), _features(run).get("measures", {})
    best, last = _accuracies(results), _accuracies(results.get("last", {}))
    every = {**best, **{f"last/{attack}": value for attack, value in last.items()}}
    every |= {f"overfitting/{attack}": best[attack] - last[attack] for attack in last if attack in best}
    every |= {f"overstated/{attack}": value - best["worst"] for attack, value in best.items() if "worst" in best}
    every |= {f"representation/{name}": value for name, value in layers.get("features", {}).items()}
    every |= {f"representation/{layer}/{name}": x for layer, values in layers.items() for name, x in values.items()}
    if every.get(measure) is None:
        remedy = f"it has {', '.join(every)}." if results else "it is not evaluated; `robustlib evaluate` does it."
        raise InputError(f"{run.path} has no measure {measure!r}: {remedy}")
    return float(every[measure])


def _evaluation_notes(pairs: Pairs, _: str) -> Iterable[str]:
    runs = [run for pair in pairs for run in pair]
    made = {str(sorted(run.results().get("numerics", {}).items())) for run in runs}
    if len(made) > 1:
        yield f"evaluated by {len(made)} versions of attacks or measures"
    if doubted := [run for run in runs if run.audit().get("badges", {}).get("headline", {}).get("verdict") == "red"]:
        yield f"the audit doubts {len(doubted)} of {len(runs)} headlines"


def _unseen(run: Run) -> dict[str, Any]:
    """What `robustlib.evaluation.measure_unseen` stored last: protocol and accuracies."""
    last = ([{}, *run.read("unseen.json").values()])[-1]
    return last and last | {"attacks": str(last.get("strengths"))}


def _unseen_accuracy(run: Run, _: str, name: str, __: object) -> float:
    measured = _unseen(run)
    if not measured:
        remedy = f"`robustlib evaluate {run.argument} --unseen` measures them"
        raise InputError(f"{run.path} has no accuracies under unseen attacks: {remedy}.")
    every = {attack: float(row["accuracy"]) for attack, row in measured["accuracies"].items()}
    known = {f"loss/{attack}": every["known"] - share for attack, share in every.items() if "known" in every}
    every |= known
    if measured.get("bare") and "clean" in every:
        every["price"] = float(measured["bare"]["accuracy"]) - every["clean"]
    return every[check_known("accuracy under unseen attacks", name, every)]


def _unseen_notes(pairs: Pairs, name: str) -> Iterable[str]:
    rows = [_unseen(run).get("accuracies", {}) for pair in pairs for run in pair]
    met = {tuple(row.get("protocol", "") for a, row in one.items() if a not in ("clean", "known")) for one in rows}
    if name not in ("clean", "price") and len(met) > 1:
        yield "a model that answers at random met shorter attacks, averaged over its draws, than one that does not"
    yield from _evaluation_notes(pairs, name)


STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "median": median}


def _distance(run: Run, _: str, name: str, among: Sequence[Run], attack: str = "Tangent") -> float:
    """The mean or median distance on the `_shared_images`; an upper bound of the true one by either attack."""
    statistic = STATISTICS[check_known("statistic of distances", name, STATISTICS)]
    images = _shared_images(among, attack)
    if not images:
        names = " and ".join(one.name for one in among)
        raise InputError(f"No image that {names} have right has a known distance: measure more.")
    return statistic([image[among.index(run)] for image in images])


def _shared_images(runs: Sequence[Run], attack: str = "Tangent") -> list[tuple[float, ...]]:
    """For each image that all runs have right and on which no attack failed, its distance in each of them."""
    measured = [run.distances(attack=attack) for run in runs]
    for run, one in zip(runs, measured, strict=True):
        if not one:
            remedy = "its notebook measures them, or `robustlib.evaluation.measure_distances`"
            raise InputError(f"{run.path} has no measured distances: {remedy}.")
        if one["index"] != measured[0]["index"]:
            raise InputError(f"{run.path} and {runs[0].path} were measured on different images: measure both alike.")
    known = ([x if right else None for right, x in zip(m["correct"], m["distance"], strict=True)] for m in measured)
    return [image for image in zip(*known, strict=True) if None not in image]


def _distance_notes(pairs: Pairs, name: str) -> Iterable[str]:
    """How many images count, and the mean relative difference by FAB where it measured all runs on shared images."""
    if pairs:
        sizes = sorted(len(_shared_images(pair)) for pair in pairs)
        yield f"on {sizes[0]} to {sizes[-1]} of {pairs[0][0].distances()['n']} images"
    if pairs and all(len(pair) == 2 and run.distances(attack="FAB") for pair in pairs for run in pair):
        try:
            white = [[_distance(run, "", name, pair, "FAB") for run in pair] for pair in pairs]
        except InputError:  # other images, or none in common
            return
        gain = fmean((first - second) / second for first, second in white)
        yield f"by FAB, which sees gradients, {100 * gain:+.1f} %".replace("-", "−")


FIRST = 2  # epoch from which growth counts: a fine-tuning's first one leaves the natural model behind


def _epoch_measure(run: Run, kind: str, column: str, _: object) -> float:
    """Of the last stage that has the column: what the stage of a head does not watch, the stage before it may have."""
    rows = run.metrics()
    numbers = []
    if len(rows):
        trained = rows[rows["epoch"] > 0]  # without the row of the model before training
        having = trained[trained[column].notna()] if column in trained else trained
        rows = trained[trained["stage"] == (having if len(having) else rows)["stage"].iloc[-1]]
        numbers = [name for name in rows if rows[name].dtype.kind in "fiu" and rows[name].notna().all()]
    if column not in numbers:
        there = ", ".join(f"{kind}/{name}" for name in numbers) or "no finished epoch"
        raise InputError(f"{run.path} has no measure {f'{kind}/{column}'!r}: of its last stage it has {there}.")
    if kind == "metrics":
        return float(rows[column].iloc[-1])
    rows = rows[rows["epoch"] >= FIRST]
    if len(rows) < 2:
        remedy = f"train at least {FIRST + 1} epochs"
        raise InputError(f"{run.path} has {len(rows)} epoch(s) from {FIRST} on, and growth needs two: {remedy}.")
    if not (mean := float(rows[column].mean())) > 0:
        raise InputError(f"{column} of {run.path} is {mean:g} on average, and nothing grows as a share of it.")
    slope = float(np.polyfit(rows["epoch"].to_numpy(float), rows[column].to_numpy(float), 1)[0])
    return slope * (len(rows) - 1) / mean


def _training(run: Run) -> dict[str, Any]:
    params = run.params()
    return params and params | {"threat": " ".join(map(str, params.get("threat", {}).values()))}


EVALUATION = {name: name for name in ("split", "threat", "met AutoAttack")}
EVALUATION |= {"images": "n", "weights": "checkpoint", "attack seed": "seed"}
LOOK = {"images": "n", "split": "split", "attack seed": "seed"}
DISTANCES = {**LOOK, "attack": "attack"}
UNSEEN = {**LOOK, "choice of images": "images", "attack": "attacks"}
FEATURES = {**EVALUATION, "features of": "features of"}

ACCURACIES = Source(_evaluation, "is not evaluated", EVALUATION, _evaluated, _evaluation_notes, fractions=True)
TRAININGS = Source(_training, "is not trained", {"threat": "threat"}, _epoch_measure, _evaluation_notes)
SOURCES = {
    "representation": replace(ACCURACIES, stored=_evaluated_features, shared=FEATURES, fractions=False),
    "distance": Source(Run.distances, "has no measured distances", DISTANCES, _distance, _distance_notes),
    "unseen": Source(_unseen, "has not met unseen attacks", UNSEEN, _unseen_accuracy, _unseen_notes, fractions=True),
    **dict.fromkeys(("metrics", "growth"), TRAININGS),
}
