"""What every method has: a recipe of hyper-parameters, a threat, and stages."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import nn

from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.models import ARCHITECTURES
from robustlib.threat import NORMS, Norm, Threat
from robustlib.training import (
    SCHEDULES,
    At,
    Optim,
    Pass,
    Schedule,
    Stage,
    Updates,
    constant,
    cosine,
    one_cycle,
    piecewise,
    step,
)

PAPER_PRESET = "cifar10-paper"  # what a method without a preset is compared with
AT_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "train_examples": 0,
    "attack_steps": 1,
    "pretrain_epochs": 1,
}  # whole numbers and their least value


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method: hyper-parameters as fields, `stages` as what it does with them.

    The defaults are the common protocol of the literature (ResNet-18, CIFAR-10; Pang et al. 2021, "Bag of Tricks for AT");
    a paper's own values stand in its subclass. Presets override them.

    Raises:
        InputError: at construction, a value outside its range.
    """

    name: ClassVar[str] = ""  # in METHODS, on the command line and in paths
    title: ClassVar[str] = ""  # for readers
    paper: ClassVar[str] = ""  # authors, year, where
    summary: ClassVar[str] = ""  # one sentence
    protocol: ClassVar[str] = (
        "autoattack"  # the standard attack by which its paper reports robust accuracy; "" for none
    )
    notebook: ClassVar[str] = "baselines"  # of notebooks/, without its suffix: trains, evaluates and shows a run of it

    preset: str = ""  # the preset it was made from; "" for the paper's own values
    arch: str = "resnet18"  # a name of robustlib.models.ARCHITECTURES
    batch_size: int = 128  # training images a step
    epochs: int = 110  # passes over the training images
    lr: float = 0.1  # peak learning rate
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # critical for adversarial training (Pang et al. 2021, table 4)
    optimiser: str = "sgd"  # "sgd" or "adam"
    schedule: str = "step"  # one of robustlib.training.SCHEDULES
    milestones: tuple[float, ...] = (100, 105)  # "step": epochs (from 0) at which the learning rate falls to a tenth
    points: tuple[tuple[float, float], ...] = ()  # "piecewise": (epoch, factor)
    ema: float = 0.0  # decay of the averaged weights that are evaluated; 0 for none
    norm: Norm | None = None  # of the threat; None takes the data set's
    eps: float | None = None  # of the threat, in [0, 1] pixel units; None takes the data set's
    augment: str = "weak"  # view of the training images: "weak" (crop and flip; digits: 1-pixel shift) or "none"
    train_examples: int = 0  # train on a stratified subset of this size; 0 for all

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            value = getattr(self, name, least)
            if value < least:
                raise InputError(
                    f"{self.name}: {name}={value!r} is too small, give a whole number of at least {least}."
                )
        for name in ("lr", "eps", "momentum", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{self.name}: {name}={value!r}: give a number of at least 0.")
        if not 0 <= self.ema < 1:
            raise InputError(f"{self.name}: ema={self.ema!r} is no decay: give 0 <= ema < 1, e.g. 0.999.")
        known: dict[str, Iterable[str]] = {"schedule": SCHEDULES, "optimiser": ("sgd", "adam"), "arch": ARCHITECTURES}
        known |= {"augment": VIEWS}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise unknown(name if name != "arch" else "architecture", getattr(self, name), choices)
        if self.schedule == "piecewise" and not self.points:
            raise InputError(f"{self.name}: schedule='piecewise' needs points, e.g. points=((0,0),(5,1),(15,0)).")
        clocks = {"milestones": self.milestones, "points": [point[0] for point in self.points]}  # a point may jump down
        for name, epochs in clocks.items():
            if list(epochs) != sorted(epochs):
                raise InputError(f"{self.name}: {name}={getattr(self, name)!r} must rise: sort it.")
        if self.norm is not None and self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.eps is not None:
            Threat(self.norm or "linf", self.eps)

    @property
    def all_epochs(self) -> int:
        """Passes over the training images in all stages together."""
        return self.epochs

    @property
    def attack_passes(self) -> int:
        """Forward-backward passes of the attacks inside the training, for each training image, all epochs together.

        They are most of what an adversarial training costs, so comparisons are fair at equal numbers of them. It is the most
        there can be: a method may leave out attacks on the way (ARREST), and forward passes alone are not counted.
        """
        return 0

    @property
    def numerics(self) -> tuple[str, ...]:
        """What makes its numbers, by the names of `robustlib.runs.NUMERICS`."""
        return (f"methods/{self.name}",)

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """What to do, in order, to train `model` on `dataset`."""
        raise NotImplementedError

    def single_stage(
        self, model: nn.Module, updates: Callable[[Batch, At], Updates], *, adversarial: bool
    ) -> list[Stage]:
        """The one stage of a method that trains the whole model in one way: `updates` yields ("model", loss)."""
        optimisers = {"model": self.optim(model.parameters())}
        passes = (Pass(updates, augment=self.augment),)
        return [Stage(self.name, self.epochs, optimisers, passes, adversarial=adversarial, ema=self.ema)]

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of `build_model` that this method's model needs."""
        return {}

    def threat(self, dataset: Dataset) -> Threat:
        """What this training defends against: the data set's threat, with this method's norm and eps where given."""
        return Threat(self.norm or dataset.threat.norm, dataset.threat.eps if self.eps is None else self.eps)

    def optim(self, params: Iterable[nn.Parameter]) -> Optim:
        """The recipe's optimiser and schedule over `params`."""
        kind: Any = self.optimiser
        return Optim(params, self.lr, kind, self.momentum, weight_decay=self.weight_decay, schedule=self.lr_schedule())

    def lr_schedule(self) -> Schedule:
        """The recipe's learning-rate schedule over `epochs`."""
        if self.schedule == "step":
            return step(self.milestones)
        if self.schedule == "piecewise":
            return piecewise(self.points)
        return {"constant": constant(), "cosine": cosine(self.epochs), "one_cycle": one_cycle(self.epochs)}[
            self.schedule
        ]

    def hyperparameters(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    def changes(self, arch: str) -> dict[str, Any]:
        """The hyper-parameters (architecture included) in which this method differs from its preset."""
        from robustlib.methods.presets import make_method

        usual = make_method(self.name, self.preset or PAPER_PRESET)
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"} | {"arch": arch}
        return {name: value for name, value in mine.items() if value != getattr(usual, name)}

    def advice(self, arch: str) -> list[str]:
        """What a reader of a run on this architecture must know: values of the preset that were chosen for another one."""
        from robustlib.methods.presets import foreign_values

        return [said] if (said := foreign_values(self, arch)) else []

    def command(self, dataset: str, arch: str, seed: int, precision: str) -> str:
        """The command that repeats a run of this method."""
        from robustlib.methods.presets import preset_dataset

        preset = self.preset or PAPER_PRESET
        words = ["robustlib", "run", self.name, "--preset", preset, "--seeds", str(seed)]
        if dataset != preset_dataset(preset):
            words += ["--dataset", dataset]
        for name, value in self.changes(arch).items():
            words += ["--set", f"{name}={value}"]
        return shlex.join([*words, "--precision", precision])
