"""Contrastive pre-training and then a head: SupCon, SimCLR, RoCL and ACL, and what CLAF shares with them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD, BatchPGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import Count, InputError, NonNegative, Positive, Widths
from robustlib.losses import nt_xent, supcon_loss
from robustlib.methods import base
from robustlib.methods.base import AdversarialMethod, Method, NoAWP, Update
from robustlib.methods.baselines import cross_entropy, trades_forward
from robustlib.models import Projected
from robustlib.models.branches import clean_statistics
from robustlib.threat import Threat
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, StepContext, Updates, step
from robustlib.training.devices import gathered

M = TypeVar("M", bound=Projected)
# The fields on which pre-training does not depend: those of the last stage; and the architecture is that of the weights.
LAST_STAGE = (
    *("preset", "arch", "pretrained", "ema", "final", "head_epochs", "head_lr", "tuning_epochs", "tuning_lr"),
    *("beta", "final_steps"),
)


@dataclass(frozen=True, kw_only=True)
class Contrastive(AdversarialMethod):
    """An encoder learns by a contrastive loss on projections; then a head is added in one of the three usual ways (`final`).

    SLF is a linear head on the frozen encoder (eval-mode BatchNorm) trained on clean images, ALF one trained on PGD images, AFF the
    fine-tuning of the whole network by TRADES (ACL's release, there by batches of 128; here all stages have the method's own).
    `augment` is the view of labelled images, `views` that of images in the contrastive loss. Encoders are trained by SGD, where
    RoCL, ACL and SimCLR publish LARS. The last epoch of pre-training is kept: without a head there is nothing to select by.
    """

    notebook = "claf"
    attacks: ClassVar[int] = 0  # views of an image that each epoch of pre-training attacks
    labelled: ClassVar[bool] = False  # whether images of one class are positives, or views of one image

    epochs: int = 1000  # of contrastive pre-training
    batch_size: int = 512
    lr: float = 0.5  # of pre-training, peak
    weight_decay: float = 1e-4  # of pre-training
    schedule: str = "warm_up_cosine"  # of pre-training
    attack_steps: int = 5  # of the attack inside pre-training, where it has one
    augment: str = "simclr-weak"  # view of labelled images: resized crop and flip; digits: 1-pixel shift
    awp_gamma: NoAWP = 0.0  # no weights are perturbed
    ema: float = 0.0  # decay of the averaged weights of the fine-tuning (final="aff") alone; 0 for none
    final: Literal["slf", "alf", "aff"] = "slf"  # linear on clean images, linear on attacked ones, or all fine-tuned
    head_epochs: Count = 100  # of slf and alf
    head_lr: NonNegative = 1e-3  # of slf and alf: Adam, constant
    tuning_epochs: Count = 25  # of aff
    tuning_lr: NonNegative = 0.1  # of aff, SGD with weight decay 2e-4; to a tenth at 60 % and 80 % of its epochs
    beta: NonNegative = 6.0  # weight of the KL of aff's TRADES
    final_steps: Count = 10  # of the PGD of alf and aff
    views: str = "simclr"  # view of the images that are contrasted
    temperature: Positive = 0.5  # t of the contrastive loss
    projection: Widths = (512, 128)  # widths of the projection head
    pretrained: str = ""  # directory of a finished slf or alf run whose encoder gets this head; "" pre-trains

    @property
    def numerics(self) -> tuple[str, ...]:
        return (*super().numerics, *(("methods/aff",) if self.final == "aff" else ()))

    @property
    def last_epochs(self) -> int:
        """Epochs of the last stage."""
        return self.tuning_epochs if self.final == "aff" else self.head_epochs

    @property
    def all_epochs(self) -> int:
        """Epochs of pre-training, unless it is done, and of the head."""
        return self.last_epochs + (0 if self.pretrained else self.epochs)

    @property
    def attack_passes(self) -> int:
        """Those of pre-training, also where another run has done it, and of the last stage."""
        last = 0 if self.final == "slf" else self.final_steps * self.last_epochs
        return self.attacks * self.attack_steps * self.epochs + last

    def model_options(self) -> dict[str, Any]:
        return {"projection": list(self.projection)}

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = check_projected(self, dataset, model, Projected)
        last = self.last_stage(dataset, model)
        return [last] if self.pretrained else [*self.pretraining(dataset, model), last]

    def pretraining(self, dataset: Dataset, model: Projected) -> list[Stage]:
        """The stages before the head: `contrast` minimised over encoder and projector."""
        threat = self.threat(dataset)

        def updates(batch: Batch, context: StepContext) -> Updates:
            for loss in self.contrast(model, threat, batch, context):
                yield "encoder", loss

        optimisers = {"encoder": self.optim(contrasted(model))}
        return [Stage("contrastive", self.epochs, optimisers, (Pass(updates, augment=self.augment),))]

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Iterator[Loss]:
        """The contrastive loss of a batch, here of two augmented views; `model` is in train mode. In parts that are differentiated
        one after another where that holds fewer activations at a time; the last has the value of the whole."""
        labels = (batch.whole or batch).y if self.labelled else None
        yield Loss(supcon_loss(project_views(model, self.two_views(batch)), labels, self.temperature))

    def two_views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two independent views of the batch, (B, C, H, W) each."""
        return batch.view(self.views), batch.view(self.views)

    def last_stage(self, dataset: Dataset, model: Projected) -> Stage:
        """ "slf", "alf" or "aff", from a head that is drawn anew."""

        def begin() -> None:
            if self.pretrained:
                self.load_pretrained(model, dataset)
            model.head.reset_parameters()

        attack = self.inner_attack(dataset, steps=self.final_steps)
        rest: dict[str, Any] = {"adversarial": self.final != "slf", "begin": begin}
        if self.final != "aff":
            part = Pass(self.head_updates(model, attack if self.final == "alf" else None), augment=self.augment)
            optimisers = {"head": OptimizerSpec(model.head.parameters(), self.head_lr, "adam")}
            return Stage(self.final, self.head_epochs, optimisers, (part,), **rest)
        attack = replace(attack, objective="kl", start="gaussian")

        def updates(batch: Batch, context: StepContext) -> Updates:
            yield "model", trades_forward(model, self.beta, batch, self.attacked(attack, model, batch, context))

        schedule = step((0.6 * self.tuning_epochs, 0.8 * self.tuning_epochs))
        weights = [*model.encoder.parameters(), *model.head.parameters()]
        optimisers = {"model": OptimizerSpec(weights, self.tuning_lr, weight_decay=2e-4, schedule=schedule)}
        part = Pass(updates, augment=self.augment)
        return Stage("aff", self.tuning_epochs, optimisers, (part,), ema=self.ema, **rest)

    def head_updates(self, model: Projected, attack: PGD | None, batchnorm: str = "eval") -> Update:
        """CE of the head on frozen features, of images under `attack` where one is given: yields ("head", loss).

        With `batchnorm` "train" features have the batch's statistics and move the encoder's running ones, though no weight.
        """

        def updates(batch: Batch, context: StepContext) -> Updates:
            x = batch.x if attack is None else self.attacked(attack, model, batch, context)
            model.encoder.train(batchnorm == "train")  # the loop has put all of it in train mode
            with torch.no_grad():
                features = model.features(x)
            logits = model.head(features).float()
            right = (logits.argmax(1) == batch.y).float().mean()
            yield "head", Loss(cross_entropy(logits, batch.y), {"accuracy": right})

        return updates

    def pretraining_fields(self) -> list[str]:
        """The fields on which pre-training depends: a `pretrained` run must have them as this one does."""
        return [f.name for f in fields(self) if f.name not in LAST_STAGE]

    def load_pretrained(self, model: Projected, dataset: Dataset) -> None:
        """Gives the model the last weights of the run at `pretrained`, whose pre-training must be this one's."""
        run = base.pretrained_run(self, f"{self.name} on {dataset.name}", method=self.name, dataset=dataset.name)
        where, theirs = f"{self.name}: pretrained={self.pretrained!r}", run.params()["hyperparameters"]
        if theirs["final"] == "aff":
            raise InputError(f"{where} was fine-tuned as a whole: give a run with final=slf or final=alf.")
        for name in self.pretraining_fields():
            value, mine = theirs[name], getattr(self, name)
            if value != json.loads(json.dumps(mine)):  # as it would be stored: tuples are lists
                advice = f"give a run of the same pre-training, or set {name} as it has it"
                raise InputError(f"{where} was pre-trained with {name}={value!r}, not {mine!r}: {advice}.")
        base.copy_weights(self, run, model, run.model("last"))


