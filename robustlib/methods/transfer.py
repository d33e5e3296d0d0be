"""Transfer: fine-tuning an encoder pre-trained on other images or classes (Yang et al. 2024), with L2-SP and BSS as its baselines."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.data import Batch, Dataset
from robustlib.errors import Count, InputError, NonNegative, Whole
from robustlib.losses import batch_spectral_shrinkage, l2_sp
from robustlib.methods.base import copy_weights, pretrained_run
from robustlib.methods.baselines import cross_entropy
from robustlib.methods.rep_spectral import RepSpectral
from robustlib.models import Classifier
from robustlib.training import Loss, Stage, StepContext
from robustlib.training.devices import gathered

# Linear from 0 in the first epoch, then to a fifth at 60, 120 and 160 (released train_reg_transfer.py; epochs counted from 0)
PUBLISHED: tuple[tuple[float, float], ...] = (
    *((0, 0), (1, 1), (60, 1), (60, 0.2), (120, 0.2), (120, 0.04)),
    *((160, 0.04), (160, 0.008), (200, 0.008)),
)


@dataclass(frozen=True, kw_only=True)
class Transfer(RepSpectral):
    """CE(v(phi(x)), y) from a pre-trained encoder phi and a new head v, with rep-spectral's penalty before, in fine-tuning, or never.

    phi is that of a finished run (`pretrained`), of any method, classes and data set whose images have the same shape; or it is
    pre-trained here, on the images of some classes (`source`), by rep-spectral's recipe with `pretrain_strength`. Its image
    statistics come with it. Pre-training on some classes and fine-tuning on others alone is a `pretrained` run on a label set
    such as "digits-0-4", and this method on "digits-5-9". Differences from the release: encoder and head have one learning
    rate, where it gives a pre-trained backbone a fifth, and a penalty is part of a step's loss, where it steps by itself.
    """

    name, title = "transfer", "Transfer"
    summary = "Fine-tunes an encoder that was pre-trained, with or without rep-spectral's penalty, on other classes or images."

    epochs: int = 50  # of fine-tuning, its burn-in included
    batch_size: int = 128
    burn_in: float = 0.6  # share of the epochs of fine-tuning without the penalty; the paper's 30 of 50
    strength: float = 0.0  # lambda, of the penalty in fine-tuning; 0 for none
    cadence: int = 15  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all
    weight_decay: float = 0.0  # of fine-tuning
    schedule: str = "cosine"  # of fine-tuning
    include_readout: bool = False  # penalise the new head too, in fine-tuning: ll-spectral
    freeze: bool = False  # fine-tune the head alone, on the features of the encoder in eval mode
    pretrained: str = ""  # directory of a finished run whose encoder is taken; "" pre-trains one first
    source: tuple[Whole, ...] = ()  # labels whose images are pre-trained on; () for the first half of the classes
    pretrain_epochs: Count = 200  # of pre-training, its burn-in included
    pretrain_lr: float = 0.1  # of pre-training
    pretrain_schedule: str = "piecewise"  # of pre-training
    pretrain_points: tuple[tuple[float, float], ...] = PUBLISHED  # "piecewise": (epoch, factor), of pre-training
    pretrain_weight_decay: float = 5e-4  # of pre-training
    pretrain_burn_in: float = 0.8  # share of its epochs without the penalty; the paper's 160 of 200
    pretrain_strength: float = 0.01  # lambda, of the penalty in pre-training; 0 for none
    pretrain_cadence: int = 20  # as cadence, in pre-training

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.pretraining()
        except InputError as error:
            raise InputError(f"{self.name}, its pre-training (pretrain_...): {error}") from None
        where, few = f"source={self.source!r}", self.source and len(set(self.source)) < 2
        held = f"strength={self.strength!r} penalises an encoder that freeze holds: set strength to 0, or free it."
        self.refuse(
            (few, f"{where} leaves nothing to tell apart: give at least two labels."),
            (self.source and self.pretrained, f"{where} is of a pre-training, and pretrained skips it: give one."),
            (self.freeze and self.strength, held),
        )

    def pretraining(self) -> RepSpectral:
        """The method that pre-trains, on the same architecture."""
        same = {f.name: getattr(self, f.name) for f in fields(RepSpectral)} | {"preset": "", "ema": 0.0}
        own = ("epochs", "lr", "schedule", "points", "weight_decay", "burn_in", "strength", "cadence")
        return RepSpectral(**same | {name: getattr(self, f"pretrain_{name}") for name in own})

    def penalised(self) -> tuple[str, ...]:
        return ("encoder.", "head") if self.include_readout else ("encoder.",)

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        return model.head.parameters() if self.freeze else model.parameters()

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = self.check_model(model, Classifier)
        first, *rest = super().stages(dataset, model)

        def begin() -> None:
            if self.pretrained:
                self.load_pretrained(model)
            model.head.reset_parameters()
            self.begin_penalty(first.modules.get("kept"), model)
            if first.begin is not None:
                first.begin()

        tuning = [replace(first, begin=begin), *rest]
        if self.pretrained:
            return tuning
        source = dataset.only(self.source or range((dataset.num_classes + 1) // 2))
        stages = []
        for stage in self.pretraining().stages(source, model):  # what they keep is theirs
            modules = {f"pretraining-{name}": module for name, module in stage.modules.items()}
            stages.append(replace(stage, name=f"pretraining-{stage.name}", modules=modules, dataset=source))
        return [*stages, *tuning]

    def begin_penalty(self, state: nn.Module | None, model: Any) -> None:
        """Called when fine-tuning begins, with the penalty's state; the encoder is the pre-trained one."""

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """CE, and the features (B, D) that it is taken from."""
        with torch.set_grad_enabled(not self.freeze):
            model.encoder.train(not self.freeze)  # the loop has put all of it in train mode
            features = model.features(x)
        ce = cross_entropy(model.head(features), batch.y)
        return Loss(ce, {"ce": ce}), features.float()

    def load_pretrained(self, model: Classifier) -> None:
        """Gives the model the last encoder of the run at `pretrained`, and the image statistics that it was trained with."""
        run = pretrained_run(self)
        theirs, where = run.model("last"), f"{self.name}: pretrained={self.pretrained!r}"
        if theirs.image_shape != model.image_shape:
            shapes = f"images of shape {theirs.image_shape}, not {model.image_shape}"
            raise InputError(f"{where} was trained on {shapes}: give a run on images of this shape.")
        copy_weights(self, run, model.encoder, theirs.encoder)
        pads = [[m.padding_mode for m in net.encoder.modules() if isinstance(m, nn.Conv2d)] for net in (theirs, model)]
        if pads[0] != pads[1]:
            remedy = "give a run of rep_spectral (its strength may be 0), or of a self-supervised row of its family"
            raise InputError(f"{where} has convolutions that pad otherwise than circularly: {remedy}.")
        model.mean.copy_(theirs.mean)
        model.std.copy_(theirs.std)


