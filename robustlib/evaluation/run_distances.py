"""Adversarial distances of finished runs, on the same images for all, kept in each run with what measured them."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.attacks import MinimumNorm, Tangent, Threat
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.distances import adversarial_distances
from robustlib.evaluation.run_images import images_of
from robustlib.runs import Run, attack_names, merge_json, read_json, versions
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd

TANGENT = Tangent(Threat("l2", 0.5))  # the radius has no part in a distance
EXAMPLES = 100  # images, unless told otherwise
FRAME = ("index", "label", "correct", "distance", "queries")
DIGITS = 6  # of a stored distance, in pixel units


def measure_distances(
    runs: Mapping[str, Run],
    dataset: Dataset,
    attack: MinimumNorm = TANGENT,
    *,
    split: str = "test",
    n: int = EXAMPLES,
    seed: int = 0,
    device: str = "auto",
) -> "dict[str, pd.DataFrame]":
    """The `adversarial_distances` of runs' best weights on the same images, stored in each run's distances.json.

    Best are, as in `evaluate_run`, those that the method keeps: for rep-spectral's family the last ones, as in its paper.

    What is stored is read back where attack, images, seed, weights and versions are the same; a look of other versions or weights
    under the same protocol is replaced.

    Args:
        runs: finished, of this data set, by the names under which `compare_distances` shall show them.
        dataset: whose images are looked at.
        attack: Tangent; FAB in l2 as a white-box cross-check.
        split: "test", or "val" to choose hyper-parameters by.
        n: a stratified choice of so many images, always the same; 0 for all.
        seed: of the attack.
        device: where it is measured: "cpu", "cuda" or "auto".

    Returns:
        By the same names, frames with the columns of `adversarial_distances`; distances are rounded to 6 decimals.

    Raises:
        InputError: no runs; a run that is not finished, of another data set, or of a stochastic model (before anything is
            measured); an unknown split or device.
    """
    if not runs:
        raise InputError("There are no runs to measure: train some first (`robustlib run`), or give another directory.")
    for run in runs.values():
        images, model = images_of(run, dataset, n, split), run.model()
        model.check_data(dataset)
        if model.stochastic:
            raise InputError(f"{run.path} is a stochastic model, whose decisions have no boundary: leave it out.")
    asked = {"attack": repr(attack), "split": split, "n": len(images), "seed": seed}
    asked["numerics"] = versions("measures/distances", *attack_names([attack]))
    asked["images"] = _digest(images.images.numpy().tobytes())
    return {name: _measured(run, images, attack, asked, device) for name, run in runs.items()}


def _measured(run: Run, images: Split, attack: MinimumNorm, asked: Mapping[str, Any], device: str) -> "pd.DataFrame":
    import pandas as pd

    file = run.path / "distances.json"
    asked = {**asked, "weights": _digest((run.path / "model.safetensors").read_bytes())}
    key = "{attack} on {n} of {split}, seed {seed}".format(**asked)
    look = read_json(file).get(key, {})
    if {name: look.get(name) for name in asked} != asked:
        model = run.model().to(resolve_device(device))
        found = adversarial_distances(model, images, attack, seed=asked["seed"])
        far = [None if value != value else round(value, DIGITS) for value in found["distance"].tolist()]
        look = {**asked, **found.to_dict("list"), "distance": far}
        merge_json(file, key, look)
    return pd.DataFrame({name: look[name] for name in FRAME}).astype({"distance": float})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