def check_projected(method: Method, dataset: Dataset, model: nn.Module, kind: type[M]) -> M:
    """The model; raises InputError for one of another kind, and for a class that no training image shows."""
    shown = set(dataset.train.labels.tolist())
    absent = [name for label, name in enumerate(dataset.class_names) if label not in shown]
    if absent:
        raise InputError(f"{method.name}: no training image shows the class {absent[0]!r}: train on all classes.")
    return method.check_model(model, kind)


def contrasted(model: Projected) -> list[nn.Parameter]:
    """The weights that contrastive losses train: encoder and projector."""
    return [*model.encoder.parameters(), *model.projector.parameters()]


def project_views(model: Projected, views: Iterable[Tensor]) -> Tensor:
    """Projections (V, B, P) of V views (B, C, H, W) of the same images, from one forward pass; of the whole batch, where several
    devices share it."""
    stacked = list(views)
    return gathered(model.project(torch.cat(stacked)).unflatten(0, (len(stacked), -1)), 1)


@dataclass(frozen=True, kw_only=True)
class SupCon(Contrastive):
    """min E L_out over two augmented views (eq. 2), positives being all views of all images of the class; no attack in it.

    Values of the release (HobbitLong/SupContrast) for CIFAR-10: batch 1024, temperature 0.1, 1000 epochs. Its loss is t/0.07 times
    the paper's, with learning rate 0.5 and weight decay 1e-4: SGD takes the same steps on the paper's loss with t/0.07 times this
    rate and 0.07/t of this decay.
    """

    name, title = "supcon", "SupCon"
    paper = "Khosla et al. 2020, Supervised Contrastive Learning, NeurIPS"
    summary = "Pulls augmented images of one class together, without attacks; then a linear head."
    protocol = ""  # its paper attacks nothing
    labelled = True

    batch_size: int = 1024
    lr: float = 0.714  # of pre-training, peak: 0.5 * 0.1 / 0.07
    weight_decay: float = 7e-5  # of pre-training: 1e-4 * 0.07 / 0.1
    temperature: float = 0.1  # t of the contrastive loss