@dataclass(frozen=True, kw_only=True)
class BSS(Transfer):
    """CE + strength sum_{i<=k} sigma_-i(F)^2, the k smallest singular values of the batch's features F (B, D).

    It acts in every step; rep-spectral's release waits for a burn-in of 0.6 and takes every 15th (`burn_in`, `cadence`).
    """

    name, title = "bss", "BSS"
    paper = "Chen et al. 2019, Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning, NeurIPS"
    summary = "Fine-tunes a pre-trained encoder and suppresses the directions in which a batch's features vary least."

    strength: float = 0.001  # eta, of the penalty
    burn_in: float = 0.0  # share of the epochs of fine-tuning without the penalty
    cadence: int = 1  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all
    pretrain_strength: float = 0.0  # lambda, of rep-spectral's penalty in pre-training; 0 for none
    k: Count = 1  # how many singular values are penalised, the smallest ones

    def penalty_state(self, dataset: Dataset, model: Any) -> nn.Module | None:
        return None

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = self.check_model(model, Classifier)
        rest = len(dataset.train) % self.batch_size
        smallest = rest if rest > 1 else min(self.batch_size, len(dataset.train))  # the loop drops a last batch of one
        most = min(smallest, model.head.in_features)
        sizes = f"the smallest batch has {smallest} images and {model.head.in_features} features"
        self.refuse((self.k > most, f"k={self.k!r}, but {sizes}: give k of at most {most}, or another batch_size."))
        return super().stages(dataset, model)

    def penalty(self, state: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        return batch_spectral_shrinkage(gathered(outputs), self.k)


@dataclass(frozen=True, kw_only=True)
class L2SP(Transfer):
    """CE + alpha |w - w0|^2 + beta |v|^2: w all weights of the encoder, BatchNorm's included, w0 what they were before, v the head's.

    It replaces weight decay in every step; rep-spectral's release waits for a burn-in of 0.6 and takes every 15th (`cadence`).
    """

    name, title = "l2_sp", "L2-SP"
    paper = "Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML"
    summary = "Fine-tunes a pre-trained encoder and penalises its distance from where it started."

    strength: float = 1.0  # of the whole penalty; published without
    burn_in: float = 0.0  # share of the epochs of fine-tuning without the penalty
    cadence: int = 1  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all
    pretrain_strength: float = 0.0  # lambda, of rep-spectral's penalty in pre-training; 0 for none
    alpha: NonNegative = 0.1  # of the encoder's squared distance from its start; published there: 0.1 and 0.01
    beta: NonNegative = 0.01  # of the new head's squared weights

    def penalty_state(self, dataset: Dataset, model: Any) -> nn.Module | None:
        return copy.deepcopy(model.encoder).requires_grad_(False)

    def begin_penalty(self, state: nn.Module | None, model: Any) -> None:
        assert state is not None
        state.load_state_dict(model.encoder.state_dict())

    def penalty(self, state: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        encoder, head = model.encoder.parameters(), model.head.parameters()
        return l2_sp(encoder, state.parameters(), head, self.alpha, self.beta)
