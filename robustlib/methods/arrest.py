"""ARREST: fine-tuning with representation-guided distillation and noisy replay (Suzuki et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustlib.attacks import PGD, Draws
from robustlib.attacks.draws import uniform_point
from robustlib.attacks.search import borrowed
from robustlib.data import Batch
from robustlib.errors import InputError
from robustlib.losses import mean_cosine
from robustlib.methods.afkd import AFKD
from robustlib.models import Classifier
from robustlib.training import At


@dataclass(frozen=True, kw_only=True)
class ARREST(AFKD):
    """AFKD's loss, and noisy replay: a batch whose clean features have left the teacher's is shown under noise, not attacked.

    Where mean (1 - cos(f_T(x), f(x))) >= 1 - cos(angle) in eval mode during the first `replay` of the epochs, x' is a uniformly
    random point of the ball. As AFD's ARREST.py (angle 30 degrees, epochs 1 to 10 of 20), except that the teacher's BatchNorm
    is in eval mode (there it is in train mode and drifts), that weights are averaged as AFD's are (`ema=0`: without), and that
    the attack steps 0.007 as AFD's does, not 2/255.
    """

    name = "arrest"
    title = "ARREST"
    paper = "Suzuki et al. 2023, Adversarial Finetuning with Latent Representation Constraint to Mitigate Accuracy-Robustness Tradeoff, ICCV"
    summary = "AFKD that shows noise instead of attacks while clean features are far from the natural model's."

    angle: float = 30.0  # degrees between clean features of student and teacher from which on noise is replayed
    replay: float = 0.5  # share of the fine-tuning in which it may be; published: 10 of 20 epochs

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.angle <= 180:
            raise InputError(f"arrest: angle={self.angle!r}: give degrees, 0 <= angle <= 180; published are 30.")
        if not 0 <= self.replay <= 1:
            raise InputError(f"arrest: replay={self.replay!r}: give a share of the epochs, 0 <= replay <= 1.")

    def shown(self, attack: PGD, victim: Any, batch: Batch, at: At, natural: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Attacked images or, where noise is replayed, the points their attack would start from; "replayed": their share."""
        if at.progress >= self.replay or not self._strayed(victim, batch.x, natural):
            return super().shown(attack, victim, batch, at, natural)[0], {"replayed": 0.0}
        draws = Draws.from_generator(at.generator, len(batch.x), batch.x.device).fork(0)
        return uniform_point(attack.threat, batch.x, draws), {"replayed": 1.0}

    def _strayed(self, model: Classifier, x: Tensor, natural: Tensor) -> bool:
        with borrowed(model), torch.no_grad():
            gap = 1 - mean_cosine(natural, model.features(x))
        return bool(gap >= 1 - math.cos(math.radians(self.angle)))
