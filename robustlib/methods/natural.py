"""The naturally trained classifier that other methods begin with: trained in a first stage, or taken from a finished run."""

from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.methods.base import Method
from robustlib.models import Classifier
from robustlib.runs import Run
from robustlib.training import At, Loss, Pass, Stage, Updates, cosine


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in float32, also of bf16 logits (B, K)."""
    return F.cross_entropy(logits.float(), y)


def natural_stage(method: Method, model: Classifier, name: str, epochs: int, lr: float) -> Stage:
    """Cross-entropy on clean images over encoder and head, by the method's optimiser; what stands beside them keeps its weights.

    Args:
        method: whose optimiser, momentum, weight decay and view of the images it takes.
        model: what is trained.
        name: of the stage.
        epochs: passes over the training images.
        lr: peak learning rate; a cosine takes it to 0.
    """

    def updates(batch: Batch, at: At) -> Updates:
        yield "model", Loss(cross_entropy(model(batch.x), batch.y))

    weights = method.optim([*model.encoder.parameters(), *model.head.parameters()])
    weights = replace(weights, lr=lr, schedule=cosine(epochs))
    return Stage(name, epochs, {"model": weights}, (Pass(updates, augment=method.augment),))


def start_from(name: str, path: str, model: Classifier, dataset: Dataset) -> None:
    """Gives encoder and head the last weights of the finished `standard` run at `path`.

    Args:
        name: of the method, for messages.
        path: directory of the run.
        model: whose encoder and head are filled.
        dataset: that the model is for.

    Raises:
        InputError: no such run, not finished, or of another method, data set or architecture.
    """
    run = Run(Path(path))
    params = run.params()
    if params.get("method") != "standard" or not run.finished:
        found = f"{run.name}, {run.status()['state']}" if params else "no run"
        raise InputError(f"{name}: pretrained={path!r} is {found}: give the directory of a finished `standard` run.")
    if params["dataset"] != dataset.name:
        raise InputError(
            f"{name}: pretrained={path!r} was trained on {params['dataset']!r}, not on {dataset.name!r}: "
            "give a run of the same data set."
        )
    natural = run.model("last")
    natural.check_data(dataset)
    for mine, theirs in ((model.encoder, natural.encoder), (model.head, natural.head)):
        try:
            mine.load_state_dict(theirs.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"{name}: pretrained={path!r} is a {params['arch']!r}, whose weights do not fit the architecture that is "
                f"to be fine-tuned: give --set arch={params['arch']}, or another run."
            ) from error
