"""What is measured on finished runs beside the standard evaluation, each kept in a file of the run: unseen attacks, adversarial
distances, what randomness is worth, and whether the attacks on a randomised model had reached their plateau."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustlib.attacks import PGDEOT, Attack, MinimumNorm, Tangent
from robustlib.data import Dataset, Split
from robustlib.errors import InputError, unknown
from robustlib.evaluation.cache import state_key
from robustlib.evaluation.distances import adversarial_distances
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.metrics import summarise
from robustlib.evaluation.protocols import StochasticProtocol, stochastic_protocol, unseen_attacks, unseen_strengths
from robustlib.evaluation.schedule import Progress
from robustlib.evaluation.stochastic import (
    draw_statistics,
    eot_curve,
    fixed_accuracies,
    last_step,
    vote,
    with_plateau,
)
from robustlib.runs import Run, attack_names, digest, measured, versions, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

OnProgress = Callable[[Progress], None] | None

FACTS = ("n", "seed", "numerics", "threat", "budget")  # of results.json, by which randomness.json belongs to it
SAMPLES = (1, 5, 20)  # gradient samples over which PGD+EOT is measured
PLATEAU_SAMPLES, PLATEAU_STEPS = (*SAMPLES, 50), (20, 100, 200)  # of PGD+EOT in the plateau check
TANGENT = Tangent(Threat("l2", 0.5))  # the radius has no part in a distance
EXAMPLES = 100  # images whose distance is measured, unless told otherwise
DIGITS = 6  # of a stored distance, in pixel units


def images_of(run: Run, dataset: Dataset, n: int | None, split: str = "test") -> Split:
    """The images on which a finished run is judged: all of the split "test" or "val", or a stratified choice of `n`."""
    if split not in ("test", "val"):
        raise unknown("split", split, ("test", "val"))
    if not run.finished:
        raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first.")
    trained_on = run.params()["dataset"]
    if trained_on != dataset.name:
        raise InputError(f"{run.path} was trained on {trained_on!r}, not on {dataset.name!r}: load that data set.")
    chosen: Split = getattr(dataset, split)
    return chosen.sample(n or 0)


def _check_runs(runs: Mapping[str, Run]) -> None:
    if not runs:
        raise InputError("There are no runs to measure: train some first (`robustlib run`), or give another directory.")


def threat_of(run: Run) -> Threat:
    """The perturbations that the run's robust accuracy is given for."""
    return Threat(**run.params()["threat"])


def protocol_of(run: Run) -> StochasticProtocol:
    """What a randomised model of the run's preset meets."""
    return stochastic_protocol(run.params().get("preset"))


def _digests(run: Run, images: Split) -> dict[str, str]:
    weights = (run.path / "model.safetensors").read_bytes()
    return {"images": digest(images.images.numpy().tobytes()), "weights": digest(weights)}


# ---- unseen attacks


def measure_unseen(
    runs: Mapping[str, Run], dataset: Dataset, *, n: int = 0, seed: int = 0, device: str = "auto"
) -> pd.DataFrame:
    """Accuracy of runs' best weights under unseen attacks, beside the known worst case, on the same test images for all.

    What is stored in a run's unseen.json is read back where images, strengths, seed, weights, versions and evaluation are the same.

    Args:
        runs: evaluated by `evaluate_run`, of this data set and one preset, whose strengths and protocol are taken; by the names
            they get in the table. Deterministic models meet the attacks without averaging.
        n: a stratified choice of so many test images; 0 for the number of the preset's protocol for stochastic models, or for
            that on which all runs were evaluated if it is smaller.

    Returns:
        Columns run, attack ("clean", "known": the worst case of the evaluation, "l2", "stadv"), protocol, n, correct, accuracy,
        low, high, loss (known less this, in [-1, 1]); the headline has no part in it, and they none in the headline.
    """
    _check_runs(runs)
    presets = {run.params().get("preset") for run in runs.values()}
    if len(presets) > 1:
        raise InputError(f"The runs are of the presets {sorted(map(str, presets))}: compare runs of one preset.")
    (preset,) = presets
    evaluated = [run.results().get("n", 1) for run in runs.values()]
    most, rows = n or min([stochastic_protocol(preset).images, *evaluated]), []
    for name, run in runs.items():
        accuracies = _unseen_accuracies(run, dataset, images_of(run, dataset, most), seed, device)
        known = accuracies["known"]["accuracy"]
        rows += [{"run": name, "attack": a, **row, "loss": known - row["accuracy"]} for a, row in accuracies.items()]
    return pd.DataFrame(rows)


