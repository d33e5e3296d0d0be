"""Training without attacks whose last part carries a penalty: what rep-spectral and the rows it is compared with have in common."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.methods.base import Method
from robustlib.methods.layer_norms import LayerNorms
from robustlib.training import At, Loss, Pass, Stage, Updates


@dataclass(frozen=True, kw_only=True)
class Regularised(Method):
    """A task's loss, CE(f(x), y) on clean images; after the burn-in, that + strength * penalty in every `cadence`-th step of an epoch.

    Burn-in and what follows are two stages of the same names in every such method, and the second starts with fresh momentum
    (the released code starts from a stored base model), so methods of one recipe share the burn-in bit for bit. `strength=0` is
    the unregularised arm. The learning rate goes on where it stood. Convolutions are circular in all of them. The released loop
    also takes, by a slip, a step on the penalty alone after each epoch, and repeats the first epoch after the burn-in; here
    it does neither. The last epoch counts, as there: the best on clean validation images would mostly be one at which the penalty has
    hardly begun. The singular values of all layers, the readout included, are watched ("probe/sigma/...").
    """

    notebook = "rep_spectral"
    protocol = ""  # its papers report adversarial distances, or clean accuracy alone

    epochs: int = 200  # the burn-in included
    batch_size: int = 1024
    lr: float = 0.01
    schedule: str = "constant"
    weight_decay: float = 1e-4  # the paper trains with 0 and with 1e-4
    burn_in: float = 0.8  # share of the epochs that is trained without the penalty; the paper's 160 of 200
    strength: float = 0.01  # lambda, of the penalty; 0 for none
    cadence: int = 24  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InputError(
                f"{self.name}: strength={self.strength!r}: give a number of at least 0; 0 drops the penalty."
            )
        if not 0 <= self.burn_in < 1:
            raise InputError(
                f"{self.name}: burn_in={self.burn_in!r} leaves no epoch for the penalty: give a share of the {self.epochs} "
                "epochs, 0 <= burn_in < 1, e.g. 0.8."
            )
        if self.cadence < 1:
            raise InputError(f"{self.name}: cadence={self.cadence!r}: give a whole number of steps of at least 1.")

    def model_options(self) -> dict[str, Any]:
        """Circular convolutions: of them the exact norms are known."""
        return {"padding_mode": "circular"}

    def kept(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        """What the penalty keeps from step to step, checkpointed beside the model, e.g. a `LayerNorms`; None for nothing."""
        return None

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        """The weights that are trained."""
        return model.parameters()

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """What is minimised without the penalty, and the outputs (B, K) in float32 that the penalty may look at: CE and logits.

        Args:
            model: in train mode.
            x: the batch's images (B, C, H, W).
            batch: the batch itself, for labels and further views.
        """
        logits = model(x).float()
        ce = F.cross_entropy(logits, batch.y)
        return Loss(ce, {"ce": ce}), logits

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, at: At) -> Tensor:
        """What is added to the loss with weight `strength`, a scalar.

        Args:
            kept: as made by `kept`.
            model: in train mode.
            x: the batch (B, C, H, W), requiring gradients.
            outputs: of `task`, with their graph.
            at: where in the stage.
        """
        raise NotImplementedError

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """The burn-in, unless it is shorter than an epoch, and the regularised rest.

        Raises:
            InputError: a layer whose norm is asked for and not known.
        """
        kept, watch = self.kept(dataset, model), LayerNorms(model, dataset.image_shape)
        modules = {"watch": watch, **({} if kept is None else {"kept": kept})}
        burn_in, usual = int(round(self.burn_in * self.epochs, 6)), self.lr_schedule()

        def probe(shown: nn.Module, batch: Batch) -> dict[str, float]:
            found = watch.converge(shown)
            return {f"sigma/{name.removeprefix('encoder.')}": float(value.sqrt()) for name, value in found.items()}

        def begin() -> None:
            if isinstance(kept, LayerNorms) and self.strength:
                kept.converge(model)

        def stage(name: str, start: int, end: int, **rest: Any) -> Stage:
            optim = replace(self.optim(self.trained(model)), schedule=lambda epoch: usual(epoch + start))
            passes = (Pass(self._updates(model, kept, penalised=name == "regularised"), augment=self.augment),)
            probes = {"sigma": probe}
            return Stage(
                name, end - start, {"model": optim}, passes, keep="last", modules=modules, probes=probes, **rest
            )

        last = stage("regularised", burn_in, self.epochs, ema=self.ema, begin=begin)
        return [stage("burn-in", 0, burn_in), last] if burn_in else [last]

    def _updates(self, model: nn.Module, kept: nn.Module | None, penalised: bool) -> Any:
        """The heart of both stages. "penalty" is what it adds to the loss, so its mean over an epoch counts the steps without."""

        def updates(batch: Batch, at: At) -> Updates:
            now = penalised and self.strength > 0 and at.step % self.cadence == 0
            x = batch.x.detach().requires_grad_(now)
            loss, outputs = self.task(model, x, batch)
            added = self.strength * self.penalty(kept, model, x, outputs, at) if now else loss.total.new_zeros(())
            yield "model", Loss(loss.total + added, {**loss.parts, "penalty": added})

        return updates
