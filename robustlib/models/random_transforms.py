"""The random transforms of AToP (Lin et al. 2024, section 3; RT1 to RT3): noise, then blocks hidden behind mid-grey."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustlib.errors import InputError, check_choices, check_counts

KINDS = ("none", "rt1", "rt2", "rt3")
WHOLE = 0.1  # how far 1 / missing of rt3 may lie from a whole number: 0.33 is a third
GREY = 0.5  # of a hidden pixel: 0 in the [-1, 1] space in which the released code masks


class Randomness(NamedTuple):
    """What one draw of a transform decides, for each image of a batch by itself."""

    noise: Tensor | None  # (B, C, H, W) to be added, in units of [0, 1]; None without noise
    masks: Tensor  # (N, B, 1, H, W), 1 where a pixel is hidden, else 0; N = 1 but for rt3, whose N masks cover the image once


@dataclass(frozen=True)
class RandomTransform:
    """t(x) = (1 - m) * clip(x + sigma * noise) + m / 2, with random blocks m of a grid of `grid` x `grid`.

    rt1 hides a share `missing` of the blocks, rt2 adds noise before that, and rt3 adds noise and gives N = round(1 / missing)
    copies of the image whose hidden blocks are disjoint and together all of it. The order noise, clip, mask is the released
    code's; it draws one mask for a batch, here every image has its own. Where the grid does not divide an image, rows and columns
    of blocks differ by one pixel (4 blocks of 9 pixels: 3, 2, 2, 2): no block is empty, and none is left out.

    Raises:
        InputError: an unknown kind, a missing rate outside [0, 1), sigma < 0, grid < 1, a missing rate at which the grid hides
            no block, or all, or one of rt3 that is not 1/2, 1/3, 1/4 and so on.
    """

    kind: Literal["none", "rt1", "rt2", "rt3"] = "none"
    sigma: float = 0.25  # standard deviation of the noise, in units of [0, 1]
    missing: float = 0.25  # share of the blocks that a mask hides
    grid: int = 8  # blocks a side
    clip: bool = True  # noisy images to [0, 1]; False only for an attacker, who wants the gradient of clipped pixels

    def __post_init__(self) -> None:
        check_choices(self, kind=KINDS)
        check_counts(self, "grid")
        if not 0 <= self.missing < 1:
            raise InputError(f"missing={self.missing!r}: give the share of an image that is hidden, in [0, 1).")
        if not 0 <= self.sigma < float("inf"):
            raise InputError(
                f"sigma={self.sigma!r}: give the noise's standard deviation, at least 0 (grey levels 0 to 1)."
            )
        if self.kind == "rt3" and not 2 <= self.passes <= self.blocks:
            raise InputError(
                f"missing={self.missing!r}: rt3 hides the image in round(1 / missing) parts, at least 2 and at most the "
                f"{self.blocks} block(s) of the grid: give 0.5 or less, or a finer grid."
            )
        if self.kind == "rt3" and abs(1 / self.missing - self.passes) > WHOLE:
            raise InputError(
                f"missing={self.missing!r}: rt3 hides the whole image in parts of one size, and {1 / self.missing:.3g} of them is no "
                f"whole number: give {1 / self.passes:.3g} for {self.passes} parts."
            )
        if self.kind in ("rt1", "rt2") and self.missing and not 0 < self.hidden < self.blocks:
            raise InputError(
                f"missing={self.missing!r} of a grid of {self.grid} x {self.grid} hides {self.hidden} of {self.blocks} block(s): "
                "give another rate, or a finer grid."
            )

    @property
    def random(self) -> bool:
        """Whether two draws can differ."""
        return self.kind != "none" and (self.noisy or self.kind == "rt3" or self.hidden > 0)

    @property
    def noisy(self) -> bool:
        """Whether it adds noise."""
        return self.kind in ("rt2", "rt3") and self.sigma > 0

    @property
    def blocks(self) -> int:
        """How many the grid has."""
        return self.grid**2

    @property
    def hidden(self) -> int:
        """How many of them a mask of rt1 and rt2 hides."""
        return round(self.missing * self.blocks)

    @property
    def passes(self) -> int:
        """N, how many masked copies of an image it gives, each to be completed: round(1 / missing) for rt3, else 1."""
        return 1 if self.kind != "rt3" or not self.missing else round(1 / self.missing)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Randomness:
        """Noise and masks for every image of x (B, C, H, W), on its device and in its dtype.

        Args:
            x: whose shape counts, and nothing else.
            generator: drawn from; None for torch's global one.

        Raises:
            InputError: an image with fewer pixels a side than the grid has blocks.
        """
        device = x.device if generator is None else generator.device
        noise = None
        if self.noisy:
            noise = torch.randn(x.shape, generator=generator, device=device).to(x) * self.sigma
        return Randomness(noise, self._masks(x, generator, device).to(x))

    def apply(self, x: Tensor, randomness: Randomness) -> Tensor:
        """t(x) (N, B, C, H, W) of images x (B, C, H, W) in [0, 1] with this noise and behind these masks."""
        if randomness.noise is not None:
            x = x + randomness.noise
            x = x.clamp(0, 1) if self.clip else x
        return x * (1 - randomness.masks) + GREY * randomness.masks

    def _masks(self, x: Tensor, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """(N, B, 1, H, W) bool."""
        size, _, height, width = x.shape
        if self.kind == "none":
            return torch.zeros(1, size, 1, height, width, dtype=torch.bool, device=device)
        if self.grid > min(height, width):
            raise InputError(
                f"grid={self.grid} asks for more blocks a side than an image of {height}x{width} pixels has pixels: "
                f"give at most {min(height, width)}."
            )
        places = torch.rand(size, self.blocks, generator=generator, device=device).argsort(
            1
        )  # a shuffle of each image's blocks
        if self.kind == "rt3":
            part = places * self.passes // self.blocks
            hidden = torch.stack([part == number for number in range(self.passes)])
        else:
            hidden = (places < self.hidden)[None]
        rows, columns = (torch.arange(side, device=device) * self.grid // side for side in (height, width))
        return hidden.view(-1, size, 1, self.grid, self.grid)[..., rows[:, None], columns]
