"""Finished runs side by side: the same images, the same attack, each model's feature space in numbers and maps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import PGD, Attack
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.representation.embedding import Embedding, embed
from robustlib.representation.features import FEATURES, Features, at_eps, cached_tensors, features, resolve_layers
from robustlib.representation.measures import (
    alignment,
    cka,
    class_alignment,
    effective_rank,
    exclusion,
    mean_gaps,
    neural_collapse,
    uniformity,
)
from robustlib.runs import Run, attack_names, digest, measured, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

EXAMPLES = 500  # test images, unless told otherwise
Layers = str | Sequence[str] | None


def probe_attack(threat: Threat) -> PGD:
    """The attack under which feature spaces are compared: PGD-20 that goes on after its first success.

    The attacks that measure accuracy stop there, and would so leave the features of weak models nearer to the clean ones.
    """
    return PGD(threat, steps=20)


def run_features(
    run: Run, dataset: Dataset, attack: Attack, *, layers: Layers = None, n: int = EXAMPLES, seed: int = 0
) -> tuple[Features, Features]:
    """Clean and adversarial features of a finished run on `n` test images, the same for all runs; kept in the run.

    Both sides have their images, the adversarial ones rounded to 256 levels. They lie below features/ in the run's directory
    under a digest of weights, images, attack, layers, seed and versions; the same call takes them from there.

    Args:
        run: finished, of this data set.
        attack: on the run's own model, through its `attack_view`.
        layers: see `robustlib.representation.features`; None = the penultimate features.
        n: a stratified choice of so many test images, always the same; 0 for all.
    """
    check_runs([run], dataset)
    model, weights = run.model(), run.path / "model.safetensors"
    names, split = resolve_layers(model, layers), dataset.test.sample(n)
    facts: dict[str, object] = {
        "weights": digest(weights.read_bytes()),
        "images": digest(split.images.numpy().tobytes()),
    }
    facts |= {"attack": repr(attack), "layers": names, "seed": seed}
    facts["numerics"] = versions("measures/representation", *attack_names([attack]))

    def make() -> dict[str, Tensor]:
        net, tables = model.to(resolve_device("auto")), dict[str, Tensor]()
        clean = features(net, split, layers=names, seed=seed)
        adversarial = features(net, split, layers=names, attack=attack, seed=seed, keep_images=True)
        for which, made in (("clean", clean), ("adversarial", adversarial)):
            tables |= {f"{which}/{name}": table for name, table in made.layers.items()}
            tables[f"{which}/predictions"] = made.predictions
        tables["adversarial/images"] = adversarial.images  # type: ignore[assignment]
        return tables

    def side(which: str, images: Tensor) -> Features:
        layers = {name: tables[f"{which}/{name}"] for name in names}
        return Features(layers, split.labels, split.indices, tables[f"{which}/predictions"], images)

    wanted = [f"{which}/{name}" for which in ("clean", "adversarial") for name in (*names, "predictions")]
    file = run.path / "features" / f"{digest(repr(facts))}.npz"
    tables = cached_tensors(file, [*wanted, "adversarial/images"], make)
    return side("clean", split.images), side("adversarial", tables["adversarial/images"])


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
    """The mean feature gap of runs per layer, eps and class, on the same images.

    Args:
        runs, dataset, attack, layers, n, seed: see `run_features`.
        eps: radii to attack with; None = the attack's own.
        classes: a row for each class besides the one for all.

    Returns:
        run, method, title (for people), seed, layer, eps, class (a name; "" = all), n and each measure of `feature_gap`.
    """
    check_runs(runs, dataset)
    attacks = [attack] if eps is None else [at_eps(attack, radius) for radius in eps]
    rows = []
    for run in runs:
        for one in attacks:
            pair = run_features(run, dataset, one, layers=layers, n=n, seed=seed)
            facts = _facts(run) | {"eps": getattr(getattr(one, "threat", None), "eps", None)}
            rows += [facts | row for row in _gap_rows(*pair, dataset.class_names if classes else ())]
    return pd.DataFrame(rows)


def _gap_rows(clean: Features, adversarial: Features, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each layer, over all examples and then for each of `classes`: layer, class, n and the mean gaps."""
    groups = {"": torch.ones_like(clean.correct)} | {name: clean.labels == k for k, name in enumerate(classes)}
    for name, rows in groups.items():
        if not bool(rows.any()):
            raise InputError(f"None of the {len(rows)} images is of class {name!r}: take more, or no single classes.")
        for layer in clean.layers:
            gaps = mean_gaps(clean[layer][rows], adversarial[layer][rows])
            yield {"layer": layer, "class": name, "n": int(rows.sum()), **gaps}


