"""Pre-activation residual networks (He et al. 2016b) and their wide form (Zagoruyko and Komodakis 2016)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from robustlib.models.gates import GATES, Gate, GatedStage
from robustlib.models.pooling import spatial_mean

LARGEST_SMALL = 64  # pixels; above it the stem divides the image by four, as in ResNet


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; where the shape changes, the shortcut starts after the first ReLU."""

    folds: ClassVar = (("conv1", "bn2"),)  # bn1 follows a sum, conv2 runs into one

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        reshapes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if reshapes else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        active = self.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + identity


class PreActResNet(nn.Module):
    """Stem, stages `layer1`, `layer2` ..., final BatchNorm and ReLU, global average: x -> features (B, last width).

    Args:
        image_shape: (C, H, W). Up to 64 pixels the stem is one 3 x 3 convolution of stride 1, above it is ImageNet's.
        widths: channels of the stem and of each stage; every stage but the first halves the image.
        blocks: blocks in each stage.
    """

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.stem = _stem(image_shape, widths[0])
        self.stages = tuple(f"layer{number}" for number in range(1, len(widths)))
        for name, (inputs, outputs) in zip(self.stages, pairwise(widths), strict=True):
            stage = [PreActBlock(inputs, outputs, 1 if name == "layer1" else 2)]
            stage += [PreActBlock(outputs, outputs, 1) for _ in range(1, blocks)]
            setattr(self, name, GatedStage(*stage))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.out_features, self.gates = widths[-1], min(blocks, GATES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` takes each of the last two blocks' maps after the final BatchNorm and ReLU."""
        x = self.stem(x)
        for name in self.stages[:-1]:
            x = getattr(self, name)(x)
        last = getattr(self, self.stages[-1])
        if gate is None:
            return spatial_mean(self.relu(self.bn(last(x))))
        return last(x, lambda z: gate(self.relu(self.bn(z)))).mean((2, 3))


def preact_resnet18(image_shape: Sequence[int]) -> PreActResNet:
    """PreActResNet-18 with the paper's final BatchNorm, as Rice et al. 2020 train it: 11 172 170 parameters."""
    return PreActResNet(image_shape, (64, 64, 128, 256, 512), 2)


def wrn28_10(image_shape: Sequence[int]) -> PreActResNet:
    """WRN-28-10: 36 479 194 parameters with ten classes."""
    return PreActResNet(image_shape, (16, 160, 320, 640), 4)


def wrn34_10(image_shape: Sequence[int]) -> PreActResNet:
    """WRN-34-10, the large model of TRADES: 46 160 474 parameters with ten classes."""
    return PreActResNet(image_shape, (16, 160, 320, 640), 5)


def _stem(image_shape: Sequence[int], width: int) -> nn.Sequential:
    channels, height, breadth = image_shape
    if max(height, breadth) <= LARGEST_SMALL:
        return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False))
    large = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(large, nn.MaxPool2d(3, stride=2, padding=1))
