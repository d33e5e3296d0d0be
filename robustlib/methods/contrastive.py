"""Contrastive pre-training: what CLAF and the rows it is compared with have in common.

Supervised contrastive learning (Khosla et al. 2020).

Contrastive learning without labels (Chen et al. 2020).

Robust contrastive learning without labels (Kim, Tack and Hwang 2020).

Adversarial contrastive learning, the dual-stream variant (Jiang et al. 2020).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks import BatchPGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.losses import nt_xent, supcon_loss
from robustlib.methods.heads import WithHead
from robustlib.models import Projected
from robustlib.models.projected import clean_statistics
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training import Loss, Pass, Stage, StepContext, Updates

# fields that pre-training mostly does not see (see `seen_before`); the architecture is that of the weights
AFTERWARDS = {"preset", "arch", "pretrained", *WithHead.__annotations__}


@dataclass(frozen=True, kw_only=True)
class Contrastive(WithHead):
    """An encoder learns by a contrastive loss on projections, then comes a head (`final`): slf, alf or aff.

    `augment` is what labelled images undergo, `views` what those of the contrastive loss do. Encoders are trained by SGD, where
    RoCL, ACL and SimCLR publish LARS. The last epoch of pre-training is what counts: without a head there is nothing to select by.
    """

    notebook = "claf"

    epochs: int = 1000  # of contrastive pre-training
    batch_size: int = 512
    lr: float = 0.5  # of pre-training, peak
    weight_decay: float = 1e-4  # of pre-training
    schedule: str = "cosine"
    attack_steps: int = 5  # of the attack inside pre-training, where it has one
    augment: str = "simclr-weak"  # view of labelled images: resized crop and flip; digits: 1-pixel shift
    views: str = "simclr"  # view of the images that are contrasted
    temperature: float = 0.5  # t of the contrastive loss
    projection: tuple[int, ...] = (512, 128)  # widths of the projection head
    pretrained: str = ""  # directory of a finished slf or alf run whose encoder gets this head; "" pre-trains

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views not in VIEWS:
            raise unknown("view", self.views, VIEWS)
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"{self.name}: temperature={self.temperature!r}: give a positive number, e.g. 0.5.")
        if not self.projection or min(self.projection) < 1:
            raise InputError(f"{self.name}: projection={self.projection!r}: give positive widths, e.g. (512, 128).")
        if self.awp_gamma:
            raise InputError(f"{self.name} does not perturb weights: leave awp_gamma at 0.")

    @property
    def all_epochs(self) -> int:
        """Epochs of pre-training, unless it is done, and of the head."""
        return self.last_epochs + (0 if self.pretrained else self.epochs)

    def model_options(self) -> dict[str, Any]:
        """The model has a projection head."""
        return {"projection": list(self.projection)}

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """Pre-training, unless a finished run is given, then the head.

        Raises:
            InputError: a model without projection head, a class without training images; when the head begins, a `pretrained` run
                that does not fit.
        """
        if not isinstance(model, Projected):
            raise InputError(
                f"{self.name} trains a Projected, not a {type(model).__name__}: build it with the method's model_options()."
            )
        check_classes(self.name, dataset)

        def begin() -> None:
            if self.pretrained:
                self._take_over(model, dataset)
            self.begin_head(model)

        last = self.last_stage(self.threat(dataset), model, begin)
        return [last] if self.pretrained else [*self.pretraining(dataset, model), last]

    def pretraining(self, dataset: Dataset, model: Projected) -> list[Stage]:
        """The stages before the head: `contrast` minimised over encoder and projector."""
        threat = self.threat(dataset)

        def updates(batch: Batch, context: StepContext) -> Updates:
            yield "encoder", self.contrast(model, threat, batch, context)

        optimisers = {"encoder": self.optim(body(model))}
        return [Stage("contrastive", self.epochs, optimisers, (Pass(updates, augment=self.augment),))]

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Loss:
        """The contrastive loss of a batch; `model` is in train mode."""
        raise NotImplementedError

    def two_views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Two independent views of the batch, (B, C, H, W) each."""
        return batch.view(self.views), batch.view(self.views)

    def seen_before(self) -> list[str]:
        """The fields on which pre-training depends: a `pretrained` run must have them as this one does."""
        return [f.name for f in fields(self) if f.name not in AFTERWARDS]

    def begin_head(self, model: Projected) -> None:
        """What becomes of the head before the last stage: it is drawn anew."""
        model.head.reset_parameters()

    def _take_over(self, model: Projected, dataset: Dataset) -> None:
        """Gives the model the last weights of the run at `pretrained`, whose pre-training this one shares.

        Raises:
            InputError: no such run, not finished, fine-tuned, or of another method, data set, pre-training or architecture.
        """
        run = Run(Path(self.pretrained))
        params, where = run.params(), f"{self.name}: pretrained={self.pretrained!r}"
        if (params.get("method"), params.get("dataset")) != (self.name, dataset.name) or not run.finished:
            found = f"{run.name} on {params['dataset']}, {run.status()['state']}" if params else "no run"
            raise InputError(f"{where} is {found}: give a finished run of {self.name} on {dataset.name}.")
        theirs, mine = params["hyperparameters"], self.hyperparameters()
        if theirs["final"] == "aff":
            raise InputError(f"{where} was fine-tuned as a whole: give a run with final=slf or final=alf.")
        for name in self.seen_before():
            if _plain(theirs[name]) != _plain(mine[name]):
                raise InputError(
                    f"{where} was pre-trained with {name}={theirs[name]!r}, not {mine[name]!r}: give a run of the same "
                    f"pre-training, or set {name} as it has it."
                )
        try:
            model.load_state_dict(run.model("last").state_dict())
        except RuntimeError as error:
            raise InputError(f"{where} is a {params['arch']!r}: give --set arch={params['arch']}.") from error