@dataclass(frozen=True, kw_only=True)
class SimCLR(Contrastive):
    """min E NT-Xent of two augmented views (eq. 1), the positive being the other view of the same image; no label, no attack.

    Values as SupContrast's release runs it on CIFAR-10 with SGD: batch 1024, temperature 0.5, 1000 epochs, and its learning rate 0.5
    and weight decay 1e-4 as `SupCon` takes them over.
    """

    name, title = "simclr", "SimCLR"
    paper = "Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, ICML"
    summary = "Pulls two augmentations of an image together, without labels or attacks; then a linear head."
    protocol = ""  # its paper attacks nothing

    batch_size: int = 1024
    lr: float = 3.57  # of pre-training, peak: 0.5 * 0.5 / 0.07
    weight_decay: float = 1.4e-5  # of pre-training: 1e-4 * 0.07 / 0.5


@dataclass(frozen=True, kw_only=True)
class RoCL(Contrastive):
    """min E NT-Xent(x1, x2, x') + (1 / lambda) NT-Xent(x', x2), where x' ascends NT-Xent(x', x2) in the ball around the view x1.

    As released (Kim-Minseon/RoCL): all three positive pairings count, summed and divided by the 3 B rows, which is twice
    `supcon_loss` without labels; the second term comes from a forward pass of its own; gradients flow through one side of each
    similarity; the attack runs in eval mode from a random start. The linear evaluation there is SGD for 150 epochs.
    """

    name, title, protocol = "rocl", "RoCL", "pgd20"
    paper = "Kim et al. 2020, Adversarial Self-Supervised Contrastive Learning, NeurIPS"
    summary = "An instance-wise attack away from the other augmentation makes the third view, without labels; then a linear head."
    attacks = 1  # on the first view

    lr: float = 0.1  # of pre-training, peak
    weight_decay: float = 1e-6  # of pre-training
    attack_steps: int = 7  # of the attack inside pre-training
    attack_step_size: float | None = 0.007  # at 8/255
    attack_batchnorm: Literal["eval"] = "eval"  # as released
    projection: tuple[int, ...] = (2048, 128)  # widths of the projection head
    regulariser: Annotated[float, "(0, inf]", "inf drops the term"] = 256.0  # lambda: NT-Xent(x', x2) is divided by it

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Iterator[Loss]:
        x1, x2 = self.two_views(batch)
        with frozen_eval(model), torch.no_grad():
            fixed = gathered(model.project(x2))

        def dissimilarity(seen: Any, x: Tensor) -> Tensor:
            return nt_xent(gathered(seen.project(x)), fixed, self.temperature, one_sided=True)

        attack = BatchPGD(threat, self.attack_steps, self.attack_step_size)
        x_adv = attack(model, x1, dissimilarity, generator=context.generator, precision=context.precision)
        pair = supcon_loss(project_views(model, (x_adv, x2)), None, self.temperature, one_sided=True)
        yield Loss(pair / self.regulariser, step=False)
        three = 2 * supcon_loss(project_views(model, (x1, x2, x_adv)), None, self.temperature, one_sided=True)
        yield Loss(three + pair.detach() / self.regulariser, {"views": three, "pair": pair})


