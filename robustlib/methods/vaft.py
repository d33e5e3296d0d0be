"""vAFT: vanilla adversarial fine-tuning, the first row of AFD's comparison (Zhou et al. 2025)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustlib.data import Batch
from robustlib.methods.fine_tuning import FineTuning, ce_and_gap
from robustlib.training import Loss


@dataclass(frozen=True, kw_only=True)
class VAFT(FineTuning):
    """min CE(f(x'), y) from a naturally trained model; the gap to the teacher's clean features is watched, not minimised.

    As AFD's released ARREST.py without its two flags, but with AFD's averaged weights (`ema=0`: without) and steps of its attack,
    0.007 instead of 2/255, so that all rows are trained alike.
    """

    name = "vaft"
    title = "vAFT"
    paper = "Zhou et al. 2025, Mitigating Feature Gap for Adversarial Robustness by Feature Disentanglement, AAAI"
    summary = "Fine-tunes a natural model on attacked images with cross-entropy alone."

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """Cross-entropy; see FineTuning."""
        ce, gap = ce_and_gap(model, batch, x_adv, natural)
        return {"model": Loss(ce, {"ce": ce, "gap": gap})}
