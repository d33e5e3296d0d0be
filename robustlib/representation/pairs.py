"""Positive and negative pairs under attack: an image with its own attacked copy, and with another class's pulled towards it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.losses import pick_negatives
from robustlib.representation.features import BATCH
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

POSITIVE, NEGATIVE = "attacked copy", "another class, pulled"


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
        kinds = {POSITIVE: self.copies, NEGATIVE: self.others}
        if measure == "l2":
            return {kind: (self.images - partner).norm(dim=1) for kind, partner in kinds.items()}
        return {kind: 1 - F.cosine_similarity(self.images, partner) for kind, partner in kinds.items()}


def attacked_pairs(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    steps: int = 10,
    seed: int = 0,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Pairs:
    """The pairs of ANCRA's figure of distances (Zhou et al. 2023; feature_distance.py), for any model.

    Copies are found by PGD. The other image is drawn from the split as in ANCRA's training, a class uniformly and then one of
    its images, and pulled towards the class of its partner by targeted PGD. Both attacks go on after a success and look at
    the model's `attack_view`. The paper shows one class, this takes all.

    Args:
        model: x -> logits, with `features`; left as found.
        split: the N images.
        threat: of both attacks.
        steps: of both attacks.
        seed: of negatives and random starts.
        embed: x (B, C, H, W) -> features (B, D), instead of `model.features`.

    Raises:
        InputError: images of one class only, which have no negatives.
    """
    weights = next(model.parameters(), None)
    split = split.to(split.labels.device if weights is None else weights.device)
    chosen = pick_negatives(split.labels, generator=torch.Generator(split.labels.device).manual_seed(seed))
    if chosen is None:
        raise InputError(f"All {len(split)} images are of class {int(split.labels[0])}: negatives need a second class.")
    look: Callable[[Tensor], Tensor] = embed or model.features  # type: ignore[assignment]
    view, found = validation_view(model), []
    pull = PGD(threat, steps=steps, targeted=True)
    with frozen_eval(model):
        for mine, other in zip(split.batches(BATCH), split.select(chosen).batches(BATCH), strict=True):
            rng = ExampleRNG.for_examples(seed, mine.index)
            copies = PGD(threat, steps=steps)(view, mine.x, mine.y, rng=rng)
            pulled = pull(view, other.x, other.y, rng=rng.fold_in(1), target=mine.y)
            with torch.no_grad():
                found.append([look(images).float().cpu() for images in (mine.x, copies, pulled)])
    return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
