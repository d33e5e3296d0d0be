"""The vocabulary in which a method tells the loop what to do: stages, passes, optimisers, schedules and losses."""

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from robustlib.data import Batch, Dataset
from robustlib.runs import UserCode
from robustlib.threat import Threat

#: (Fractional) epoch of the stage -> factor of the learning rate: a pure function, so that resuming needs no state of it.
Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Factor 1."""
    return lambda epoch: 1.0


def step(milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """Multiplied by `gamma` at each milestone epoch."""
    return lambda epoch: gamma ** bisect_right(milestones, epoch)


def cosine(epochs: float, final: float = 0.0) -> Schedule:
    """From 1 to `final` along half a cosine."""
    return lambda epoch: final + (1 - final) * (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def warm_up_cosine(epochs: float) -> Schedule:
    """The cosine to 0, multiplied by a factor that rises linearly from 0 to 1 in the first ten epochs, or a tenth of fewer than 100."""
    fall, warm_up = cosine(epochs), min(10.0, epochs / 10)
    return lambda epoch: min(epoch / warm_up, 1.0) * fall(epoch)


def piecewise(points: Sequence[tuple[float, float]]) -> Schedule:
    """Linear between (epoch, factor) points; of two points at one epoch the later one holds from there on."""

    def factor(epoch: float) -> float:
        if epoch < points[0][0]:
            return points[0][1]
        for (start, low), (end, high) in pairwise(points):
            if start <= epoch < end:
                return low + (high - low) * (epoch - start) / (end - start)
        return points[-1][1]

    return factor


def one_cycle(epochs: float, peak: float = 0.3) -> Schedule:
    """Linear from 0 to 1 at the fraction `peak` of training, then linear to 0 (the cyclic schedule of Wong et al. 2020)."""
    return piecewise([(0, 0.0), (peak * epochs, 1.0), (epochs, 0.0)])


#: Factories of schedules by name, as a method's hyper-parameters call them.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (constant, step, cosine, warm_up_cosine, one_cycle, piecewise)
}


@dataclass(frozen=True)
class Loss:
    """What one optimiser step minimises, and named parts of it for the metrics (scalars, detached by the loop)."""

    total: Tensor
    parts: Mapping[str, Tensor | float] = field(default_factory=dict)
    step: bool = True  # False: no step and no metric yet, its gradient is added to that of the next loss


@dataclass(frozen=True)
class StepContext:
    """Where in its stage an update happens, and its source of randomness."""

    epoch: int  # 0-based, within the stage
    step: int  # 0-based, within the pass
    progress: float  # of the stage, in [0, 1)
    generator: torch.Generator  # of all randomness of an update; seeded by (seed, stage, epoch, pass, repeat)
    precision: Literal["32-true", "bf16-mixed"]  # of the training, and so of the attacks inside it


#: Yields the name of an optimiser and the loss that it steps on.
Updates = Generator[tuple[str, Loss], None, None]
Probe = Callable[[nn.Module, Batch], float | Mapping[str, float]]


@dataclass(frozen=True)
class OptimizerSpec:
    """The parameters, settings and learning-rate schedule of an optimiser; `build` makes it."""

    params: Iterable[nn.Parameter]
    lr: float
    kind: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9  # SGD
    betas: tuple[float, float] = (0.9, 0.999)  # Adam
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=constant)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(self.params))  # an iterator would serve only the first build

    def build(self) -> torch.optim.Optimizer:
        """A new torch optimiser over the parameters that take gradients."""
        params = [p for p in self.params if p.requires_grad]
        rest: Any = {"weight_decay": self.weight_decay, "fused": all(p.is_cuda for p in params) or None}
        if self.kind == "adam":
            return torch.optim.Adam(params, self.lr, self.betas, **rest)
        return torch.optim.SGD(params, self.lr, self.momentum, **rest)


@dataclass(frozen=True)
class Pass:
    """One way of going through the training data once."""

    # The heart of a method: for each batch yields (optimiser name, Loss) one or more times; between two yields the loop
    # differentiates the loss and steps that optimiser.
    updates: Callable[[Batch, StepContext], Updates]
    name: str = "train"  # shown in the metrics
    repeats: int = 1  # passes over the data in each epoch
    reset_optimizers: tuple[str, ...] = ()  # names of optimisers that start anew with the pass
    augment: str = "weak"  # the view that `batch.x` shows: "weak", "flip", "simclr", "simclr-weak" or "none"
    begin: Callable[[], None] | None = None  # called in each epoch before the pass, before its optimisers are reset
    probes: Mapping[str, Probe] = field(default_factory=dict)  # as a stage's, but right before each pass, after `begin`


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own optimisers and epochs.

    The best epoch is, of those that are validated, that of the highest clean validation accuracy; of an adversarial stage, whose
    overfitting is monitored, that of the highest robust one. A probe maps the deployed model and a fixed validation batch of at most 256 images to a
    number, "probe/<name>" in the metrics, or to several by names of their own, then "probe/<own name>".
    """

    name: str  # shown in the metrics; part of every random seed
    epochs: int  # in each, all `passes` in their order; a stage without passes is its `begin` and one epoch that is measured
    optimisers: Mapping[str, OptimizerSpec]  # by the names that updates yield
    passes: tuple[Pass, ...]
    adversarial: bool = False  # whether it trains on attacks
    monitored: bool = True  # False, no warnings, where a later stage replaces the head of the model that is validated
    keep: Literal["best", "last"] = "best"  # the epoch whose weights are the run's; "last" where a paper selects none
    ema: float = 0.0  # decay of the averaged weights and statistics that are validated and kept; 0 for none
    # Called when the stage starts and not when it resumes, e.g. to copy a teacher.
    begin: Callable[[], None] | None = None
    # Called with the model and the fixed validation batch after the last epoch; what it raises fails the training.
    end: Callable[[nn.Module, Batch], None] | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)  # trained or copied beside the model; checkpointed
    probes: Mapping[str, Probe] = field(default_factory=dict)  # before the first and after every epoch
    dataset: Dataset | None = None  # whose training and validation images the stage sees; None for the run's


class Trainable(Protocol):
    """What `fit` needs of a method; see `robustlib.methods.Method`."""

    name: ClassVar[str]
    title: ClassVar[str]
    protocol: ClassVar[str]

    @property
    def code(self) -> UserCode | None: ...
    @property
    def attack_passes(self) -> int: ...
    @property
    def arch(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def train_examples(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def preset(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def numerics(self) -> tuple[str, ...]: ...
    def hyperparameters(self) -> dict[str, Any]: ...
    def model_options(self) -> dict[str, Any]: ...
    def changes(self, arch: str) -> dict[str, Any]: ...
    def advice(self, arch: str) -> list[str]: ...
    def threat(self, dataset: Dataset) -> Threat: ...
    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]: ...
    def command(self, dataset: str, arch: str, seed: int, precision: str) -> str: ...
