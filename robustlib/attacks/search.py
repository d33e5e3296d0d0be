"""How an attack looks at a model: modes and gradients borrowed and given back, inputs checked, gradients at speed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from robustlib.attacks.draws import Draws
from robustlib.attacks.replica import replica_of
from robustlib.errors import InputError

Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS = ("32-true", "bf16-mixed")


class Attack(Protocol):
    """Finds x_adv for a batch: x (B, C, H, W) in [0, 1], y (B,); x_adv has x's shape, dtype and device."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor: ...


def check_inputs(x: Tensor, y: Tensor) -> None:
    """Raises InputError for images outside [0, 1] or NaN, and for labels that are no class numbers of this batch."""
    if not x.is_floating_point() or x.ndim < 2:
        raise InputError(f"An attack needs float images (B, C, H, W), got {x.dtype} {tuple(x.shape)}.")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"An attack needs labels int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}.")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):  # False for NaN too
        low, high = float(x.min()), float(x.max())
        raise InputError(
            f"Images must lie in [0, 1], got values from {low:g} to {high:g}: divide grey levels by 255 and leave "
            "normalisation to the model."
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Raises InputError for labels that a model of that many classes cannot predict."""
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        raise InputError(
            f"Labels from {int(y.min())} to {int(y.max())} do not fit a model of {classes} classes "
            f"(0 to {classes - 1})."
        )


def check_logits(logits: Tensor) -> None:
    """Warns where outputs look like softmax probabilities."""
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        message = "The model's outputs look like softmax probabilities; attacks need logits and are weak without them."
        warnings.warn(message, UserWarning, stacklevel=3)


@contextmanager
def borrowed(model: nn.Module, batchnorm: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """Lends the model to an attack: no weight gradients, eval mode, and everything afterwards as it was found.

    With `batchnorm="train"` every module keeps its mode and the statistics that the attack's forward passes move are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    kept = [(b, b.clone()) for b in model.buffers()] if batchnorm == "train" else []
    try:
        for p in wanted:
            p.requires_grad_(False)
        if batchnorm == "eval":
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p in wanted:
            p.requires_grad_(True)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@dataclass(frozen=True)
class Search:
    """A borrowed model in the two views an attack needs: a fast one to search with, the exact one to decide with."""

    model: nn.Module
    fast: nn.Module
    precision: Precision

    def logits(self, x: Tensor) -> Tensor:
        """The verdict's logits (B, K): the model itself, in float32, without gradients."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.model(x).float()

    def fast_logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the fast view, without gradients: good enough to steer by."""
        bf16 = self.precision == "bf16-mixed"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return self.fast(x).float()

    def gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor], samples: int = 1) -> tuple[Tensor, Tensor]:
        """The direction in which objective(logits) rises at x, and the logits (B, K) there (means over `samples` draws).

        Each example's gradient is scaled freely (alike for all its samples): every attack here steps by sign or direction.
        """
        x = x.detach().requires_grad_(True)
        gradient, mean, scale = torch.zeros_like(x), torch.zeros(()), None
        for _ in range(samples):
            with (
                torch.enable_grad(),
                torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"),
            ):
                logits = self.fast(x)
            upstream = _upstream(logits, objective)
            scale = upstream.abs().amax(1, keepdim=True) if scale is None else scale
            upstream = torch.where(scale > 0, upstream / scale, upstream).to(logits.dtype)
            gradient += torch.autograd.grad(logits, x, upstream)[0] / samples
            mean = mean + logits.detach().float() / samples
        return gradient.nan_to_num(0.0, 0.0, 0.0), mean  # an infinite step would leave the ball as NaN


def _upstream(logits: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """d objective / d logits (B, K) in float64.

    In float32 the cross-entropy of a confident example has a gradient of exactly zero, or one that vanishes on its way back
    through the network, and an attack that stands still would look like robustness.
    """
    exact = logits.detach().double().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(exact).sum(), exact)
    return gradient


@contextmanager
def searching(
    model: nn.Module, x: Tensor, precision: Precision, batchnorm: Literal["eval", "train"]
) -> Iterator[Search]:
    """Lends the model for a search from the batch `x`; in eval mode with BatchNorm folded where that changes nothing."""
    with borrowed(model, batchnorm), torch.autocast(x.device.type, enabled=False):
        fast = replica_of(model, x, precision) if batchnorm == "eval" else None
        yield Search(model, model if fast is None else fast, precision)
