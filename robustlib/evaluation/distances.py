"""How far away the nearest adversarial images are: distances of each model, compared on the same images, and the strength of a
regulariser that moves them farthest and costs hardly any accuracy."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import MinimumNorm
from robustlib.attacks.base import frozen_eval
from robustlib.data import Split, check_split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import BATCH, device_of
from robustlib.evaluation.metrics import answer, t_interval, valid
from robustlib.models.classifier import full_float32
from robustlib.rng import ExampleRNG
from robustlib.threat import exact

RESAMPLES = 2000
SLACK = 0.01  # accuracy that may be lost: 1 point
NONE = ("none", 0.0)
Cell = tuple[str, float]  # a regulariser and its strength
Frames = Mapping[int, pd.DataFrame]  # of `adversarial_distances`, by seed
Name = TypeVar("Name", bound=Hashable)


def adversarial_distances(model: nn.Module, split: Split, attack: MinimumNorm, *, seed: int = 0) -> pd.DataFrame:
    """The distance of the nearest adversarial image that `attack` finds for each image of a split: an upper bound.

    Where it finds none, it searches once more from the nearest image of the split that the model gives another class than the
    right one. The deployed model, x -> logits (B, K) and deterministic, judges in float32.

    Args:
        attack: Tangent, or FAB as a white-box cross-check; its threat's norm measures.

    Returns:
        Columns index (in the original file), label, correct (without attack), distance (in pixel units of [0, 1]; 0 where not
        correct, NaN where none was found), queries (how often the model was asked).
    """
    split = check_split(split).to(device_of(model, split))
    x, y, rng = split.images.float() / 255, split.labels, ExampleRNG.for_examples(seed, split.indices)
    parts = torch.arange(len(split), device=y.device).split(BATCH) if len(split) else ()
    distance, queries, predicted = x.new_zeros(len(x)), torch.zeros_like(y), torch.zeros_like(y)

    def measure(rows: Tensor, starts: Tensor | None = None) -> None:
        result = attack.nearest(model, x[rows], y[rows], starts=starts, rng=rng[rows])
        success = (answer(model, result.x_adv)[1] != y[rows]) & valid(result.x_adv, x[rows], None)
        measured = attack.threat.distance(exact(result.x_adv), exact(x[rows])).to(x)
        distance[rows] = torch.where(success, measured, torch.nan)
        queries[rows] += result.queries

    with frozen_eval(model), full_float32():
        for rows in parts:
            measure(rows)
            predicted[rows] = answer(model, x[rows])[1]
        for rows in distance.isnan().nonzero()[:, 0].split(BATCH) if len(split) else ():
            between = torch.cdist(x[rows].flatten(1), x.flatten(1))
            least = between.masked_fill(predicted[None] == y[rows, None], torch.inf).min(1)
            if bool((other := least.values.isfinite()).any()):
                measure(rows[other], x[least.indices][other])
    columns = {"index": split.indices, "label": y, "correct": predicted == y, "distance": distance, "queries": queries}
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def compare_distances(models: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean and median adversarial distance of several models on the images that all of them classify correctly.

    On its own images a model that is right about fewer, easier ones would look more robust. An image for which any model's attack
    found nothing counts for none: a failed search adds to nobody's distance. All models, by name, are resampled alike.

    Returns:
        One row a model: model, images (measured), correct (of them, by this model), failed (of those that all have right, for
        this model's attack), n (images that count), mean, mean_low, mean_high, median, median_low, median_high (95 %
        percentile intervals; NaN where n is 0).
    """
    shared, rows = shared_distances(models), []
    right = np.logical_and.reduce([frame.set_index("index")["correct"].sort_index() for frame in models.values()])
    for name, frame in models.items():
        failed = frame.set_index("index")["distance"].sort_index().isna()
        row = {"model": name, "images": len(frame), "correct": int(frame["correct"].sum())}
        row |= {"failed": int((right & failed).sum()), "n": len(shared[name])}
        for kind, statistic in (("mean", np.mean), ("median", np.median)):
            low, high = bootstrap(statistic, shared[name])
            value = float(statistic(shared[name])) if len(shared[name]) else float("nan")
            row |= {kind: value, f"{kind}_low": low, f"{kind}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def shared_distances(models: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """By name the distances (n,) that `compare_distances` compares, image by image."""
    if not models:
        raise InputError("There are no models to compare: give at least one frame of adversarial_distances.")
    frames = {name: frame.set_index("index").sort_index() for name, frame in models.items()}
    first, table = next(iter(frames.items()))
    for name, frame in frames.items():
        if not frame.index.equals(table.index):
            message = f"{name!r} and {first!r} were measured on different images: measure both on the same split."
            raise InputError(message)
    counts = np.logical_and.reduce([frame["correct"] & frame["distance"].notna() for frame in frames.values()])
    return {name: frame["distance"].to_numpy()[counts].astype(float) for name, frame in frames.items()}


def bootstrap(statistic: Callable[..., float], *columns: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic under resampling of its examples (Efron 1979); NaN without examples.

    The same examples are drawn from all `columns` (n,), so that pairs stay pairs.
    """
    n, generator = len(columns[0]), np.random.default_rng(0)
    if not n:
        return float("nan"), float("nan")
    picks = (generator.integers(n, size=n) for _ in range(RESAMPLES))
    values = [statistic(*(column[pick] for column in columns)) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def select_strength(none: Frames, cells: Mapping[Cell, Frames]) -> pd.DataFrame:
    """The grid of variants and strengths; of each variant, the strength of the largest mean distance is chosen among those allowed.

    `none` are frames of **validation** images of the unregularised variant; `cells` the same of each (variant, strength). Allowed is
    what keeps none's accuracy (mean over seeds), less SLACK. Distances of a seed are means over the images that all its allowed
    cells have right and no attack failed on; for a cell that is not allowed, over those of them that it has right too.

    Returns:
        A row each, "none" first: variant, strength, seeds, accuracy (in [0, 1], mean over seeds), n (images that count, the least of
        a seed), distance (mean over seeds, in pixel units), low, high (95 % t interval over seeds; of a single seed, bootstrap
        over images), gain_low, gain_high (the same interval of the distance less none's on the same images; NaN for none
        itself and what is not allowed), allowed, chosen. Distances are NaN where n is 0.
    """
    every, accuracy = {NONE: none, **cells}, {}
    for (variant, strength), frames in every.items():
        if not frames or set(frames) != set(none):
            message = f"{variant} at strength {strength:g} has the seeds {sorted(frames)}, none has {sorted(none)}."
            raise InputError(message)
        accuracy[variant, strength] = sum(float(f["correct"].mean()) for f in frames.values()) / len(frames)
    allowed = [cell for cell in every if accuracy[cell] >= accuracy[NONE] - SLACK - 1e-9]
    shared, rows = _shared({cell: every[cell] for cell in allowed}, none), []
    for cell in every:
        parts = shared[cell] if cell in allowed else _shared({c: every[c] for c in [*allowed, cell]}, none)[cell]
        row = {"variant": cell[0], "strength": cell[1], "accuracy": accuracy[cell], **_over_seeds(parts)}
        row |= {"gain_low": float("nan"), "gain_high": float("nan")}
        if cell in allowed and cell != NONE:
            pairs = zip(parts, shared[NONE], strict=True)
            row["gain_low"], row["gain_high"] = _mean_interval([far - near for far, near in pairs])[1:]
        rows.append(row | {"allowed": cell in allowed})
    table = pd.DataFrame(rows)
    best = table[table["allowed"] & (table["variant"] != NONE[0])].dropna(subset=["distance"])
    return table.assign(chosen=table.index.isin(best.groupby("variant")["distance"].idxmax()))


def distances_over_seeds(variants: Mapping[str, Frames]) -> pd.DataFrame:
    """The mean adversarial distance of each variant over the seeds that all have, on the images that all have right and no attack failed
    on; no rows without such seeds. Columns variant, seeds, n, distance, low, high as of `select_strength`."""
    seeds = sorted(set.intersection(*map(set, variants.values()))) if variants else []
    shared = _shared(variants, seeds) if seeds else {}
    return pd.DataFrame([{"variant": variant, **_over_seeds(parts)} for variant, parts in shared.items()])


def _shared(frames: Mapping[Name, Frames], seeds: Iterable[int]) -> dict[Name, list[np.ndarray]]:
    parts = [shared_distances({str(name): f[seed] for name, f in frames.items()}) for seed in seeds]
    return {name: [part[str(name)] for part in parts] for name in frames}


def _over_seeds(parts: Sequence[np.ndarray]) -> dict[str, float]:
    mean, low, high = _mean_interval(parts)
    least = float(np.maximum(low, 0))  # no distance is negative; NaN stays
    return {"seeds": len(parts), "n": min(map(len, parts)), "distance": mean, "low": least, "high": high}


def _mean_interval(parts: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean of the seeds' means and its 95 % interval: Student's t over seeds; of one seed, bootstrap over its images."""
    means = [float(part.mean()) if len(part) else float("nan") for part in parts]
    return sum(means) / len(means), *(t_interval(means) if len(parts) > 1 else bootstrap(np.mean, parts[0]))
