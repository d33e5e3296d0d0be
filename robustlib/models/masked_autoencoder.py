"""The masked-autoencoder purifier: a small vision transformer that completes images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.models.purifier import Purifier, gated_sum

LAYERS, HEADS, LARGEST_PATCH = 4, 4, 16


class MaskedAutoencoder(Purifier):
    """Patches of image and mask -> transformer -> pixels, as a `gated_sum` with the input (after Wu et al. 2023; He et al. 2022, MAE).

    MAE drops hidden patches before its encoder; here all enter, hidden pixels grey and marked in a mask channel (as in SimMIM, Xie
    et al. 2022): blocks need not be whole patches, and visible pixels, which are noisy, are to be restored too. A patch is an
    eighth of the image (2 pixels at least, 16 at most), so at 32 and 64 pixels there are 64 of them.

    Args:
        image_shape: (C, H, W).
        width: of a token; a multiple of 4, the number of heads.

    Raises:
        InputError: another width.
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
        """(completed,), of images whose sides the patch divides."""
        maps = self.embed(torch.cat([2 * x - 1, mask], 1))
        tokens = self.layers(maps.flatten(2).transpose(1, 2) + self.position)
        pixels = self.pixels(self.norm(tokens)).transpose(1, 2).unflatten(2, maps.shape[2:])
        return (gated_sum(x, F.pixel_shuffle(pixels, self.patch)),)


class Block(nn.Module):
    """Attention, then two linear maps, each on normalised tokens and added to them (Dosovitskiy et al. 2021).

    Queries, keys and values have no bias: that of the keys would have no effect.
    """

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