def _unseen_accuracies(run: Run, dataset: Dataset, images: Split, seed: int, device: str) -> dict[str, dict[str, Any]]:
    """The accuracies that unseen.json holds of this protocol, measured if it is not there."""
    model, strengths = run.model(), unseen_strengths(run.params().get("preset"))
    model.check_data(dataset)
    known = _known(run, images)
    suites = unseen_attacks(strengths, model.stochastic, protocol_of(run))
    names = attack_names(attack for suite in suites.values() for attack in suite.values())
    facts: dict[str, Any] = {"split": "test", "seed": seed, "strengths": asdict(strengths), "n": len(images)}
    facts |= {**_digests(run, images), "numerics": versions("measures/evaluation", *names), "known": known}
    measure = partial(_attack_unseen, run, images, suites, known, seed, device)
    key = "{strengths} on {n} of {split}, seed {seed}".format(**facts)
    accuracies: dict[str, dict[str, Any]] = measured(run, "unseen.json", facts, measure, key=key)["accuracies"]
    return accuracies


def _known(run: Run, images: Split) -> dict[str, Any]:
    """The worst case over the attacks of the run's evaluation on these images, or what its plateau check took from it."""
    records, wanted = run.records(), set(images.indices.tolist())
    if not len(records) or not wanted <= set(records["index"]):
        raise InputError(
            f"{run.path} was not evaluated on all of these {len(images)} images, so what it knows cannot be compared: "
            f"call `robustlib evaluate {run.path} --examples {len(images)}` or more first."
        )
    row: Mapping[Any, Any] = summarise(records[records["index"].isin(wanted)]).to_dict("records")[-1]
    plateau, protocol = run.results().get("plateau", {}), "per-example worst case over the attacks of the evaluation"
    if plateau.get("taken") and plateau["full"]["n"] == len(images):
        row, protocol = plateau["full"], f"{plateau['full']['protocol']}, the plateau check"
    return {**_accuracy(row), "protocol": protocol}


def _attack_unseen(
    run: Run,
    images: Split,
    suites: Mapping[str, Mapping[str, Attack]],
    known: Mapping[str, Any],
    seed: int,
    device: str,
) -> dict[str, Any]:
    """The accuracy without attack, the known one and that under each kind of unseen attack: the per-example minimum over its attacks;
    and "bare", the clean accuracy of the classifier that stands behind a purifier ({} where none does)."""
    model = run.model().to(resolve_device(device))
    adaptive: Any = {} if model.stochastic else None  # a stochastic model's own gradients are exact
    behind = model.surrogates().get("classifier")
    bare = _accuracy(summarise(evaluate(behind, images, {}, seed=seed)).to_dict("records")[0]) if behind else {}
    accuracies: dict[str, Any] = {"clean": {}, "known": known}
    for kind, attacks in suites.items():
        records = evaluate(model, images, attacks, seed=seed, adaptive=adaptive, minimum=True)
        table: Any = summarise(records).to_dict("records")
        accuracies["clean"] = {**_accuracy(table[0]), "protocol": "no attack"}
        accuracies[kind] = {**_accuracy(table[-1]), "protocol": " and ".join(map(repr, attacks.values()))}
    return {"bare": bare, "accuracies": accuracies}


