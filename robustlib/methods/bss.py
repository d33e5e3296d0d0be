"""Fine-tuning with batch spectral shrinkage (Chen et al. 2019)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustlib.data import Dataset
from robustlib.errors import InputError, check_counts
from robustlib.losses import batch_spectral_shrinkage
from robustlib.methods.transfer import Transfer
from robustlib.models import Classifier
from robustlib.training import At, Stage


@dataclass(frozen=True, kw_only=True)
class BSS(Transfer):
    """CE + strength sum_{i<=k} sigma_-i(F)^2, the k smallest singular values of the batch's features F (B, D).

    It acts in every step. Rep-spectral's release applies it like its own penalty, after a burn-in of 0.6 and in every 15th
    step: set `burn_in` and `cadence`.
    """

    name = "bss"
    title = "BSS"
    paper = "Chen et al. 2019, Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning, NeurIPS"
    summary = "Fine-tunes a pre-trained encoder and suppresses the directions in which a batch's features vary least."

    strength: float = 0.001  # eta, of the penalty
    burn_in: float = 0.0  # share of the epochs of fine-tuning without the penalty
    cadence: int = 1  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all
    pretrain_strength: float = 0.0  # lambda, of rep-spectral's penalty in pre-training; 0 for none
    k: int = 1  # how many singular values are penalised, the smallest ones

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "k")

    def kept(self, dataset: Dataset, model: Any) -> nn.Module | None:
        """Nothing."""
        return None

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """As in Transfer.

        Raises:
            InputError: as there, and k larger than the smallest batch or the number of features.
        """
        assert isinstance(model, Classifier)
        rest = len(dataset.train) % self.batch_size
        smallest = rest if rest > 1 else min(self.batch_size, len(dataset.train))  # the loop drops a last batch of one
        if self.k > min(smallest, model.head.in_features):
            raise InputError(
                f"{self.name}: k={self.k!r}, but the smallest batch has {smallest} images and {model.head.in_features} features: "
                f"give k of at most {min(smallest, model.head.in_features)}, or another batch_size."
            )
        return super().stages(dataset, model)

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, at: At) -> Tensor:
        """BSS of the features of `task`."""
        return batch_spectral_shrinkage(outputs, self.k)
