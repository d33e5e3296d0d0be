"""Spectral norms of linear layers, exactly: dense matrices, and circular convolutions frequency by frequency."""

import math

import torch
from torch import Tensor, nn

from robustlib.errors import InputError


def dense_squared_norm(matrix: Tensor) -> Tensor:
    """sigma_max(W)^2 of a matrix W (M, N), a scalar; real or complex.

    Its gradient is the analytic 2 sigma u v^H: the top singular vector of the smaller side is found without gradients and
    held, so nothing differentiates through an eigendecomposition. Where the top singular value is not unique, it is one
    of the subgradients. Computed in at least float32, outside autocast.
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
    have conjugate matrices at f and -f, so half the frequencies are looked at; only the largest is differentiated. Where
    the kernel lies in the padding (its origin) changes phases, not singular values.

    Args:
        weight: kernel (c_out, c_in, k_h, k_w), of any size; taps beyond the image wrap around.
        size: of the input, (H, W).
        stride: of the convolution; it must divide the size.

    Raises:
        InputError: a size that the stride does not divide.
    """
    check_stride(size, stride)
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
    p = torch.einsum("oipq,fap,gbq->fgoiab", weight.to(rows.dtype), rows, columns)
    return p.flatten(3).flatten(0, 1)


def finite(gram: Tensor) -> Tensor:
    """Of weights that diverged, zeros: LAPACK refuses NaN, and the value at the vector found is NaN all the same."""
    return torch.where(gram.isfinite(), gram, torch.zeros_like(gram))


def check_stride(size: tuple[int, int], stride: tuple[int, int]) -> None:
    """Raises InputError if the stride does not divide the size of the images."""
    if any(n % s for n, s in zip(size, stride, strict=True)):
        raise InputError(
            f"A convolution of stride {max(stride)} on {size[0]}x{size[1]} pixels is no circular operator, and its exact norm "
            "cannot be told: give images whose size the stride divides, or operator='power'."
        )


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of an nn.Linear (out, in) or of an nn.Conv2d (out, in, k_h, k_w).

    Raises:
        InputError: any other layer, groups; no spectral norm is known of them here.
    """
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return layer.weight
    kind = f"{type(layer).__name__} of {layer.groups} groups" if isinstance(layer, nn.Conv2d) else type(layer).__name__
    raise InputError(f"No spectral norm is known of a {kind}: choose a model of nn.Linear and nn.Conv2d with groups=1.")


def exact_squared_norm(layer: nn.Module, size: tuple[int, int] | None = None, weight: Tensor | None = None) -> Tensor:
    """sigma_max^2 of a dense layer or a circular convolution, without its bias: a differentiable scalar.

    Args:
        layer: nn.Linear; or nn.Conv2d with groups=1, dilation=1 and circular padding (or none and a kernel of 1x1) that
            divides the image by its stride.
        size: (H, W) of a convolution's input.
        weight: in place of the layer's own, of its shape, e.g. with BatchNorm folded in.

    Raises:
        InputError: another layer, another padding, images whose size the stride does not divide.
    """
    check_exact(layer, size)
    weight = weight_of(layer) if weight is None else weight
    if not isinstance(layer, nn.Conv2d) or size is None:
        return dense_squared_norm(weight)
    return conv_squared_norm(weight, size, (layer.stride[0], layer.stride[1]))


def check_exact(layer: nn.Module, size: tuple[int, int] | None) -> None:
    """Raises InputError if `exact_squared_norm` does not know the layer.

    A convolution must be circular: a window for every step of the stride, and no other.
    """
    weight_of(layer)
    if not isinstance(layer, nn.Conv2d):
        return
    assert size is not None, "the norm of a convolution depends on the size of its input"
    check_stride(size, (layer.stride[0], layer.stride[1]))
    pads = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    total = [k - 1 if layer.padding == "same" else 2 * p for k, p in zip(layer.kernel_size, pads, strict=True)]
    axes = zip(size, total, layer.kernel_size, layer.stride, strict=True)
    outputs = tuple((n + pad - k) // s + 1 for n, pad, k, s in axes)
    whole = outputs == tuple(n // s for n, s in zip(size, layer.stride, strict=True))
    if not whole or layer.dilation != (1, 1) or (layer.padding_mode != "circular" and any(total)):
        raise InputError(
            f"The exact norm is that of a circular convolution, which {layer} on {size[0]}x{size[1]} pixels is not: "
            "build the model with padding_mode='circular', or give operator='power'."
        )
