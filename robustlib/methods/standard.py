"""Standard training: the undefended baseline."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from robustlib.data import Batch, Dataset
from robustlib.methods.base import Method
from robustlib.training import At, Loss, Stage, Updates


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Cross-entropy on clean images: min E CE(f(x), y)."""

    name = "standard"
    title = "Standard training"
    paper = "He et al. 2016, Deep Residual Learning for Image Recognition, CVPR"
    summary = "Cross-entropy on clean images; what every defence starts from."
    protocol = ""  # its paper attacks nothing

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One stage on clean images."""

        def updates(batch: Batch, at: At) -> Updates:
            yield "model", Loss(F.cross_entropy(model(batch.x).float(), batch.y))

        return self.single_stage(model, updates, adversarial=False)
