"""Features of a whole split, clean or attacked, streamed through the model batch by batch.

Where a model can be looked into: layers by name, and what they answer to images, by hooks in one forward pass.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.data import Batch, Split
from robustlib.errors import InputError, unknown
from robustlib.rng import ExampleRNG

Pool = Literal["mean", "flat"]
POOLS = ("mean", "flat")
FEATURES, LOGITS = "features", "logits"


def layers(model: nn.Module) -> tuple[str, ...]:
    """The layers of a model from the image to the answer: its encoder's stages, then "features" (what `head` sees), "logits".

    Stages are those that the encoder names in `stages`; an encoder without them, its own submodules in their order. Any other
    submodule can be looked at too, under its path in `model.named_modules()`.
    """
    root, prefix = model, ""
    if isinstance(encoder := getattr(model, "encoder", None), nn.Module):
        root, prefix = encoder, "encoder."
    names = list(getattr(root, "stages", ()))
    while not names:
        children = [name for name, _ in root.named_children()]
        if len(children) != 1:
            names = children
            break
        root, prefix = getattr(root, children[0]), f"{prefix}{children[0]}."
    inner = tuple(prefix + name for name in names if prefix + name != "head")
    return (*inner, *((FEATURES,) if hasattr(model, "head") else ()), LOGITS)


def resolve_layers(model: nn.Module, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Checked names of layers; None = "features", or the logits of a model without a head.

    Raises:
        InputError: no such layer; it lists those that exist.
    """
    known = layers(model)
    if wanted is None:
        return (FEATURES if FEATURES in known else LOGITS,)
    names = (wanted,) if isinstance(wanted, str) else tuple(dict.fromkeys(wanted))
    modules = [name for name, _ in model.named_modules() if name]
    short = {name.removeprefix("encoder."): name for name in known}
    names = tuple(short.get(name, name) for name in names)
    for name in names:
        if name not in known and name not in modules:
            near = difflib.get_close_matches(name, [*known, *modules], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"There is no layer {name!r} in this {type(model).__name__}.{hint} Its layers are {', '.join(known)}; "
                f"any of its {len(modules)} submodules (`model.named_modules()`) will do too."
            )
    if not names:
        raise InputError(f"No layer was asked for: choose from {', '.join(known)}.")
    return names


def activations(model: nn.Module, x: Tensor, names: Sequence[str], pool: Pool = "mean") -> dict[str, Tensor]:
    """What the layers `names` answer to images x (B, C, H, W), each (B, D), and the logits under "logits".

    Gradients flow back to `x` where they are enabled. Of a layer that is called several times the last call counts.

    Args:
        model: x -> logits, in the mode it shall be looked at.
        x: images.
        names: checked by `resolve_layers`.
        pool: of maps (B, C, H, W): "mean" over positions (D = C), as the penultimate features of a ResNet are, or "flat".

    Raises:
        InputError: a layer that the forward pass does not reach, or that answers no tensor with one row an image.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    seen: dict[str, Tensor] = {}
    with _taps(model, [name for name in names if name != LOGITS], seen, pool):
        logits = model(x)
    for name in names:
        answer = logits if name == LOGITS else seen.get(name)
        if answer is None:
            raise InputError(f"The forward pass does not reach {name!r}: choose from {', '.join(layers(model))}.")
        if len(answer) != len(x):
            raise InputError(
                f"{name!r} answers {len(answer)} rows to {len(x)} images: choose a layer that keeps the batch."
            )
    return {**seen, LOGITS: logits}


def layer_function(model: nn.Module, layer: str | None = None, pool: Pool = "mean") -> Callable[[Tensor], Tensor]:
    """The part of a model from the images to one layer, x (B, C, H, W) -> (B, D); differentiable.

    Raises:
        InputError: no such layer.
    """
    (name,) = resolve_layers(model, layer)
    return lambda x: activations(model, x, (name,), pool)[name]


@contextmanager
def _taps(model: nn.Module, names: Sequence[str], seen: dict[str, Tensor], pool: Pool) -> Iterator[None]:
    """Hooks that put the pooled answers of layers into `seen`; removed at the end, whatever happens."""
    modules, handles = dict(model.named_modules()), []

    def keep(name: str, value: object) -> None:
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise InputError(f"The layer {name!r} answers no tensor (B, ...): choose from {', '.join(layers(model))}.")
        # A copy: the next module may change it in place.
        seen[name] = value.flatten(2).mean(2) if pool == "mean" and value.ndim > 2 else value.flatten(1).clone()

    try:
        for name in names:
            if name == FEATURES:
                before = lambda _, args: keep(FEATURES, args[0])  # noqa: E731
                handles.append(modules["head"].register_forward_pre_hook(before))
            else:
                after = lambda _, args, out, name=name: keep(name, out)  # noqa: E731
                handles.append(modules[name].register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def rows_at_once(columns: int) -> int:
    """How many rows of a float32 table with so many columns fit into 16 MB: tables are looked at piece by piece."""
    return max(1, 2**22 // max(columns, 1))


def pieces(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tables or vectors (N, ...), some at a time."""
    step = rows_at_once(max(table[0].numel() for table in tables))
    return zip(*(table.split(step) for table in tables), strict=True)


def as_features(*tables: Tensor) -> tuple[Tensor, ...]:
    """Feature tables as float32 (N, D) of one shape.

    Raises:
        InputError: another number of dimensions, no example, values that are not finite, shapes that differ.
    """
    for table in tables:
        if table.ndim != 2 or not len(table):
            raise InputError(f"Features are a table (N, D) with at least one row, not of shape {tuple(table.shape)}.")
        if table.shape != tables[0].shape:
            shapes = " and ".join(str(tuple(t.shape)) for t in tables)
            raise InputError(
                f"Features of the shapes {shapes} are not of the same examples and layer: compare like with like."
            )
        if not all(bool(rows.isfinite().all()) for (rows,) in pieces(table)):
            raise InputError("Some features are NaN or infinite: the model diverged, or its input was broken.")
    return tuple(table.detach().float() for table in tables)


def as_labels(labels: Tensor, features: Tensor) -> Tensor:
    """Labels int64 (N,) on the features' device.

    Raises:
        InputError: not one whole, non-negative label for each row of the features.
    """
    if labels.shape != features.shape[:1] or labels.is_floating_point() or bool((labels < 0).any()):
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"{len(features)} examples need as many labels from 0 on (int64), got {found}.")
    return labels.to(features.device, torch.int64)


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
    generator, view = torch.Generator(device).manual_seed(seed), validation_view(model)
    predictions, start = torch.empty(len(split), dtype=torch.int64), 0
    images = torch.empty(split.images.shape, dtype=torch.uint8) if keep_images else None
    with frozen_eval(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
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
    return attack(view, batch.x, batch.y, rng=ExampleRNG.for_examples(seed, batch.index))


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
