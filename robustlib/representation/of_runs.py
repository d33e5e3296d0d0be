"""Finished runs side by side: the same images, the same attack, each model's feature space in numbers and maps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import Attack
from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.representation.embedding import Embedding, embed
from robustlib.representation.features import Features, at_eps
from robustlib.representation.geometry import (
    HEADLINE,
    RAW,
    alignment,
    class_alignment,
    exclusion,
    feature_gap,
    uniformity,
)
from robustlib.representation.layers import FEATURES, resolve_layers
from robustlib.representation.spectrum import cka, effective_rank, neural_collapse
from robustlib.representation.stored import EXAMPLES, check_runs, digest, load_model, run_features, snapshots
from robustlib.runs import Run, attack_names, merge_json, read_json, versions

if TYPE_CHECKING:
    import pandas as pd

ONLY = ("all", "survivors", "fooled")


def gap_table(
    runs: Sequence[Run],
    dataset: Dataset,
    attack: Attack,
    *,
    layers: str | Sequence[str] | None = None,
    eps: Sequence[float] | None = None,
    classes: bool = False,
    epochs: bool = False,
    only: str = "all",
    n: int = EXAMPLES,
    seed: int = 0,
) -> "pd.DataFrame":
    """The mean feature gap of runs per layer, eps, epoch and class, on the same images.

    Args:
        runs, dataset, attack, layers, n, seed: see `run_features`.
        eps: radii to attack with; None = the attack's own.
        classes: a row for each class besides the one for all.
        epochs: the kept snapshots too (`Stage.snapshots`).
        only: "all" images, "survivors" of the attack or those it "fooled" (and that were right before).

    Returns:
        Columns run, method, title (for people), seed, snapshot ("" = best weights), stage, epoch (of a snapshot; else missing),
        layer, eps, class (a name; "" = all), n and the measures of `feature_gap`: relative_l2 and cosine are comparable, l1,
        l2, linf are raw.

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
        for snapshot in ("", *(snapshots(run) if epochs else ())):
            for one in attacks:
                pair = run_features(run, dataset, one, layers=layers, n=n, seed=seed, snapshot=snapshot)
                facts = _facts(run, snapshot) | {"eps": getattr(getattr(one, "threat", None), "eps", None)}
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
        One row a run and layer: run, method, title, seed, snapshot, stage, epoch, layer, then the measures.

    Raises:
        InputError: as `run_features`.
    """
    import pandas as pd

    check_runs(runs, dataset)
    rows = []
    for run in runs:
        for layer, numbers in _measured(run, dataset, attack, layers, n, seed).items():
            rows.append(_facts(run, "") | {"layer": layer} | numbers)
    return pd.DataFrame(rows)


def _measured(
    run: Run, dataset: Dataset, attack: Attack, layers: str | Sequence[str] | None, n: int, seed: int
) -> dict[str, dict[str, float]]:
    model, weights = load_model(run)
    asked = {"attack": repr(attack), "layers": list(resolve_layers(model, layers)), "n": n, "seed": seed}
    asked |= {
        "weights": digest(weights.read_bytes()),
        "numerics": versions("measures/representation", *attack_names([attack])),
    }
    file = run.path / "representation.json"
    key = digest(json.dumps(asked).encode())
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


def _facts(run: Run, snapshot: str) -> dict[str, Any]:
    params, (stage, _, epoch) = run.params(), snapshot.rpartition("-")
    facts = (
        {"run": run.name}
        | {name: params.get(name) for name in ("method", "title", "changed", "seed")}
        | {"snapshot": snapshot}
    )
    return facts | {"stage": stage, "epoch": int(epoch) if epoch else None}
