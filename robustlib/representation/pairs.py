"""Images beside their copies, augmented or attacked, and beside images of other classes: how far their features lie apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD, Attack
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.data import Batch, Split
from robustlib.errors import InputError
from robustlib.losses import pick_negatives
from robustlib.representation.features import FEATURES, Features, activations, features, resolve_layers
from robustlib.representation.measures import GapMeasure, alignment, feature_gap
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

CLEAN = "clean"


def image_copies(
    model: nn.Module, split: Split, attack: Attack, *, augment: str = "simclr", seed: int = 0
) -> dict[str, Features]:
    """The penultimate features of the same images as they are ("clean"), "augmented" and "attacked", N each in one order.

    `augment` and `seed` as of `features`; the attack is on the plain images.
    """
    return {
        CLEAN: features(model, split, seed=seed),
        "augmented": features(model, split, augment=augment, seed=seed),
        "attacked": features(model, split, attack=attack, seed=seed),
    }


def displacement(copies: Mapping[str, Features]) -> dict[str, Tensor]:
    """By kind of copy (see `image_copies`) 1 - cos of each image's features to its clean ones, (N,) in [0, 2]."""
    return {kind: feature_gap(before, after, "cosine") for kind, before, after in _beside_clean(copies)}


def consistency(models: Mapping[str, Mapping[str, Features]]) -> pd.DataFrame:
    """How consistent models are under augmentation and under attack; low gaps, a low alignment and many same answers are good.

    Args:
        models: name -> its `image_copies`.

    Returns:
        A row a model and kind of copy: model, copy, the means of `alignment` and of the relative L2 gap (see `feature_gap`),
        and the share of copies that the model answers as it answers their image ("same answer").
    """
    rows = []
    for name, copies in models.items():
        for kind, before, after in _beside_clean(copies):
            means = {"alignment": alignment(before, after), "relative_l2": feature_gap(before, after)}
            means["same answer"] = (copies[kind].predictions == copies[CLEAN].predictions).float()
            rows.append({"model": name, "copy": kind} | {key: float(value.mean()) for key, value in means.items()})
    return pd.DataFrame(rows)


def _beside_clean(copies: Mapping[str, Features]) -> list[tuple[str, Tensor, Tensor]]:
    """(kind of copy, clean features, its features) for all but the clean ones."""
    if CLEAN not in copies:
        raise InputError(
            f"There are no clean features among {', '.join(copies) or 'none'}: take those of image_copies."
        )
    clean = copies[CLEAN][FEATURES]
    return [(kind, clean, copy[FEATURES]) for kind, copy in copies.items() if kind != CLEAN]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features (N, D) of N images, of their attacked copies, and of one image of another class pulled to each one's class."""

    images: Tensor
    copies: Tensor
    others: Tensor

    def distances(self, measure: str = "cosine") -> dict[str, Tensor]:
        """By kind of pair the distances of each image to its partner, (N,): "cosine" (1 - cos, in [0, 2]) or "l2" (raw).

        A robust representation keeps attacked copies near (alignment) and pulled images of other classes far (exclusion).
        """
        if measure not in ("cosine", "l2"):
            raise InputError(f"measure={measure!r}: choose 'cosine' or 'l2'.")
        kinds = {"attacked copy": self.copies, "another class, pulled": self.others}
        if measure == "l2":
            return {kind: (self.images - partner).norm(dim=1) for kind, partner in kinds.items()}
        return {kind: 1 - F.cosine_similarity(self.images, partner) for kind, partner in kinds.items()}


def attacked_pairs(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    seed: int = 0,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Pairs:
    """The pairs of ANCRA's figure of distances (Zhou et al. 2023; feature_distance.py), for any model.

    Copies are found by PGD-10. The other image is drawn from the split as in ANCRA's training, a class uniformly and then one
    of its images, and pulled towards the class of its partner by targeted PGD-10. Both attacks go on after a success and use
    the model's `attack_view`. The paper shows one class, this takes all.

    Args:
        model: x -> logits, with `features`; left as found.
        split: the N images.
        seed: of negatives and random starts.
        embed: x (B, C, H, W) -> features (B, D), instead of `model.features`.
    """
    weights = next(model.parameters(), None)
    split = split.to(split.labels.device if weights is None else weights.device)
    chosen = pick_negatives(split.labels, generator=torch.Generator(split.labels.device).manual_seed(seed))
    if chosen is None:
        raise InputError(f"All {len(split)} images are of class {int(split.labels[0])}: negatives need a second class.")
    to_features: Callable[[Tensor], Tensor] = embed or model.features  # type: ignore[assignment]
    view, triples = validation_view(model), []
    push, pull = PGD(threat, steps=10), PGD(threat, steps=10, targeted=True)
    with frozen_eval(model):
        for own, other in zip(split.batches(256), split.select(chosen).batches(256), strict=True):
            rng = ExampleRNG.for_examples(seed, own.index)
            copies = push(view, own.x, own.y, rng=rng)
            pulled = pull(view, other.x, other.y, rng=rng.fold_in(1), target=own.y)
            with torch.no_grad():
                triples.append([to_features(images).float().cpu() for images in (own.x, copies, pulled)])
    return Pairs(*(torch.cat(parts) for parts in zip(*triples, strict=True)))


def gap_probe(
    attack: Attack, layers: Mapping[str, str], *, images: int = 128
) -> Callable[[nn.Module, Batch], dict[str, float]]:
    """Mean feature gaps of several layers under one attack, to watch during training: an entry of `Stage.probes`.

    They appear in the metrics as "probe/<layer's name>/<measure>": "linf" is what AFD plots, the others do not depend on the
    features' scale. The attack runs once for all of them, with the same random numbers in every epoch; the model is left as found.

    Args:
        layers: name in the metrics -> layer, see `resolve_layers`.
        images: how many of the batch are attacked, spread evenly over it (its order may be that of classes), always the same.
    """

    measures: tuple[GapMeasure, ...] = ("relative_l2", "cosine", "linf")

    def probe(model: nn.Module, batch: Batch) -> dict[str, float]:
        names = resolve_layers(model, tuple(layers.values()))
        spread = torch.arange(0, len(batch), max(1, len(batch) // images), device=batch.y.device)[:images]
        few = replace(batch, images=batch.images[spread], y=batch.y[spread], index=batch.index[spread])
        with frozen_eval(model):
            x_adv = attack(validation_view(model), few.x, few.y, rng=ExampleRNG.for_examples(0, few.index))
            with torch.no_grad():
                clean, adversarial = activations(model, few.x, names), activations(model, x_adv, names)
        return {
            f"{key}/{measure}": float(feature_gap(clean[name], adversarial[name], measure).mean())
            for key, name in zip(layers, names, strict=True)
            for measure in measures
        }

    return probe
