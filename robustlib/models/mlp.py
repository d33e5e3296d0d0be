"""A multi-layer perceptron on flattened images."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then (linear, GELU) per hidden width: x (B, C, H, W) -> features (B, last width).

    GELU is smooth, as rep-spectral's theory wants.

    Args:
        image_shape: (C, H, W).
        hidden: widths.
        scaled: the parametrisation of rep-spectral's release (its MNIST network is one hidden layer of 2000): what a hidden layer
            gives is divided by the square root of its width, and all weights and biases, the head's too, start from N(0, 0.01^2).
            So the layer after it has inputs divided by sqrt(fan-in); the release divides that layer's bias as well.
    """

    def __init__(self, image_shape: Sequence[int], hidden: Sequence[int] = (256, 256), *, scaled: bool = False) -> None:
        super().__init__()
        self.out_features = hidden[-1]
        self.init_std = (
            0.01 if scaled else None
        )  # of all linear layers, read by Classifier; None leaves torch's own start
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
        """Of x's shape."""
        return self.factor * x

    def extra_repr(self) -> str:
        """The factor, in the printed module."""
        return f"{self.factor:g}"
