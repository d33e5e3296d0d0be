"""Residual networks (He et al. 2016): torchvision's, with a stem that suits the image size."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import resnet

from robustlib.models.backbones import GATES, LARGEST_SMALL, Gate, GatedStage


class BasicBlock(resnet.BasicBlock):
    """torchvision's block, which says which BatchNorm directly follows which convolution."""

    folds: ClassVar = (("conv1", "bn1"), ("conv2", "bn2"))


class Bottleneck(resnet.Bottleneck):
    """torchvision's block, which says which BatchNorm directly follows which convolution."""

    folds: ClassVar = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


class ResNet(resnet.ResNet):
    """torchvision's ResNet without its last linear layer: x (B, C, H, W) -> features (B, out_features).

    Up to 64 pixels the stem is a 3 x 3 convolution of stride 1 without max-pooling, above it is ImageNet's.
    """

    folds: ClassVar = (("conv1", "bn1"),)
    stages: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3", "layer4")
    gates: ClassVar[int] = GATES

    def __init__(
        self, image_shape: Sequence[int], block: type[BasicBlock | Bottleneck], layers: tuple[int, int, int, int]
    ) -> None:
        super().__init__(block, list(layers), num_classes=1)
        self.out_features = 512 * block.expansion
        self.fc = nn.Identity()  # the classifier's head is outside the encoder
        self.layer4 = GatedStage(*self.get_submodule("layer4").children())
        channels, height, width = image_shape
        if max(height, width) <= LARGEST_SMALL:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """Features (B, out_features); a `gate` follows each of the last two blocks."""
        if gate is None:
            return super().forward(x)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.layer4(x, gate).mean((2, 3))


def resnet18(image_shape: Sequence[int]) -> ResNet:
    """ResNet-18: 11 173 962 parameters with ten classes and the small stem."""
    return ResNet(image_shape, BasicBlock, (2, 2, 2, 2))


def resnet34(image_shape: Sequence[int]) -> ResNet:
    """ResNet-34: 21 282 122 parameters with ten classes and the small stem."""
    return ResNet(image_shape, BasicBlock, (3, 4, 6, 3))


def resnet50(image_shape: Sequence[int]) -> ResNet:
    """ResNet-50: 23 520 842 parameters with ten classes and the small stem."""
    return ResNet(image_shape, Bottleneck, (3, 4, 6, 3))
