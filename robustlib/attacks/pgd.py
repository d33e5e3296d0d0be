"""Projected gradient descent, the one loop behind PGD, FGSM, the C&W margin attack, TRADES' inner attack and EOT."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from robustlib.attacks import recording
from robustlib.attacks.base import (
    AttackBatch,
    GradientOracle,
    Precision,
    attack_context,
    frozen_eval,
    missed_by_bf16,
    others,
)
from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.attacks.inputs import check_inputs, images_like, owned, search
from robustlib.attacks.objectives import is_adversarial
from robustlib.attacks.passes import add_passes
from robustlib.attacks.recording import is_compiled, replayed
from robustlib.errors import Count, InputError, Length, check_fields
from robustlib.rng import ExampleRNG, uniform_point
from robustlib.threat import Threat

GAUSSIAN_SCALE = 0.001  # TRADES and MART start from x + 0.001 N(0, I)
StepSize = Annotated[Length, "or None for eps / 4"] | None


class GradientSteps:
    """Attacks of `steps` gradient steps, each `step_size` long in the threat's norm; None = eps / 4 (2/255 at 8/255)."""

    threat: Threat
    step_size: StepSize

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def length(self) -> float:
        """The step length used."""
        return self.threat.eps / 4 if self.step_size is None else self.step_size

    def _step(self, x_adv: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """x_{k+1} = Projection(x_k + length * steepest(gradient))."""
        return self.threat.project(x_adv + self.threat.steepest_step(gradient, self.length), x)


@dataclass(frozen=True)
class PGD(GradientSteps):
    """x_0 = start; x_{k+1} = Projection(x_k + step_size * steepest(gradient of the objective)) (Madry et al. 2018, eq. 3)."""

    threat: Threat
    steps: Count = 10  # gradient steps of each restart
    step_size: StepSize = None  # length of a step in the threat's norm; None = eps / 4 (2/255 at 8/255)
    # nll: of outputs that are sums of log-probabilities; margin: C&W; kl: from the clean prediction, needs no label
    objective: Literal["ce", "nll", "margin", "probability_margin", "dlr", "kl"] = "ce"
    targeted: bool = False  # move towards the class given as `target` instead of away from the label
    # a random point of the ball, x + 0.001 N(0, I) clipped to [0, 1] (TRADES' release clips after the first step), or x itself
    start: Literal["uniform", "gaussian", "zero"] = "uniform"
    restarts: Count = 1  # starts; each example keeps its strongest: a success first, then the larger objective
    eot: Count = 1  # gradient samples averaged at each step; more than one only helps against a stochastic model
    early_stop: bool = False  # an example leaves at its first success, which is stronger than taking the last iterate
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32
    batchnorm: Literal["eval", "train"] = "eval"  # "train": modes as they are, statistics restored afterwards

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targeted and self.objective == "kl":
            raise InputError("The kl objective knows no target: use 'ce', 'margin' or 'dlr' for a targeted PGD.")

    @search
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        rng: ExampleRNG | None = None,
        target: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """x_adv (B, C, H, W) inside the ball around `x` and inside [0, 1]; see `Attack`.

        `target` (B,): classes that a targeted attack shall reach; `start` (B, C, H, W): first iterate, once projected.
        """
        x, y = check_inputs(x, y)
        if self.targeted != (target is not None):
            raise InputError("Give `target` classes to a targeted PGD, and none to an untargeted one.")
        if target is not None:
            _, target = check_inputs(x, target)
        if not len(x):
            return x.clone()
        if start is not None:
            start = self.threat.project(images_like(x, start, "start", finite=True), x)
        rng = rng or ExampleRNG.from_generator(generator, len(x), x.device)
        labels, trains = (y,) if target is None else (y, target), getattr(model, "training", False)
        with attack_context(model, x, labels, self.precision, self.batchnorm) as oracle:
            reference = oracle.fast_logits(x) if self.objective == "kl" else None
            batch = AttackBatch(x, y, target, reference)
            first, steps = self._first(model, x, y, rng.fold_in(0)) if start is None else (start, self.steps)
            # Folded weights keep their addresses; evaluations are not worth a graph.
            folded = x.device.type in recording.DEVICES and trains and oracle.fast is not model
            recorded = folded and not self.early_stop and target is None and is_compiled(oracle.fast)
            best = (self._replayed if recorded else self._ascend)(oracle, batch, first, steps)
            score = self._score(oracle, batch, best) if self.restarts > 1 else torch.empty(0)
            for restart in range(1, self.restarts):  # a success stays what it is
                at = ((score < torch.inf) | (self.batchnorm == "train")).nonzero()[:, 0]
                if not len(at):
                    break
                again = self._ascend(oracle, batch[at], *self._first(model, x[at], y[at], rng[at].fold_in(restart)))
                value = self._score(oracle, batch[at], again)
                better = value > score[at]
                best[at[better]], score[at[better]] = again[better], value[better]
            if self.early_stop and self.precision == "bf16-mixed" and not oracle.stochastic:
                exact, at = replace(self, precision="32-true"), missed_by_bf16(oracle, best, y).nonzero()[:, 0]
                rest: Any = {"target": target, "start": start}
                rest = {name: given[at] for name, given in rest.items() if given is not None}
                best[at] = exact(model, x[at], y[at], rng=rng[at], **rest)
        return best

    def _first(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRNG) -> tuple[Tensor, int]:
        """The first iterate, and how many steps are left from there. In bf16 x + 0.001 N(0, I) rounds to x, and so do its logits: the
        gradient of the KL divergence, their difference, would be rounding error. So that step is taken in float32."""
        start = self._start(x, rng)
        if self.objective != "kl" or self.precision == "32-true" or self.start == "uniform":
            return start, self.steps
        exact = replace(self, steps=1, restarts=1, precision="32-true")
        return exact(model, x, y, rng=rng, start=start), self.steps - 1

    def _start(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        if self.start == "zero":
            return x
        if self.start == "gaussian":
            return self.threat.project(x + GAUSSIAN_SCALE * rng.normal(*x.shape[1:]).to(x.dtype), x)
        return uniform_point(self.threat, x, rng).to(x.dtype)

    def _replayed(self, oracle: GradientOracle, batch: AttackBatch, start: Tensor, steps: int) -> Tensor:
        """As `_ascend`, all its steps as one CUDA graph."""

        def run(start: Tensor, x: Tensor, y: Tensor, reference: Tensor | None = None) -> Tensor:
            return self._ascend(oracle, AttackBatch(x, y, None, reference), start, steps)

        rest = () if batch.reference is None else (batch.reference,)
        return replayed(oracle.fast, (self, steps), run, start, batch.x, batch.y, *rest)

    def _ascend(self, oracle: GradientOracle, batch: AttackBatch, start: Tensor, steps: int) -> Tensor:
        """One restart: the iterate after the last step or, with early_stop, the first adversarial one."""
        x_adv, active, now = start.clone(), torch.arange(len(start), device=start.device), start
        for _ in range(steps):
            gradient, logits = oracle.gradient(now, batch.objective(self.objective), self.eot)
            if self.early_stop:
                success = oracle.successes(now, logits, batch.y, batch.target)
                if len(success):
                    x_adv[active[success]] = now[success]
                    stay = others(success, len(active))
                    active, now, gradient, batch = active[stay], now[stay], gradient[stay], batch[stay]
                if not len(active):
                    return x_adv
            now = self._step(now, gradient, batch.x)
        x_adv[active] = now
        return x_adv

    def _score(self, oracle: GradientOracle, batch: AttackBatch, x_adv: Tensor) -> Tensor:
        """(B,): the objective in float32, infinite where the model, if deterministic, is fooled."""
        logits = oracle.logits(x_adv, self.eot)
        success = is_adversarial(logits, batch.y, batch.target) & (not oracle.stochastic)
        return torch.where(success, torch.inf, batch.value(self.objective, logits))


def FGSM(threat: Threat, **settings: Any) -> PGD:
    """The fast gradient sign method: one step of length eps from x itself (Goodfellow et al. 2015)."""
    return PGD(threat, **{"steps": 1, "step_size": getattr(threat, "eps", 0) or None, "start": "zero", **settings})


def PGDEOT(threat: Threat, steps: int = 200, eot: int = 20, **settings: Any) -> PGD:
    """PGD with expectation over transformation at the full strength of Lee and Kim (2023), who find it stronger than AutoAttack
    against purification. From the image itself, as in their code; steps are 0.007 at 8/255 there, eps / 4 here."""
    return PGD(threat, **{"steps": steps, "eot": eot, "start": "zero", **settings})


@dataclass(frozen=True)
class BatchPGD(GradientSteps):
    """PGD from a random point of the ball on a loss of a whole batch, in which examples see each other, as in contrastive ones."""

    threat: Threat
    steps: Count = 5
    step_size: StepSize = None

    @search
    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        loss: Callable[[Any, Tensor], Tensor],
        *,
        generator: torch.Generator | None = None,
        precision: Precision = "32-true",
    ) -> Tensor:
        """x_adv (B, C, H, W) in the ball around `x` and in [0, 1]. `loss`, to be maximised, is a scalar of the model in eval mode,
        or of a folded copy, and images (B, C, H, W); `generator` gives the start, `precision` is that of the passes."""
        x = owned(x)
        x_adv = uniform_point(self.threat, x, ExampleRNG.from_generator(generator, len(x), x.device))
        with frozen_eval(model), torch.autocast(x.device.type, torch.bfloat16, enabled=False):
            fast = fold_batchnorm(model, x, precision) or model
            for _ in range(self.steps):
                x_adv = x_adv.detach().requires_grad_(True)
                cast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
                with torch.enable_grad(), cast:
                    (gradient,) = torch.autograd.grad(loss(fast, x_adv.clone()), x_adv)  # a model may change it
                add_passes(len(x), backward=True)
                x_adv = self._step(x_adv, gradient, x)
        return x_adv.detach()
