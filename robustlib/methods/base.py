"""What every method has: a recipe of hyper-parameters, a threat, and stages.

Adversarial weight perturbation (Wu et al. 2020, Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS).

What methods that attack while they train have in common: the inner attack and how it is made.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.losses import trades_loss
from robustlib.methods.preset import OTHER_ARCHITECTURES, load_preset, preset_dataset, preset_values, typed
from robustlib.models import ARCHITECTURES
from robustlib.threat import NORMS, Norm, Threat
from robustlib.training import (
    SCHEDULES,
    Loss,
    OptimizerSpec,
    Pass,
    Schedule,
    Stage,
    StepContext,
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
        self, model: nn.Module, updates: Callable[[Batch, StepContext], Updates], *, adversarial: bool
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

    def optim(self, params: Iterable[nn.Parameter]) -> OptimizerSpec:
        """The recipe's optimiser and schedule over `params`."""
        kind: Any = self.optimiser
        return OptimizerSpec(
            params, self.lr, kind, self.momentum, weight_decay=self.weight_decay, schedule=self.lr_schedule()
        )

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

    @classmethod
    def from_preset(cls, preset: str | None = None, **overrides: Any) -> Self:
        """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated.

        Raises:
            InputError: unknown preset or hyper-parameter (it names the nearest), or a value of the wrong type or range.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        if preset is not None:
            common, section = preset_values(preset, cls.name, overrides.get("arch"))
            # Not every method has every common field: a standard training attacks nothing.
            values = {name: value for name, value in common.items() if name in known} | section | {"preset": preset}
        values |= overrides
        for name in values:
            if name not in known:
                raise unknown(f"hyper-parameter of {cls.name}", name, known)
        hints = get_type_hints(cls)
        return cls(**{name: typed(cls.name, name, value, hints[name]) for name, value in values.items()})

    def changes(self, arch: str) -> dict[str, Any]:
        """The hyper-parameters (architecture included) in which this method differs from its preset."""
        usual = self.from_preset(self.preset or PAPER_PRESET)
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"} | {"arch": arch}
        return {name: value for name, value in mine.items() if value != getattr(usual, name)}

    def advice(self, arch: str) -> list[str]:
        """What a reader of a run on this architecture must know: values of the preset that were chosen for another one.

        Chosen are the values of the method's section, and of the common ones those that are not the paper's; where the preset has
        values of its own for `arch`, those that it has. What was overridden is not named.
        """
        if not self.preset or arch == (usual := self.from_preset(self.preset)).arch:
            return []
        paper, (common, section) = self.from_preset(), preset_values(self.preset, self.name)
        own = (load_preset(self.preset).get(self.name) or {}).get(OTHER_ARCHITECTURES, {}).get(arch)
        if own is None:
            differs = [n for n in common if hasattr(self, n) and getattr(usual, n) != getattr(paper, n)]
            chosen = [name for name in dict.fromkeys([*differs, *section]) if name != "arch"]
        else:
            chosen = [name for name in own if own[name] != getattr(usual, name)]
        same = [f"{name}={getattr(self, name)}" for name in chosen if getattr(self, name) == getattr(usual, name)]
        said = f"chosen by the preset {self.preset} for {usual.arch}, not for {arch}. The outcome may be far from this architecture's"
        return [f"{', '.join(same)}: {said} best: choose values on validation images."] if same else []

    def command(self, dataset: str, arch: str, seed: int, precision: str) -> str:
        """The command that repeats a run of this method."""
        preset = self.preset or PAPER_PRESET
        words = ["robustlib", "run", self.name, "--preset", preset, "--seeds", str(seed)]
        if dataset != preset_dataset(preset):
            words += ["--dataset", dataset]
        for name, value in self.changes(arch).items():
            words += ["--set", f"{name}={value}"]
        return shlex.join([*words, "--precision", precision])


TINY = 1e-20  # as released: a layer without gradient stays where it is


@contextmanager
def perturbed(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Within, the model's weights stand where they raise the loss most to first order: w + gamma |w| g / |g|.

    Norms are those of a whole tensor, g is the gradient of `loss`. As released, only tensors of several dimensions named
    "weight" move, and BatchNorm keeps no trace of the pass that finds g. Afterwards, also after an exception, gamma |w| g / |g|
    is taken away again, so what an optimiser did in between stays.

    Args:
        model: the model, in the mode in which it trains.
        loss: the scalar that the training step will minimise, as a function of the model's present weights.
        gamma: relative size of the perturbation; 0 does nothing at all.
    """
    shifts = _shifts(model, loss, gamma) if gamma else []
    _move(shifts, 1)
    try:
        yield
    finally:
        _move(shifts, -1)


def _shifts(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> list[tuple[Tensor, Tensor]]:
    """(weight, its perturbation) of every layer that the loss depends on."""
    weights = [w for name, w in model.named_parameters() if "weight" in name and w.ndim > 1 and w.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
        return [
            (w, gamma * w.norm() / (g.norm() + TINY) * g)
            for w, g in zip(weights, gradients, strict=True)
            if g is not None
        ]


@torch.no_grad()
def _move(shifts: list[tuple[Tensor, Tensor]], sign: int) -> None:
    for weight, shift in shifts:
        weight.add_(shift, alpha=sign)
    if shifts:
        torch.clear_autocast_cache()  # it may hold bf16 copies of the weights as they were


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

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The batch under `attack`, searched in the training's own precision."""
        return replace(attack, precision=context.precision)(model, batch.x, batch.y, generator=context.generator)

    def raised(
        self, model: nn.Module, context: StepContext, loss: Callable[[], Tensor]
    ) -> AbstractContextManager[None]:
        """Within, the weights stand where they raise `loss()` (see `perturbed`), from the epoch `awp_warmup` on."""
        return perturbed(model, loss, self.awp_gamma if context.epoch + 1 >= self.awp_warmup else 0.0)

    def single_stage(
        self, model: nn.Module, updates: Callable[[Batch, StepContext], Updates], *, adversarial: bool
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
        return self.searching_stage(model, lambda batch, context: self.attacked(attack, model, batch, context), loss)

    def searching_stage(
        self, model: nn.Module, search: Callable[[Batch, StepContext], Found], loss: Callable[[Batch, Found], Loss]
    ) -> list[Stage]:
        """The one stage of a method that takes one step a batch, on loss(batch, what `search` found for it).

        With `awp_gamma` the step is taken where the weights raise that loss (Wu et al. 2020); the search comes before.
        """

        def updates(batch: Batch, context: StepContext) -> Updates:
            found = search(batch, context)
            with self.raised(model, context, lambda: loss(batch, found).total):
                yield "model", loss(batch, found)

        return super().single_stage(model, updates, adversarial=True)
