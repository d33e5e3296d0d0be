"""What an attack can use: images in [0, 1], labels that the model can predict, outputs that are logits."""

import warnings

import torch
from torch import Tensor

from robustlib.errors import InputError


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
    """Raises InputError for fewer than 2 classes, and for labels that a model of that many classes cannot predict."""
    if classes < 2:
        raise InputError(f"The model gives {classes} logit(s): robustness is about telling at least 2 classes apart.")
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
