"""What is measured on finished runs beside the standard evaluation, each kept in a file of the run: accuracy under unseen attacks
and adversarial distances."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import torch

from robustlib.attacks import MinimumNorm, Tangent, fastest_precision, in_precision
from robustlib.attacks.base import Precision
from robustlib.data import Dataset, Split, check_dataset
from robustlib.errors import InputError, unknown
from robustlib.evaluation.distances import adversarial_distances
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.metrics import accuracies, accuracy
from robustlib.evaluation.protocols import StochasticProtocol, stochastic_protocol, unseen_attacks, unseen_strengths
from robustlib.evaluation.schedule import Progress
from robustlib.runs import Run, attack_names, digest, measured, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device, resolve_precision

OnProgress = Callable[[Progress], None] | None

TANGENT = Tangent(Threat("l2", 0.5))  # the radius has no part in a distance
EXAMPLES = 100  # images whose distance is measured, unless told otherwise
DIGITS = 6  # of a stored distance, in pixel units
TIMED = 128  # images on which precisions are compared
COPIES = 4  # of each, where a step averages over draws of the model


def images_of(run: Run, dataset: Dataset, n: int | None, split: str = "test") -> Split:
    """The images on which a finished run is judged: all of the split "test" or "val", or a stratified choice of `n`."""
    if split not in ("test", "val"):
        raise unknown("split", split, ("test", "val"))
    if not run.finished:
        raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first.")
    trained_on = run.params()["dataset"]
    if trained_on != check_dataset(dataset).name:
        raise InputError(f"{run.path} was trained on {trained_on!r}, not on {dataset.name!r}: load that data set.")
    chosen: Split = getattr(dataset, split)
    return chosen.sample(n or 0)


def threat_of(run: Run) -> Threat:
    """The perturbations that the run's robust accuracy is given for."""
    return Threat(**run.params()["threat"])


def protocol_of(run: Run) -> StochasticProtocol:
    """What a randomised model of the run's preset meets."""
    return stochastic_protocol(run.params().get("preset"))


def search_precision(run: Run, asked: str = "auto", images: Split | None = None, device: str = "auto") -> Precision:
    """In which precision attacks on a run search: "32-true", "bf16-mixed", or "auto": as in its evaluation, before which the faster one."""
    if asked == "auto" and (results := run.results()):
        asked = results.get("precision", "32-true")
    where = resolve_device(device)
    if asked != "auto" or images is None:
        return resolve_precision(asked, where)
    return faster_precision(run, images, where)


def faster_precision(run: Run, images: Split, where: torch.device) -> Precision:
    """The precision in which a search on so many images costs less on the device, by enough (see `fastest_precision`)."""
    model = run.model().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    few = images.images[:TIMED].to(where).float() / 255
    return fastest_precision(model, few.repeat(COPIES if model.stochastic else 1, 1, 1, 1))


def state_key(asked: Mapping[str, Any], device: torch.device) -> str:
    """Eight characters for what is asked and where, so that an interrupted measurement only meets its own state."""
    return digest(json.dumps([asked, device.type, torch.__version__], sort_keys=True), length=8)


def _check_runs(runs: Mapping[str, Run]) -> None:
    if not runs:
        raise InputError("There are no runs to measure: train some first (`robustlib run`), or give another directory.")


def _digests(run: Run, images: Split) -> dict[str, str]:
    weights = (run.path / "model.safetensors").read_bytes()
    return {"images": digest(images.images.numpy().tobytes()), "weights": digest(weights)}


def records_of(run: Run) -> pd.DataFrame:
    """What the run answered to each image; where that is not kept, an InputError says how to make it."""
    records = run.records()
    if not len(records):
        how = f"call `robustlib evaluate {run.argument}` first"
        if run.results():  # they would only be read back
            how = f"delete its results.json, and {how}"
            if not (run.path / "last.safetensors").exists():  # an evaluation needs it, too
                how = "the command in its provenance.json makes it again"
        raise InputError(f"{run.path} keeps no answer to each image (records.parquet), as an archive does not: {how}.")
    return records


# ---- unseen attacks


