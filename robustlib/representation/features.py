"""Features of a split, clean or attacked, at any layer: by hooks in one forward pass, streamed batch by batch."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.attacks.memory import halving
from robustlib.data import Split, check_split
from robustlib.errors import Count, InputError, typed
from robustlib.rng import ExampleRNG, forked
from robustlib.runs import write_atomic

FEATURES, LOGITS = "features", "logits"


def layers(model: nn.Module) -> tuple[str, ...]:
    """The layers of a model from the image to the answer: its encoder's stages, then "features" (what `head` sees), "logits".

    Stages are those that the encoder names in `stages`, or else its submodules in their order. Without a `head` only a submodule of
    that name is called "features"; beside a `head` such a submodule is not listed, but its own are there ("features.0").
    """
    encoder = getattr(model, "encoder", None)
    root, prefix = (encoder, "encoder.") if isinstance(encoder, nn.Module) else (model, "")
    names = getattr(model, "answering", None)  # of a model from elsewhere: those that were seen to answer tensors
    while names is None and not hasattr(root, "stages") and len(children := list(root.named_children())) == 1:
        prefix, root = f"{prefix}{children[0][0]}.", children[0][1]
    if names is None and (not (names := getattr(root, "stages", None)) or isinstance(names, nn.Module)):
        names = [name for name, _ in root.named_children()]
    answers = (FEATURES, LOGITS) if _has_head(model) else (LOGITS,)
    answering = f"encoder.{getattr(model, 'last_linear', '')}"  # of a model from elsewhere: its answers are the logits
    return (*(prefix + name for name in names if prefix + name not in ("head", answering, *answers)), *answers)


def _has_head(model: nn.Module) -> bool:
    return bool(getattr(model, "tap", "")) or isinstance(getattr(model, "head", None), nn.Module)


def resolve_layers(model: nn.Module, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Checked names of layers; None = "features", or the logits of a model without a head."""
    known = layers(model)
    if wanted is None:
        return (FEATURES if _has_head(model) else LOGITS,)
    modules = [name for name, _ in model.named_modules() if name]
    full = {name.removeprefix("encoder."): name for name in known}
    names = tuple(full.get(name, name) for name in ([wanted] if isinstance(wanted, str) else dict.fromkeys(wanted)))
    for name in names:
        if name not in known and name not in modules:
            near = difflib.get_close_matches(name, [*known, *modules], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            said = f"There is no layer {name!r} in this {type(model).__name__}.{hint} Its layers are {', '.join(known)}"
            raise InputError(f"{said}; any of its {len(modules)} submodules (`model.named_modules()`) will do too.")
    if not names:
        raise InputError(f"No layer was asked for: choose from {', '.join(known)}.")
    return names


def activations(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The answers of the layers `names` to images x (B, C, H, W), each (B, D), and the logits under "logits".

    Maps (B, C, H, W) are means over positions, D = C, as the penultimate features of a ResNet are. Tokens (B, N, D) are means
    over the N tokens, a class token among them; what reads the class token alone is the layer behind. Maps with channels last
    (B, H, W, D), told by H = W and not D for square images, are means over positions too. Gradients flow back to `x` where they
    are enabled. Of a layer that is called several times the last call counts.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise InputError(f"The layer {name!r} answers no tensor (B, ...): choose from {', '.join(layers(model))}.")
        if value.ndim == 4 and x.shape[2] == x.shape[3] and value.shape[1] == value.shape[2] != value.shape[3]:
            value = value.flatten(1, 2)
        value = value.transpose(1, 2) if value.ndim == 3 else value
        # a copy: the next module may change it in place
        seen[name] = value.flatten(2).mean(2) if value.ndim > 2 else value.clone()

    with ExitStack() as hooks:
        for name in names:
            if name == FEATURES and (tap := getattr(model, "tap", "")):
                module = model.get_submodule(tap)
                hooks.enter_context(module.register_forward_hook(lambda _, args, out: keep(FEATURES, out)))
            elif name == FEATURES and _has_head(model):
                head = model.get_submodule("head")
                hooks.enter_context(head.register_forward_pre_hook(lambda _, args: keep(FEATURES, args[0])))
            elif name != LOGITS:
                module = model.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(lambda _, args, out, name=name: keep(name, out)))
        seen[LOGITS] = model(x)
    for name in names:
        if name not in seen:
            raise InputError(f"The forward pass does not reach {name!r}: choose from {', '.join(layers(model))}.")
        if (rows := len(seen[name])) != len(x):
            raise InputError(f"{name!r} answers {rows} rows to {len(x)} images: choose a layer that keeps the batch.")
    return seen


def layer_function(model: nn.Module, layer: str | None = None) -> Callable[[Tensor], Tensor]:
    """The part of a model from the images to one layer, x (B, C, H, W) -> (B, D); differentiable."""
    (name,) = resolve_layers(model, layer)
    return lambda x: activations(model, x, (name,))[name]


def rows_at_once(columns: int) -> int:
    """How many rows of a float32 table with so many columns fit into 16 MB: tables are processed piece by piece."""
    return max(1, 2**22 // max(columns, 1))


def pieces(*tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tables or vectors (N, ...), some at a time."""
    step = rows_at_once(max(table[0].numel() for table in tables))
    return zip(*(table.split(step) for table in tables), strict=True)


def as_features(*tables: Tensor, finite: bool = True) -> tuple[Tensor, ...]:
    """Feature tables as float32 (N, D) of one shape, checked to be `finite`, and so their lengths."""
    for table in tables:
        if table.ndim != 2 or not len(table):
            raise InputError(f"Features are a table (N, D) with at least one row, not of shape {tuple(table.shape)}.")
        if table.shape != tables[0].shape:
            shapes = "Features of the shapes " + " and ".join(str(tuple(t.shape)) for t in tables)
            raise InputError(f"{shapes} are not of the same examples and layer: compare like with like.")
        if finite and not all(bool(rows.float().norm(dim=1).isfinite().all()) for (rows,) in pieces(table)):
            said = "Some features are NaN or infinite, or too long for float32"
            raise InputError(f"{said}: the model diverged, or its input was damaged.")
    return tuple(table.detach().float() for table in tables)


def as_labels(labels: Tensor, features: Tensor, classes: int = 1) -> Tensor:
    """Labels int64 (N,) of features (N, D), on their device, of at least so many classes."""
    if labels.shape != features.shape[:1] or labels.is_floating_point() or bool((labels < 0).any()):
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"{len(features)} examples need as many labels from 0 on (int64), got {given}.")
    if len(labels.unique()) < classes:
        raise InputError(f"All {len(labels)} examples are of class {int(labels[0])}: give examples of two classes.")
    return labels.to(features.device, torch.int64)


@dataclass(frozen=True, eq=False)
class Features:
    """The answers of a model to N images, on the CPU in the split's order; labels, indices and predictions are int64 (N,)."""

    layers: dict[str, Tensor]  # by name, float32 (N, D)
    labels: Tensor
    indices: Tensor  # of the examples in the original files
    predictions: Tensor
    images: Tensor | None = None  # what the model was shown, rounded to uint8 (N, C, H, W), if it was kept

    def __getitem__(self, layer: str) -> Tensor:
        """The features of one layer, (N, D), under its name with or without "encoder."."""
        for name in (layer, f"encoder.{layer}"):
            if name in self.layers:
                return self.layers[name]
        raise InputError(f"Layer {layer!r} was not kept, only {', '.join(self.layers)}: ask `features` for it.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Which images the model classifies correctly, (N,) bool; of attacked ones, the survivors."""
        return self.predictions == self.labels


def features(
    model: nn.Module,
    split: Split,
    *,
    layers: str | Sequence[str] | None = None,
    attack: Attack | None = None,
    augment: str = "none",
    batch_size: int = 256,
    seed: int = 0,
    keep_images: bool = False,
) -> Features:
    """The features of every image of a split at some layers, clean or attacked; the model is left as found.

    Only one batch of maps exists at a time: the memory needed is that of the result, 4 N D bytes a layer.

    Args:
        model: x -> logits, on the device where it shall run; in eval mode for the time.
        layers: names that `layers(model)` lists, or paths of other submodules; None = "features", the penultimate ones.
        attack: makes what the model is shown instead, on its `attack_view` where it has one; the model decides what is a success.
        augment: the view that is shown or attacked: "none", "flip", "weak", "simclr" or "simclr-weak"; each seed gives another one.
        batch_size: images at a time, halved when memory runs out; no number of a deterministic model depends on it without augmentation.
        seed: of the attack, the augmentation and a stochastic model.
        keep_images: keep what the model was shown too, rounded to 256 levels; the features are of the images before that.
    """
    names = resolve_layers(model, layers)
    if not len(check_split(split)):
        raise InputError("The split holds no image: give one with at least one.")
    weights = next(model.parameters(), None)
    split = split.to(split.labels.device if weights is None else weights.device)
    device, tables = split.labels.device, {}
    generator, view = torch.Generator(device).manual_seed(seed), validation_view(model)
    predictions = torch.empty(len(split), dtype=torch.int64)
    images = torch.empty(split.images.shape, dtype=torch.uint8) if keep_images else None

    def keep(rows: slice) -> None:
        batch = split.batch(rows, augment, generator)
        x = batch.x
        if attack is not None:
            x = attack(view, x, batch.y, rng=ExampleRNG.for_examples(seed, batch.index))
        with torch.no_grad():
            answers = activations(model, x, names)
        if images is not None:
            images[rows] = (x * 255).round().to(torch.uint8)
        predictions[rows] = answers[LOGITS].argmax(1)
        for name in names:
            if name not in tables:
                tables[name] = torch.empty(len(split), answers[name].shape[1])
            tables[name][rows] = answers[name]

    with frozen_eval(model), forked(device):
        torch.manual_seed(seed)
        for _ in halving(keep, len(split), typed(batch_size, Count, "batch_size")):
            pass
    return Features(tables, split.labels.cpu(), split.indices.cpu(), predictions, images)


def at_eps(attack: Attack, eps: float) -> Attack:
    """The same attack with another radius; a step size that was given as a length grows in proportion."""
    threat = getattr(attack, "threat", None)
    if threat is None:
        raise InputError(f"{attack!r} has no threat, so its eps cannot be changed: give another attack for each eps.")
    changes: dict[str, object] = {"threat": replace(threat, eps=eps)}
    if (length := getattr(attack, "step_size", None)) is not None and threat.eps:
        changes["step_size"] = length * (eps / threat.eps or 1)  # at 0 no step leaves the image, however long
    return replace(attack, **changes)  # type: ignore[type-var]


def cached_tensors(file: Path | None, names: Sequence[str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors `names` in a safetensors file; made and written if the file lacks some or cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    if file is None:
        return make()
    try:
        if set(names) <= set(tables := load(file.read_bytes())):
            return tables
    except (OSError, SafetensorError):  # a damaged copy of what can be made again
        pass
    tables = make()
    write_atomic(file, save({name: table.contiguous() for name, table in tables.items()}))
    return tables