def measures(clean: Features, adversarial: Features, layer: str, head: nn.Linear | None = None) -> dict[str, float]:
    """The numbers of one layer that both kept, of the same examples; `head` is the last linear layer, if this layer is its input.

    Mean gaps (relative_l2, cosine, l1, l2, linf); alignment (clean to adversarial) and class_alignment; nearest, other, margin
    (`exclusion` of clean features), uniformity and effective_rank, and the same with adversarial_ (adversarial features among
    clean ones); cka of clean with adversarial; the fields of `NeuralCollapse` (of clean features).
    """
    before, after, y = clean[layer], adversarial[layer], clean.labels
    numbers = mean_gaps(before, after)
    numbers |= {"alignment": float(alignment(before, after).mean()), "cka": cka(before, after)}
    numbers["class_alignment"] = float(class_alignment(before, y).mean())
    for prefix, table in (("", before), ("adversarial_", after)):
        apart = exclusion(table, y, before)
        numbers |= {f"{prefix}nearest": float(apart.nearest.mean()), f"{prefix}other": float(apart.mean.mean())}
        numbers |= {f"{prefix}margin": float(apart.margin.nanmean()), f"{prefix}uniformity": uniformity(table)}
        numbers[f"{prefix}effective_rank"] = effective_rank(table)
    return numbers | asdict(neural_collapse(before, y, head))


def measure_runs(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layers: Layers = None,
    n: int = EXAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The `measures` of runs on the same images, stored in each run's representation.json; stored ones are taken from there.

    One row a run and layer: run, method, title, seed, layer, then the measures. Arguments as of `run_features`.
    """
    check_runs(runs, dataset)
    rows = []
    for run in runs:
        for layer, numbers in _measure_run(run, dataset, attack, layers, n, seed).items():
            rows.append(_facts(run) | {"layer": layer, **numbers})
    return pd.DataFrame(rows)


def _measure_run(run: Run, dataset: Dataset, attack: Attack, layers: Layers, n: int, seed: int) -> dict[str, Any]:
    model, weights = run.model(), run.path / "model.safetensors"
    facts = {"attack": repr(attack), "layers": list(resolve_layers(model, layers)), "n": n, "seed": seed}
    facts["weights"] = digest(weights.read_bytes())
    facts["numerics"] = versions("measures/representation", *attack_names([attack]))

    def measure() -> dict[str, Any]:
        pair, heads = run_features(run, dataset, attack, layers=layers, n=n, seed=seed), {FEATURES: model.head}
        return {"measures": {layer: measures(*pair, layer, heads.get(layer)) for layer in pair[0].layers}}

    return measured(run, "representation.json", facts, measure, key=digest(json.dumps(facts)))["measures"]


def embed_runs(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layer: str | None = None,
    n: int = 2000,
    seed: int = 0,
    **settings: Any,
) -> list[Embedding]:
    """The joint map of each run's clean and adversarial features, in the order of the runs, of the same images for all.

    Features and coordinates are kept in the runs. Print an Embedding to see how it was made and how far to trust it.

    Arguments as of `run_features`, for one layer; `seed` is UMAP's too. Other settings are those of `embed`.
    """
    check_runs(runs, dataset)
    maps = []
    for run in runs:
        clean, adversarial = run_features(run, dataset, attack, layers=layer, n=n, seed=seed)
        (name,) = clean.layers
        maps.append(embed(clean[name], adversarial[name], seed=seed, cache=run.path, **settings))
    return maps


def _facts(run: Run) -> dict[str, Any]:
    params = run.params()
    return {"run": run.name, **{name: params.get(name) for name in ("method", "title", "seed")}, "changed": run.changed}
