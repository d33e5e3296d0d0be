"""What an attack can use: images in [0, 1], labels that the model can predict, outputs that are logits.

How an attack looks at a model: modes and gradients borrowed and given back, inputs checked, gradients at speed.

The examples under attack, and what is climbed on them.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from robustlib.attacks.eot import EOTBatcher, repeated
from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.attacks.objectives import OBJECTIVES, is_adversarial, kl_from
from robustlib.errors import InputError
from robustlib.rng import ExampleRNG


def check_inputs(x: Tensor, y: Tensor) -> None:
    """Raises InputError for images outside [0, 1] or NaN, and for labels that are no class numbers of this batch."""
    if not x.is_floating_point() or x.ndim < 2:
        raise InputError(f"An attack needs float images (B, C, H, W), got {x.dtype} {tuple(x.shape)}.")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"An attack needs labels int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}.")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):  # False for NaN too
        low, high = float(x.min()), float(x.max())
        raise InputError(
            f"Images must lie in [0, 1], got values from {low:g} to {high:g}: divide grey levels by 255 and leave "
            "normalisation to the model."
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Raises InputError for fewer than 2 classes, and for labels that a model of that many classes cannot predict."""
    if classes < 2:
        raise InputError(f"The model gives {classes} logit(s): robustness is about telling at least 2 classes apart.")
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        raise InputError(
            f"Labels from {int(y.min())} to {int(y.max())} do not fit a model of {classes} classes "
            f"(0 to {classes - 1})."
        )


def check_logits(logits: Tensor) -> None:
    """Warns where outputs look like softmax probabilities."""
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        message = "The model's outputs look like softmax probabilities; attacks need logits and are weak without them."
        warnings.warn(message, UserWarning, stacklevel=3)


Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS = ("32-true", "bf16-mixed")
PIECE = 100_000  # float32 pixels a CPU looks at in one go (32 of CIFAR-10): their activations stay in its cache
# logits of some rows of the batch, and which rows (their numbers where they repeat) -> what to climb, (rows,)
Goal = Callable[[Tensor, slice | Tensor], Tensor]


class Attack(Protocol):
    """Finds x_adv for a batch: x (B, C, H, W) in [0, 1], y (B,); x_adv has x's shape, dtype and device."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        rng: ExampleRNG | None = None,
    ) -> Tensor: ...


@contextmanager
def frozen_eval(model: nn.Module, batchnorm: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """Lends the model to an attack: no weight gradients, eval mode, and everything afterwards as it was found.

    With `batchnorm="train"` every module keeps its mode and the statistics that the attack's forward passes move are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    kept = [(b, b.clone()) for b in model.buffers()] if batchnorm == "train" else []
    try:
        for p in wanted:
            p.requires_grad_(False)
        if batchnorm == "eval":
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p in wanted:
            p.requires_grad_(True)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class SurrogateModel(nn.Module):
    """A surrogate to search on, beside the deployed model that decides what is a success.

    Args:
        surrogate: x -> logits (B, K), differentiable.
        target: the model whose prediction counts.
    """

    def __init__(self, surrogate: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.surrogate, self.target = surrogate, target
        self.stochastic = any(bool(getattr(model, "stochastic", False)) for model in (surrogate, target))

    def forward(self, x: Tensor) -> Tensor:
        """The surrogate's logits (B, K)."""
        return self.surrogate(x)


def validation_view(model: nn.Module) -> nn.Module:
    """What a quick attack on `model` is called with: a SurrogateModel of its `attack_view()`, judged by the model, where the two differ.

    Args:
        model: x -> logits (B, K); any module, without the method it is its own view. Keep what you get: attacks keep a faster
            twin of each view as long as it lives.
    """
    view: nn.Module = getattr(model, "attack_view", lambda: model)()
    return model if view is model else SurrogateModel(view, model)


@dataclass(frozen=True)
class GradientOracle:
    """A borrowed model in the two views an attack needs: a fast one to search with, the exact one to decide with."""

    model: nn.Module
    fast: nn.Module
    precision: Precision
    classes: int
    stochastic: bool = False
    piece: int = 0  # images in one go; 0 for all
    batcher: EOTBatcher = field(default_factory=EOTBatcher)
    viewed: bool = (
        False  # on a SurrogateModel: whatever class a search aims at, any wrong answer of the judge is a success
    )

    def target_logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """Logits (draws, B, K) of the model that decides, in float32 (float64 of a model in it), without gradients."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._each(self.model, x, draws)

    def logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """The mean of the verdicts over `draws`, (B, K)."""
        return _mean(self.target_logits(x, draws))

    def fast_logits(self, x: Tensor, draws: int = 1) -> Tensor:
        """Logits (B, K) of the fast view, without gradients: good enough to steer by; their mean over `draws`."""
        with torch.no_grad(), self._autocast(x):
            return _mean(self._each(self.fast, x, draws))

    def gradient(self, x: Tensor, goal: Goal, samples: int = 1) -> tuple[Tensor, Tensor]:
        """The direction in which goal(logits, rows) rises at x, and the logits (B, K) there (means over `samples` draws).

        Each example's gradient is divided by the largest derivative of the goal by a logit (over all its samples; 1 for
        differences of logits): attacks step by sign or direction, and a confident example's would vanish.
        """
        parts = [self._gradient(x[rows], rows, goal, samples) for rows in self._rows(x)]
        gradient, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return gradient.nan_to_num(0.0, 0.0, 0.0), logits  # an infinite step would leave the ball as NaN

    def success_mask(self, x_adv: Tensor, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """(B,) bool: where the fast view's `logits` claim a success that the deciding model confirms.

        Never for a stochastic model: one lucky draw is no success.
        """
        target = None if self.viewed else target
        gone = is_adversarial(logits, y, target) & (not self.stochastic)
        exact = self.fast is self.model and self.precision == "32-true"
        if not exact and bool(gone.any()):
            verdict = self.logits(x_adv[gone])
            gone[gone.clone()] = is_adversarial(verdict, y[gone], None if target is None else target[gone])
        return gone

    def _gradient(self, x: Tensor, rows: slice, goal: Goal, samples: int) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        gradient, mean = torch.zeros_like(x), torch.zeros(())
        scale = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        looks = self.batcher.chunks(self.fast, len(x), samples, lambda n: self._look(x, rows, goal, n))
        for logits, largest, part in looks:
            before, scale = scale, torch.maximum(scale, largest)
            gradient *= _as_factor(_ratio(before, scale), x)
            gradient += part * _as_factor(_ratio(largest, scale), x) / samples
            mean = mean + logits.sum(0) / samples
        return gradient, mean

    def _look(self, x: Tensor, rows: slice, goal: Goal, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, B, K) of n draws, the largest derivative of the goal by one of them (B, 1), and the gradient over it."""
        with torch.enable_grad(), self._autocast(x):
            logits = self.fast(repeated(x, n))
        which = rows if n == 1 else torch.arange(rows.start, rows.start + len(x), device=x.device).repeat(n)
        upstream = _upstream(logits, lambda exact: goal(exact, which))
        largest = upstream.view(n, len(x), -1).abs().amax((0, 2))[:, None]
        part = torch.zeros_like(x)
        if logits.requires_grad:  # not so where the model cuts its graph; the audit says what that is worth
            upstream = _ratio(upstream, largest.repeat(n, 1)).to(logits.dtype)
            (part,) = torch.autograd.grad(logits, x, upstream, materialize_grads=True)
        return _exact(logits.detach()).view(n, len(x), -1), largest, part

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def _rows(self, x: Tensor) -> list[slice]:
        piece = self.piece or len(x)
        return [slice(start, start + piece) for start in range(0, len(x), piece)] or [slice(0, 0)]

    def _each(self, model: nn.Module, x: Tensor, draws: int) -> Tensor:
        """(draws, B, K)."""
        return torch.cat([self._draws_of(model, x[rows], draws) for rows in self._rows(x)], 1)

    def _draws_of(self, model: nn.Module, x: Tensor, draws: int) -> Tensor:
        looks = self.batcher.chunks(model, len(x), draws, lambda n: _exact(model(repeated(x, n))).view(n, len(x), -1))
        return torch.cat(list(looks))