def measure_unseen(
    runs: Mapping[str, Run], dataset: Dataset, *, n: int = 0, seed: int = 0, device: str = "auto"
) -> pd.DataFrame:
    """Accuracy of runs' best weights under unseen attacks, beside the known worst case, on the same test images for all.

    What a run's unseen.json holds of the same images, strengths, seed, weights, versions and evaluation is read back. The runs are
    evaluated and of one preset, whose strengths and protocol are taken. `n` is a stratified choice of test images; 0 for the
    number of the preset's protocol for stochastic models, or that on which all runs were evaluated if it is smaller.

    Returns:
        Columns run, attack ("clean", "known": the worst case of the evaluation, "l2", "stadv"), protocol, n, correct, accuracy,
        low, high, loss (known less this, in [-1, 1]); the headline has no part in it, and they none in the headline.
    """
    _check_runs(runs)
    presets = {run.params().get("preset") for run in runs.values()}
    if len(presets) > 1:
        raise InputError(f"The runs are of the presets {sorted(map(str, presets))}: compare runs of one preset.")
    evaluated = [run.results().get("n", 1) for run in runs.values()]
    most, rows = n or min([stochastic_protocol(*presets).images, *evaluated]), []
    for name, run in runs.items():
        accuracies = _unseen_accuracies(run, dataset, images_of(run, dataset, most), seed, device)
        known = accuracies["known"]["accuracy"]
        rows += [{"run": name, "attack": a, **row, "loss": known - row["accuracy"]} for a, row in accuracies.items()]
    return pd.DataFrame(rows)


def _unseen_accuracies(run: Run, dataset: Dataset, images: Split, seed: int, device: str) -> dict[str, dict[str, Any]]:
    """Accuracy without attack, the known one and the minimum over each kind of unseen attack, from unseen.json if it holds them; it also
    keeps "bare", the clean accuracy of the classifier behind a purifier ({} without one)."""
    model, strengths = run.model(), unseen_strengths(run.params().get("preset"))
    model.check_data(dataset)
    known = _known(run, images)
    suites, precision = (
        unseen_attacks(strengths, model.stochastic, protocol_of(run)),
        search_precision(run, device=device),
    )
    suites = {kind: {n: in_precision(a, precision) for n, a in some.items()} for kind, some in suites.items()}
    names = attack_names(attack for suite in suites.values() for attack in suite.values())
    facts: dict[str, Any] = {"split": "test", "seed": seed, "strengths": asdict(strengths), "n": len(images)}
    facts |= {
        "precision": precision,
        **_digests(run, images),
        "numerics": versions("measures/evaluation", *names),
        "known": known,
    }

    def measure() -> dict[str, Any]:
        model.to(resolve_device(device))
        behind = model.surrogates().get("classifier")
        bare = accuracies(evaluate(behind, images, {}, seed=seed))["clean"] if behind else {}
        rows: dict[str, Any] = {"clean": {}, "known": known}
        adaptive: Any = {} if model.stochastic else None  # a stochastic model's own gradients are exact
        for kind, attacks in suites.items():
            each = accuracies(evaluate(model, images, attacks, seed=seed, adaptive=adaptive, minimum=True))
            rows["clean"] = {**each["clean"], "protocol": "no attack"}
            rows[kind] = {**each["worst"], "protocol": " and ".join(map(repr, attacks.values()))}
        return {"bare": bare, "accuracies": rows}

    key = "{strengths} on {n} of {split}, seed {seed}".format(**facts)
    stored: dict[str, dict[str, Any]] = measured(run, "unseen.json", facts, measure, key=key)["accuracies"]
    return stored


def _known(run: Run, images: Split) -> dict[str, Any]:
    """The worst case over the attacks of the run's evaluation on these images, or what its plateau check took from it."""
    records, wanted = records_of(run), set(images.indices.tolist())
    if not wanted <= set(records["index"]):
        raise InputError(
            f"{run.path} was not evaluated on all of these {len(images)} images, so what it knows cannot be compared: "
            f"call `robustlib evaluate {run.argument} --examples {len(images)}` or more first."
        )
    plateau = run.results().get("plateau", {})
    if plateau.get("taken") and plateau["full"]["n"] == len(images):
        full = plateau["full"]
        return {**accuracy(full["correct"], full["n"]), "protocol": f"{full['protocol']}, the plateau check"}
    row = accuracies(records[records["index"].isin(wanted)])["worst"]
    return {**row, "protocol": "per-example worst case over the attacks of the evaluation"}


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
    """The `adversarial_distances` of finished runs' best weights on the same images, stored in each run's distances.json.

    Best are those that the method keeps: for rep-spectral's family the last ones, as in its paper. What is stored of the same attack,
    images, seed, weights and versions is read back. Distances are rounded to 6 decimals.

    Args:
        attack: Tangent; FAB in l2 as a white-box cross-check.
        split: "test", or "val" to choose hyper-parameters by.
        n: a stratified choice of so many images, always the same; 0 for all.
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
        columns = ["index", "label", "correct", "distance", "queries"]
        frames[name] = pd.DataFrame({column: content[column] for column in columns}).astype({"distance": float})
    return frames


def _distances(run: Run, images: Split, attack: MinimumNorm, seed: int, device: str) -> dict[str, Any]:
    frame = adversarial_distances(run.model().to(resolve_device(device)), images, attack, seed=seed)
    columns: Any = frame.to_dict("list")
    return columns | {"distance": [None if d != d else round(d, DIGITS) for d in columns["distance"]]}
