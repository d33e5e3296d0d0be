"""What every method has (hyper-parameters, a threat, stages), and what those share that attack while they train."""

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import (
    Count,
    InputError,
    Length,
    NonNegative,
    ShareBelowOne,
    Whole,
    check_known,
    options,
    shown,
    typed,
)
from robustlib.methods.preset import load_preset, preset_dataset, preset_values
from robustlib.models import ARCHITECTURES
from robustlib.runs import NOTEBOOK, Run, UserCode, source_text
from robustlib.threat import Norm, Threat
from robustlib.training import SCHEDULES, Loss, OptimizerSpec, Pass, Schedule, Stage, StepContext, Updates
from robustlib.training.devices import averaged_gradients, weighted

M = TypeVar("M", bound=nn.Module)
Update = Callable[[Batch, StepContext], Updates]  # what a method does with a batch
PAPER_PRESET = "cifar10-paper"  # what a method without a preset is compared with
CHOICES: dict[str, Collection[str]] = {"arch": ARCHITECTURES, "schedule": SCHEDULES, "optimiser": ("sgd", "adam")}
CHOICES |= {"augment": VIEWS, "views": VIEWS}
NO_AWP = "this method does not perturb weights: leave awp_gamma at 0"
NoAWP = Annotated[float, "[0, 0]", NO_AWP]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method: hyper-parameters as fields, `stages` as what it does with them.

    The defaults are the common protocol of the literature (ResNet-18, CIFAR-10; Pang et al. 2021, "Bag of Tricks for AT");
    a subclass has its paper's own values. Presets override them.
    """

    name: ClassVar[str] = ""  # in METHODS, on the command line and in paths
    title: ClassVar[str] = ""  # for readers; a class that has none is called as in Python
    paper: ClassVar[str] = ""  # authors, year, title, venue
    summary: ClassVar[str] = ""  # one sentence
    protocol: ClassVar[str] = "autoattack"  # the standard attack with which its paper reports robust accuracy; "": none
    notebook: ClassVar[str] = "baselines"  # the one in notebooks/ that trains, evaluates and shows it

    preset: str = ""  # the preset it was made from; "" for the paper's own values
    arch: str = "resnet18"  # a name of robustlib.models.ARCHITECTURES
    batch_size: Annotated[int, "[2, 100000]"] = 128  # training images a step
    epochs: Count = 110  # passes over the training images
    lr: NonNegative = 0.1  # peak learning rate
    momentum: NonNegative = 0.9  # of SGD
    weight_decay: NonNegative = 5e-4  # critical for adversarial training (Pang et al. 2021, table 4)
    optimiser: str = "sgd"  # "sgd" or "adam"
    schedule: str = "step"  # one of robustlib.training.SCHEDULES
    milestones: tuple[NonNegative, ...] = (100, 105)  # "step": epochs (from 0) at which the rate falls to a tenth
    points: tuple[tuple[NonNegative, NonNegative], ...] = ()  # "piecewise": (epoch, factor)
    ema: ShareBelowOne = 0.0  # decay of the averaged weights that are evaluated; 0 for none
    norm: Norm | None = None  # of the threat; None takes the data set's
    eps: NonNegative | None = None  # of the threat, in [0, 1] pixel units; None takes the data set's
    augment: str = "weak"  # view of training images: "weak" (crop and flip; digits: 1-pixel shift), "flip" or "none"
    train_examples: Whole = 0  # train on a stratified subset of this size; 0 for all
    validate_every: Count = 1  # epochs; the weights before a stage and after its last epoch are validated in any case

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "title" not in vars(cls):
            cls.title = cls.__name__

    def __post_init__(self) -> None:
        for name, hint in self.types().items():
            value = getattr(self, name)
            if value is None and NoneType not in options(hint):
                value = "none"  # as it was written: a choice such as augment=none
            object.__setattr__(self, name, typed(value, hint, f"{self.name} {name}"))
        for name, choices in CHOICES.items():
            check_known("architecture" if name == "arch" else name, getattr(self, name, "none"), choices)
        pointless = self.schedule == "piecewise" and not self.points
        self.refuse((pointless, "schedule='piecewise' needs points, e.g. points=((0,0),(5,1),(15,0))."))
        for name, epochs in (("milestones", self.milestones), ("points", tuple(epoch for epoch, _ in self.points))):
            self.refuse((list(epochs) != sorted(epochs), f"{name}={getattr(self, name)!r} must rise: sort it."))
        if self.eps is not None:
            Threat(self.norm or "linf", self.eps)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Another process, such as one of several devices', finds the class of a user's file by its name."""
        if not type(self).__module__.startswith("robustlib_user_"):
            return super().__reduce_ex__(protocol)
        code = self.code
        return _found, (code and code.spec, {field.name: getattr(self, field.name) for field in fields(self)})

    def refuse(self, *cases: tuple[object, str]) -> None:
        """Raises InputError with the sentence of the first case that holds."""
        for wrong, sentence in cases:
            if wrong:
                raise InputError(f"{self.name}: {sentence}")

    @classmethod
    @cache
    def types(cls) -> dict[str, Any]:
        """What each field takes (see `robustlib.errors.typed`): the types of a base class stay where another default has a plain one."""
        found: dict[str, Any] = {}
        for kind in reversed(cls.__mro__):
            for name, hint in get_type_hints(kind, include_extras=True).items():
                if "Annotated[" in str(hint) or "Annotated[" not in str(found.get(name)):
                    found[name] = hint
        return {field.name: found[field.name] for field in fields(cls)}

    def check_model(self, model: nn.Module, kind: type[M]) -> M:
        """The model; raises InputError for one of another kind than this method trains."""
        if type(model) is not kind:
            arguments = [f"{self.arch!r}, dataset", *(f"{k}={v!r}" for k, v in self.model_options().items())]
            kinds = f"trains a {kind.__name__}, not a {type(model).__name__}"
            raise InputError(f"{self.name} {kinds}: build_model({', '.join(arguments)}).")
        return model

    @property
    def all_epochs(self) -> int:
        """Passes over the training images in all stages together; pre-training counts unless it is done."""
        return self.epochs + (0 if getattr(self, "pretrained", "") else getattr(self, "pretrain_epochs", 0))

    @property
    def attack_passes(self) -> int:
        """Forward-backward passes of the attacks inside the training, for each training image, all epochs together.

        Comparisons are fair at equal numbers of them. An upper bound: ARREST leaves some out. Forward passes alone do not count.
        """
        return 0

    @property
    def precision(self) -> str:
        """What its preset is made for: "32-true", "bf16-mixed" or "auto"."""
        return str(load_preset(self.preset or PAPER_PRESET).get("precision", "auto"))

    @property
    def numerics(self) -> tuple[str, ...]:
        """The names in `robustlib.runs.NUMERICS` of what makes its numbers; of a user's class, of the method it is derived from."""
        return tuple(f"methods/{kind.name}" for kind in type(self).__mro__ if kind in (type(self), self._ours()))

    @classmethod
    def _ours(cls) -> type["Method"]:
        """The nearest class of this package, the class itself included."""
        return next(kind for kind in cls.__mro__ if issubclass(kind, Method) and _is_ours(kind))

    @property
    def code(self) -> UserCode | None:
        """The user's code that its class and those of its bases that are methods stand in; None for the methods of this package."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Method) and not _is_ours(kind)]
        return UserCode.of(*kinds) if kinds else None

    @property
    def about(self) -> str:
        """What it is, as Markdown: title, summary and paper."""
        paper = self.paper and f"{self.paper}."
        return " ".join(filter(None, (f"**{self.title}.**", self.summary, paper)))

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """What to do, in order, to train `model` on `dataset`."""
        raise NotImplementedError

    def single_stage(self, model: nn.Module, updates: Update, *, adversarial: bool) -> list[Stage]:
        """The one stage of a method that trains the whole model in one way: `updates` yields ("model", loss)."""
        optimisers, passes = {"model": self.optim(model.parameters())}, (Pass(updates, augment=self.augment),)
        return [Stage(self.name, self.epochs, optimisers, passes, adversarial=adversarial, ema=self.ema)]

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments of `build_model` that this method's model needs."""
        return {}

    def threat(self, dataset: Dataset) -> Threat:
        """What this training defends against: the data set's threat, with this method's norm and eps where given."""
        return Threat(self.norm or dataset.threat.norm, dataset.threat.eps if self.eps is None else self.eps)

    def optim(self, params: Iterable[nn.Parameter]) -> OptimizerSpec:
        """The recipe's optimiser and schedule over `params`."""
        rest: Any = {"kind": self.optimiser, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return OptimizerSpec(params, self.lr, schedule=self.lr_schedule(), **rest)

    def lr_schedule(self) -> Schedule:
        """The recipe's learning-rate schedule over `epochs`."""
        arguments: dict[str, list[Any]] = {"step": [self.milestones], "piecewise": [self.points], "constant": []}
        return SCHEDULES[self.schedule](*arguments.get(self.schedule, [self.epochs]))

    def hyperparameters(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @classmethod
    def from_preset(cls, /, preset: str | None = None, **overrides: Any) -> Self:
        """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated."""
        if not _is_ours(cls):
            cls.check_class()
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        if preset is not None:
            common, section, by_architecture = preset_values(preset, cls.name)
            # Not every method has every common field: a standard training attacks nothing.
            values = {name: value for name, value in common.items() if name in known} | section | {"preset": preset}
            arch = overrides.get("arch")
            values |= by_architecture.get(arch if isinstance(arch, str) and arch else values["arch"], {})
        values |= overrides
        for name in values:
            check_known(f"hyper-parameter of {cls.name}", name, known)
        return cls(**values)

    @classmethod
    def check_class(cls) -> None:
        """Raises InputError for a user's class whose runs could be taken for those of another, or whose hyper-parameters are no fields."""
        name, who = cls.name, cls.__name__
        if not isinstance(name, str) or not re.fullmatch("[a-z0-9_]+", name):
            given = f"{who} has the name {shown(name)}" if name else f"{who} has no name"
            raise InputError(f"{given}: write one of a-z, 0-9 and _ into the class, such as name = 'mixed_at'.")
        if name in load_preset(PAPER_PRESET):
            raise InputError(f"{who} has the name {name!r}, which robustlib uses itself: give the class another one.")
        if "__annotations__" in vars(cls) and "__dataclass_params__" not in vars(cls):
            raise InputError(f"{who} is no dataclass: write @dataclass(frozen=True, kw_only=True) above the class.")
        if not source_text(cls):  # then a changed class could not be told from what was trained before
            raise InputError(f"{who} was typed where its text is lost: write it in a file or in a notebook's cell.")
        if lacking := [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]:
            raise InputError(f"{who} has no default for {', '.join(lacking)}: give each hyper-parameter one.")

    def changes(self, arch: str) -> dict[str, Any]:
        """The hyper-parameters (architecture included) in which this method differs from its preset."""
        usual = self.from_preset(self.preset or PAPER_PRESET)
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"} | {"arch": arch}
        return {name: value for name, value in mine.items() if value != getattr(usual, name)}

    def advice(self, arch: str) -> list[str]:
        """What a reader of a run on this architecture must know: what of its schedule it never reaches, and values of the preset that
        were chosen for another architecture.

        These are the values of the method's section and those common ones that are not the paper's; where the preset has values
        of its own for `arch`, only those. Values that were overridden are not named.
        """
        turns = {"step": self.milestones, "piecewise": [epoch for epoch, _ in self.points]}
        last = max(turns.get(self.schedule, ()), default=0)
        falls = f"goes on to epoch {last:g}, so it never falls as far as it should: shorten it alike."
        end = f"epochs={self.epochs}: the {self.schedule} schedule of the learning rate {falls}"
        said = [end] if last > self.epochs else []
        if not self.preset or arch == (usual := self.from_preset(self.preset)).arch:
            return said
        paper, (common, section, by_architecture) = self.from_preset(), preset_values(self.preset, self.name)
        if arch in by_architecture:
            chosen = [name for name, value in by_architecture[arch].items() if value != getattr(usual, name)]
        else:
            differs = [n for n in common if hasattr(self, n) and getattr(usual, n) != getattr(paper, n)]
            section |= by_architecture.get(usual.arch, {})
            chosen = [name for name in dict.fromkeys([*differs, *section]) if name != "arch"]
        same = [f"{name}={getattr(self, name)}" for name in chosen if getattr(self, name) == getattr(usual, name)]
        why = f"chosen by the preset {self.preset} for {usual.arch}, not for {arch}. The outcome may be far from this architecture's"
        return [*said, *([f"{', '.join(same)}: {why} best: choose values on validation images."] if same else [])]

    def command(self, dataset: str, arch: str, seed: int, precision: str) -> str:
        """The command that repeats a run of this method; "" for a class that was written in a notebook."""
        preset, code = self.preset or PAPER_PRESET, self.code
        if code and code.place == NOTEBOOK:
            return ""
        words = ["robustlib", "run", code.spec if code else self.name, "--preset", preset, "--seeds", str(seed)]
        if dataset != preset_dataset(preset):
            words += ["--dataset", dataset]
        for name, value in self.changes(arch).items():
            words += ["--set", f"{name}={value}"]
        return shlex.join([*words, "--precision", precision])


def _found(spec: str, values: dict[str, Any]) -> Any:
    return UserCode.named(spec).load()(**values)


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "robustlib"


def pretrained_run(owner: Any, wanted: str = "", **facts: str) -> Run:
    """The finished run at a method's `pretrained`, with these facts among its parameters; an InputError asks for `wanted`."""
    run = Run(Path(owner.pretrained))
    params = run.params()
    if not run.finished or any(params.get(name) != fact for name, fact in facts.items()):
        found = f"{run.name} on {params['dataset']}, {run.status()['state']}" if params else "no run"
        asked = f"give the directory of a finished run{wanted and ' of '}{wanted}"
        raise InputError(f"{owner.name}: pretrained={owner.pretrained!r} is {found}: {asked}.")
    return run


def copy_weights(owner: Any, run: Run, module: nn.Module, source: nn.Module) -> None:
    """Gives a module the weights of `source`, which is of a method's pretrained run."""
    try:
        module.load_state_dict(source.state_dict())
    except RuntimeError as error:
        where, arch = f"{owner.name}: pretrained={owner.pretrained!r}", run.params()["arch"]
        fitting = f"give --set arch={arch}, or another run"
        raise InputError(f"{where} is a {arch!r}, whose weights do not fit: {fitting}.") from error


TINY = 1e-20  # as released: a layer without gradient stays where it is


@contextmanager
def perturbed_weights(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Within, the model's weights are w + gamma |w| g / |g|, to first order those of the largest loss (AWP; Wu et al. 2020).

    g is the gradient of `loss`, the scalar that the training step will minimise at the model's present weights; norms are those of
    a whole tensor. As released, only tensors of several dimensions named "weight" move, and BatchNorm keeps no trace of the pass
    that finds g. Afterwards, also after an exception, it is subtracted again: an optimiser's step in between stays. 0 does nothing.
    """
    shifts: list[tuple[Tensor, Tensor]] = []
    if gamma:
        weights = [w for name, w in model.named_parameters() if "weight" in name and w.ndim > 1 and w.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        gradients = averaged_gradients(torch.autograd.grad(weighted(loss()), weights, allow_unused=True))
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            pairs = zip(weights, gradients, strict=True)
            shifts = [(w, gamma * w.norm() / (g.norm() + TINY) * g) for w, g in pairs if g is not None]
    _add(shifts, 1)
    try:
        yield
    finally:
        _add(shifts, -1)


@torch.no_grad()
def _add(shifts: list[tuple[Tensor, Tensor]], sign: int) -> None:
    for weight, shift in shifts:
        weight.add_(shift, alpha=sign)
    if shifts:
        torch.clear_autocast_cache()  # it may hold bf16 copies of the weights as they were


@dataclass(frozen=True, kw_only=True)
class AdversarialMethod(Method):
    """A method with an inner PGD attack, by default in eval-mode BatchNorm (Pang et al. 2021)."""

    attack_steps: Count = 10  # K; Madry et al. used 7, most later work 10
    attack_step_size: Annotated[Length, "or null"] | None = None  # in pixel units; None = eps / 4
    attack_batchnorm: Literal["eval", "train"] = "eval"  # BatchNorm while attacking; Rice et al. attack in train mode
    awp_gamma: ShareBelowOne = 0.0  # relative size of the weight perturbation; Wu et al. 2020: 0.01, TRADES 0.005
    awp_warmup: Whole = 0  # epoch, counted from 1, from which on weights are perturbed; Wu et al. 2020: 0, TRADES 10

    @property
    def numerics(self) -> tuple[str, ...]:
        return (*super().numerics, *(("methods/awp",) if self.awp_gamma else ()))

    @property
    def attack_passes(self) -> int:
        """Each image is attacked once in each epoch."""
        return self.attack_steps * self.epochs

    def attack_settings(self) -> dict[str, Any]:
        """Keyword arguments of the inner `PGD`."""
        return {"steps": self.attack_steps, "step_size": self.attack_step_size, "batchnorm": self.attack_batchnorm}

    def inner_attack(self, dataset: Dataset, **settings: Any) -> PGD:
        """The attack inside the training: `attack_settings`, and others."""
        return PGD(self.threat(dataset), **self.attack_settings() | settings)

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The batch under `attack`, which runs in the training's own precision."""
        return replace(attack, precision=context.precision)(model, batch.x, batch.y, generator=context.generator)

    def awp_gamma_at(self, context: StepContext) -> float:
        """The relative size of the weight perturbation at this place of the training: 0 before `awp_warmup`."""
        return self.awp_gamma if context.epoch + 1 >= self.awp_warmup else 0.0

    def single_stage(self, model: nn.Module, updates: Update, *, adversarial: bool) -> list[Stage]:
        """As in Method, without weight perturbation: `adversarial_stage` knows the loss that it raises."""
        self.refuse((self.awp_gamma, NO_AWP + "."))
        return super().single_stage(model, updates, adversarial=adversarial)

    def adversarial_stage(self, model: nn.Module, attack: Any, loss: Callable[[Batch, Any], Loss]) -> list[Stage]:
        """The one stage of a method that takes one step a batch, on loss(batch, x_adv) with x_adv the batch under the PGD `attack`.

        An `attack` that is a function (batch, context) -> anything takes the place of PGD and hands that to the loss. With
        `awp_gamma` the step is taken at the weights that raise this loss (Wu et al. 2020), found after the attack.
        """
        search = partial(self.attacked, attack, model) if isinstance(attack, PGD) else attack

        def updates(batch: Batch, context: StepContext) -> Updates:
            attacked = search(batch, context)
            with perturbed_weights(model, lambda: loss(batch, attacked).total, self.awp_gamma_at(context)):
                yield "model", loss(batch, attacked)

        return super().single_stage(model, updates, adversarial=True)
