"""A convolutional network that trains in seconds on one CPU thread and still has BatchNorm and stages."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from robustlib.models.gates import Gate
from robustlib.models.pooling import spatial_mean


class Stage(nn.Sequential):
    """3 x 3 convolution, BatchNorm, ReLU; halves the image where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class SmallCNN(nn.Module):
    """Three stages and a global average, about 95 000 parameters, for images of 8 to 64 pixels.

    The second stage halves the image, the third too from 16 pixels on: at 8 it would leave 2 x 2 positions.
    """

    stages: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3")
    gates: ClassVar[int] = 1

    def __init__(self, image_shape: Sequence[int], widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.stage1 = Stage(channels, widths[0], 1)
        self.stage2 = Stage(widths[0], widths[1], 2)
        self.stage3 = Stage(widths[1], widths[2], 2 if min(height, width) >= 16 else 1)
        self.out_features = widths[2]

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` stands behind the last stage."""
        x = self.stage3(self.stage2(self.stage1(x)))
        return spatial_mean(x) if gate is None else gate(x).mean((2, 3))
