"""Random views of a batch, drawn on its device with one set of parameters per example.

A view is a function `(images, policy, generator) -> x`: images uint8 (B, C, H, W), x float32 (B, C, H, W) in [0, 1].
All randomness comes from `generator`, which must live on the images' device (None: PyTorch's global one).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

CROP_SCALE = (0.2, 1.0)  # share of the area that SimCLR's crop keeps (Chen et al. 2020, appendix A; CLAF's main.py)
CROP_RATIO = (3 / 4, 4 / 3)  # its width : height, log-uniform
JITTER = 0.4  # brightness, contrast and saturation factors from U(1 - 0.4, 1 + 0.4)
HUE = 0.1  # hue shift from U(-0.1, 0.1) turns
JITTER_SHARE, GRAY_SHARE = 0.8, 0.2  # probability of colour jitter and of greyscale
CONTRAST, NOISE = (0.6, 1.4), 0.05  # one-channel images: contrast factor and standard deviation of pixel noise
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in torchvision


@dataclass(frozen=True)
class Policy:
    """What a data set's images may undergo without a change of their class."""

    pad: int = 0  # pixels; a crop from the image padded by so many zeros moves it by at most `pad` in each direction
    flip: bool = False  # whether the mirror image shows the same class (never for digits)


def plain(images: Tensor, policy: Policy | None = None, generator: Generator | None = None) -> Tensor:
    """The images themselves: pixel / 255; uses no randomness."""
    return images.to(torch.float32).div_(255)


def weak(images: Tensor, policy: Policy, generator: Generator | None) -> Tensor:
    """The papers' crop from a zero-padded image, then a flip with probability 1/2 where the policy allows one."""
    batch, channels, height, width = images.shape
    pad, device = policy.pad, images.device
    offsets = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator, device=device)
    rows = offsets[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(batch, width)
    if policy.flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns + offsets[1]
    examples = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    layers = torch.arange(channels, device=device).view(1, -1, 1, 1)
    padded = F.pad(images, [pad] * 4)
    return plain(padded[examples, layers, rows.view(batch, 1, height, 1), columns.view(batch, 1, 1, width)])


def flip(images: Tensor, policy: Policy, generator: Generator | None) -> Tensor:
    """The weak view without its crop: mirrored with probability 1/2 where the policy allows it, else the images themselves."""
    return weak(images, replace(policy, pad=0), generator)


def simclr_weak(images: Tensor, policy: Policy, generator: Generator | None) -> Tensor:
    """SimCLR's resized crop (bilinear) and flip alone, CLAF's weak view; for one channel the weak view.

    Width and height are those of torchvision's RandomResizedCrop, cut to the image where it would draw again.
    """
    if images.shape[1] != 3:
        return weak(images, policy, generator)
    x = plain(images)
    area = _uniform(x, *CROP_SCALE, generator)
    ratio = _uniform(x, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), generator).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    middle_x = (1 - width) * _uniform(x, -1, 1, generator)
    middle_y = (1 - height) * _uniform(x, -1, 1, generator)
    if policy.flip:
        width = torch.where(_chance(x, 0.5, generator), -width, width)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width.flatten(), height.flatten()
    theta[:, 0, 2], theta[:, 1, 2] = middle_x.flatten(), middle_y.flatten()
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(0, 1)


def simclr(images: Tensor, policy: Policy, generator: Generator | None) -> Tensor:
    """SimCLR's view in colour; for one channel a shift, contrast 0.6-1.4 and pixel noise of 0.05."""
    x = simclr_weak(images, policy, generator)
    if images.shape[1] != 3:
        x = _blend(x, x.mean((1, 2, 3), keepdim=True), _uniform(x, *CONTRAST, generator))
        return (x + NOISE * torch.randn(x.shape, generator=generator, device=x.device)).clamp_(0, 1)
    chosen, factors = _chance(x, JITTER_SHARE, generator), (1 - JITTER, 1 + JITTER)
    # Brightness, contrast, saturation, then hue: torchvision draws the order, here it is fixed.
    jittered = (x * _uniform(x, *factors, generator)).clamp(0, 1)
    jittered = _blend(jittered, _luma(jittered).mean((2, 3), keepdim=True), _uniform(x, *factors, generator))
    jittered = _blend(jittered, _luma(jittered), _uniform(x, *factors, generator))
    x = torch.where(chosen, shift_hue(jittered, _uniform(x, -HUE, HUE, generator)).clamp(0, 1), x)
    return torch.where(_chance(x, GRAY_SHARE, generator), _luma(x).expand_as(x), x)


View = Callable[[Tensor, Policy, Generator | None], Tensor]
#: What training sees of an image, by name: x (B, C, H, W), the data set's policy and a generator -> x of the same shape.
VIEWS: dict[str, View] = {"none": plain, "flip": flip, "weak": weak, "simclr": simclr, "simclr-weak": simclr_weak}


def _luma(x: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of colour images (B, 3, H, W)."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Colour images (B, 3, H, W) in [0, 1] with their hue in HSV moved by `turns` (B, 1, 1, 1) of the colour circle."""
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)  # grey has no hue: any number will do
    hue = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, hue) + 6 * turns.view(-1, 1, 1)
    sectors = torch.stack([(k + hue) % 6 for k in (5, 3, 1)], 1)
    ramp = torch.minimum(sectors, 4 - sectors).clamp(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * ramp


def _blend(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` of x and the rest of `other`; shares above 1 extrapolate, hence the clamp."""
    return (other + share * (x - other)).clamp(0, 1)


def _uniform(x: Tensor, low: float, high: float, generator: Generator | None) -> Tensor:
    """One number from U[low, high) per example of x, (B, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)


def _chance(x: Tensor, share: float, generator: Generator | None) -> Tensor:
    """True with probability `share` for each example of x, (B, 1, 1, 1)."""
    return _uniform(x, 0, 1, generator) < share
