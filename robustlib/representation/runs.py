"""Features of finished runs, kept beside the weights that made them.

Finished runs side by side: the same images, the same attack, each model's feature space in numbers and maps.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD, Attack
from robustlib.data import Dataset, Split
from robustlib.errors import InputError, unknown
from robustlib.representation.embedding import Embedding, embed
from robustlib.representation.features import FEATURES, Features, at_eps, features, resolve_layers
from robustlib.representation.measures import (
    HEADLINE,
    RAW,
    alignment,
    class_alignment,
    exclusion,
    feature_gap,
    uniformity,
)
from robustlib.representation.spectrum import cka, effective_rank, neural_collapse
from robustlib.runs import Run, attack_names, digest, merge_json, read_json, versions, write_atomic
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd


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
    device: str = "auto",
) -> Pair:
    """Clean and adversarial features of a finished run on `n` test images, the same for all runs; kept in the run.

    Both sides have their images, the adversarial ones rounded to 256 levels. They lie below features/ in the run's directory
    under a digest of weights, images, attack, layers, seed and versions; the same call takes them from there.

    Args:
        run: finished, of this data set.
        dataset: whose test images are looked at.
        attack: on the run's own model, through its `attack_view`.
        layers: see `robustlib.representation.features`; None = the penultimate features.
        n: a stratified choice of so many test images, always the same; 0 for all.
        seed: of the attack.
        device: where they are made, if they are not kept yet: "cpu", "cuda" or "auto".

    Raises:
        InputError: an unfinished run, another data set, no such layer or device.
    """
    check_runs([run], dataset)
    model, weights = run.model(), run.path / "model.safetensors"
    names, split = resolve_layers(model, layers), dataset.test.sample(n)
    asked: dict[str, object] = {
        "weights": digest(weights.read_bytes()),
        "images": digest(split.images.numpy().tobytes()),
    }
    asked |= {"attack": repr(attack), "layers": names, "seed": seed}
    asked["numerics"] = versions("measures/representation", *attack_names([attack]))
    file = run.path / "features" / f"{digest(repr(asked))}.npz"
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


ONLY = ("all", "survivors", "fooled")


def gap_table(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layers: str | Sequence[str] | None = None,
    eps: Sequence[float] | None = None,
    classes: bool = False,
    only: str = "all",
    n: int = EXAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """The mean feature gap of runs per layer, eps and class, on the same images.

    Args:
        runs, dataset, attack, layers, n, seed: see `run_features`.
        eps: radii to attack with; None = the attack's own.
        classes: a row for each class besides the one for all.
        only: "all" images, "survivors" of the attack or those it "fooled" (and that were right before).

    Returns:
        Columns run, method, title (for people), seed, layer, eps, class (a name; "" = all), n and the measures of
        `feature_gap`: relative_l2 and cosine are comparable, l1, l2, linf are raw.

    Raises:
        InputError: as `run_features`, and a class without adversarial survivors or without any image fooled.
    """
    import pandas as pd

    check_runs(runs, dataset)
    if only not in ONLY:
        raise unknown("choice of examples", only, ONLY)
    attacks = [attack] if eps is None else [at_eps(attack, radius) for radius in eps]
    rows = []
    for run in runs:
        for one in attacks:
            pair = run_features(run, dataset, one, layers=layers, n=n, seed=seed)
            facts = _facts(run) | {"eps": getattr(getattr(one, "threat", None), "eps", None)}
            rows += [facts | row for row in gap_rows(*pair, dataset.class_names if classes else (), only)]
    return pd.DataFrame(rows)


def gap_rows(
    clean: Features, adversarial: Features, classes: Sequence[str] = (), only: str = "all"
) -> Iterator[dict[str, Any]]:
    """A row for each layer, over all examples and then for each of `classes`: layer, class, n and the mean gaps.

    Raises:
        InputError: a class none of whose examples is kept.
    """
    kept = {"all": torch.ones_like(clean.correct), "survivors": clean.correct & adversarial.correct}
    mask = kept.get(only, clean.correct & ~adversarial.correct)
    if not bool(mask.any()):
        remedy = "take a smaller eps" if only == "survivors" else "take a larger eps"
        raise InputError(f"No example belongs to the {only}: {remedy}, or look at all examples.")
    groups = [("", clean.select(mask), adversarial.select(mask))]
    for label, name in enumerate(classes):
        groups.append((name, clean.of_class(label, mask), adversarial.of_class(label, mask)))
    for name, before, after in groups:
        for layer in before.layers:
            means = {m: float(feature_gap(before[layer], after[layer], m).mean()) for m in (*HEADLINE, *RAW)}
            yield {"layer": layer, "class": name, "n": len(before)} | means


def measures(clean: Features, adversarial: Features, layer: str, head: nn.Linear | None = None) -> dict[str, float]:
    """The numbers of one layer: gaps, alignment, exclusion, uniformity, CKA, effective ranks, neural collapse.

    Args:
        clean, adversarial: of the same examples.
        layer: one that both kept.
        head: the last linear layer, if `layer` is what it sees.

    Returns:
        relative_l2, cosine, l1, l2, linf (mean gaps); alignment (clean to adversarial), class_alignment; nearest, other, margin
        (`exclusion` of clean features) and the same with adversarial_ (adversarial ones among clean ones); uniformity and
        effective_rank of both; cka of clean with adversarial; the fields of `NeuralCollapse` (of clean features).
    """
    before, after, y = clean[layer], adversarial[layer], clean.labels
    found: dict[str, float] = {m: float(feature_gap(before, after, m).mean()) for m in (*HEADLINE, *RAW)}
    found |= {"alignment": float(alignment(before, after).mean()), "cka": cka(before, after)}
    found["class_alignment"] = float(class_alignment(before, y).mean())
    for prefix, table in (("", before), ("adversarial_", after)):
        apart = exclusion(table, y, before)
        found |= {f"{prefix}nearest": float(apart.nearest.mean()), f"{prefix}other": float(apart.mean.mean())}
        found |= {f"{prefix}margin": float(apart.margin.nanmean()), f"{prefix}uniformity": uniformity(table)}
        found[f"{prefix}effective_rank"] = effective_rank(table)
    return found | asdict(neural_collapse(before, y, head))


def measure_runs(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layers: str | Sequence[str] | None = None,
    n: int = EXAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """The `measures` of runs on the same images, stored in each run's representation.json; stored ones are taken from there.

    Args:
        runs, dataset, attack, layers, n, seed: see `run_features`.

    Returns:
        One row a run and layer: run, method, title, seed, layer, then the measures.

    Raises:
        InputError: as `run_features`.
    """
    import pandas as pd

    check_runs(runs, dataset)
    rows = []
    for run in runs:
        for layer, numbers in _measured(run, dataset, attack, layers, n, seed).items():
            rows.append(_facts(run) | {"layer": layer} | numbers)
    return pd.DataFrame(rows)


def _measured(
    run: Run, dataset: Dataset, attack: Attack, layers: str | Sequence[str] | None, n: int, seed: int
) -> dict[str, dict[str, float]]:
    model, weights = run.model(), run.path / "model.safetensors"
    asked = {"attack": repr(attack), "layers": list(resolve_layers(model, layers)), "n": n, "seed": seed}
    asked |= {
        "weights": digest(weights.read_bytes()),
        "numerics": versions("measures/representation", *attack_names([attack])),
    }
    file = run.path / "representation.json"
    key = digest(json.dumps(asked))
    look = read_json(file).get(key)
    if look is None:
        pair = run_features(run, dataset, attack, layers=layers, n=n, seed=seed)
        heads = {FEATURES: model.head}
        numbers = {layer: measures(*pair, layer, heads.get(layer)) for layer in pair[0].layers}
        look = {**asked, "measures": numbers}
        merge_json(file, key, look, indent=2)
    return look["measures"]


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

    Args:
        runs, dataset, attack, n, seed: see `run_features`; `seed` is UMAP's too.
        layer: one layer; None = the penultimate features.
        settings: of `embed`.

    Raises:
        InputError: as `run_features` and `embed`, fewer examples than neighbours among them.
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
