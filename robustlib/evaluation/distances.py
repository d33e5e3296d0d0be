"""How far away the nearest adversarial images are: distances of each model, compared on the same images."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.attacks import Draws, MinimumNorm, Nearest
from robustlib.attacks.float32 import full_float32
from robustlib.attacks.search import borrowed
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import BATCH, device_of
from robustlib.evaluation.records import valid

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RESAMPLES = 2000


def adversarial_distances(
    model: nn.Module, split: Split, attack: MinimumNorm, *, batch_size: int = BATCH, seed: int = 0
) -> "pd.DataFrame":
    """The distance of the nearest adversarial image that `attack` finds for each image of a split: an upper bound.

    Where the attack finds none by itself, it tries once more from the nearest image of the split that the model gives another
    class than the right one. The deployed model judges in float32.

    Args:
        model: x -> logits (B, K), deterministic, on the device where it shall be evaluated.
        split: the examples, all of them.
        attack: Tangent, or FAB as a white-box cross-check; its threat's norm measures.
        batch_size: examples at a time; it changes no random draw.
        seed: of all random draws.

    Returns:
        Columns index (in the original file), label, correct (without attack), distance (in pixel units of [0, 1]; 0 where not
        correct, NaN where none was found), queries (how often the model was asked).

    Raises:
        InputError: a stochastic model, labels that are no class of it, or a batch size below 1.
    """
    import pandas as pd

    if batch_size < 1:
        raise InputError(f"batch_size={batch_size!r} holds no example: give a whole number of at least 1.")
    split = split.to(device_of(model, split))
    x, draws = split.images.float() / 255, Draws.for_examples(seed, split.indices)
    parts = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    distance, queries = x.new_zeros(len(x)), torch.zeros_like(split.labels)

    def measure(rows: Tensor | slice, starts: Tensor | None = None) -> None:
        y = split.labels[rows]
        found = attack.nearest(model, x[rows], y, starts=starts, draws=draws[rows])
        distance[rows] = _verified(model, found, x[rows], y, attack)
        queries[rows] += found.queries

    with borrowed(model), full_float32():
        for rows in parts:
            measure(rows)
        said = torch.cat([_prediction(model, x[rows]) for rows in parts]) if parts else split.labels
        failed = distance.isnan().nonzero()[:, 0]
        for chosen in failed.split(batch_size) if len(failed) else ():
            other, starts = _nearest_other(x, said, x[chosen], split.labels[chosen])
            if bool(other.any()):
                measure(chosen[other], starts[other])
    columns = {"index": split.indices, "label": split.labels, "correct": said == split.labels}
    columns |= {"distance": distance, "queries": queries}
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _prediction(model: nn.Module, x: Tensor) -> Tensor:
    """The class (B,) of each image; -1 where a logit is not finite."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = model(x).float()
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def _verified(model: nn.Module, found: Nearest, x: Tensor, y: Tensor, attack: MinimumNorm) -> Tensor:
    """The distances (B,) of what was found; NaN where the model is right about it, or it is no image."""
    fine = (_prediction(model, found.x_adv) != y) & valid(found.x_adv, x, None)
    return torch.where(fine, attack.threat.distance(found.x_adv.double(), x.double()).to(x.dtype), torch.nan)


def _nearest_other(x: Tensor, said: Tensor, here: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For images `here` (M, ...) of classes y (M,): whether some of the images x (N, ...) is called (`said`, (N,)) anything
    else, and the nearest of these (M, ...)."""
    apart = torch.cdist(here.flatten(1), x.flatten(1)).masked_fill(said[None] == y[:, None], torch.inf)
    least = apart.min(1)
    return least.values.isfinite(), x[least.indices]


def compare_distances(
    models: Mapping[str, "pd.DataFrame"], *, resamples: int = RESAMPLES, seed: int = 0
) -> "pd.DataFrame":
    """Mean and median adversarial distance of several models on the images that all of them classify correctly.

    Each model by itself would be measured on other images, and a model that is right about fewer, easier ones would look
    more robust. An image for which any model's attack found nothing is left out for all: a failed search adds to nobody's
    distance, and `failed` says how many there are. All models are resampled alike.

    Args:
        models: frames of `adversarial_distances` by name, on the same images.
        resamples: of the bootstrap over images.
        seed: of the resampling.

    Returns:
        One row a model: model, images (measured), correct (of them, by this model), failed (of those that all have right, for
        this model's attack), n (images that count), mean, mean_low, mean_high, median, median_low, median_high (95 %
        percentile intervals; NaN where n is 0).

    Raises:
        InputError: no models, or models measured on different images.
    """
    import numpy as np
    import pandas as pd

    frames = _alike(models)
    right, counts = _counting(frames)
    statistics: dict[str, Callable[..., float]] = {"mean": np.mean, "median": np.median}
    rows = []
    for name, frame in frames.items():
        row: dict[str, object] = {"model": name, "images": len(frame), "correct": int(frame["correct"].sum())}
        row |= {"failed": int((right & frame["distance"].isna()).sum()), "n": int(counts.sum())}
        distance = frame["distance"].to_numpy()[counts].astype(float)
        for kind, statistic in statistics.items():
            low, high = bootstrap(statistic, distance, resamples=resamples, seed=seed)
            row |= {kind: float(statistic(distance)) if len(distance) else float("nan")}
            row |= {f"{kind}_low": low, f"{kind}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def shared_distances(models: Mapping[str, "pd.DataFrame"]) -> dict[str, "np.ndarray"]:
    """By name the distances (n,) that `compare_distances` compares, image by image.

    Raises:
        InputError: as `compare_distances`.
    """
    frames = _alike(models)
    _, counts = _counting(frames)
    return {name: frame["distance"].to_numpy()[counts].astype(float) for name, frame in frames.items()}


def _alike(models: Mapping[str, "pd.DataFrame"]) -> dict[str, "pd.DataFrame"]:
    """The frames by image, sorted; all of the same images."""
    if not models:
        raise InputError("There are no models to compare: give at least one frame of adversarial_distances.")
    frames = {name: frame.set_index("index").sort_index() for name, frame in models.items()}
    first, table = next(iter(frames.items()))
    for name, frame in frames.items():
        if not frame.index.equals(table.index):
            raise InputError(
                f"{name!r} and {first!r} were measured on different images: measure both on the same split."
            )
    return frames


def _counting(frames: Mapping[str, "pd.DataFrame"]) -> "tuple[np.ndarray, np.ndarray]":
    """Masks over the images: those that all models have right, and of these the ones on which no attack failed."""
    import numpy as np

    right = np.logical_and.reduce([frame["correct"] for frame in frames.values()])
    return right, right & np.logical_and.reduce([frame["distance"].notna() for frame in frames.values()])


def bootstrap(
    statistic: Callable[..., float], *columns: "np.ndarray", resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic under resampling of its examples (Efron 1979); NaN without examples.

    Args:
        statistic: of the columns.
        columns: (n,) each; the same examples are drawn from all, so that pairs stay pairs.
        resamples: how often, >= 1.
        seed: of the resampling.
    """
    import numpy as np

    n, generator = len(columns[0]), np.random.default_rng(seed)
    if not n:
        return float("nan"), float("nan")
    picks = (generator.integers(n, size=n) for _ in range(resamples))
    found = [statistic(*(column[pick] for column in columns)) for pick in picks]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
