"""What methods that attack while they train have in common: the inner attack and how it is made."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch
from robustlib.errors import InputError, unknown
from robustlib.losses import trades_loss
from robustlib.methods.awp import perturbed
from robustlib.methods.base import Method
from robustlib.training import At, Loss, Stage, Updates

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class AdversarialMethod(Method):
    """A method with an inner PGD attack, by default in eval-mode BatchNorm (Pang et al. 2021)."""

    attack_steps: int = 10  # K; Madry et al. used 7, most later work 10
    attack_step_size: float | None = None  # in pixel units; None = eps / 4, i.e. 2/255 at 8/255
    attack_batchnorm: Literal["eval", "train"] = "eval"  # BatchNorm while attacking; Rice et al. attack in train mode
    awp_gamma: float = 0.0  # relative size of the adversarial weight perturbation; Wu et al. 2020: 0.01, TRADES 0.005
    awp_warmup: int = 0  # epoch, counted from 1, from which on weights are perturbed; Wu et al. 2020: 0, TRADES 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack_step_size is not None and not self.attack_step_size > 0:
            raise InputError(
                f"{self.name}: attack_step_size={self.attack_step_size!r}: give a positive length or null."
            )
        if self.attack_batchnorm not in ("eval", "train"):
            raise unknown("attack_batchnorm", self.attack_batchnorm, ("eval", "train"))
        if not 0 <= self.awp_gamma < 1:
            raise InputError(
                f"{self.name}: awp_gamma={self.awp_gamma!r}: give a share of the weights, 0 <= awp_gamma < 1."
            )
        if self.awp_warmup < 0:
            raise InputError(f"{self.name}: awp_warmup={self.awp_warmup!r}: give an epoch of at least 0.")

    @property
    def numerics(self) -> tuple[str, ...]:
        """Its own, and those of perturbed weights where they are."""
        return (*super().numerics, *(("methods/awp",) if self.awp_gamma else ()))

    @property
    def attack_passes(self) -> int:
        """Each image is attacked once in each epoch."""
        return self.attack_steps * self.epochs

    def attack_settings(self) -> dict[str, Any]:
        """Keyword arguments of the inner `PGD`."""
        return {"steps": self.attack_steps, "step_size": self.attack_step_size, "batchnorm": self.attack_batchnorm}

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, at: At) -> Tensor:
        """The batch under `attack`, searched in the training's own precision."""
        return replace(attack, precision=at.precision)(model, batch.x, batch.y, generator=at.generator)

    def raised(self, model: nn.Module, at: At, loss: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Within, the weights stand where they raise `loss()` (see `perturbed`), from the epoch `awp_warmup` on."""
        return perturbed(model, loss, self.awp_gamma if at.epoch + 1 >= self.awp_warmup else 0.0)

    def single_stage(
        self, model: nn.Module, updates: Callable[[Batch, At], Updates], *, adversarial: bool
    ) -> list[Stage]:
        """As in Method; it knows no loss whose gradient could perturb the weights.

        Raises:
            InputError: awp_gamma was given.
        """
        if self.awp_gamma:
            raise InputError(
                f"{self.name} does not perturb weights: leave awp_gamma at 0, or write the method with attacking_stage."
            )
        return super().single_stage(model, updates, adversarial=adversarial)

    def trades_forward(self, model: nn.Module, batch: Batch, x_adv: Tensor, beta: float) -> Loss:
        """TRADES' loss (see `trades_loss`) from forward passes in the released order x, x', x.

        The release takes the KL's clean side from a second pass over x. In train mode its logits are those of the first, so no
        gradient differs, but BatchNorm's running statistics move towards x twice and towards x' once.
        """
        logits, logits_adv = model(batch.x), model(x_adv)
        with torch.no_grad():
            model(batch.x)
        return Loss(*trades_loss(logits, logits_adv, batch.y, beta))

    def attacking_stage(self, model: nn.Module, attack: PGD, loss: Callable[[Batch, Tensor], Loss]) -> list[Stage]:
        """The one stage of a method that attacks a batch and takes one step on loss(batch, x_adv), x_adv (B, C, H, W)."""
        return self.searching_stage(model, lambda batch, at: self.attacked(attack, model, batch, at), loss)

    def searching_stage(
        self, model: nn.Module, search: Callable[[Batch, At], Found], loss: Callable[[Batch, Found], Loss]
    ) -> list[Stage]:
        """The one stage of a method that takes one step a batch, on loss(batch, what `search` found for it).

        With `awp_gamma` the step is taken where the weights raise that loss (Wu et al. 2020); the search comes before.
        """

        def updates(batch: Batch, at: At) -> Updates:
            found = search(batch, at)
            with self.raised(model, at, lambda: loss(batch, found).total):
                yield "model", loss(batch, found)

        return super().single_stage(model, updates, adversarial=True)
