"""Purifiers complete masked, noisy images: a GAN's generator in the structure of DeepFillv2, and a masked autoencoder."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from robustlib.errors import InputError

SMALL = 16  # pixels; below it kernels are 3 wide, above it the first is 5


class Purifier(nn.Module):
    """g(x, m): images (B, C, H, W) in [0, 1], mid-grey where their masks m (B, 1, H, W) are 1 -> completed images in [0, 1].

    The base class leaves holes grey. Sides that `multiple` does not divide are padded by their last pixels on the way in and
    cropped on the way out. Weights of a purifier of other images are refused.
    """

    made_for: Tensor

    def __init__(self, image_shape: Sequence[int], multiple: int = 1) -> None:
        super().__init__()
        self.image_shape, self.multiple = tuple(image_shape), multiple
        self.register_buffer("made_for", torch.tensor(self.image_shape))

    def outputs(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """All that a loss may use, each (B, C, H, W) in [0, 1]; the last is the purified image."""
        if tuple(x.shape[1:]) != self.image_shape or mask.shape != (len(x), 1, *self.image_shape[1:]):
            said = f"The purifier completes images of shape {self.image_shape}, one mask of one channel each"
            given = f"{tuple(x.shape)} with masks {tuple(mask.shape)}"
            raise InputError(f"{said}, not {given}: build one for these images.")
        height, width = self.image_shape[1:]
        margin = (0, -width % self.multiple, 0, -height % self.multiple)
        if any(margin):
            x, mask = (F.pad(part, margin, mode="replicate") for part in (x, mask))
        return tuple(image[..., :height, :width] for image in self.complete(x, mask))

    def complete(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """As `outputs`, of images whose sides `multiple` divides."""
        return (x,)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The purified images (B, C, H, W), in [0, 1]."""
        return self.outputs(x, mask)[-1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}made_for")
        if stored is not None and tuple(stored.tolist()) != self.image_shape:
            shapes = f"of shape {tuple(stored.tolist())}, and this one completes {self.image_shape}"
            remedy = "choose the data set it was trained on, or train a purifier for this one"
            raise InputError(f"These weights are of a purifier of images {shapes}: {remedy}.")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def gated_sum(x: Tensor, maps: Tensor) -> Tensor:
    """a * x + (1 - a) * s, with the logits of a and s in `maps` (B, 2C, H, W): a residual output in [0, 1].

    No clamp is needed, which would cut the gradient wherever a correction leaves [0, 1]; a plain tanh collapsed to a constant.
    """
    keep, paint = maps.to(x.dtype).sigmoid().chunk(2, 1)
    return keep * x + (1 - keep) * paint


