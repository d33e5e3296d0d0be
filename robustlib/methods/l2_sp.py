"""Fine-tuning that stays near its starting point (Li et al. 2018)."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.losses import l2_sp
from robustlib.methods.transfer import Transfer
from robustlib.training import At


@dataclass(frozen=True, kw_only=True)
class L2SP(Transfer):
    """CE + alpha |w - w0|^2 + beta |v|^2: w all weights of the encoder, BatchNorm's included, w0 what they were before, v the head's.

    It takes the place of weight decay and acts in every step. Rep-spectral's release applies it like its own penalty, after a
    burn-in of 0.6 and in every 15th step: set `burn_in` and `cadence`.
    """

    name = "l2_sp"
    title = "L2-SP"
    paper = "Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML"
    summary = "Fine-tunes a pre-trained encoder and penalises its distance from where it started."

    strength: float = 1.0  # of the whole penalty; published without
    burn_in: float = 0.0  # share of the epochs of fine-tuning without the penalty
    cadence: int = 1  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all
    pretrain_strength: float = 0.0  # lambda, of rep-spectral's penalty in pre-training; 0 for none
    alpha: float = 0.1  # of the encoder's squared distance from its start; published there: 0.1 and 0.01
    beta: float = 0.01  # of the new head's squared weights

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{self.name}: {name}={getattr(self, name)!r}: give a number of at least 0.")

    def kept(self, dataset: Dataset, model: Any) -> nn.Module | None:
        """The encoder as it was."""
        return copy.deepcopy(model.encoder).requires_grad_(False)

    def start(self, kept: nn.Module | None, model: Any) -> None:
        """Remembers the pre-trained encoder."""
        assert kept is not None
        kept.load_state_dict(model.encoder.state_dict())

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, at: At) -> Tensor:
        """L2-SP."""
        encoder, head = model.encoder.parameters(), model.head.parameters()
        return l2_sp(encoder, kept.parameters(), head, self.alpha, self.beta)
