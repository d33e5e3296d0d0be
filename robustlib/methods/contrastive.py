"""Contrastive pre-training: what CLAF and the rows it is compared with have in common."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.methods.final_head import WithHead
from robustlib.models import Projected
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training import At, Loss, Pass, Stage, Updates

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

        def updates(batch: Batch, at: At) -> Updates:
            yield "encoder", self.contrast(model, threat, batch, at)

        optimisers = {"encoder": self.optim(body(model))}
        return [Stage("contrastive", self.epochs, optimisers, (Pass(updates, augment=self.augment),))]

    def contrast(self, model: Projected, threat: Threat, batch: Batch, at: At) -> Loss:
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
