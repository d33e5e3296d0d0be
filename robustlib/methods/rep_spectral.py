"""Spectral regularisation up to the representation (Yang, Zavatone-Veth and Pehlevan 2024), and with the readout."""

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.methods.layer_norms import LayerNorms, Operator
from robustlib.methods.regularised import Regularised
from robustlib.training import At


@dataclass(frozen=True, kw_only=True)
class RepSpectral(Regularised):
    """min CE(f(x), y) + strength sum_{l<L} sigma_max(W_l)^2 over the layers of the representation, the readout left out (eq. 5).

    As the released code: no factor 1/2, convolutions as the circular operators they are, residual sums, biases and, unless
    folded, BatchNorm ignored. BatchNorm makes weights scale-free, so there the penalty bounds nothing by itself.
    """

    name = "rep_spectral"
    title = "Rep-spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv"
    summary = "Clean training that ends with a penalty on the largest singular values up to the representation."

    operator: Operator = "exact"  # a layer's norm: exact, power (block iteration), reshaped (kernel as a matrix)
    iterations: int = 1  # of power iteration at each use
    fold_batchnorm: bool = False  # take the weights with the gains of the BatchNorm that follows them; not the paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operator not in get_args(Operator):
            raise unknown("operator", self.operator, get_args(Operator))
        if self.iterations < 1:
            raise InputError(f"{self.name}: iterations={self.iterations!r}: give a whole number of at least 1.")

    def penalised(self) -> tuple[str, ...]:
        """The penalised layers, by how their names begin."""
        return ("encoder.",)

    def kept(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        """The norms of the penalised layers."""
        return LayerNorms(
            model,
            dataset.image_shape,
            self.penalised(),
            operator=self.operator,
            iterations=self.iterations,
            fold_batchnorm=self.fold_batchnorm,
        )

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, at: At) -> Tensor:
        """sum_l sigma_max(W_l)^2."""
        return torch.stack(list(kept(model).values())).sum()


@dataclass(frozen=True, kw_only=True)
class LLSpectral(RepSpectral):
    """min CE(f(x), y) + strength sum_{l<=L} sigma_max(W_l)^2, the readout included (Yoshida and Miyato 2017): the main baseline.

    Of networks with one hidden layer the released code penalises, by a slip, the readout alone: `readout_only`.
    """

    name = "ll_spectral"
    title = "LL-spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Yoshida and Miyato 2017"
    summary = "Rep-spectral's penalty on all layers, the readout included."
    readout_only: bool = False  # penalise the readout alone, as the released code does for one hidden layer

    def penalised(self) -> tuple[str, ...]:
        """All layers, or the readout."""
        return ("head",) if self.readout_only else ("encoder.", "head")
