"""What attacks take, from users and from each other: models, images, labels, and attacks themselves."""

from collections.abc import Callable
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from robustlib.errors import InputError, shown

P = ParamSpec("P")
R = TypeVar("R")


def check_attack(name: object, attack: object) -> None:
    """Raises InputError for what cannot be called as an `Attack`, and for a name that is no text."""
    try:
        if isinstance(attack, type) or not isinstance(name, str) or not name:
            raise TypeError
        call: Any = attack.forward if isinstance(attack, Module) else attack
        signature(call).bind(None, None, None, rng=None)
    except (TypeError, ValueError) as error:
        example = (
            "give a name and an attack, 'pgd20': PGD(threat, steps=20), or (model, x, y, *, generator, rng) -> x_adv"
        )
        raise InputError(f"{shown(name)}: {shown(attack)} is no attack: {example}.") from error


def images_like(x: Tensor, given: object, what: str, finite: bool = False) -> Tensor:
    """Given images without graph and in x's dtype; raises InputError, in which `what` are they, for no images of x's shape."""
    if not isinstance(given, Tensor) or given.shape != x.shape or (finite and not bool(given.isfinite().all())):
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise InputError(f"{what} is {got}: it must be {'finite ' * finite}images {tuple(x.shape)}, one for each.")
    return owned(given).to(x)


def check_inputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels as an attack may use them (see `owned`); raises InputError for images outside [0, 1] or NaN, and for labels
    that are no class numbers of this batch. Images of half precision are refused, since rounding to it leaves the ball."""
    kinds = [f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else f"a {type(v).__name__}" for v in (x, y)]
    if isinstance(x, Tensor) and x.ndim < 4 and (isinstance(y, int) or getattr(y, "ndim", 1) == 0):
        said = f"An attack needs a batch of images, got one image {kinds[0]} and one label"
        raise InputError(f"{said}: give x[None], with labels as y[None].")
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        remedy = "divide grey levels by 255, and give x.float() for half precision, which rounds images out of the ball"
        raise InputError(f"An attack needs float32 or float64 images (B, C, H, W), got {kinds[0]}: {remedy}.")
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"An attack needs labels int64 ({len(x)},), got {kinds[1]}.")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):  # False for NaN too
        got = f"values from {float(x.min()):g} to {float(x.max()):g}"
        raise InputError(f"Images must lie in [0, 1], got {got}: divide grey levels by 255 and normalise in the model.")
    return owned(x), owned(y)


def check_labels(y: Tensor, classes: int) -> None:
    """Raises InputError for fewer than 2 classes, and for labels that a model of that many classes cannot predict."""
    if classes < 2:
        raise InputError(f"The model gives {classes} logit(s): robustness is about telling at least 2 classes apart.")
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        span = f"from {int(y.min())} to {int(y.max())}"
        raise InputError(f"Labels {span} do not fit a model of {classes} classes (0 to {classes - 1}).")


def search(call: Callable[P, R]) -> Callable[P, R]:
    """Decorates the entry of an attack: outside of inference mode, which knows no gradients, and without a graph of its steps."""
    entered: Callable[P, R] = torch.inference_mode(False)(torch.no_grad()(call))
    return entered


def owned(given: Tensor) -> Tensor:
    """The tensor as an attack may use it, whatever the mode and graph that it was made in."""
    return given.detach().clone() if given.is_inference() else given.detach()


def check_model(model: object) -> None:
    """Raises InputError for what is no module, and for weights that were made in inference mode."""
    if not isinstance(model, Module):
        raise InputError(f"{shown(model)} is no model: give a torch.nn.Module, images -> logits (B, K).")
    tensors = (*model.parameters(), *model.buffers())
    if any(map(is_lazy, tensors)):
        raise InputError("The model has layers without weights yet, such as LazyLinear: call it on some images first.")
    if any(tensor.is_inference() for tensor in tensors):
        remedy = "make it outside of that, e.g. under torch.no_grad()"
        raise InputError(f"The model was made under torch.inference_mode(), which allows no gradients: {remedy}.")
