"""Models as the audit sees them, and the attacks that its checks share: each is made once, when a check first asks for it."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks import APGD, FGSM, PGD, Attack, Square, in_precision
from robustlib.attacks.base import Precision, SurrogateModel
from robustlib.attacks.memory import halving
from robustlib.attacks.objectives import margin_of
from robustlib.data import Split
from robustlib.evaluation import adapt, valid
from robustlib.models.classifier import logits_of
from robustlib.rng import ExampleRNG, forked, uniform_point
from robustlib.threat import Threat, widest

HEAD = "head(features(x))"  # the surrogate of a model that deploys something else than its head
BATCH = 512  # images scored at a time
STEPS = (10, 20, 50, 100)  # of one PGD trajectory
RESTARTS = 5
FACTORS = (0.1, 10)  # by which logits are scaled
VIEWS = 1000  # tags of the random streams: one block for each view


class View(nn.Module):
    """`answer(model, x)`, by default the model's own logits; as random as the model. Attacks stop with an error on a model that leaves
    autograd's graph (numpy, detach); here its gradient is zero, they find nothing, and the checks say why."""

    def __init__(self, model: nn.Module, answer: Callable[[Any, Tensor], Tensor] = nn.Module.__call__) -> None:
        super().__init__()
        self.model, self.answer, self.stochastic = model, answer, bool(getattr(model, "stochastic", False))
        self.draws_by_example = bool(getattr(model, "draws_by_example", False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits = self.answer(self.model, x)
        if x.requires_grad and torch.is_grad_enabled():
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits


def scaled(view: nn.Module, factor: float) -> View:
    """The view with its logits multiplied: the same predictions, other gradients of the cross-entropy."""
    return View(view, lambda model, x: factor * model(x))


def surrogates_of(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """What an adversary attacks beside the model: its declared surrogates, then HEAD where that says another thing at x.

    A head that gates or rescales by its own first guess (reverse attention) confirms itself, and its gradients lead astray;
    the plain head on the same features decides and has honest ones.
    """
    declared = dict(getattr(model, "surrogates", dict)())
    plain = View(model, lambda model, x: model.head(model.features(x)))
    if not all(callable(getattr(model, part, None)) for part in ("features", "head")):
        return declared

    def answer(view: nn.Module) -> Tensor:  # randomised layers draw alike for both
        with forked(x.device), torch.no_grad():
            torch.manual_seed(0)
            return logits_of(view, x).float()

    deployed = answer(model)
    try:
        other = answer(plain)
    except (RuntimeError, TypeError, ValueError):  # its head takes something else than its features
        return declared
    same = deployed.shape != other.shape or torch.allclose(deployed, other, rtol=1e-3, atol=1e-5, equal_nan=True)
    return declared if same else {**declared, HEAD: plain}


def sources_of(model: nn.Module) -> dict[str, nn.Module]:
    """Deterministic views that a stochastic model declares, such as the bare classifier behind a purifier: what is transferred from
    them shows masked gradients where it breaks what the model's own did not. None of a deterministic model."""
    declared: dict[str, nn.Module] = getattr(model, "surrogates", dict)() if getattr(model, "stochastic", False) else {}
    plain = {name: view for name, view in declared.items() if getattr(view, "target", None) is None}
    return {name: view for name, view in plain.items() if not getattr(view, "stochastic", False)}


@dataclass(eq=False)
class AuditAttacks:
    """A model, some images, and which of them withstand what.

    Results are bool (V, N, K): right or not, for each candidate image V of an example N, in each of K draws of the model (one if it
    is deterministic). The surrogates that a stochastic model declares are left to the evaluation: each would cost what it does.
    """

    deployed: nn.Module  # x -> logits, in eval mode; its `surrogates_of` are attacked as well and judged by it
    split: Split
    threat: Threat
    seed: int
    queries: int  # this and what follows as for `audit`
    noise: int
    targets: int
    readouts: int
    transfer: Mapping[str, nn.Module]
    draws: int  # for every score, and `eot` for every gradient; both 1 for a deterministic model
    eot: int
    precision: Precision = "32-true"  # of searches; readouts, whose boundaries are thin, are attacked in float32

    def __post_init__(self) -> None:
        self.model = View(self.deployed)
        self.stochastic = self.model.stochastic
        batch = next(iter(self.split.batches(len(self.split))))
        self.x, self.y, self.index = batch.x, batch.y, batch.index
        self.rng = ExampleRNG.for_examples(self.seed, batch.index)
        named = surrogates_of(self.deployed, self.x[:BATCH]).items()
        views = [(n, v, getattr(v, "target", None)) for n, v in named if n == HEAD or not self.stochastic]
        self.aimed = [(label, view) for _, view, label in views if label is not None]  # meet targeted attacks only
        others = {name: view for name, view, label in views if label is None}
        self.views: list[nn.Module] = [self.model, *(SurrogateModel(other, self.model) for other in others.values())]
        self.declared = len(self.views) - (HEAD in others)  # the first views, which `evaluate` attacks too
        self.logits = self.forward(self.x)
        self.classes = self.logits.shape[1]
        self.targets = min(self.targets, self.classes - 1)
        self.made = self.invalid = 0  # adversarial images, and those outside ball or box

    def forward(self, x: Tensor) -> Tensor:
        """Float32 logits (B, K) of the deployed model at x (B, C, H, W), without gradients."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return torch.cat([*halving(lambda rows: logits_of(self.model, x[rows]).float(), len(x), BATCH)])

    def right(self, x: Tensor) -> Tensor:
        """(1, N, K): whether the deployed model is right at x (N, C, H, W)."""
        answers = torch.stack([self.forward(x) for _ in range(self.draws)], 1)
        return ((answers.argmax(2) == self.y[:, None]) & answers.isfinite().all(2))[None]

    def accuracy(self, *results: Tensor) -> Tensor:
        """(N,), in the widest floats of the device: the share of draws in which each example withstands the strongest of all candidates.

        For a stochastic model it is chosen on odd draws, of this example and of all alike (see `summarise`), and scored on even ones,
        or it is the candidate that is strongest on all examples, where that one leaves less.
        """
        pool = torch.cat(results)
        pool = pool.to(widest(pool.device))
        if not self.stochastic or len(pool) == 1:
            return pool[0].mean(1) if self.stochastic else pool.amin((0, 2))
        odd, even = pool[:, :, 1::2].mean(2), pool[:, :, ::2].mean(2)
        overall = odd.mean(1, keepdim=True)
        mixed, alone = even.gather(0, (odd + overall).argmin(0)[None])[0], even[int(overall.argmin())]
        return min(mixed, alone, key=lambda shares: float(shares.mean()))

    @cached_property
    def clean(self) -> Tensor:
        """Without attack."""
        return self.right(self.x)

    @cached_property
    def standing(self) -> Tensor:
        """(N,) bool: the examples worth an attack; wrong ones count as wrong (all, if the model is stochastic)."""
        return self.clean.all(2)[0] | self.stochastic

    def run(
        self,
        attack: Attack,
        tag: int,
        *,
        start: list[Tensor] | None = None,
        among: Tensor | None = None,
        target: Tensor | None = None,
        views: Sequence[nn.Module] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Results (V, N, K) of an attack on every view of the model, and the images, one (N, C, H, W) a view. A deterministic model's view
        is attacked on what the views before it left standing.

        It starts in each view at `start`, where wrong examples stay, and meets the examples `among` (N,) bool, else `standing`;
        `target` (N,) are classes for a targeted attack.
        """
        standing = self.standing if among is None else among
        results, images = [], []
        for i, view in enumerate(views or self.views):
            x_adv = (self.x if start is None else start[i]).clone()
            met = standing & (self.right(x_adv)[0].any(1) if start is not None and not self.stochastic else True)
            if bool(met.any()):
                extra: dict[str, Any] = {} if start is None else {"start": x_adv[met]}
                extra |= {} if target is None else {"target": target[met]}
                extra["rng"] = self.rng.fold_in(tag + VIEWS * i)[met]
                adapted = in_precision(adapt(attack, getattr(view, "surrogate", view)), self.precision)
                x_adv[met] = adapted(view, self.x[met], self.y[met], **extra).to(x_adv.dtype)
            self.made += len(x_adv)
            self.invalid += int((~valid(x_adv, self.x, getattr(attack, "threat", self.threat))).sum())
            results.append(self.right(x_adv))
            images.append(x_adv)
            standing = standing & (results[-1][0].all(1) | self.stochastic)
        return torch.cat(results), images

    def pgd(self, steps: int = 20, **settings: Any) -> PGD:
        """The audit's PGD: an example leaves at its first success; EOT instead for a stochastic model."""
        threat = settings.pop("threat", self.threat)
        return PGD(threat, steps=steps, early_stop=not self.stochastic, eot=self.eot, **settings)

    @cached_property
    def fgsm(self) -> Tensor:
        """One step, on all examples: the wrong ones too, since a model that reads the label off the attack gets them right."""
        return self.run(FGSM(self.threat, eot=self.eot), 0, among=torch.ones_like(self.standing))[0]

    @cached_property
    def trajectory(self) -> Mapping[int, tuple[Tensor, list[Tensor]]]:
        """PGD on the cross-entropy after 10, 20, 50 and 100 steps of the same trajectory, and where it was then."""
        stages: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for done, steps in itertools.pairwise((0, *STEPS)):
            stages[steps] = self.run(self.pgd(steps - done), 1, start=stages[done][1] if done else None)
        return stages

    @property
    def pgd20(self) -> Tensor:
        """PGD-20 on the cross-entropy, one restart."""
        return self.trajectory[20][0]

    @cached_property
    def restarts(self) -> Tensor:
        """PGD-20 with further starts: all RESTARTS of them together."""
        return self._each([self.pgd20], [(self.pgd(), 10 + k, None) for k in range(1, RESTARTS)])

    def _each(self, results: list[Tensor], trials: Iterable[tuple[Any, ...]]) -> Tensor:
        """All results with those of (attack, tag, targets, views if not all); of a deterministic model each meets what still stands."""
        for attack, tag, target, *views in trials:
            standing = self.standing
            for result in results:
                standing = standing & (result.all(2).all(0) | self.stochastic)
            results = [*results, self.run(attack, tag, among=standing, target=target, views=views)[0]]
        return torch.cat(results)

    @cached_property
    def losses(self) -> Mapping[str, Tensor]:
        """PGD-20 on other objectives and with logits scaled, by name."""
        results = {"margin": self.run(self.pgd(objective="margin"), 1)[0]}
        if self.classes > 2:
            results["DLR"] = self.run(self.pgd(objective="dlr"), 1)[0]
        for factor in FACTORS:
            views = [SurrogateModel(scaled(getattr(v, "surrogate", v), factor), self.model) for v in self.views]
            results[f"logits x {factor:g}"] = self.run(self.pgd(), 1, views=views)[0]
        wrong = self.logits.nan_to_num(-torch.inf).scatter(1, self.y[:, None], -torch.inf)
        likeliest = wrong.argsort(1, descending=True)
        aim = self.pgd(objective="margin", targeted=True)
        results["targeted"] = self._each([], [(aim, 20 + k, likeliest[:, k]) for k in range(self.targets)])
        return results

    @cached_property
    def apgd(self) -> Tensor:
        """APGD on the cross-entropy and on targeted DLR: the two attacks that make AutoAttack's number on honest models."""
        dlr = APGD(self.threat, steps=25, objective="dlr", targets=self.targets, eot=self.eot)
        kinds = [APGD(self.threat, steps=50, eot=self.eot), *([dlr] if self.classes > 3 else [])]
        return self._each([self.trajectory[100][0]], [(attack, 40 + k, None) for k, attack in enumerate(kinds)])

    @cached_property
    def white(self) -> Tensor:
        """All gradient attacks together; views that are aimed at a class each meet a targeted PGD only, on what still stands."""
        aim, y = self.pgd(objective="margin", targeted=True), self.y
        views = ((label, SurrogateModel(view, self.model)) for label, view in self.aimed)
        trials = [(aim, 100 + label, torch.full_like(y, label), view) for label, view in views]
        return self._each([self.trajectory[100][0], self.restarts, *self.losses.values(), self.apgd], trials)

    @cached_property
    def square(self) -> Tensor:
        """Square on every standing example: needs no gradient, and so no view but the deployed one, all that a black box shows."""
        return self.run(Square(self.threat, queries=self.queries, votes=self.eot), 60, views=[self.model])[0]

    @cached_property
    def transferred(self) -> Mapping[str, Tensor]:
        """PGD-20 found on other models, by name; scored by this one."""
        attack = replace(
            self.pgd(objective="margin"), early_stop=False, precision=self.precision
        )  # its own model's verdict is not asked
        models = enumerate(self.transfer.items(), 70)
        return {name: self.right(attack(m, self.x, self.y, rng=self.rng.fold_in(k))) for k, (name, m) in models}

    @cached_property
    def random(self) -> Tensor:
        """Of `noise` uniform points of the ball, the one of least margin; where gradient attacks fail, no others matter."""
        robust, worst = self.standing & ((self.accuracy(self.white) > 0) | self.stochastic), self.x.clone()
        x, y, rng = self.x[robust], self.y[robust], self.rng[robust].fold_in(80)
        best, least = x.clone(), torch.full(y.shape, torch.inf, device=x.device)
        for k in range(self.noise if len(x) else 0):
            point = uniform_point(self.threat, x, rng.fold_in(k))
            margin = margin_of(self.forward(point), y).nan_to_num(-torch.inf)
            better = margin < least
            best[better], least = point[better], torch.minimum(least, margin)
        worst[robust] = best
        return self.right(worst)

    def radius(self, eps: float, steps: int = 20) -> Tensor:
        """PGD within another radius; the threat's own is `pgd20`."""
        return self.run(self.pgd(steps, threat=Threat(self.threat.norm, eps)), 1)[0]
