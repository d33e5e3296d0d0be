"""Finished runs side by side: the same images, the same attack, each model's feature space in numbers and maps."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustlib.attacks import PGD, Attack
from robustlib.data import Dataset, check_dataset
from robustlib.errors import InputError
from robustlib.representation.embedding import Embedding, embed
from robustlib.representation.features import FEATURES, Features, at_eps, cached_tensors, features, resolve_layers
from robustlib.representation.measures import mean_gaps, measures
from robustlib.runs import Run, attack_names, digest, holds, measured, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

#: Test images of maps and measures, unless told otherwise.
EXAMPLES = 500
Layers = str | Sequence[str] | None


def probe_attack(threat: Threat) -> PGD:
    """The attack under which feature spaces are compared: PGD-20 that goes on after its first success.

    The attacks that measure accuracy stop there, and would so leave the features of weak models nearer to the clean ones.
    """
    return PGD(threat, steps=20)


def run_features(
    run: Run, dataset: Dataset, attack: Attack, *, layers: Layers = None, n: int = EXAMPLES, seed: int = 0
) -> tuple[Features, Features]:
    """Clean and adversarial features of a finished run of this data set, at `layers` (see `features`), on the same images for all runs.

    Those are a stratified choice of `n` test images (0: all); the attack is on the model's `attack_view`. Both sides have their
    images, adversarial ones rounded to 256 levels. They are kept below features/ in the run's directory, under a digest of all this.
    """
    check_runs([run], dataset)
    model, split = run.model(), dataset.test.sample(n)
    names = resolve_layers(model, layers)
    content = [(run.path / "model.safetensors").read_bytes(), split.images.numpy().tobytes()]
    facts: dict[str, object] = dict(zip(("weights", "images"), map(digest, content), strict=True))
    facts |= {"attack": repr(attack), "layers": names, "seed": seed}
    facts["numerics"] = versions("measures/representation", *attack_names([attack]))
    sides = {"clean": None, "adversarial": attack}

    def make() -> dict[str, Tensor]:
        net = model.to(resolve_device("auto"))
        made: dict[str, Tensor] = {}
        for side, one in sides.items():
            answers = features(net, split, layers=names, attack=one, seed=seed, keep_images=one is not None)
            made |= {f"{side}/{name}": table for name, table in answers.layers.items()}
            made[f"{side}/predictions"] = answers.predictions
            made |= {} if answers.images is None else {f"{side}/images": answers.images}
        return made

    wanted = [*(f"{side}/{name}" for side in sides for name in (*names, "predictions")), "adversarial/images"]
    tables = cached_tensors(run.path / "features" / f"{digest(repr(facts))}.npz", wanted, make)

    def features_of(side: str) -> Features:
        layers = {name: tables[f"{side}/{name}"] for name in names}
        images = tables.get(f"{side}/images", split.images)
        return Features(layers, split.labels, split.indices, tables[f"{side}/predictions"], images)

    return features_of("clean"), features_of("adversarial")


def check_runs(runs: Sequence[Run], dataset: Dataset) -> None:
    """Raises InputError for no runs, a run that is not finished, and runs of other data than `dataset`."""
    if not runs:
        raise InputError("There are no runs to compare: train some first (`robustlib run`), or give another directory.")
    check_dataset(dataset)
    for run in runs:
        if (name := run.params().get("dataset")) != dataset.name:
            said = f"was trained on {name!r}, the comparison is on {dataset.name!r}: compare runs of one data set."
            raise InputError(f"{run.path} {said}")
        if not run.finished:
            raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first, or leave it out.")


def gap_table(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layers: Layers = None,
    eps: Sequence[float] | None = None,
    classes: bool = False,
    n: int = EXAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The mean feature gap of runs per layer and eps (None: the attack's own), and with `classes` per class too, on the same images.

    Columns: run, method, title, seed, layer, eps, class ("" = all), n, each measure of `feature_gap`. The rest as of `run_features`.
    """
    check_runs(runs, dataset)
    attacks = [attack] if eps is None else [at_eps(attack, radius) for radius in eps]
    rows: list[dict[str, Any]] = []
    for run, one in itertools.product(runs, attacks):
        clean, adversarial = run_features(run, dataset, one, layers=layers, n=n, seed=seed)
        facts = _facts(run) | {"eps": getattr(getattr(one, "threat", None), "eps", None)}
        groups = {"": torch.ones_like(clean.correct)}
        groups |= {name: clean.labels == k for k, name in enumerate(dataset.class_names if classes else ())}
        for name, few in groups.items():
            if not few.any():
                said = f"None of the {len(few)} images is of class {name!r}"
                raise InputError(f"{said}: take more, or no single classes.")
            for layer in clean.layers:
                row = {"layer": layer, "class": name, "n": int(few.sum())}
                rows.append(facts | row | mean_gaps(clean[layer][few], adversarial[layer][few]))
    return pd.DataFrame(rows)