def _exact(logits: Tensor) -> Tensor:
    """In float32, or in float64 where the model computes in it: rounding would decide which of two near values is larger."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean(each: Tensor) -> Tensor:
    """Over the draws, which come first."""
    return each.mean(0) if len(each) > 1 else each[0]


def _as_factor(values: Tensor, x: Tensor) -> Tensor:
    """(B, 1), shaped and typed to multiply images."""
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0 or no number."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))


def _upstream(logits: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """d objective / d logits (B, K) in float64.

    In float32 the cross-entropy of a confident example has a gradient of exactly zero, or one that vanishes on its way back
    through the network, and an attack that stands still would look like robustness.
    """
    exact = logits.detach().double().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(exact).sum(), exact)
    return gradient


@contextmanager
def attack_context(
    model: nn.Module,
    x: Tensor,
    labels: Sequence[Tensor],
    precision: Precision = "32-true",
    batchnorm: Literal["eval", "train"] = "eval",
) -> Iterator[GradientOracle]:
    """Lends the model for a search from the batch `x`; in eval mode with BatchNorm folded where that changes nothing.

    Args:
        model: x -> logits, or a SurrogateModel.
        x: images (B, C, H, W) in [0, 1], at least one.
        labels: the (B,) class numbers that the attack will use.

    Raises:
        InputError: the model tells fewer than 2 classes apart, or a label is none of them.
    """
    view, target = (model.surrogate, model.target) if isinstance(model, SurrogateModel) else (model, model)
    piece = PIECE * (2 if precision == "bf16-mixed" else 1) // x[0].numel()
    whole = x.device.type != "cpu" or batchnorm == "train"  # there, examples see each other
    with frozen_eval(model, batchnorm), torch.autocast(x.device.type, enabled=False):
        fast = fold_batchnorm(view, x, precision) if batchnorm == "eval" else None
        stochastic = bool(getattr(model, "stochastic", False))
        with torch.no_grad():
            first = view(x[:1]).float()
        check_logits(first)
        for y in labels:
            check_labels(y, first.shape[1])
        piece = 0 if whole else max(8, piece)
        batcher = EOTBatcher(piece or sys.maxsize, repeats=batchnorm == "eval")
        yield GradientOracle(
            target,
            view if fast is None else fast,
            precision,
            first.shape[1],
            stochastic,
            piece,
            batcher,
            view is not target,
        )


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

    def objective(self, name: str) -> Goal:
        """The objective of that name on these examples: logits (B, K) of some rows, and which -> (rows,)."""

        def climb(logits: Tensor, rows: slice | Tensor) -> Tensor:
            mine = self[rows]
            return (OBJECTIVES[name] or kl_from(mine.reference))(logits, mine.y, mine.target)

        return climb
