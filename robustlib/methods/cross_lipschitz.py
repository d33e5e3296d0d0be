"""The cross-Lipschitz penalty as rep-spectral's baseline (Hein and Andriushchenko 2017)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustlib.errors import InputError
from robustlib.losses import cross_lipschitz
from robustlib.methods.regularised import Regularised
from robustlib.training import At


@dataclass(frozen=True, kw_only=True)
class CrossLipschitz(Regularised):
    """min CE(f(x), y) + strength / (n K^2) sum_i sum_{l,m} |grad p_l(x_i) - grad p_m(x_i)|^2, p the softmax of the logits.

    Rep-spectral's release computes 1/K of this penalty, so its strengths are K times these. Gradients are in pixels of [0, 1].
    """

    name = "cross_lipschitz"
    title = "Cross-Lipschitz"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Hein and Andriushchenko 2017"
    summary = (
        "Clean training that ends with a penalty on how differently the classes' probabilities change with the image."
    )

    projections: int = 1  # random directions, a double backward pass each; 0 for the exact penalty, one for each class

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projections < 0:
            raise InputError(
                f"{self.name}: projections={self.projections!r}: give a number of random directions, or 0 for exact."
            )

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, at: At) -> Tensor:
        """The penalty on this batch's images."""
        return cross_lipschitz(outputs.softmax(1), x, projections=self.projections, generator=at.generator)
