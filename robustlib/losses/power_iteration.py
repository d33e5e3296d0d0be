"""Spectral norms of linear layers by power iteration, with vectors that are kept from use to use."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.losses.spectral import finite, weight_of

UNREST = 0.1  # length of what is added to each kept vector of length 1 before a use


class PowerIteration(nn.Module):
    """sigma_max^2 of one layer's linear map from below, by block power iteration V <- orth(W'W V) and the best v in its span.

    The layer itself is applied, so padding (circular, zeros, any other), stride, dilation and kernel are its own. The vectors
    are kept: weights move slowly, so after `converge` one iteration a use follows them. They are a buffer, so a checkpoint
    holds them. The gradient of the value is the analytic 2 sigma u v', v held.

    One vector (Yoshida and Miyato 2017) does not do here: the penalty lowers the singular value of the very vector it keeps, and
    a converged one has no share of the direction that takes over (other frequencies of a circular convolution are
    orthogonal to it), so its value falls far below sigma^2 within a few steps. Hence several, and a little noise on them from
    torch's global generator, which the loop seeds.

    Args:
        layer: nn.Linear or nn.Conv2d with groups=1; it is not kept.
        size: (H, W) of a convolution's input.
        vectors: how many are kept, at least 1.
        seed: of the random vectors that it starts from.

    Raises:
        InputError: another layer, no vector.
    """

    vectors: Tensor  # (k, inputs), or (k, c_in, H, W); orthonormal, the best one last

    def __init__(
        self, layer: nn.Module, size: tuple[int, int] | None = None, *, vectors: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        if vectors < 1:
            raise InputError(f"vectors={vectors!r}: give a number of at least 1.")
        shape: tuple[int, ...] = (weight_of(layer).shape[1],)
        if isinstance(layer, nn.Conv2d):
            assert size is not None, "the norm of a convolution depends on the size of its input"
            shape = (*shape, *size)
        start = torch.randn(min(vectors, math.prod(shape)), *shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("vectors", _orthonormal(start))

    def forward(self, layer: nn.Module, iterations: int = 1, weight: Tensor | None = None) -> Tensor:
        """|W v|^2 after some iterations: a scalar, differentiable in the weight, computed in float32 outside autocast.

        Args:
            layer: the one it was made for.
            iterations: of this use; 0 takes the vector as it is kept.
            weight: in place of the layer's own, of its shape, e.g. with BatchNorm folded in.
        """
        weight = (weight_of(layer) if weight is None else weight).float()
        with torch.autocast(weight.device.type, enabled=False):
            if iterations:
                noise = torch.randn_like(self.vectors)
                lengths = noise.flatten(1).norm(dim=1).view(-1, *[1] * (noise.ndim - 1))
                self.vectors = self.vectors + UNREST * noise / lengths
            for _ in range(iterations):
                self._iterate(layer, weight.detach())
            return _apply(layer, weight, self.vectors[-1:]).square().sum()

    def converge(
        self, layer: nn.Module, weight: Tensor | None = None, *, tolerance: float = 1e-4, limit: int = 1000
    ) -> Tensor:
        """Iterates until |W'W v - s v| <= tolerance s, s = |W v|^2, but at most `limit` times; returns s, without gradient.

        Then some squared singular value lies within tolerance s of s; its error is about tolerance^2 over the relative gap.

        Raises:
            InputError: a tolerance that is not positive.
        """
        if not tolerance > 0:
            raise InputError(f"tolerance={tolerance!r}: give a positive share of the squared norm, e.g. 1e-4.")
        weight = (weight_of(layer) if weight is None else weight).detach().float()
        with torch.autocast(weight.device.type, enabled=False):
            for _ in range(limit):
                self._iterate(layer, weight)
                value, image = _gram(layer, weight, self.vectors[-1:])
                if not bool((image - value * self.vectors[-1:]).norm() > tolerance * value):
                    break
        return value

    def _iterate(self, layer: nn.Module, weight: Tensor) -> None:
        """V <- orth(W'W V), then rotated within its span so that its last vector has the longest image (Rayleigh and Ritz)."""
        vectors = _orthonormal(_gram(layer, weight, self.vectors)[1])
        with torch.no_grad():
            images = _apply(layer, weight, vectors).flatten(1)
            turn = torch.linalg.eigh(finite(images @ images.T)).eigenvectors
            self.vectors = (turn.T @ vectors.flatten(1)).view_as(vectors)


def _apply(layer: nn.Module, weight: Tensor, v: Tensor) -> Tensor:
    """The layer's linear map on each of v (k, ...), without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(v, weight)
    assert isinstance(layer, nn.Conv2d)
    return layer._conv_forward(v, weight, None)  # the one place where torch applies every padding mode


def _gram(layer: nn.Module, weight: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """|W v|^2, summed over the vectors, and W'W v for each: half the gradient of the former."""
    with torch.enable_grad():
        v = v.detach().requires_grad_(True)
        value = _apply(layer, weight, v).square().sum()
        (slope,) = torch.autograd.grad(value, v)
    return value.detach(), slope / 2


def _orthonormal(v: Tensor) -> Tensor:
    """An orthonormal basis of the span of v (k, ...), of the same shape."""
    return torch.linalg.qr(v.flatten(1).T).Q.T.reshape(v.shape).contiguous()
