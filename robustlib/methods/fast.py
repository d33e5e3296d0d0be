"""Adversarial training at twice the cost of standard training: one step of the fast gradient sign method from noise."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from robustlib.attacks import PGD, Draws, Threat
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.methods.pgd_at import PGDAT
from robustlib.training import At


@dataclass(frozen=True, kw_only=True)
class FGSMRS(PGDAT):
    """PGD training with one step of 1.25 eps from a random point of the ball, projected back on it (algorithm 3).

    Epochs, learning rate and the BatchNorm mode of the attack are those of the released code (train_fgsm.py). In train mode
    examples see each other, and `PGD` weighs their losses by their confidence where the released code weighs them alike.
    """

    name = "fgsm_rs"
    title = "FGSM-RS (fast adversarial training)"
    paper = "Wong et al. 2020, Fast is better than free: Revisiting adversarial training, ICLR"
    summary = "Cross-entropy on images attacked by a single step from a random start."
    protocol = "pgd50x10"

    epochs: int = 30
    lr: float = 0.2
    schedule: str = "piecewise"
    points: tuple[tuple[float, float], ...] = ((0, 0.0), (15, 1.0), (30, 0.0))
    attack_steps: int = 1  # no other number is allowed
    attack_batchnorm: Literal["eval", "train"] = "train"  # as released
    step_factor: float = 1.25  # length of the step in units of eps: 10/255 at 8/255; longer ones make training collapse

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_steps != 1:
            raise InputError(f"{self.name}: attack_steps={self.attack_steps!r}: it takes 1; for more train pgd_at.")
        if self.attack_step_size is not None:
            raise InputError(
                f"{self.name}: attack_step_size={self.attack_step_size!r}: give step_factor, in units of eps, instead."
            )
        if not 0 < self.step_factor < float("inf"):
            raise InputError(f"{self.name}: step_factor={self.step_factor!r}: give a positive length in units of eps.")

    def inner_attack(self, dataset: Dataset) -> PGD:
        """One step of step_factor * eps from a random point of the ball."""
        threat = self.threat(dataset)
        return PGD(threat, **{**self.attack_settings(), "step_size": self.step_factor * threat.eps or None})


@dataclass(frozen=True, kw_only=True)
class NFGSM(FGSMRS):
    """FGSM-RS from noise of `noise` * eps around the image, a step of eps, and no projection on the ball.

    x' = clip(x_n + eps sign(gradient at x_n)) with x_n = clip(x + U(-noise eps, noise eps)), clip to [0, 1] only
    (the released train.py with clip = -1).
    """

    name = "n_fgsm"
    title = "N-FGSM"
    paper = "de Jorge et al. 2022, Make Some Noise: Reliable and Efficient Single-Step Adversarial Training, NeurIPS"
    summary = "Cross-entropy on images with strong noise and a single attack step that is not projected."

    step_factor: float = 1.0  # alpha / eps
    noise: float = 2.0  # k: radius of the noise in units of eps; 2 in the released code

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise < float("inf"):
            raise InputError(f"n_fgsm: noise={self.noise!r}: give a radius of at least 0 in units of eps.")

    def inner_attack(self, dataset: Dataset) -> PGD:
        """One step in a ball so wide that noise and step together stay inside it."""
        attack = super().inner_attack(dataset)
        return replace(attack, threat=attack.threat.scaled(self.noise + self.step_factor))

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, at: At) -> Tensor:
        """One step from the noisy batch."""
        x, draws = batch.x, Draws.from_generator(at.generator, len(batch.x), batch.x.device)
        around = Threat(attack.threat.norm, attack.length / self.step_factor).scaled(self.noise)
        normal = draws.fork(0).normal(*x.shape[1:]) if around.norm == "l2" else None
        start = around.random_start(x, draws.uniform(*x.shape[1:]), normal)
        return replace(attack, precision=at.precision)(model, x, batch.y, draws=draws, start=start)
