"""The cross-Lipschitz penalty on input gradients."""

import torch
from torch import Tensor

from robustlib.errors import InputError


def cross_lipschitz(
    outputs: Tensor, x: Tensor, *, projections: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """1/(n K^2) sum_i sum_{l,m} |grad f_l(x_i) - grad f_m(x_i)|_2^2, a scalar (Hein and Andriushchenko 2017, eq. 6).

    It equals 2/(n K) sum_i |C J_i|_F^2 with the Jacobian J_i (K, D) and C = I - 11'/K, which takes K backward passes, or
    in the mean over z ~ N(0, I) 2/(n K) sum_i |J_i' C z_i|^2, which takes one for each projection. Double backward passes
    then give its gradient. What rep-spectral's release computes of softmax outputs is 1/K of this. With BatchNorm in train
    mode the statistics couple the images, and J_i contains what an image does to the others' outputs.

    Args:
        outputs: f(x) (B, K), K >= 2, with the graph to `x`; logits or probabilities.
        x: images (B, C, H, W) that require gradients.
        projections: random directions; 0 gives the exact value.
        generator: of the directions, on the images' device; None = torch's global one.

    Raises:
        InputError: a negative number of projections.
    """
    if projections < 0:
        raise InputError(f"projections={projections!r}: give a number of backward passes, or 0 for the exact penalty.")
    outputs = outputs.float()
    n, k = outputs.shape
    if projections:
        directions = torch.randn(projections, n, k, generator=generator, device=outputs.device)
    else:
        directions = torch.eye(k, device=outputs.device)[:, None].expand(k, n, k)
    total = outputs.new_zeros(())
    for direction in directions - directions.mean(2, keepdim=True):
        (slope,) = torch.autograd.grad(outputs, x, direction, create_graph=True)
        total = total + slope.float().square().sum()
    return 2 * total / (n * k * max(projections, 1))