def check_classes(method: str, dataset: Dataset) -> None:
    """Raises InputError, naming the method and the class, if no training image shows a class."""
    there = set(dataset.train.labels.tolist())
    absent = [name for label, name in enumerate(dataset.class_names) if label not in there]
    if absent:
        raise InputError(f"{method}: no training image shows the class {absent[0]!r}: train on all classes.")


def body(model: Projected) -> list[nn.Parameter]:
    """What contrastive losses train: encoder and projector."""
    return [*model.encoder.parameters(), *model.projector.parameters()]


def projected(model: Projected, views: Iterable[Tensor]) -> Tensor:
    """Projections (V, B, P) of V views (B, C, H, W) of the same images, from one forward pass."""
    stacked = list(views)
    return model.project(torch.cat(stacked)).unflatten(0, (len(stacked), -1))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


@dataclass(frozen=True, kw_only=True)
class SupCon(Contrastive):
    """min E L_out over two augmented views (eq. 2), positives being all views of all images of the class; no attack in it.

    Values of the release (HobbitLong/SupContrast) for CIFAR-10: batch 1024, learning rate 0.5, temperature 0.1, 1000 epochs.
    """

    name = "supcon"
    title = "SupCon"
    paper = "Khosla et al. 2020, Supervised Contrastive Learning, NeurIPS"
    summary = "Pulls augmented images of one class together, without attacks; then a linear head."
    protocol = ""  # its paper attacks nothing

    batch_size: int = 1024
    temperature: float = 0.1  # t of the contrastive loss

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Loss:
        """SupCon of two views."""
        return Loss(supcon_loss(projected(model, self.two_views(batch)), batch.y, self.temperature))


@dataclass(frozen=True, kw_only=True)
class SimCLR(Contrastive):
    """min E NT-Xent of two augmented views (eq. 1), the positive being the other view of the same image; no label, no attack.

    Values as SupContrast's release runs it on CIFAR-10: batch 1024, learning rate 0.5 with SGD, temperature 0.5, 1000 epochs.
    """

    name = "simclr"
    title = "SimCLR"
    paper = "Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, ICML"
    summary = "Pulls two augmentations of an image together, without labels or attacks; then a linear head."
    protocol = ""  # its paper attacks nothing

    batch_size: int = 1024

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Loss:
        """NT-Xent of two views."""
        a, b = projected(model, self.two_views(batch))
        return Loss(nt_xent(a, b, self.temperature))


