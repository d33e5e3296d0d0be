"""Adversarial fine-tuning of a natural model: what AFD and the rows it is compared with have in common."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.losses import mean_cosine
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.methods.natural import cross_entropy, natural_stage, start_from
from robustlib.models import Classifier
from robustlib.representation import gap_probe, probe_attack
from robustlib.training import At, Loss, Optim, Pass, Stage, Updates

# 0.025 for ten epochs, then 0.02, 0.01, 0.005, 0.0025 and 0.00125 for two epochs each (AFD's released tl+sl.py)
PUBLISHED: tuple[tuple[float, float], ...] = (
    *((0, 1), (10, 1), (10, 0.8), (12, 0.8), (12, 0.4), (14, 0.4)),
    *((14, 0.2), (16, 0.2), (16, 0.1), (18, 0.1), (18, 0.05), (20, 0.05)),
)


@dataclass(frozen=True, kw_only=True)
class FineTuning(AdversarialMethod):
    """A naturally trained model is copied and fine-tuned on attacked images; the frozen original stays beside it as a teacher.

    With `awp_gamma` every loss of a step is taken from one forward pass at the weights that raise the loss of "model".
    The feature gap of validation images is watched over the epochs of the fine-tuning (Zhou et al. 2025, figure 1a).
    """

    protocol = "pgd20"
    notebook = "afd"
    network: ClassVar[type[Classifier]] = Classifier  # what it trains

    epochs: int = 20  # of fine-tuning
    lr: float = 0.025  # its peak learning rate
    schedule: str = "piecewise"
    points: tuple[tuple[float, float], ...] = PUBLISHED
    ema: float = 0.999  # of the fine-tuning; AFD reports the average, so all its rows are compared with one
    attack_step_size: float | None = 0.007  # at 8/255
    pretrained: str = ""  # directory of a finished `standard` run to fine-tune; "" trains one first
    pretrain_epochs: int = 100  # of natural training, SGD with a cosine to 0 (the recipe is not published)
    pretrain_lr: float = 0.1  # its peak learning rate

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pretrain_lr < float("inf"):
            raise InputError(f"{self.name}: pretrain_lr={self.pretrain_lr!r}: give a number of at least 0.")

    @property
    def all_epochs(self) -> int:
        """Natural epochs, unless they are done, and those of fine-tuning."""
        return self.epochs + (0 if self.pretrained else self.pretrain_epochs)

    def check_weights(self, switches: Mapping[str, str]) -> None:
        """Raises InputError for a field in `switches` (name -> setting that drops its term) that is no positive number."""
        for name, off in switches.items():
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{self.name}: {name}={getattr(self, name)!r}: give a positive weight, or {off}.")

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """Natural training, unless a finished run is given, then fine-tuning.

        Raises:
            InputError: a model of another kind; when fine-tuning begins, a `pretrained` run that does not fit.
        """
        if type(model) is not self.network:
            options = ", ".join([f"{self.arch!r}, dataset", *(f"{k}={v!r}" for k, v in self.model_options().items())])
            raise InputError(
                f"{self.name} trains a {self.network.__name__}, not a {type(model).__name__}: build_model({options})."
            )
        tuning = self._tuning(dataset, model)
        natural = natural_stage(self, model, "natural", self.pretrain_epochs, self.pretrain_lr)
        return [tuning] if self.pretrained else [natural, tuning]

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """The losses of one step by optimiser, in the order of their steps; the last is that of "model".

        Args:
            model: of the kind `network`, in train mode.
            batch: clean images and labels.
            x_adv: what it is trained on, (B, C, H, W).
            natural: the teacher's features f_T of the clean images, (B, D).
        """
        raise NotImplementedError

    def shown(self, attack: PGD, victim: Any, batch: Batch, at: At, natural: Tensor) -> tuple[Tensor, dict[str, float]]:
        """What the student trains on, (B, C, H, W), and what the metrics shall say of it."""
        return self.attacked(attack, victim, batch, at), {}

    def victim(self, model: Any) -> nn.Module:
        """What the inner attack attacks; made once, when the stage is."""
        return model

    def watched(self) -> dict[str, str]:
        """The layers whose feature gap is watched, by their name in the metrics."""
        return {"h": "encoder"}

    def optimisers(self, model: Any) -> dict[str, Optim]:
        """The optimisers of fine-tuning by name."""
        return {"model": self.optim(model.parameters())}

    def _tuning(self, dataset: Dataset, model: Classifier) -> Stage:
        """The student begins as the natural model."""
        threat = self.threat(dataset)
        attack = PGD(threat, **self.attack_settings())
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        victim = self.victim(model)

        def begin() -> None:
            if self.pretrained:
                start_from(self.name, self.pretrained, model, dataset)
            teacher.load_state_dict(model.state_dict())

        def updates(batch: Batch, at: At) -> Updates:
            with torch.no_grad():
                natural = encoded(teacher, batch.x)
            x_adv, said = self.shown(attack, victim, batch, at, natural)
            with self.raised(model, at, lambda: self.losses(model, batch, x_adv, natural)["model"].total):
                for name, loss in self.losses(model, batch, x_adv, natural).items():
                    yield name, replace(loss, parts={**loss.parts, **said}) if name == "model" else loss

        return Stage(
            self.name,
            self.epochs,
            self.optimisers(model),
            (Pass(updates, augment=self.augment),),
            adversarial=True,
            ema=self.ema,
            begin=begin,
            modules={"teacher": teacher},
            probes={"gap": gap_probe(probe_attack(threat), self.watched())},
        )


def encoded(model: Classifier, x: Tensor) -> Tensor:
    """The encoder's features (B, D) of images x, whatever stands between it and the head."""
    model.check_input(x)
    return model.encoder(model.normalise(x))


def ce_and_gap(model: Classifier, batch: Batch, x_adv: Tensor, natural: Tensor) -> tuple[Tensor, Tensor]:
    """CE(f(x'), y) and the mean of 1 - cos(f(x'), f_T(x)) over penultimate features, from one pass of a plain classifier."""
    features = model.features(x_adv)
    return cross_entropy(model.head(features), batch.y), 1 - mean_cosine(features, natural)
