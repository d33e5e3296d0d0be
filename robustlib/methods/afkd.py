"""AFKD: fine-tuning that keeps the natural model's clean features (RGKD), a row of AFD's comparison (Zhou et al. 2025)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustlib.data import Batch
from robustlib.methods.fine_tuning import FineTuning, ce_and_gap
from robustlib.training import Loss


@dataclass(frozen=True, kw_only=True)
class AFKD(FineTuning):
    """min CE(f(x'), y) + weight (1 - cos(f(x'), f_T(x))), f_T the frozen natural model's penultimate features.

    Representation-guided knowledge distillation (Suzuki et al. 2023) on adversarial fine-tuning: "AFT + RGKD" in AFD's figure 1a.
    AFD's AFKD has no released script of its own; taking ARREST's without its noisy replay for it is our reading.
    """

    name = "afkd"
    title = "AFKD"
    paper = "Zhou et al. 2025, Mitigating Feature Gap for Adversarial Robustness by Feature Disentanglement, AAAI"
    summary = "Fine-tunes a natural model on attacked images and holds its features to the natural model's clean ones."

    weight: float = 50.0  # of 1 - cos(f(x'), f_T(x)) (ARREST.py)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights({"weight": "train vaft, which has no such term"})

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """Cross-entropy and distillation; see FineTuning."""
        ce, gap = ce_and_gap(model, batch, x_adv, natural)
        return {"model": Loss(ce + self.weight * gap, {"ce": ce, "gap": gap})}
