"""How an attack sees a model: frozen and given back as found, gradients of an objective at speed."""

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn import Module

from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.attacks.inputs import check_inputs, check_labels, check_model, search
from robustlib.attacks.memory import MemoryGuard
from robustlib.attacks.objectives import OBJECTIVES, is_adversarial, kl, margin_of
from robustlib.attacks.passes import add_passes
from robustlib.attacks.recording import is_compiled
from robustlib.errors import check_fields
from robustlib.models.classifier import check_logits, full_float32, logits_of
from robustlib.rng import ExampleRNG
from robustlib.threat import exact, widest

Precision = Literal["32-true", "bf16-mixed"]
Modes = Literal["eval", "train"]
NEAR = 2**-6  # margin, of the largest logit, that bf16 may hide: its sums are exact to 2**-8 or so
PIECE = 100_000  # float32 pixels of one forward pass on a CPU (32 CIFAR-10 images): activations stay in its cache
# logits of some rows of a batch, and which (their numbers where rows repeat) -> the objective (rows,), to be maximised
RowObjective = Callable[[Tensor, slice | Tensor], Tensor]


@runtime_checkable
class Attack(Protocol):
    """Finds x_adv for a batch: x (B, C, H, W) in [0, 1], y (B,); x_adv has x's shape, dtype and device.

    `rng` gives each example its own stream of random numbers; without it, seeds come from `generator`.
    """

    def __call__(
        self, model: Module, x: Tensor, y: Tensor, *, generator: Generator | None = None, rng: ExampleRNG | None = None
    ) -> Tensor: ...


@contextmanager
def frozen_eval(model: Module, batchnorm: Modes = "eval") -> Iterator[None]:
    """The model without weight gradients, in eval mode or (batchnorm="train") as it is, and outside of inference mode; afterwards
    all is as it was."""
    check_model(model)
    gradients = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
    # A frozen TorchScript module has no mode.
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    trainable = [p for p in model.parameters() if p.requires_grad]
    saved = [(b, b.clone()) for b in model.buffers()] if batchnorm == "train" else []
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        try:
            for p in trainable:
                p.requires_grad_(False)
            if batchnorm == "eval":
                model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for p in trainable:
                p.requires_grad_(True)
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)


class SurrogateModel(Module):
    """A differentiable `surrogate` x -> logits (B, K) to search on, and the `deployed` model, which decides what is a success."""

    def __init__(self, surrogate: Module, deployed: Module) -> None:
        super().__init__()
        self.surrogate, self.deployed = surrogate, deployed
        self.stochastic = any(bool(getattr(model, "stochastic", False)) for model in (surrogate, deployed))

    def forward(self, x: Tensor) -> Tensor:
        """The surrogate's logits (B, K)."""
        return self.surrogate(x)


def validation_view(model: Module) -> Module:
    """What a quick attack is called with: the model, or a SurrogateModel where its `attack_view()` is another module. Keep it:
    attacks keep a folded copy of each view as long as it lives."""
    view: Module = getattr(model, "attack_view", lambda: model)()
    return model if view is model else SurrogateModel(view, model)


