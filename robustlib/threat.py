"""The threat model: which perturbations an attacker may use, and the geometry every attack shares."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import torch
from torch import Tensor

from robustlib.errors import InputError, check_fields

Norm = Literal["linf", "l2"]
TINY = 1e-12  # guards divisions by a norm
NO_FLOAT64 = ["mps"]  # devices without such numbers: Apple's GPUs


@dataclass(frozen=True)
class Threat:
    """All x' with ||x' - x|| <= eps and x' in [0, 1]."""

    norm: Norm  # "linf" (largest absolute change of any pixel) or "l2" (Euclidean length over all pixels)
    # radius in [0, 1] pixel units, e.g. 8/255 for CIFAR-10 linf, 0.5 for l2
    eps: Annotated[float, "[0, inf)", "in pixel units of [0, 1] and without quotes, e.g. 8/255"]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.eps > (1 if self.norm == "linf" else 100):
            remedy = f"for {self.eps:g} grey levels of 255 write {self.eps:g}/255"
            raise InputError(f"eps={self.eps!r} is not a radius in [0, 1] pixel units: {remedy}.")

    def __str__(self) -> str:
        units = self.eps * 255
        whole = self.norm == "linf" and round(units) <= 16 and abs(units - round(units)) < 1e-6 < units
        level = f"{units:.0f}/255" if whole else f"{self.eps:g}"
        return f"{self.norm.capitalize()} {level}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point to `x_adv` (B, ...) inside the ball around `x`, then inside [0, 1]: exact for linf; for l2 the box
        comes last, which keeps the ball because `x` itself is inside the box."""
        delta = x_adv - x
        if self.norm == "linf":
            return (x + delta.clamp(-self.eps, self.eps)).clamp(0, 1)
        length = norms(delta, "l2")
        scale = torch.where(length > self.eps, self.eps / length.clamp_min(TINY), torch.ones_like(length))
        return (x + delta * scale).clamp(0, 1)

    def steepest_step(self, gradient: Tensor, step_size: float) -> Tensor:
        """The step of length `step_size` (in this norm) along which a linear function with `gradient` rises most."""
        if self.norm == "linf":
            return step_size * gradient.sign()
        return step_size * gradient / norms(gradient, "l2").clamp_min(TINY)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """||x_adv - x|| of each example in this norm, (B,)."""
        return norms(x_adv - x, self.norm).flatten()

    def scaled(self, factor: float) -> "Threat":
        """The same norm at `factor` times the radius; linf radii end at 1, where the whole box is reached."""
        return Threat(self.norm, min(self.eps * factor, 1.0 if self.norm == "linf" else inf))


def norms(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each example of `delta` (B, ...), shaped (B, 1, ..., 1) for broadcasting."""
    flat = delta.flatten(1)
    if norm == "linf":
        length = flat.abs().amax(1)
    else:  # in float64, since a float32 sum over a large image can leave the ball by more than rounding
        length = torch.linalg.vector_norm(flat, dim=1, dtype=widest(delta.device)).to(delta.dtype)
    return length.view(-1, *[1] * (delta.ndim - 1))


def exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has no such numbers."""
    return (x.cpu() if x.device.type in NO_FLOAT64 else x).double()


def widest(device: torch.device) -> torch.dtype:
    """The widest floats of a device, for sums that stay there."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64