def _accuracy(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("n", "correct", "accuracy", "low", "high")}


# ---- adversarial distances


def measure_distances(
    runs: Mapping[str, Run],
    dataset: Dataset,
    attack: MinimumNorm = TANGENT,
    *,
    split: str = "test",
    n: int = EXAMPLES,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, pd.DataFrame]:
    """The `adversarial_distances` of runs' best weights on the same images, stored in each run's distances.json.

    Best are, as in `evaluate_run`, those that the method keeps: for rep-spectral's family the last ones, as in its paper. What is
    stored is read back where attack, images, seed, weights and versions are the same.

    Args:
        runs: finished, of this data set, by the names under which `compare_distances` shall show them.
        attack: Tangent; FAB in l2 as a white-box cross-check.
        split: "test", or "val" to choose hyper-parameters by.
        n: a stratified choice of so many images, always the same; 0 for all.

    Returns:
        By the same names, frames of `adversarial_distances`; distances are rounded to 6 decimals.
    """
    _check_runs(runs)
    for run in runs.values():  # before anything is measured
        images, model = images_of(run, dataset, n, split), run.model()
        model.check_data(dataset)
        if model.stochastic:
            raise InputError(f"{run.path} is a stochastic model, whose decisions have no boundary: leave it out.")
    facts = {"attack": repr(attack), "split": split, "n": len(images), "seed": seed}
    facts["numerics"] = versions("measures/distances", *attack_names([attack]))
    key, frames = "{attack} on {n} of {split}, seed {seed}".format(**facts), {}
    for name, run in runs.items():
        measure = partial(_distances, run, images, attack, seed, device)
        content = measured(run, "distances.json", facts | _digests(run, images), measure, key=key)
        columns = {column: content[column] for column in ("index", "label", "correct", "distance", "queries")}
        frames[name] = pd.DataFrame(columns).astype({"distance": float})
    return frames


def _distances(run: Run, images: Split, attack: MinimumNorm, seed: int, device: str) -> dict[str, Any]:
    frame = adversarial_distances(run.model().to(resolve_device(device)), images, attack, seed=seed)
    columns: Any = frame.to_dict("list")
    return columns | {"distance": [None if d != d else round(d, DIGITS) for d in columns["distance"]]}


# ---- randomised models


def measure_randomness(
    run: Run, dataset: Dataset, *, device: str = "auto", progress: OnProgress = None
) -> dict[str, Any]:
    """What becomes of an evaluated randomised run if its draws are counted otherwise or fixed; stored in randomness.json.

    The images, seed and protocol are those of `evaluate_run`. An interrupted measurement is resumed.

    Returns:
        The content of randomness.json: facts of the evaluation, then those of `draw_statistics`, "fixed" (see `fixed_accuracies`;
        empty if the model has no method `fixed`), "eot" (see `eot_curve`; over gradient samples, on the protocol's images of curves)
        and "vote" (see `vote`; on the same images).
    """
    images, facts = _randomised(run, dataset)
    measure = partial(_randomness, run, images, facts, resolve_device(device), progress)
    found = measured(run, "randomness.json", facts, measure)
    shutil.rmtree(run.path / "randomness", ignore_errors=True)
    return found


def _randomness(
    run: Run, images: Split, facts: Mapping[str, Any], where: torch.device, progress: OnProgress
) -> dict[str, Any]:
    threat, protocol, model = threat_of(run), protocol_of(run), run.model().to(where)
    few, state = images.sample(protocol.curve), run.path / "randomness" / state_key(facts, where)
    settings: dict[str, Any] = {"seed": facts["seed"], "state": state, "progress": progress}
    found = draw_statistics(run.records())
    found["fixed"] = fixed_accuracies(model, images, threat, protocol, **settings) if hasattr(model, "fixed") else []
    found["eot"] = eot_curve(model, few, threat, _pairs(protocol, SAMPLES), **settings)
    found["vote"] = vote(model, few, threat, protocol, **settings)
    return found


