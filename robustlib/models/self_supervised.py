"""A classifier that is pre-trained without labels and gets its readout afterwards."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.models.classifier import ImageSpec
from robustlib.models.projected import Projected


class SelfSupervised(Projected):
    """A `Projected` whose head is no head before `set_readout`: until then it has features and projections, but no logits.

    Whether it has a readout is saved with its weights (as "_extra_state"), so a stored model knows it too.
    """

    def __init__(self, encoder: nn.Module, spec: ImageSpec, projection: Sequence[int], **options: bool) -> None:
        super().__init__(encoder, spec, projection, **options)
        self.predicts = False

    def set_readout(self, weight: Tensor, bias: Tensor) -> None:
        """The head becomes weight (K, D) and bias (K,); from now on the model is an ordinary classifier."""
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        self.predicts = True

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K).

        Raises:
            InputError: there is no readout yet, or images of another shape than the model was built for.
        """
        if not self.predicts:
            raise InputError(
                "This self-supervised model has no readout yet and cannot predict: finish its training, whose last stage fits one, "
                "give it one by set_readout, or ask for its features(x)."
            )
        return super().forward(x)

    def get_extra_state(self) -> Tensor:
        """Whether there is a readout, as a tensor, since weights are stored as tensors alone."""
        return torch.tensor(self.predicts)

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` said."""
        self.predicts = bool(state)
