"""CLAF: contrastive learning with adversarial features (Rahamim and Naeh 2022)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import Count, NonNegative, Whole
from robustlib.losses import supcon_loss
from robustlib.methods.contrastive import Contrastive, contrasted, project_views
from robustlib.models import Projected
from robustlib.training import Loss, OptimizerSpec, Pass, Schedule, Stage, StepContext, Updates, cosine


@dataclass(frozen=True, kw_only=True)
class CLAF(Contrastive):
    """min E L_out over two augmented views and an adversarial one, which a classification head kept up to date makes.

    Stage 1 ("augmented", `aug_epochs`) contrasts the two views alone. Each epoch of stage 2 ("adversarial") first refreshes the head c
    on the frozen encoder g, `refresh_passes` passes over PGD images with an optimiser of their own, its weights kept from epoch to
    epoch; then, c frozen, one pass contrasts [x1, x2, x'], x' being PGD on c(g(.)) from the weakly augmented image with its label.
    Without the refresh head and features drift apart: the "cognitive dissociation". The probes "head_start/..." (after the
    refresh) and "head_end/..." (after the contrastive pass) are c's accuracy on validation images and show it. Last comes a new head.

    Read from the released code (AdirRahamim/CLAF), since the paper's text was not at hand, with these differences: images are
    normalised inside the model and the attack stays in [0, 1], projections are normalised in both stages, SGD has momentum and
    begins anew with stage 2, and the learning rate follows its cosine within epochs. The release refreshes in train-mode
    BatchNorm (`refresh_batchnorm="train"`), which moves the statistics of a frozen encoder.
    """

    name, title = "claf", "CLAF"
    paper = "Rahamim and Naeh 2022, Robustness through Cognitive Dissociation Mitigation in Contrastive Adversarial Training, arXiv"
    summary = "An attack on a head that is refreshed every epoch makes one more positive view; then a new linear head."
    protocol = "pgd20"  # the release prints PGD-10; this is the nearest of the standard attacks

    epochs: int = 200  # of contrastive learning, stages 1 and 2 together
    batch_size: int = 256
    lr: float = 0.05  # of encoder and projector, peak; the cosine of stages 1 and 2 together ends at a thousandth of it
    schedule: str = "cosine"
    temperature: float = 0.07  # t of the contrastive loss
    aug_epochs: Whole = 60  # of stage 1: on augmented views alone
    adv_views: Annotated[int, "[0, 100]"] = 1  # adversarial views beside the two augmented ones; 0 for none
    refresh: Literal["full", "clean", "reinit", "never"] = "full"  # the head: attacked; clean; drawn anew; fitted once
    refresh_passes: Count = 5  # over the training images before each contrastive pass
    refresh_lr: NonNegative = 1e-3  # of the head meanwhile, Adam
    refresh_batchnorm: Literal["eval", "train"] = "eval"  # of the frozen encoder meanwhile
    new_head: bool = True  # in the last stage; false goes on with the refreshed one, as the first release did

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = f"aug_epochs={self.aug_epochs!r} of epochs={self.epochs!r} leaves no adversarial stage"
        lost = "a pretrained run keeps no refreshed head: leave new_head at true, or pre-train."
        self.refuse(
            (self.aug_epochs >= self.epochs, f"{idle}: give fewer, or train supcon."),
            (self.pretrained and not self.new_head, lost),
        )

    @property
    def all_epochs(self) -> int:
        """As in Contrastive, and the first head's where it is never refreshed."""
        return super().all_epochs + (self.head_epochs if self.refresh == "never" and not self.pretrained else 0)

    @property
    def attack_passes(self) -> int:
        """Of the adversarial views and of the refresh, or of the one fit in its place; then as in Contrastive."""
        refreshed = self.refresh_passes if self.refresh in ("full", "reinit") else 0
        fitted = self.head_epochs if self.refresh == "never" else 0
        attacked = (self.epochs - self.aug_epochs) * (self.adv_views + refreshed) + fitted
        return self.attack_steps * attacked + super().attack_passes

    def lr_schedule(self) -> Schedule:
        """The recipe's, the cosine down to a thousandth (main.py)."""
        return cosine(self.epochs, 1e-3) if self.schedule == "cosine" else super().lr_schedule()

    def pretraining(self, dataset: Dataset, model: Projected) -> list[Stage]:
        """Stage 1 and stage 2; with refresh="never" a stage between them that fits the head, as long as the last one does."""
        attack, weights = self.inner_attack(dataset), self.optim(contrasted(model))
        augmented = Pass(partial(self._contrast, model, None), augment=self.augment)
        stages = [Stage("augmented", self.aug_epochs, {"encoder": weights}, (augmented,))] if self.aug_epochs else []
        # The learning rate of stage 2 goes on where stage 1 left it.
        optimisers = {"encoder": replace(weights, schedule=lambda epoch: weights.schedule(epoch + self.aug_epochs))}
        head = {"head": OptimizerSpec(model.head.parameters(), self.refresh_lr, "adam")}
        updates = self.head_updates(model, None if self.refresh == "clean" else attack, self.refresh_batchnorm)
        start = head_probe("head_start", attack)
        passes = [Pass(partial(self._contrast, model, attack), augment=self.augment, probes={"head_start": start})]
        if self.refresh == "never":
            fit = (Pass(updates, "refresh", augment=self.augment),)
            stages.append(Stage("first-head", self.head_epochs, head, fit, adversarial=True, monitored=False))
        else:  # the encoder is frozen and the optimiser new in each epoch, the head only where it is drawn anew
            begin = model.head.reset_parameters if self.refresh == "reinit" else None
            passes.insert(0, Pass(updates, "refresh", self.refresh_passes, ("head",), self.augment, begin))
            optimisers |= head
        rest: Any = {"adversarial": True, "monitored": False, "probes": {"head_end": head_probe("head_end", attack)}}
        return [*stages, Stage("adversarial", self.epochs - self.aug_epochs, optimisers, tuple(passes), **rest)]

    def last_stage(self, dataset: Dataset, model: Projected) -> Stage:
        """As in Contrastive, or from the refreshed head."""
        last = super().last_stage(dataset, model)
        return last if self.new_head else replace(last, begin=None)

    def pretraining_fields(self) -> list[str]:
        """As in Contrastive; with refresh="never" the first head is fitted for as many epochs as the last one."""
        return [*super().pretraining_fields(), *(["head_epochs"] if self.refresh == "never" else [])]

    def _contrast(self, model: Projected, attack: PGD | None, batch: Batch, context: StepContext) -> Updates:
        """SupCon over the augmented views and, with an attack, the adversarial ones; the head takes no part in it."""
        views = [*self.two_views(batch)]
        if attack is not None:  # each attack starts from a new x
            views += [self.attacked(attack, model, batch.anew(), context) for _ in range(self.adv_views)]
        yield "encoder", Loss(supcon_loss(project_views(model, views), (batch.whole or batch).y, self.temperature))


def head_probe(name: str, attack: PGD) -> Callable[[nn.Module, Batch], dict[str, float]]:
    """The head's accuracy on the fixed validation images, "<name>/clean" and "<name>/attacked"; an entry of `probes`."""

    def probe(model: nn.Module, batch: Batch) -> dict[str, float]:
        generator = torch.Generator(batch.x.device).manual_seed(0)
        x_adv = attack(model, batch.x, batch.y, generator=generator)
        with frozen_eval(model), torch.no_grad():
            right = {key: model(x).argmax(1) == batch.y for key, x in (("clean", batch.x), ("attacked", x_adv))}
        return {f"{name}/{key}": float(value.float().mean()) for key, value in right.items()}

    return probe