@dataclass(frozen=True, kw_only=True)
class RoCL(Contrastive):
    """min E NT-Xent(x1, x2, x') + (1 / lambda) NT-Xent(x', x2), where x' climbs NT-Xent(x', x2) in the ball around the view x1.

    As released (Kim-Minseon/RoCL): all three positive pairings count, summed and divided by the 3 B rows, which is twice
    `supcon_loss` without labels; the second term comes from a forward pass of its own; gradients flow through one side of each
    similarity; the attack runs in eval mode from a random start. The linear evaluation there is SGD for 150 epochs.
    """

    name = "rocl"
    title = "RoCL"
    paper = "Kim et al. 2020, Adversarial Self-Supervised Contrastive Learning, NeurIPS"
    summary = "An instance-wise attack away from the other augmentation makes the third view, without labels; then a linear head."
    protocol = "pgd20"
    attacks = 1  # on the first view

    lr: float = 0.1  # of pre-training, peak
    weight_decay: float = 1e-6  # of pre-training
    attack_steps: int = 7  # of the attack inside pre-training
    attack_step_size: float | None = 0.007  # at 8/255
    projection: tuple[int, ...] = (2048, 128)  # widths of the projection head
    regulariser: float = 256.0  # lambda: NT-Xent(x', x2) is divided by it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.regulariser > 0:
            raise InputError(f"rocl: regulariser={self.regulariser!r}: give a positive number; inf drops the term.")

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Loss:
        """The three views' loss and its regulariser."""
        x1, x2 = self.two_views(batch)
        with frozen_eval(model), torch.no_grad():
            fixed = model.project(x2)

        def apart(seen: Any, x: Tensor) -> Tensor:
            return nt_xent(seen.project(x), fixed, self.temperature, one_sided=True)

        attack = BatchPGD(threat, self.attack_steps, self.attack_step_size)
        x_adv = attack(model, x1, apart, generator=context.generator, precision=context.precision)
        pair = supcon_loss(projected(model, (x_adv, x2)), None, self.temperature, one_sided=True)
        three = 2 * supcon_loss(projected(model, (x1, x2, x_adv)), None, self.temperature, one_sided=True)
        return Loss(three + pair / self.regulariser, {"views": three, "pair": pair})


@dataclass(frozen=True, kw_only=True)
class ACL(Contrastive):
    """min E (NT-Xent(x1, x2; BN) + NT-Xent(x1 + d1, x2 + d2; BN')) / 2, where (d1, d2) together climb the second term: ACL(DS).

    BatchNorm is dual: attacked views have statistics and affine weights of their own, BN', and these are deployed. As released
    (VITA-Group/Adversarial-Contrastive-Learning) the attack runs on BN' in eval mode from a random start, and the projector's
    maps have a BatchNorm each. It makes three such maps, but its forward pass uses two. Crops there keep 10 % of the area at
    least, here 20 %, and what is fine-tuned (aff) begins with a new head.
    """

    name = "acl"
    title = "ACL(DS)"
    paper = "Jiang et al. 2020, Robust Pre-Training by Adversarial Contrastive Learning, NeurIPS"
    summary = "NT-Xent on clean views and on jointly attacked ones, each with BatchNorm statistics of its own; then a linear head."

    attacks = 2  # both views

    weight_decay: float = 1e-6  # of pre-training
    projection: tuple[int, ...] = (512, 512)  # widths of the projection head

    def model_options(self) -> dict[str, Any]:
        """A projection head with BatchNorm, and dual BatchNorm everywhere."""
        return {**super().model_options(), "projection_batchnorm": True, "dual_batchnorm": True}

    def contrast(self, model: Projected, threat: Threat, batch: Batch, context: StepContext) -> Loss:
        """The mean of the clean and the attacked stream."""
        both = torch.cat(self.two_views(batch))

        def stream(seen: Any, x: Tensor) -> Tensor:
            a, b = seen.project(x).chunk(2)
            return nt_xent(a, b, self.temperature)

        with clean_statistics(model):
            clean = stream(model, both)
        attack = BatchPGD(threat, self.attack_steps, self.attack_step_size)
        attacked = stream(model, attack(model, both, stream, generator=context.generator, precision=context.precision))
        return Loss((clean + attacked) / 2, {"clean": clean, "attacked": attacked})
