"""Features of a whole split, clean or attacked, streamed through the model batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack, Draws
from robustlib.attacks.search import attacked_view, borrowed
from robustlib.data import Batch, Split
from robustlib.errors import InputError
from robustlib.representation.layers import LOGITS, Pool, activations, resolve_layers

BATCH = 256


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of N images.

    Args:
        layers: by name, float32 (N, D) on the CPU, in the split's order.
        labels: int64 (N,).
        indices: position of each example in the original files, int64 (N,).
        predictions: the model's answers, int64 (N,).
        images: what the model was shown, rounded to uint8 (N, C, H, W); None unless it was kept.
    """

    layers: dict[str, Tensor]
    labels: Tensor
    indices: Tensor
    predictions: Tensor
    images: Tensor | None = None

    def __getitem__(self, layer: str) -> Tensor:
        """The features of one layer, (N, D), under its name with or without "encoder."."""
        names = [name for name in (layer, f"encoder.{layer}") if name in self.layers]
        if not names:
            raise InputError(f"Layer {layer!r} was not kept, only {', '.join(self.layers)}: ask `features` for it.")
        return self.layers[names[0]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Which images the model answers rightly, (N,) bool; of attacked ones, the survivors."""
        return self.predictions == self.labels

    def select(self, keep: Tensor) -> "Features":
        """Some examples: positions int64 (M,) or a mask bool (N,)."""
        kept = {name: table[keep] for name, table in self.layers.items()}
        images = None if self.images is None else self.images[keep]
        return Features(kept, self.labels[keep], self.indices[keep], self.predictions[keep], images)

    def of_class(self, label: int, keep: Tensor | None = None) -> "Features":
        """The examples of one class and, with `keep` (N,) bool such as `adversarial.correct`, only those kept there.

        Raises:
            InputError: the class has no example, or none that is kept.
        """
        mine = self.labels == label
        if not bool(mine.any()):
            there = ", ".join(map(str, self.labels.unique().tolist()))
            raise InputError(f"There is no example of class {label!r}: the classes here are {there}.")
        chosen = mine if keep is None else mine & keep
        if not bool(chosen.any()):
            raise InputError(
                f"None of the {int(mine.sum())} examples of class {label} is kept: it has no adversarial survivors. "
                "Look at all its examples, take a smaller eps, or leave the class out."
            )
        return self.select(chosen)


def features(
    model: nn.Module,
    split: Split,
    *,
    layers: str | Sequence[str] | None = None,
    attack: Attack | None = None,
    augment: str = "none",
    pool: Pool = "mean",
    batch_size: int = BATCH,
    seed: int = 0,
    keep_images: bool = False,
) -> Features:
    """The features of every image of a split at some layers, clean or attacked; the model is left as found.

    Only one batch of maps exists at a time: the memory needed is that of the result, 4 N D bytes a layer.

    Args:
        model: x -> logits, on the device where it shall run; in eval mode for the time.
        split: the images; the same call of two models sees the same ones in the same order.
        layers: names that `layers(model)` lists or paths of submodules; None = "features", the penultimate ones.
        attack: finds what the model is shown instead, on its `attack_view` where it has one (reverse attention) and judged by
            the model itself; None shows the images themselves.
        augment: the view that is shown or attacked: "none", "weak", "simclr" or "simclr-weak"; two calls with different seeds
            give two augmentations of each image.
        pool: of maps (B, C, H, W): "mean" over positions, or "flat".
        batch_size: images at a time; no number of a deterministic model depends on it without augmentation.
        seed: of the attack, the augmentation and a stochastic model.
        keep_images: keep what the model was shown too, rounded to 256 levels; the features are of the images before that.

    Raises:
        InputError: no such layer (it lists those that exist), an empty split, an unknown view, or bad images.
    """
    names = resolve_layers(model, layers)
    if not len(split):
        raise InputError("The split holds no image: give one with at least one.")
    weights = next(model.parameters(), None)
    split = split.to(split.labels.device if weights is None else weights.device)
    device, kept = split.labels.device, {}
    generator, view = torch.Generator(device).manual_seed(seed), attacked_view(model)
    predictions, start = torch.empty(len(split), dtype=torch.int64), 0
    images = torch.empty(split.images.shape, dtype=torch.uint8) if keep_images else None
    with borrowed(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in split.batches(batch_size, augment=augment, generator=generator):
            x = _shown(view, batch, attack, seed)
            with torch.no_grad():
                found = activations(model, x, names, pool)
            here = slice(start, start := start + len(batch))
            if images is not None:
                images[here] = (x * 255).round().to(torch.uint8)
            predictions[here] = found[LOGITS].argmax(1)
            for name in names:
                if name not in kept:
                    kept[name] = torch.empty(len(split), found[name].shape[1])
                kept[name][here] = found[name]
    return Features(kept, split.labels.cpu(), split.indices.cpu(), predictions, images)


def _shown(view: nn.Module, batch: Batch, attack: Attack | None, seed: int) -> Tensor:
    """What the model is shown of a batch, float32 (B, C, H, W) in [0, 1]."""
    if attack is None:
        return batch.x
    return attack(view, batch.x, batch.y, draws=Draws.for_examples(seed, batch.index))


def at_eps(attack: Attack, eps: float) -> Attack:
    """The same attack with another radius; steps that were given as a length grow in proportion.

    Raises:
        InputError: the attack has no threat to change.
    """
    threat = getattr(attack, "threat", None)
    if threat is None:
        raise InputError(f"{attack!r} has no threat, so its eps cannot be changed: give another attack for each eps.")
    changes: dict[str, object] = {"threat": replace(threat, eps=eps)}
    if (length := getattr(attack, "step_size", None)) is not None and threat.eps:
        changes["step_size"] = max(length * (eps / threat.eps), 1e-12)
    return replace(attack, **changes)  # type: ignore[type-var]