class Generator(Purifier):
    """Two gated-convolution U-Nets in a row (after Yu et al. 2019, DeepFillv2): the second sees what the first put into the holes.

    Unlike DeepFillv2 it has no contextual attention, which in the released code takes the first image's mask for the whole batch;
    it has skip connections, a `gated_sum` instead of tanh, and as many down-samplings as the images allow: 1 below 16 pixels,
    2 up to 64, 3 above. There are `width` maps at full resolution, 2 and 4 times as many below.
    """

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        side = min(image_shape[1:])
        downs = 1 if side < SMALL else 2 if side <= 64 else 3
        super().__init__(image_shape, 2**downs)
        self.coarse, self.fine = (UNet(image_shape[0], width, downs, side) for _ in range(2))

    def complete(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        coarse = gated_sum(x, self.coarse(x, mask))
        filled = coarse * mask + x * (1 - mask)
        return coarse, gated_sum(filled, self.fine(filled, mask))


class GatedConv(nn.Module):
    """ELU(a) * sigmoid(b) with a, b the halves of one convolution's maps (Yu et al. 2019, eq. 2).

    From inputs of mean square 1 it starts with outputs of about 0.8: torch's own start would let the maps fade layer by layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, 2 * outputs, kernel, stride, padding, dilation)
        for part in self.conv.parameters():
            nn.init.zeros_(part)
        for half, variance in zip(self.conv.weight.detach().chunk(2), (5.0, 1.0), strict=True):
            half.normal_(0, (variance / (inputs * kernel**2)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        value, gate = self.conv(x).chunk(2, 1)
        # F.elu takes expm1, which is slow on CPUs: of small images it costs as much as the convolutions
        elu = value.relu() + value.clamp(max=0).exp() - 1
        return elu * gate.sigmoid()


class UNet(nn.Module):
    """Gated convolutions down, dilated ones at the bottom, and up again with skip connections: logits for a `gated_sum`.

    The image, `side` pixels at its shorter side, is halved `downs` times; dilations 1, 2, 4 ... reach half of what is left.
    """

    def __init__(self, channels: int, width: int, downs: int, side: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 4) for level in range(downs + 1)]
        self.first = GatedConv(channels + 2, width, 3 if side < SMALL else 5)
        self.down = nn.ModuleList(GatedConv(a, b, stride=2) for a, b in pairwise(widths))
        reach = [2**k for k in range(5) if 2**k <= max(1, (side >> downs) // 2)]
        self.bottom = nn.Sequential(*(GatedConv(widths[-1], widths[-1], dilation=step) for step in reach))
        self.up = nn.ModuleList(GatedConv(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, 2C, H, W) for images x (B, C, H, W) in [0, 1] behind masks (B, 1, H, W)."""
        ones = torch.ones_like(mask)  # show where zero padding begins
        z = self.first(torch.cat([2 * x - 1, ones, mask], 1))
        skips = []
        for layer in self.down:
            skips.append(z)
            z = layer(z)
        z = self.bottom(z)
        for layer in self.up:
            z = layer(torch.cat([F.interpolate(z, scale_factor=2.0), skips.pop()], 1))
        return self.last(z)


class PatchDiscriminator(nn.Module):
    """Scores D (B, P) of patches of an image beside its mask; every convolution is spectrally normalised (Miyato et al. 2018).

    As in SN-PatchGAN (Yu et al. 2019), which takes its last maps for scores, here a last convolution gives one score a position.
    Images are halved until 4 pixels are left, at least twice; maps grow from `width` to 4 * width. A pass in train mode is a power step.
    """

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        super().__init__()
        side = min(image_shape[1:])
        depth, kernel = max(2, (side // 4 - 1).bit_length()), 3 if side < SMALL else 5
        widths = [image_shape[0] + 1, *(width * min(2**level, 4) for level in range(depth))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, P) of images x (B, C, H, W) in [0, 1] with masks (B, 1, H, W), 1 where they were hidden."""
        return self.layers(torch.cat([2 * x - 1, mask], 1)).flatten(1)


LAYERS, HEADS, LARGEST_PATCH = 4, 4, 16


class MaskedAutoencoder(Purifier):
    """Patches of image and mask -> transformer -> pixels, as a `gated_sum` with the input (after Wu et al. 2023; He et al. 2022, MAE).

    MAE drops hidden patches before its encoder; here all enter, hidden pixels grey and marked in a mask channel (as in SimMIM, Xie
    et al. 2022): blocks need not be whole patches, and visible pixels, which are noisy, are to be restored too. A patch is an
    eighth of the image (2 pixels at least, 16 at most), so at 32 and 64 pixels there are 64 of them. `width` is that of a token.
    """

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        if width % HEADS:
            raise InputError(f"width={width!r}: give a multiple of {HEADS}, the number of heads of the autoencoder.")
        channels, *sides = image_shape
        self.patch = min(max(2, min(sides) // 8), LARGEST_PATCH)
        super().__init__(image_shape, self.patch)
        rows, columns = (-(-side // self.patch) for side in sides)
        self.embed = nn.Conv2d(channels + 1, width, self.patch, stride=self.patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, rows * columns, width))
        self.layers = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 2 * channels * self.patch**2)

    def complete(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        maps = self.embed(torch.cat([2 * x - 1, mask], 1))
        tokens = self.layers(maps.flatten(2).transpose(1, 2) + self.position)
        pixels = self.pixels(self.norm(tokens)).transpose(1, 2).unflatten(2, maps.shape[2:])
        return (gated_sum(x, F.pixel_shuffle(pixels, self.patch)),)


class Block(nn.Module):
    """A transformer block, pre-norm (Dosovitskiy et al. 2021); queries, keys and values have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, z: Tensor) -> Tensor:
        """Tokens z (B, T, width) -> the same shape."""
        q, k, v = self.qkv(self.norm1(z)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)  # (B, HEADS, T, width / HEADS)
        z = z + self.merge(heads.transpose(1, 2).flatten(2))
        return z + self.mlp(self.norm2(z))
