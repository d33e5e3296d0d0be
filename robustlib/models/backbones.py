"""Encoders x -> features: MLP, small CNN, ResNets (He et al. 2016; pre-activation: 2016b; wide: Zagoruyko and Komodakis 2016)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from robustlib.models.classifier import spatial_mean

Gate = Callable[[Tensor], Tensor]  # maps (B, C, H, W) -> maps of the same shape that replace them
GATES = 2  # blocks followed by a gate: all of ResNet-18's last stage, the last two of a wide ResNet's (ANCRA)
LARGEST_SMALL = 64  # pixels; above it the stem divides the image by four, as in ResNet


class GatedStage(nn.Sequential):
    """Blocks one after another, like any Sequential; a `gate` replaces the maps of each of the last two."""

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """x (B, inputs, H, W) -> (B, outputs, H', W')."""
        for number, block in enumerate(self):
            x = block(x)
            if gate is not None and number >= len(self) - GATES:
                x = gate(x)
        return x


class MLP(nn.Module):
    """Flatten, then (linear, GELU) per hidden width: x (B, C, H, W) -> features (B, last width).

    GELU is smooth, as rep-spectral's theory wants. `scaled` is the parametrisation of that paper's release: outputs of a hidden
    layer are divided by the square root of its width (there the next bias too), and all weights and biases start from N(0, 0.01^2).
    """

    def __init__(self, image_shape: Sequence[int], hidden: Sequence[int] = (256, 256), *, scaled: bool = False) -> None:
        super().__init__()
        self.out_features = hidden[-1]
        self.init_std = 0.01 if scaled else None  # of all linear layers, read by Classifier; None: torch's own
        layers: list[nn.Module] = []
        for wide, narrow in pairwise([prod(image_shape), *hidden]):
            layers += [nn.Linear(wide, narrow), nn.GELU(), *([Scale(narrow**-0.5)] if scaled else [])]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_features)."""
        return self.layers(x.flatten(1))


class Scale(nn.Module):
    """x -> factor * x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return self.factor * x

    def extra_repr(self) -> str:
        """The factor, in the printed module."""
        return f"{self.factor:g}"


class Stage(nn.Sequential):
    """3 x 3 convolution, BatchNorm, ReLU; halves the image where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


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
        """Features (B, out_features); a `gate` follows the last stage."""
        x = self.stage3(self.stage2(self.stage1(x)))
        return spatial_mean(x) if gate is None else gate(x).mean((2, 3))


class ResNet(nn.Module):
    """torchvision's ResNet `name` without its last linear layer: x (B, C, H, W) -> features (B, out_features).

    Up to 64 pixels the stem is a 3 x 3 convolution of stride 1 without max-pooling, above it is ImageNet's.
    """

    stages: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3", "layer4")
    gates: ClassVar[int] = GATES
    folds: ClassVar = (("conv1", "bn1"),)  # which BatchNorm directly follows which convolution

    def __init__(self, image_shape: Sequence[int], name: str) -> None:
        from torchvision import models  # only when one is built: it takes a second

        super().__init__()
        network = getattr(models, name)(num_classes=1)
        self.out_features = network.fc.in_features
        for part, module in network.named_children():
            setattr(self, part, module)
        self.fc = nn.Identity()  # the classifier's head is outside the encoder
        _name_folds(network)
        self.layer4 = GatedStage(*network.layer4)
        channels, height, width = image_shape
        if max(height, width) <= LARGEST_SMALL:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` follows each of the last two blocks."""
        for part in ("conv1", "bn1", "relu", "maxpool", *self.stages[:-1]):
            x = self.get_submodule(part)(x)
        x = self.layer4(x, gate)
        return self.get_submodule("avgpool")(x).flatten(1) if gate is None else x.mean((2, 3))


class ResNet8(nn.Module):
    """ResNet-8 (He et al. 2016, section 4.2 with n = 1) for images of 16 to 64 pixels on CPUs: x (B, C, H, W) -> features (B, 4 width).

    Its stem is 4 x 4 with stride 2: all that follows has a quarter of the positions. Then three stages of one block, of `width`,
    twice and four times as many channels (in the paper 16, 32 and 64); where they change, shortcuts are 1 x 1 convolutions.
    """

    stages: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3")
    gates: ClassVar[int] = 1

    def __init__(self, image_shape: Sequence[int], width: int) -> None:
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        widths, self.out_features = (width, width, 2 * width, 4 * width), 4 * width
        convolution = nn.Conv2d(image_shape[0], width, 4, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        for name, (inputs, outputs) in zip(self.stages, pairwise(widths), strict=True):
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs)
            same = inputs == outputs
            block = BasicBlock(inputs, outputs, 1 if same else 2, None if same else nn.Sequential(*shortcut))
            setattr(self, name, GatedStage(block))
        _name_folds(self)
        _start_convolutions(self)

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` follows the last stage."""
        x = self.stem(x)
        for name in self.stages[:-1]:
            x = self.get_submodule(name)(x)
        x = self.get_submodule(self.stages[-1])(x, gate)
        return spatial_mean(x) if gate is None else x.mean((2, 3))


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

    `widths` are the channels of the stem, that of `ResNet`, and of each stage of `blocks` blocks; all but the first halve the image.
    """

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        if max(sides) <= LARGEST_SMALL:
            self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1, bias=False))
        else:
            large = nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(large, nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = tuple(f"layer{number}" for number in range(1, len(widths)))
        for name, (inputs, outputs) in zip(self.stages, pairwise(widths), strict=True):
            stage = [PreActBlock(inputs, outputs, 1 if name == "layer1" else 2)]
            stage += [PreActBlock(outputs, outputs, 1) for _ in range(1, blocks)]
            setattr(self, name, GatedStage(*stage))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.out_features, self.gates = widths[-1], min(blocks, GATES)
        _start_convolutions(self)

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` takes each of the last two blocks' maps after the final BatchNorm and ReLU."""
        x = self.stem(x)
        for name in self.stages[:-1]:
            x = getattr(self, name)(x)
        last = getattr(self, self.stages[-1])
        if gate is None:
            return spatial_mean(self.relu(self.bn(last(x))))
        return last(x, lambda z: gate(self.relu(self.bn(z)))).mean((2, 3))


def _name_folds(network: nn.Module) -> None:
    """Says of torchvision's blocks which BatchNorm directly follows which convolution."""
    block: Any
    for block in network.modules():
        if hasattr(block, "conv2"):
            block.folds = tuple((f"conv{k}", f"bn{k}") for k in (1, 2, 3) if hasattr(block, f"conv{k}"))


def _start_convolutions(network: nn.Module) -> None:
    """Weights as He et al. 2015 start them, by what leaves each convolution."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