@dataclass
class GradientOracle:
    """A frozen model as an attack sees it; draws of a randomised one are taken in one batch, as memory allows."""

    source: Module  # as the attack got it, perhaps a SurrogateModel
    deployed: Module  # decides what is a success
    fast: Module  # to search with
    precision: Precision
    classes: int
    stochastic: bool
    piece: int  # images of one forward pass; 0 for all
    size: int  # the same with repetitions counted; it shrinks when memory runs out
    repeats: bool  # whether images may be repeated; not where examples see each other, as in BatchNorm's train mode
    shrunk: bool = False

    def deployed_logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """Logits (draws, B, K) of the model that decides, in float32 (float64 of a model in it), without gradients."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_float32():
            return self._draws(self.deployed, x, draws)

    def logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """The mean (B, K) of `deployed_logits`."""
        return self.deployed_logits(x, draws).mean(0)

    def fast_logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """Mean logits (B, K) of the fast model, without gradients: good enough to steer by."""
        with torch.no_grad(), self._autocast(x):
            return self._draws(self.fast, x, draws).mean(0)

    def gradient(self, x: Tensor, objective: RowObjective, samples: int = 1) -> tuple[Tensor, Tensor]:
        """The direction in which the objective rises at x, and the logits (B, K) there (means over `samples` draws).

        Each example's gradient is divided by the largest derivative of the objective by a logit (over all its samples; 1 for
        differences of logits): attacks step by sign or direction, and a confident example's would vanish.
        """
        gradients, means = [], []
        for rows in self._pieces(x):
            part = x[rows].detach().requires_grad_(True)
            if (
                samples == 1
            ):  # the same as for several, at once: of small images the rest would take a twentieth of a step
                (mean,), _, gradient = self._sample(part, rows, objective, 1)
            else:
                gradient, mean = self._mean_gradient(part, rows, objective, samples)
            gradients.append(gradient)
            means.append(mean)
        return torch.cat(gradients).nan_to_num(0.0, 0.0, 0.0), torch.cat(means)  # an infinite step would leave the ball

    def _mean_gradient(self, x: Tensor, rows: slice, objective: RowObjective, samples: int) -> tuple[Tensor, Tensor]:
        gradient, mean = torch.zeros_like(x), torch.zeros(())
        scale = exact(x.new_zeros(len(x), 1))
        for n, guard in self._chunks(self.fast, len(x), samples):
            with guard:
                logits, largest, slope = self._sample(x, rows, objective, n)
            if not guard.failed:
                before, scale = scale, torch.maximum(scale, largest)
                ratios = (_ratio(old, scale).to(x) for old in (before, largest))
                keep, new = (ratio.view(-1, *[1] * (x.ndim - 1)) for ratio in ratios)
                gradient = gradient * keep + slope * new / samples
                mean = mean + logits.sum(0) / samples
        return gradient, mean

    def _sample(self, x: Tensor, rows: slice, objective: RowObjective, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, B, K) of n draws, the largest derivative of the objective by one of them (B, 1), and the gradient over it.

        The derivative by the logits is taken in float64: in float32 the cross-entropy of a confident example has a gradient of
        exactly zero, and an attack that stands still would look like robustness. Not `torch.func.vjp`: it refuses models that
        move buffers or have autograd functions of their own.
        """
        with torch.enable_grad(), self._autocast(x):
            copies = _repeated(x, n)  # which a model may change in place
            logits = check_logits(self.fast(copies), len(copies))
        which = rows if n == 1 else torch.arange(rows.start, rows.start + len(x), device=x.device).repeat(n)
        at = exact(logits.detach()).requires_grad_(True)
        with torch.enable_grad():
            (upstream,) = torch.autograd.grad(objective(at, which).sum(), at)
        largest = upstream.view(n, len(x), -1).abs().amax((0, 2))[:, None]
        slope = torch.zeros_like(x)
        if logits.requires_grad:  # not so where the model cuts its graph; the audit says what that is worth
            upstream = _ratio(upstream, largest.repeat(n, 1)).to(logits)
            (slope,) = torch.autograd.grad(logits, x, upstream, materialize_grads=True)
        add_passes(len(logits), backward=logits.requires_grad)
        return _exact(logits.detach()).view(n, len(x), -1), largest, slope

    def successes(self, x_adv: Tensor, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """Which rows, int64 (S,), the fast model's `logits` claim a success for that the deciding model confirms.

        None of a stochastic model: success by chance in one draw proves nothing. Where nobody has success a GPU is waited for once.
        """
        if self.source is not self.deployed:  # whatever class the surrogate shall reach, any wrong answer is a success
            target = None
        rows = torch.empty(0, dtype=torch.int64, device=y.device)
        if not self.stochastic:
            rows = is_adversarial(logits, y, target).nonzero()[:, 0]
        final = self.fast is self.deployed and self.precision == "32-true"
        if final or not len(rows):
            return rows
        return rows[is_adversarial(self.logits(x_adv[rows]), y[rows], None if target is None else target[rows])]

    def _autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(x.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def _pieces(self, x: Tensor) -> list[slice]:
        piece = self.piece or len(x)
        return [slice(start, start + piece) for start in range(0, len(x), piece)] or [slice(0, 0)]

    def _chunks(self, model: Module, images: int, draws: int) -> Iterator[tuple[int, MemoryGuard]]:
        """(n, guard), evenly, until `draws` draws of so many images have fitted: take n of each within the guard."""
        # else one draw at a time: in a repeated batch all could be the same
        together = self.repeats and bool(getattr(model, "draws_by_example", False))
        while draws > 0:
            most = max(1, self.size // images) if together else 1
            n = math.ceil(draws / math.ceil(draws / most))
            guard = MemoryGuard(divisible=n > 1)
            yield n, guard
            if not guard.failed:
                draws -= n
                continue
            self.size = images * ((n + 1) // 2)
            if not self.shrunk:
                message = f"Out of memory with {n} draws of {images} images in one batch: going on with fewer."
                warnings.warn(message, stacklevel=5)
            self.shrunk = True

    def _draws(self, model: Module, x: Tensor, draws: int) -> Tensor:
        """(draws, B, K)."""
        pieces: list[Tensor] = []
        for part in (x[rows] for rows in self._pieces(x)):
            logits: list[Tensor] = []
            for n, guard in self._chunks(model, len(part), draws):
                with guard:
                    logits.append(_exact(check_logits(model(_repeated(part, n)), n * len(part))).view(n, len(part), -1))
                    add_passes(n * len(part))
            pieces.append(torch.cat(logits))
        return torch.cat(pieces, 1)


def others(rows: Tensor, count: int) -> Tensor:
    """Which of `count` rows are not among `rows` (int64), in order."""
    return torch.ones(count, dtype=torch.bool, device=rows.device).index_fill(0, rows, False).nonzero()[:, 0]


def _repeated(x: Tensor, n: int) -> Tensor:
    """(n B, ...): copies of all images, then of all images again."""
    return x.repeat(n, *[1] * (x.ndim - 1))


def _exact(logits: Tensor) -> Tensor:
    """In float32, or in float64 where the model computes in it: rounding would decide which of two near values is larger."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0 or no number."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))


@contextmanager
def attack_context(
    model: Module, x: Tensor, labels: Sequence[Tensor], precision: Precision = "32-true", batchnorm: Modes = "eval"
) -> Iterator[GradientOracle]:
    """A frozen model for a search from the images `x`, at least one; in eval mode with BatchNorm folded where possible.

    Raises InputError for fewer than 2 classes, and for `labels` (B,) that are none of the model's.
    """
    surrogate, deployed = (model.surrogate, model.deployed) if isinstance(model, SurrogateModel) else (model, model)
    with frozen_eval(model, batchnorm), torch.autocast(x.device.type, enabled=False):
        plain = torch.compiler.set_stance("force_eager") if is_compiled(surrogate) else nullcontext()
        with torch.no_grad(), plain:  # one image is a shape of its own
            first = logits_of(surrogate, x[:1]).float()
        fast = (fold_batchnorm(surrogate, x, precision) if batchnorm == "eval" else None) or surrogate
        if bool((first >= 0).all()) and bool(((first.sum(1) - 1).abs() < 1e-3).all()):
            message = "The model's outputs look like softmax probabilities; attacks need logits and are weak without."
            warnings.warn(message, stacklevel=4)
        for y in labels:
            check_labels(y, first.shape[1])
        whole = x.device.type != "cpu" or batchnorm == "train"  # there, examples see each other
        piece = 0 if whole else max(8, PIECE * (2 if precision == "bf16-mixed" else 1) // x[0].numel())
        stochastic, repeats = bool(getattr(model, "stochastic", False)), batchnorm == "eval"
        size = piece or sys.maxsize
        yield GradientOracle(model, deployed, fast, precision, first.shape[1], stochastic, piece, size, repeats)


def missed_by_bf16(oracle: GradientOracle, x_adv: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: where the margin of the deployed model at x_adv is so near a success that rounding may have hidden it from a search."""
    if not len(y):
        return y.bool()
    logits = oracle.logits(x_adv)
    margins = margin_of(logits, y)
    return (margins >= 0) & (margins < NEAR * logits.abs().amax(1))


@dataclass(frozen=True)
class AttackBatch:
    """Images x (B, C, H, W) with labels y (B,) and, for targeted attacks, the classes to reach (B,); indexing keeps some."""

    x: Tensor
    y: Tensor
    target: Tensor | None = None
    reference: Tensor | None = None  # logits at x, for the kl objective

    def __getitem__(self, keep: Tensor | slice) -> "AttackBatch":
        parts = (self.x, self.y, self.target, self.reference)
        return AttackBatch(*(None if part is None else part[keep] for part in parts))  # type: ignore[arg-type]

    def beside(self, logits: Tensor) -> "AttackBatch":
        """Itself, or without images on the device of the logits, which may have been taken to the CPU."""
        if logits.device == self.y.device:
            return self
        y, target, reference = (
            None if t is None else t.to(logits.device) for t in (self.y, self.target, self.reference)
        )
        return AttackBatch(self.x, y, target, reference)  # type: ignore[arg-type]

    def objective(self, name: str) -> RowObjective:
        """The objective of that name on these examples."""

        def value(logits: Tensor, rows: slice | Tensor) -> Tensor:
            part = self[rows].beside(logits)
            if part.reference is not None:
                return kl(logits, exact(part.reference))
            return OBJECTIVES[name](logits, part.y, part.target)

        return value

    def value(self, name: str, logits: Tensor) -> Tensor:
        """That objective (B,) of all `logits` (B, K), in the widest floats of their device; what is no number never counts as
        progress."""
        values = self.objective(name)(exact(logits), slice(None)).nan_to_num(-torch.inf)
        return values.to(logits.device, widest(logits.device))


class BaseAttack:
    """An attack that needs nothing but the batch: checks, random numbers and the frozen model for `_attack`."""

    precision: Precision

    def __post_init__(self) -> None:
        check_fields(self)

    @search
    def __call__(
        self, model: Module, x: Tensor, y: Tensor, *, generator: Generator | None = None, rng: ExampleRNG | None = None
    ) -> Tensor:
        """x_adv (B, C, H, W) in [0, 1] and, where there is a threat, in its ball around `x`; see `Attack`."""
        x, y = check_inputs(x, y)
        if not len(x):
            return x.clone()
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        with attack_context(model, x, (y,), self.precision) as oracle:
            return self._attack(oracle, AttackBatch(x, y), rng)

    def _attack(self, oracle: GradientOracle, batch: AttackBatch, rng: ExampleRNG) -> Tensor:
        raise NotImplementedError