def _pairs(protocol: StochasticProtocol, samples: Iterable[int]) -> list[tuple[int, int]]:
    """(steps, gradient samples) of PGD+EOT with the protocol's steps."""
    return [(protocol.pgd_eot[0], count) for count in samples]


def _randomised(run: Run, dataset: Dataset) -> tuple[Split, dict[str, Any]]:
    """The images of an evaluated randomised run, and the facts that what is measured on it must share."""
    results = run.results()
    if not results:
        raise InputError(f"{run.path} has no evaluation: call `robustlib evaluate {run.path}` first.")
    if "budget" not in results:
        raise InputError(f"{run.path} answers the same each time: there is no randomness to measure.")
    facts = {name: results.get(name) for name in FACTS}
    facts["numerics"] = {**results.get("numerics", {}), **versions("measures/randomness")}
    return images_of(run, dataset, results["n"]), facts


def check_plateau(run: Run, dataset: Dataset, *, device: str = "auto", progress: OnProgress = None) -> dict[str, Any]:
    """One PGD+EOT at full strength on the images of an evaluated randomised run, and more of its gradient samples and of its
    steps; results.json keeps what they found. An interrupted check is resumed.

    Where the first leaves less than the headline by more than 3 points, its number becomes the headline; the other is kept beside
    it. The others say whether the attack has reached its plateau (see `last_step`). What the evaluation measured is not repeated:
    with the published protocol it was at full strength.

    Returns:
        The content of results.json, with "plateau": {"full" (the attack's row), "worst" (the headline before it), "taken",
        "samples" and "steps"}: the last two {"points" (see `eot_curve`), "last" (see `last_step`)}.
    """
    images, facts = _randomised(run, dataset)
    results = run.results()
    if "plateau" in results:
        return results
    threat, protocol, where = threat_of(run), protocol_of(run), resolve_device(device)
    attack, model = PGDEOT(threat, *protocol.full), run.model().to(where)
    settings: dict[str, Any] = {"seed": results["seed"], "progress": progress}
    settings |= {"state": run.evaluation / f"plateau-{state_key(facts, where)}"}
    if protocol.full == protocol.pgd_eot:
        full = next(row for row in results["rows"] if row["attack"] == "pgd_eot")
    else:
        records = evaluate(model, images, {"pgd_eot": attack}, **settings, adaptive={})
        row: Any = summarise(records, worst=False).to_dict("records")[-1]
        full = {**row, "protocol": repr(attack)}
    known = measure_randomness(run, dataset, device=device, progress=progress)["eot"]
    results = with_plateau(results, full)
    results["plateau"] |= _plateau_curves(model, images, threat, protocol, known, settings)
    if results["plateau"]["taken"]:
        (run.path / "audit.json").unlink(missing_ok=True)  # it judged another number
    write_json(run.path / "results.json", results)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    return results


def _plateau_curves(
    model: nn.Module,
    images: Split,
    threat: Threat,
    protocol: StochasticProtocol,
    known: list[dict[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """PGD+EOT over gradient samples and over steps, the other number being the protocol's; what is known is not measured again."""
    over_steps = [(count, protocol.pgd_eot[1]) for count in PLATEAU_STEPS]
    pairs = {"samples": _pairs(protocol, PLATEAU_SAMPLES), "steps": over_steps}
    points = {(point["steps"], point["samples"]): point for point in known if point["n"] == len(images)}
    todo = [pair for pair in dict.fromkeys([*pairs["samples"], *pairs["steps"]]) if pair not in points]
    points |= zip(todo, eot_curve(model, images, threat, todo, **settings), strict=True)
    curves = {name: [points[pair] for pair in curve] for name, curve in pairs.items()}
    return {name: {"points": curve, "last": last_step(curve)} for name, curve in curves.items()}
