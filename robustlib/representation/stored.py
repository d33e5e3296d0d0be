"""Features of finished runs, kept beside the weights that made them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from robustlib.attacks import PGD, Attack, Threat
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.models import Classifier
from robustlib.representation.features import Features, features
from robustlib.representation.layers import resolve_layers
from robustlib.runs import Run, attack_names, load_weights, versions, write_atomic
from robustlib.training.fit import resolve_device

EXAMPLES = 500  # test images, unless told otherwise

SIDES = ("clean", "adversarial")

Pair = tuple[Features, Features]  # clean, adversarial


def probe_attack(threat: Threat) -> PGD:
    """The attack under which feature spaces are compared: PGD-20 that goes on after its first success.

    The attacks that measure accuracy stop there, and would so leave the features of weak models nearer to the clean ones.
    """
    return PGD(threat, steps=20)


def run_features(
    run: Run,
    dataset: Dataset,
    attack: Attack,
    *,
    layers: str | Sequence[str] | None = None,
    n: int = EXAMPLES,
    seed: int = 0,
    snapshot: str = "",
    device: str = "auto",
) -> Pair:
    """Clean and adversarial features of a finished run on `n` test images, the same for all runs; kept in the run.

    Both sides have their images, the adversarial ones rounded to 256 levels. They lie below features/ in the run's directory
    under a digest of weights, images, attack, layers, seed and versions; the same call takes them from there.

    Args:
        run: finished, of this data set.
        dataset: whose test images are looked at.
        attack: on the run's own model, through its `attack_view`.
        layers: see `robustlib.representation.layers`; None = the penultimate features.
        n: a stratified choice of so many test images, always the same; 0 for all.
        seed: of the attack.
        snapshot: name of kept weights of an epoch, such as "train-5"; "" for the best.
        device: where they are made, if they are not kept yet: "cpu", "cuda" or "auto".

    Raises:
        InputError: an unfinished run, another data set, no such layer, snapshot or device.
    """
    check_runs([run], dataset)
    model, weights = load_model(run, snapshot)
    names, split = resolve_layers(model, layers), dataset.test.sample(n)
    asked: dict[str, object] = {
        "weights": digest(weights.read_bytes()),
        "images": digest(split.images.numpy().tobytes()),
    }
    asked |= {"attack": repr(attack), "layers": names, "seed": seed}
    asked["numerics"] = versions("measures/representation", *attack_names([attack]))
    file = run.path / "features" / f"{digest(repr(asked).encode())}.npz"
    stored = _load(file, names, split)
    if stored is None:
        model = model.to(resolve_device(device))
        clean = replace(features(model, split, layers=names, seed=seed), images=split.images)
        stored = clean, features(model, split, layers=names, attack=attack, seed=seed, keep_images=True)
        write_atomic(file, _bytes(stored))
    return stored


def check_runs(runs: Sequence[Run], dataset: Dataset) -> None:
    """Raises InputError for no runs, a run that is not finished, and runs of other data than `dataset`."""
    if not runs:
        raise InputError("There are no runs to compare: train some first (`robustlib run`), or give another directory.")
    for run in runs:
        if (name := run.params().get("dataset")) != dataset.name:
            raise InputError(
                f"{run.path} was trained on {name!r}, the comparison is on {dataset.name!r}: compare runs of one data set."
            )
        if not run.finished:
            raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first, or leave it out.")


def snapshots(run: Run) -> tuple[str, ...]:
    """Names of the epochs whose weights the run kept, "<stage>-<epoch>", by stage and epoch."""
    names = [file.stem for file in run.path.glob("snapshots/*.safetensors")]
    return tuple(sorted(names, key=lambda name: (name.rpartition("-")[0], int(name.rpartition("-")[2]))))


def load_model(run: Run, snapshot: str = "") -> tuple[Classifier, Path]:
    """The model with the best weights or those of a snapshot, and the file that holds them."""
    model = run.model()
    if not snapshot:
        return model, run.path / "model.safetensors"
    if snapshot not in (there := snapshots(run)):
        raise InputError(f"{run.path} kept no weights {snapshot!r}, only: {', '.join(there) or 'none'}.")
    weights = run.path / "snapshots" / f"{snapshot}.safetensors"
    load_weights(model, weights)
    return model, weights


def digest(content: bytes) -> str:
    """Sixteen characters that name some bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def _bytes(pair: Pair) -> bytes:
    from safetensors.torch import save

    tables = {}
    for side, found in zip(SIDES, pair, strict=True):
        tables[f"{side}/predictions"] = found.predictions
        tables |= {f"{side}/{name}": table for name, table in found.layers.items()}
    if (images := pair[1].images) is not None:
        tables[f"{SIDES[1]}/images"] = images
    return save(tables)


def _load(file: Path, names: Sequence[str], split: Split) -> Pair | None:
    """Stored features; None if there are none, of an older form, or not readable: a copy of what can be made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError):
        return None

    def side(which: str, images: Tensor) -> Features:
        tables = {name: found[f"{which}/{name}"] for name in names}
        return Features(tables, split.labels, split.indices, found[f"{which}/predictions"], images)

    if (images := found.get(f"{SIDES[1]}/images")) is None:
        return None
    return side(SIDES[0], split.images), side(SIDES[1], images)
