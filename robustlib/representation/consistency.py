"""Whether features stay where they are when an image is augmented or attacked: what contrastive training asks of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.representation.features import Features, features
from robustlib.representation.geometry import alignment, feature_gap
from robustlib.representation.layers import FEATURES

if TYPE_CHECKING:
    import pandas as pd

CLEAN = "clean"


def image_copies(
    model: nn.Module, split: Split, attack: Attack, *, augment: str = "simclr", seed: int = 0
) -> dict[str, Features]:
    """The penultimate features of the same images as they are ("clean"), "augmented" and "attacked", N each in one order.

    Args:
        model: x -> logits; left as found.
        split: the images.
        attack: on the plain images.
        augment: the view of the augmented copies; see `features`.
        seed: of augmentation and attack.

    Raises:
        InputError: as `features`.
    """
    return {
        CLEAN: features(model, split, seed=seed),
        "augmented": features(model, split, augment=augment, seed=seed),
        "attacked": features(model, split, attack=attack, seed=seed),
    }


def moved(copies: Mapping[str, Features]) -> dict[str, Tensor]:
    """By kind of copy 1 - cos of each image's features to its clean ones, (N,) in [0, 2]; for `figures.pair_distances`.

    Args:
        copies: of `image_copies`.

    Raises:
        InputError: no clean ones.
    """
    return {kind: feature_gap(before, after, "cosine") for kind, before, after in _pairs(copies)}


def consistency(models: Mapping[str, Mapping[str, Features]]) -> "pd.DataFrame":
    """How consistent models are under augmentation and under attack; low gaps, a low alignment and many same answers are good.

    Args:
        models: name -> what `image_copies` makes of it.

    Returns:
        A row a model and kind of copy: model, copy, the means of `alignment` and of the relative L2 gap (see `feature_gap`),
        and the share of copies that the model answers as it answers their image ("same answer").

    Raises:
        InputError: no clean features.
    """
    import pandas as pd

    rows = []
    for name, copies in models.items():
        for kind, before, after in _pairs(copies):
            means = {"alignment": alignment(before, after), "relative_l2": feature_gap(before, after)}
            means["same answer"] = (copies[kind].predictions == copies[CLEAN].predictions).float()
            rows.append({"model": name, "copy": kind} | {key: float(value.mean()) for key, value in means.items()})
    return pd.DataFrame(rows)


def _pairs(copies: Mapping[str, Features]) -> list[tuple[str, Tensor, Tensor]]:
    """(kind of copy, clean features, its features) for all but the clean ones."""
    if CLEAN not in copies:
        raise InputError(
            f"There are no clean features among {', '.join(copies) or 'none'}: take those of image_copies."
        )
    clean = copies[CLEAN][FEATURES]
    return [(kind, clean, found[FEATURES]) for kind, found in copies.items() if kind != CLEAN]
