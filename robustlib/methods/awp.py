"""Adversarial weight perturbation (Wu et al. 2020, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TINY = 1e-20  # as released: a layer without gradient stays where it is


@contextmanager
def perturbed(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Within, the model's weights stand where they raise the loss most to first order: w + gamma |w| g / |g|.

    Norms are those of a whole tensor, g is the gradient of `loss`. As released, only tensors of several dimensions named
    "weight" move, and BatchNorm keeps no trace of the pass that finds g. Afterwards, also after an exception, gamma |w| g / |g|
    is taken away again, so what an optimiser did in between stays.

    Args:
        model: the model, in the mode in which it trains.
        loss: the scalar that the training step will minimise, as a function of the model's present weights.
        gamma: relative size of the perturbation; 0 does nothing at all.
    """
    shifts = _shifts(model, loss, gamma) if gamma else []
    _move(shifts, 1)
    try:
        yield
    finally:
        _move(shifts, -1)


def _shifts(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> list[tuple[Tensor, Tensor]]:
    """(weight, its perturbation) of every layer that the loss depends on."""
    weights = [w for name, w in model.named_parameters() if "weight" in name and w.ndim > 1 and w.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
        return [
            (w, gamma * w.norm() / (g.norm() + TINY) * g)
            for w, g in zip(weights, gradients, strict=True)
            if g is not None
        ]


@torch.no_grad()
def _move(shifts: list[tuple[Tensor, Tensor]], sign: int) -> None:
    for weight, shift in shifts:
        weight.add_(shift, alpha=sign)
    if shifts:
        torch.clear_autocast_cache()  # it may hold bf16 copies of the weights as they were
