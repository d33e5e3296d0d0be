"""Spatially transformed adversarial examples: the pixels keep their values and move (Xiao et al. 2018, ICLR)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from robustlib.attacks.base import AttackBatch, BaseAttack, GradientOracle, Precision, others
from robustlib.errors import Count, Length
from robustlib.rng import ExampleRNG

BOUND = 0.8  # pixels: 0.05 of a grid from -1 to 1 over 32 pixels (Nie et al. 2022), where one pixel is 2/32
SMOOTH, TAU = 0.0025, 0.05  # weights of the total variation: over the bound there, and without one in the paper
PACE = 5  # steps from no flow to the bound: 0.01 at 0.05 there
START = 0.01  # of a step: bilinear sampling has a kink at whole pixels, and one of its sides may be flat


@dataclass(frozen=True)
class StAdv(BaseAttack):
    """A flow of pixels: Adam maximises objective(x moved by f) - weight * TV(f) over f, from near zero; see `move`.

    With a `bound`, f is projected onto |f| <= bound (in each direction, at each pixel) after each step, as Nie et al. 2022
    (DiffPure) use it; without one, only the total variation holds it back, as in the paper (which uses L-BFGS). It knows no ball:
    a bright edge that moves by a pixel changes by its whole height. If the model is deterministic, successes leave at once.
    """

    bound: Annotated[Length, "in pixels, or None for no bound"] | None = (
        BOUND  # largest displacement in pixels of these images; None: no bound. Records call it eps
    )
    steps: Count = 100  # of Adam
    # length of a step in pixels; None = bound / 5, or 0.16 without a bound
    lr: Annotated[Length, "in pixels, or None for bound / 5"] | None = None
    # of TV, in units of the objective per pixel; None = 0.0025 / bound, 0.05 without
    weight: Annotated[float, "[0, 1000]", "or None for 0.0025 / bound"] | None = None
    eot: Count = 1  # gradient samples averaged at each step; more than one only helps against a stochastic model
    objective: Literal["margin", "ce", "nll", "dlr"] = "margin"  # C&W, the paper's; the oracle scales the others
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def _attack(self, oracle: GradientOracle, batch: AttackBatch, rng: ExampleRNG) -> Tensor:
        """For each example the first adversarial image, else the one after the last step."""
        lr = (self.bound or BOUND) / PACE if self.lr is None else self.lr
        smooth = TAU if self.bound is None else SMOOTH / self.bound
        weight = smooth if self.weight is None else self.weight
        x_adv, active = batch.x.clone(), torch.arange(len(batch.x), device=batch.x.device)
        flow = ((2 * rng.uniform(2, *batch.x.shape[2:]) - 1) * START * lr).to(batch.x.dtype)
        adam = torch.optim.Adam([flow], lr)  # element by element: examples that have left disturb no other
        for _ in range(self.steps):
            moving = flow[active].requires_grad_(True)
            with torch.enable_grad():
                image, roughness = move(batch.x, moving), total_variation(moving)
            gradient, logits = oracle.gradient(image, batch.objective(self.objective), self.eot)
            (slope,) = torch.autograd.grad((image, roughness), moving, (-gradient, weight + 0 * roughness))
            success = oracle.successes(image.detach(), logits, batch.y)
            flow.grad = torch.zeros_like(flow).index_copy(0, active, slope.nan_to_num(0.0, 0.0, 0.0))
            if len(success):
                x_adv[active[success]], stay = image.detach()[success], others(success, len(active))
                active, batch = active[stay], batch[stay]
            if not len(active):
                return x_adv
            adam.step()
            if self.bound is not None:
                flow.clamp_(-self.bound, self.bound)
        x_adv[active] = move(batch.x, flow[active])
        return x_adv


def move(x: Tensor, flow: Tensor) -> Tensor:
    """Images (B, C, H, W) of which each pixel is read `flow` (B, 2, H, W) pixels further down and to the right, bilinearly (eq. 1).

    Beyond the border lies the last row or column once more. `grid_sample` (padding_mode="border", align_corners=True) does the
    same but rounds where it divides by the side: here whole pixels are exact, with the gradient of their right or lower side.
    """
    height, width = x.shape[2:]
    whole = flow.detach().floor()
    down, right = (flow - whole)[:, :, None].unbind(1)  # (B, 1, H, W) each, in [0, 1)
    top = whole[:, 0].long() + torch.arange(height, device=x.device)[:, None]
    left = whole[:, 1].long() + torch.arange(width, device=x.device)

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        at = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        return x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)

    upper, lower = (torch.lerp(read(rows, left), read(rows, left + 1), right) for rows in (top, top + 1))
    return torch.lerp(upper, lower, down).clamp(0, 1)


def total_variation(flow: Tensor) -> Tensor:
    """(B,): |f(p) - f(q)| in l2 over all pixels p and their four neighbours q (eq. 4), each pair twice; gradient 0 where equal."""
    return sum(2 * torch.linalg.vector_norm(flow.diff(dim=dim), dim=1).flatten(1).sum(1) for dim in (2, 3))
