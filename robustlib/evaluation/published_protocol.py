"""CLAF's published protocol as it was run, so that a reader sees where 60.47 % comes from; not a valid robust accuracy."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.attacks.base import frozen_eval
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.metrics import accuracy
from robustlib.models import Classifier

BATCH = 500
INVALID = (
    "Invalid: the attack clamps normalised images to [0, 1], as CLAF's release does, so that they are no images of the data set "
    "within the stated radius."
)


@dataclass(frozen=True)
class PublishedProtocol:
    """What `claf_published_protocol` finds; `said` must stand wherever `accuracy` does. All in [0, 1], pixel units or fractions."""

    accuracy: float  # on the clamped and attacked images
    clamped: float  # accuracy on images that are clamped and not attacked
    budget: float  # mean over channels of the radius that +-eps of normalised values are
    moved: float  # mean over images of the largest change of a pixel; far above eps because of the clamp
    n: int
    said: str = INVALID

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The two accuracies as rows: attack, accuracy with its Wilson interval low to high, and valid: False."""
        found = {"published protocol": self.accuracy, "its clamp alone, without an attack": self.clamped}
        return [{"attack": name, **accuracy(round(v * self.n), self.n), "valid": False} for name, v in found.items()]


def claf_published_protocol(
    model: Classifier,
    split: Split,
    *,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    seed: int = 0,
) -> PublishedProtocol:
    """PGD in the space of normalised images, clamped to [0, 1] there (AdirRahamim/CLAF's main.py with torchattacks 3.0).

    There z = (x - mean) / std is taken for an image: z_0 = clamp(z + U(-eps, eps)), then steps of step_size * sign(gradient of the
    cross-entropy), each projected on |z' - z| <= eps and clamped to [0, 1]. So the radius in pixels is eps std, about a fifth
    of eps on CIFAR-10, while the clamp alone lifts each pixel below the channel's mean to the mean and cuts what is more than one
    standard deviation above it. The release makes its training images so too, which no method here does. Report it beside
    `evaluate`, never instead. `eps` and `step_size` are in units of normalised images.
    """
    if not (0 <= eps < math.inf and 0 < step_size < math.inf and steps >= 1):
        raise InputError(
            f"claf_published_protocol: eps={eps!r}, step_size={step_size!r}, steps={steps!r}: give a radius of at least 0, a "
            "positive length and at least one step."
        )
    split = split.to(model.mean.device)
    generator = torch.Generator(model.mean.device).manual_seed(seed)
    right, clamped, moved = [], [], []
    with frozen_eval(model):
        for batch in split.batches(BATCH):
            z = model.normalise(batch.x)
            start = z + eps * (2 * torch.rand(z.shape, generator=generator, device=z.device) - 1)
            found = _pgd(model, z, start.clamp(0, 1), batch.y, eps, step_size, steps)
            with torch.no_grad():
                right.append(_logits(model, found).argmax(1) == batch.y)
                clamped.append(_logits(model, z.clamp(0, 1)).argmax(1) == batch.y)
            moved.append(((found - z) * model.std).flatten(1).abs().amax(1))
    accuracy, still, far = (float(torch.cat(parts).float().mean()) for parts in (right, clamped, moved))
    return PublishedProtocol(accuracy, still, float((eps * model.std).mean()), far, len(split))


def _pgd(model: Classifier, z: Tensor, at: Tensor, y: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    for _ in range(steps):
        at = at.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(_logits(model, at), y), at)
        at = (z + (at + step_size * gradient.sign() - z).clamp(-eps, eps)).clamp(0, 1)
    return at.detach()


def _logits(model: Classifier, z: Tensor) -> Tensor:
    """Logits (B, K) of normalised images."""
    return model(z * model.std + model.mean).float()