@dataclass(frozen=True, kw_only=True)
class ACL(Contrastive):
    """min E (NT-Xent(x1, x2; BN) + NT-Xent(x1 + d1, x2 + d2; BN')) / 2, where (d1, d2) together ascend the second term: ACL(DS).

    BatchNorm is dual: attacked views have statistics and affine weights of their own, BN', and these are deployed. As released
    (VITA-Group/Adversarial-Contrastive-Learning) the attack runs on BN' in eval mode from a random start, and the projector's
    maps have a BatchNorm each. It makes three such maps, but its forward pass uses two. Crops there keep 10 % of the area at
    least, here 20 %, and what is fine-tuned (aff) begins with a new head.
    """

    name, title = "acl", "ACL(DS)"
    paper = "Jiang et al. 2020, Robust Pre-Training by Adversarial Contrastive Learning, NeurIPS"
    summary = "NT-Xent on clean views and on jointly attacked ones, each with BatchNorm statistics of its own; then a linear head."
    attacks = 2  # both views

    weight_decay: float = 1e-6  # of pre-training
    attack_batchnorm: Literal["eval"] = "eval"  # as released
    projection: tuple[int, ...] = (512, 512)  # widths of the projection head

    def model_options(self) -> dict[str, Any]:
        """A projection head with BatchNorm, and dual BatchNorm everywhere."""
        return {**super().model_options(), "projection_batchnorm": True, "dual_batchnorm": True}

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Iterator[Loss]:
        both = torch.cat(self.two_views(batch))

        def stream(seen: Any, x: Tensor) -> Tensor:
            a, b = map(gathered, seen.project(x).chunk(2))
            return nt_xent(a, b, self.temperature)

        with clean_statistics(model):
            clean = stream(model, both)
        yield Loss(clean / 2, step=False)
        attack = BatchPGD(threat, self.attack_steps, self.attack_step_size)
        attacked = stream(model, attack(model, both, stream, generator=context.generator, precision=context.precision))
        yield Loss((clean.detach() + attacked) / 2, {"clean": clean, "attacked": attacked})
