"""What methods that attack while they train have in common: the inner attack and how it is made."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch
from robustlib.errors import InputError, unknown
from robustlib.methods.base import Method
from robustlib.training import At, Loss, Stage, Updates


@dataclass(frozen=True, kw_only=True)
class AdversarialMethod(Method):
    """A method with an inner PGD attack, by default in eval-mode BatchNorm (Pang et al. 2021)."""

    attack_steps: int = 10  # K; Madry et al. used 7, most later work 10
    attack_step_size: float | None = None  # in pixel units; None = eps / 4, i.e. 2/255 at 8/255
    attack_batchnorm: Literal["eval", "train"] = "eval"  # BatchNorm while attacking; Rice et al. attack in train mode

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_step_size is not None and not self.attack_step_size > 0:
            raise InputError(
                f"{self.name}: attack_step_size={self.attack_step_size!r}: give a positive length or null."
            )
        if self.attack_batchnorm not in ("eval", "train"):
            raise unknown("attack_batchnorm", self.attack_batchnorm, ("eval", "train"))

    def attack_settings(self) -> dict[str, Any]:
        """Keyword arguments of the inner `PGD`."""
        return {"steps": self.attack_steps, "step_size": self.attack_step_size, "batchnorm": self.attack_batchnorm}

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, at: At) -> Tensor:
        """The batch under `attack`, searched in the training's own precision."""
        return replace(attack, precision=at.precision)(model, batch.x, batch.y, generator=at.generator)

    def attacking_stage(self, model: nn.Module, attack: PGD, loss: Callable[[Batch, Tensor], Loss]) -> list[Stage]:
        """The one stage of a method that attacks a batch and takes one step on loss(batch, x_adv)."""

        def updates(batch: Batch, at: At) -> Updates:
            x_adv = self.attacked(attack, model, batch, at)
            yield "model", loss(batch, x_adv)

        return self.single_stage(model, updates, adversarial=True)
