"""Spectral norms of linear layers, exactly or by power iteration; penalties on input gradients and of fine-tuning."""

import math
from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robustlib.errors import InputError, NonNegative, Positive, Whole, typed
from robustlib.rng import drawn

VECTORS = 16  # that a power iteration keeps of a layer, at most
NOISE = 0.1  # length of what is added to each of them, of length 1, before a use


def dense_squared_norm(matrix: Tensor) -> Tensor:
    """sigma_max(W)^2 of a real or complex matrix W (M, N), a scalar, in at least float32, outside autocast.

    Its gradient is the analytic 2 sigma u v^H, v held: nothing differentiates through an eigendecomposition.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        matrix = matrix if matrix.dtype == torch.float64 or matrix.is_complex() else matrix.float()
        tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.mH
        with torch.no_grad():
            v = torch.linalg.eigh(finite(tall.mH @ tall)).eigenvectors[:, -1]
        return (tall @ v).abs().square().sum()


def conv_squared_norm(weight: Tensor, size: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> Tensor:
    """sigma_max^2 of a circular convolution as an operator on images, a scalar with the gradient 2 sigma u v^H.

    Senderovich et al. (2022, theorem 2, a poly-phase Fourier transform): the operator is unitarily equivalent to one matrix
    P_f (c_out, c_in s_h s_w) for each frequency f of the outputs, and sigma_max is the largest of theirs. Real kernels
    have conjugate matrices at f and -f, so half the frequencies suffice; only the largest is differentiated. Where
    the kernel lies in the padding (its origin) changes phases, not singular values. Of a `weight` (c_out, c_in, k_h, k_w) of any
    size, whose taps wrap around beyond the image, and inputs of `size` (H, W), which the stride divides.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight = weight if weight.dtype == torch.float64 else weight.float()
        rows, columns = (n // s for n, s in zip(size, stride, strict=True))
        with torch.no_grad():
            half = columns // 2 + 1
            waves = _waves(weight, 2, rows, stride[0]), _waves(weight, 3, columns, stride[1])[:half]
            p = _polyphase(weight, *waves)
            wide = p.shape[-2] <= p.shape[-1]
            values = torch.linalg.eigvalsh(finite(p @ p.mH if wide else p.mH @ p))[:, -1]
            row, column = divmod(int(values.argmax()), half)
        return dense_squared_norm(_polyphase(weight, waves[0][row : row + 1], waves[1][column : column + 1])[0])


def _waves(weight: Tensor, axis: int, frequencies: int, stride: int) -> Tensor:
    """E[f, a, p] = exp(-2 pi i f (p // s) / n) where p % s = a, else 0: the phases of the kernel's taps p along one axis."""
    taps = torch.arange(weight.shape[axis], device=weight.device)
    f = torch.arange(frequencies, device=weight.device)
    angle = -2 * math.pi / frequencies * (f[:, None] * (taps // stride)[None] % frequencies).to(weight.dtype)
    phase = taps[None] % stride == torch.arange(stride, device=weight.device)[:, None]
    return torch.polar(torch.ones_like(angle), angle)[:, None] * phase


def _polyphase(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """P (frequencies, c_out, c_in s_h s_w). For kernels this much smaller than images a direct transform beats padding and FFT."""
    return torch.einsum("oipq,fap,gbq->fgoiab", weight.to(rows.dtype), rows, columns).flatten(3).flatten(0, 1)


def finite(gram: Tensor) -> Tensor:
    """Of weights that diverged, zeros: LAPACK refuses NaN, and the value at the vector is NaN all the same."""
    return torch.where(gram.isfinite(), gram, torch.zeros_like(gram))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of an nn.Linear or of an nn.Conv2d with groups=1; InputError for any other layer."""
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return layer.weight
    kind = f"{type(layer).__name__} of {layer.groups} groups" if isinstance(layer, nn.Conv2d) else type(layer).__name__
    raise InputError(f"No spectral norm is known of a {kind}: choose a model of nn.Linear and nn.Conv2d with groups=1.")


def exact_squared_norm(layer: nn.Module, size: tuple[int, int] | None = None, weight: Tensor | None = None) -> Tensor:
    """sigma_max^2 of a layer that `check_exact` accepts, without its bias, or of a `weight` in its place: a differentiable scalar."""
    check_exact(layer, size)
    weight = weight_of(layer) if weight is None else weight
    if not isinstance(layer, nn.Conv2d) or size is None:
        return dense_squared_norm(weight)
    return conv_squared_norm(weight, size, (layer.stride[0], layer.stride[1]))


def check_exact(layer: nn.Module, size: tuple[int, int] | None) -> None:
    """Raises InputError if `exact_squared_norm` does not know the layer on inputs of `size` (H, W).

    It knows nn.Linear, and nn.Conv2d with groups=1 that is circular: a window for every step of the stride, and no other.
    """
    weight_of(layer)
    if not isinstance(layer, nn.Conv2d):
        return
    assert size is not None, "the norm of a convolution depends on the size of its input"
    if any(n % s for n, s in zip(size, layer.stride, strict=True)):
        which = f"A convolution of stride {max(layer.stride)} on {size[0]}x{size[1]} pixels is no circular operator"
        remedy = "give images whose size the stride divides, or operator='power'"
        raise InputError(f"{which}, and its exact norm cannot be told: {remedy}.")
    pads = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    total = [k - 1 if layer.padding == "same" else 2 * p for k, p in zip(layer.kernel_size, pads, strict=True)]
    axes = zip(size, total, layer.kernel_size, layer.stride, strict=True)
    whole = all((n + pad - k) // s + 1 == n // s for n, pad, k, s in axes)
    if not whole or layer.dilation != (1, 1) or (layer.padding_mode != "circular" and any(total)):
        said = f"The exact norm is that of a circular convolution, which {layer} on {size[0]}x{size[1]} pixels is not"
        raise InputError(f"{said}: build the model with padding_mode='circular', or give operator='power'.")


class PowerIteration(nn.Module):
    """sigma_max^2 of one layer's linear map from below, by block power iteration V <- orth(W'W V) and the best v in its span.

    The layer itself is applied, with its padding, stride and dilation. The vectors are kept (in a buffer): weights move slowly,
    so after `converge` one iteration per use follows them. The gradient is the analytic 2 sigma u v', v held.

    One vector (Yoshida and Miyato 2017) is not enough: the penalty lowers the singular value of the very vector it keeps, and
    a converged one has no share of the direction that takes over (other frequencies of a circular convolution are orthogonal to
    it), so its value falls far below sigma^2 within steps. Hence several, with a little noise from torch's global generator.
    The layer, nn.Linear or nn.Conv2d with groups=1 and inputs of `size` (H, W), is not kept.
    """

    # (k, inputs), or (k, c_in, H, W); orthonormal, the best one last; from a random start, always the same
    vectors: Tensor

    def __init__(self, layer: nn.Module, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        shape: tuple[int, ...] = (weight_of(layer).shape[1],)
        if isinstance(layer, nn.Conv2d):
            assert size is not None, "the norm of a convolution depends on the size of its input"
            shape = (*shape, *size)
        start = torch.randn(min(VECTORS, math.prod(shape)), *shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("vectors", _orthonormal(start))

    def forward(self, layer: nn.Module, iterations: int = 1, weight: Tensor | None = None) -> Tensor:
        """|W v|^2 after `iterations`: a scalar in float32, differentiable in the weight (the layer's, or the one in its place)."""
        weight = (weight_of(layer) if weight is None else weight).float()
        with torch.autocast(weight.device.type, enabled=False):
            if iterations:
                noise = torch.randn_like(self.vectors)
                lengths = noise.flatten(1).norm(dim=1).view(-1, *[1] * (noise.ndim - 1))
                self.vectors = self.vectors + NOISE * noise / lengths
            for _ in range(iterations):
                self._iterate(layer, weight.detach())
            return _apply(layer, weight, self.vectors[-1:]).square().sum()

    def converge(
        self, layer: nn.Module, weight: Tensor | None = None, *, tolerance: float = 1e-4, limit: int = 1000
    ) -> Tensor:
        """Iterates until |W'W v - s v| <= tolerance s, s = |W v|^2, but at most `limit` times; returns s, without gradient.

        Then some squared singular value lies within tolerance s of s; its error is about tolerance^2 over the relative gap.
        """
        typed(tolerance, Positive, "tolerance")
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


def cross_lipschitz(outputs: Tensor, x: Tensor, *, projections: int = 0, generator: Generator | None = None) -> Tensor:
    """1/(n K^2) sum_i sum_{l,m} |grad f_l(x_i) - grad f_m(x_i)|_2^2, a scalar (Hein and Andriushchenko 2017, eq. 6).

    It equals 2/(n K) sum_i |C J_i|_F^2 with the Jacobian J_i (K, D) and C = I - 11'/K, which takes K backward passes, or
    in the mean over z ~ N(0, I) 2/(n K) sum_i |J_i' C z_i|^2, which takes one for each projection. rep-spectral's release
    computes 1/K of this for softmax outputs. With BatchNorm in train mode J_i contains what an image does to the others.

    Outputs f(x) (B, K), K >= 2, logits or probabilities, have the graph to the images `x`. No projections give the exact value.
    """
    typed(projections, Annotated[Whole, "backward passes, or 0 for the exact penalty"], "projections")
    outputs = outputs.float()
    n, k = outputs.shape
    if projections:

        def draw(count: int) -> Tensor:
            return torch.randn(projections, count, k, generator=generator, device=outputs.device)

        directions = drawn(draw, n, dim=1)
    else:
        directions = torch.eye(k, device=outputs.device)[:, None].expand(k, n, k)
    total = outputs.new_zeros(())
    for direction in directions - directions.mean(2, keepdim=True):
        (slope,) = torch.autograd.grad(outputs, x, direction, create_graph=True)
        total = total + slope.float().square().sum()
    return 2 * total / (n * k * max(projections, 1))


def l2_sp(
    weights: Iterable[Tensor], start: Iterable[Tensor], new: Iterable[Tensor], alpha: float = 0.1, beta: float = 0.01
) -> Tensor:
    """alpha |w - w0|^2 + beta |v|^2, a scalar in float32 (L2-SP, Li et al. 2018; their factors 1/2 are left out).

    Of the pre-trained `weights` w, the same w0 at the `start` of fine-tuning, and the `new` head's v; alpha, beta >= 0.
    """
    typed(alpha, NonNegative, "alpha"), typed(beta, NonNegative, "beta")
    pairs = zip(weights, start, strict=True)
    distance = torch.stack([(w.float() - w0.detach().float()).square().sum() for w, w0 in pairs]).sum()
    return alpha * distance + beta * torch.stack([v.float().square().sum() for v in new]).sum()


def batch_spectral_shrinkage(features: Tensor, k: int = 1) -> Tensor:
    """The sum of the k smallest squared singular values of features F (B, D), a float32 scalar (BSS, Chen et al. 2019).

    F has min(B, D) singular values; zeros count. The right singular vectors v are held: sum |F v|^2 has the gradient 2 F v v'.
    """
    typed(k, int, "k", f"[1, {min(features.shape)}]", "the singular values of such a batch")
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        with torch.no_grad():
            v = torch.linalg.svd(finite(features), full_matrices=False).Vh[-k:]
        return (features @ v.T).square().sum()
