"""How much of a finished run's robustness is left under attacks that it was not trained against; never part of its headline."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.budgets import budget_of
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import summarise
from robustlib.evaluation.run_images import images_of
from robustlib.evaluation.unseen import unseen_attacks, unseen_of
from robustlib.runs import Run, attack_names, merge_json, read_json, versions
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd


def measure_unseen(
    runs: Mapping[str, Run], dataset: Dataset, *, n: int = 0, seed: int = 0, device: str = "auto"
) -> "pd.DataFrame":
    """Accuracy of runs' best weights under unseen attacks, beside the known worst case, on the same test images for all.

    What is stored in a run's unseen.json is read back where images, strengths, seed, weights, versions and evaluation are the same.

    Args:
        runs: evaluated by `evaluate_run`, of this data set and one preset, whose strengths and budget are taken; by the names
            they get in the table. Any method: deterministic models meet the attacks without averaging.
        dataset: whose test images are attacked.
        n: a stratified choice of so many of them; 0 for the number of the preset's budget for stochastic models, or for that
            on which all runs were evaluated if it is smaller.
        seed: of the attacks.
        device: "cpu", "cuda" or "auto".

    Returns:
        Columns run, attack ("clean", "known": the worst case of the evaluation, "l2", "stadv"), protocol, n, correct, accuracy,
        low, high, loss (known less this, in [-1, 1]); the headline has no part in it, and they none in the headline.

    Raises:
        InputError: no runs; one that is not finished, not evaluated on these images, or of another data set or preset.
    """
    import pandas as pd

    if not runs:
        raise InputError("There are no runs to measure: train some first (`robustlib run`), or give another directory.")
    presets = {run.params().get("preset") for run in runs.values()}
    if len(presets) > 1:
        raise InputError(f"The runs are of the presets {sorted(map(str, presets))}: compare runs of one preset.")
    (preset,) = presets
    asked = {"split": "test", "seed": seed, "strengths": asdict(unseen_of(preset))}
    most, rows = n or min([budget_of(preset).images, *(run.results().get("n", 1) for run in runs.values())]), []
    for name, run in runs.items():
        images = images_of(run, dataset, most)
        run.model().check_data(dataset)
        look = _measured(
            run, images, {**asked, "n": len(images), "images": _digest(images.images.numpy().tobytes())}, device
        )
        known = look["accuracies"]["known"]["accuracy"]
        rows += [
            {"run": name, "attack": a, **row, "loss": known - row["accuracy"]} for a, row in look["accuracies"].items()
        ]
    return pd.DataFrame(rows)


def _measured(run: Run, images: Split, asked: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What unseen.json holds of this protocol, measured if it is not there."""
    known, stochastic = _known(run, images), run.model().stochastic
    suites = unseen_attacks(unseen_of(run.params().get("preset")), stochastic, budget_of(run.params().get("preset")))
    names = attack_names(attack for suite in suites.values() for attack in suite.values())
    asked = {**asked, "numerics": versions("measures/evaluation", *names)}
    asked = {**asked, "weights": _digest((run.path / "model.safetensors").read_bytes()), "known": known}
    key = "{strengths} on {n} of {split}, seed {seed}".format(**asked)
    look: dict[str, Any] = read_json(run.path / "unseen.json").get(key, {})
    if {name: look.get(name) for name in asked} != asked:
        found = _attacked(run, images, asked["seed"], device)
        bare, clean = found.pop("bare"), found.pop("clean")
        look = {**asked, "bare": bare, "accuracies": {"clean": clean, "known": known, **found}}
        merge_json(run.path / "unseen.json", key, look)
    return look


def _known(run: Run, images: Split) -> dict[str, Any]:
    """The worst case over the attacks of the run's evaluation on these images, or what its plateau check took from it.

    Raises:
        InputError: it was not evaluated on all of them.
    """
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
    return {**_numbers(row), "protocol": protocol}


def _attacked(run: Run, images: Split, seed: int, device: str) -> dict[str, dict[str, Any]]:
    """The clean accuracy, and that under each kind of unseen attack: the per-example minimum over its attacks; and "bare", the clean
    accuracy of the classifier that stands behind a purifier ({} where none does)."""
    model, preset = run.model().to(resolve_device(device)), run.params().get("preset")
    adaptive: Any = {} if model.stochastic else None  # a stochastic model's own gradients are exact
    behind = model.surrogates().get("classifier")
    bare = _numbers(summarise(evaluate(behind, images, {}, seed=seed)).to_dict("records")[0]) if behind else {}
    found: dict[str, dict[str, Any]] = {"bare": bare}
    for kind, attacks in unseen_attacks(unseen_of(preset), model.stochastic, budget_of(preset)).items():
        table = summarise(evaluate(model, images, attacks, seed=seed, adaptive=adaptive, minimum=True)).to_dict(
            "records"
        )
        found["clean"] = {**_numbers(table[0]), "protocol": "no attack"}
        found[kind] = {**_numbers(table[-1]), "protocol": " and ".join(map(repr, attacks.values()))}
    return found


def _numbers(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("n", "correct", "accuracy", "low", "high")}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
