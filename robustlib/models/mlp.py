"""A multi-layer perceptron on flattened images."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then (linear, GELU) per hidden width: x (B, C, H, W) -> features (B, last width).

    GELU is smooth, as rep-spectral's theory wants (its MNIST network is one hidden layer of 2000).
    """

    def __init__(self, image_shape: Sequence[int], hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.out_features = hidden[-1]
        layers = [(nn.Linear(wide, narrow), nn.GELU()) for wide, narrow in pairwise([prod(image_shape), *hidden])]
        self.layers = nn.Sequential(*(part for layer in layers for part in layer))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_features)."""
        return self.layers(x.flatten(1))