def measure_runs(
    runs: Sequence[Run], dataset: Dataset, attack: Attack, *, layers: Layers = None, n: int = EXAMPLES, seed: int = 0
) -> pd.DataFrame:
    """The `measures` of runs on the same images, stored in each run's representation.json; stored ones are taken from there.

    One row a run and layer: run, method, title, seed, layer, then the measures. Arguments as of `run_features`.
    """
    check_runs(runs, dataset)
    rows = []
    for run in runs:
        model, weights = run.model(), digest((run.path / "model.safetensors").read_bytes())
        facts = {"attack": repr(attack), "layers": list(resolve_layers(model, layers)), "n": n, "seed": seed}
        facts |= {"weights": weights, "numerics": versions("measures/representation", *attack_names([attack]))}

        def measure(run: Run = run, model: Any = model) -> dict[str, Any]:
            pair = run_features(run, dataset, attack, layers=layers, n=n, seed=seed)
            head = getattr(model, "head", None)  # a model from elsewhere may have none
            tables = {name: measures(*pair, name, head if name == FEATURES else None) for name in pair[0].layers}
            return {"measures": tables}

        stored = measured(run, "representation.json", facts, measure, key=digest(json.dumps(facts)))["measures"]
        rows += [_facts(run) | {"layer": layer, **numbers} for layer, numbers in stored.items()]
    return pd.DataFrame(rows)


def stored_measures(runs: Sequence[Run], attack: Attack, *, n: int = EXAMPLES, seed: int = 0) -> pd.DataFrame:
    """The rows of `measure_runs` that runs keep of their last layer and that today's code would give, without weights or data.

    Runs that keep none are left out.
    """
    facts = {"attack": repr(attack), "layers": [FEATURES], "n": n, "seed": seed}
    facts |= {"numerics": versions("measures/representation", *attack_names([attack]))}
    rows = []
    for run in runs:
        kept = [one["measures"] for one in run.read("representation.json").values() if holds(one, facts)]
        rows += [_facts(run) | {"layer": FEATURES, **measures[FEATURES]} for measures in kept[:1]]
    return pd.DataFrame(rows)


def embed_runs(
    runs: Sequence[Run], dataset: Dataset, attack: Attack, *, layer: str | None = None, n: int = 2000, **settings: Any
) -> list[Embedding]:
    """The joint map of each run's clean and adversarial features, in the order of the runs, of the same images for all.

    Features and coordinates are kept in the runs. Arguments as of `run_features`, for one layer, and `embed`, `seed` as of both.
    """
    check_runs(runs, dataset)
    maps = []
    for run in runs:
        clean, adversarial = run_features(run, dataset, attack, layers=layer, n=n, seed=settings.get("seed", 0))
        (name,) = clean.layers
        maps.append(embed(clean[name], adversarial[name], cache=run.path, **settings))
    return maps


def _facts(run: Run) -> dict[str, Any]:
    params = run.params()
    return {"run": run.name, **{name: params.get(name) for name in ("method", "title", "seed")}, "changed": run.changed}
