"""Which examples an attack meets, on which view of a model, and what is written down: the schedule behind `evaluate`.

A step is an attack on one view, batch by batch, each batch kept as soon as it is judged; views are the deployed model, its
surrogates and finished twins; rounds let an example leave once it is broken.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.attacks import APGD, Attack
from robustlib.attacks.base import MemoryGuard, SurrogateModel
from robustlib.data import Batch, Split
from robustlib.errors import InputError
from robustlib.evaluation.cache import State
from robustlib.evaluation.metrics import COLUMNS, judge, labelled, robust_correct, valid
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Progress:
    """How far a step is: one attack, or one component of a cascade, on one view of the model.

    Args:
        attack, surrogate, component: as in the records.
        done, total: examples that this step has finished and will have to.
        seconds: spent on it in this call.
        eta: seconds to its end at the pace so far; None before the first batch.
        note: what the user should know, such as a smaller batch; else "".
    """

    attack: str
    surrogate: str
    component: str
    done: int
    total: int
    seconds: float
    eta: float | None
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One attack, or one component of a cascade, searching on one view of the model; without attack, the clean images."""

    name: str
    attack: Attack | None = None
    view: nn.Module | None = None
    surrogate: str = ""
    component: str = ""
    threat: Threat | None = None  # the allowed perturbations; None for the clean images, and where an attack names none
    fork: int | None = None  # which streams of random numbers a component draws from
    target: int | None = None  # the class that a targeted attack aims at

    @property
    def eps(self) -> float:
        """The radius that records give: the threat's, or the `bound` of an attack that moves pixels; 0 where there is none."""
        return float(self.threat.eps if self.threat is not None else getattr(self.attack, "bound", None) or 0)

    def search(self, batch: Batch, seed: int) -> Tensor:
        """x_adv of a batch (B, C, H, W)."""
        if self.attack is None or self.view is None:
            return batch.x
        rng = ExampleRNG.for_examples(seed, batch.index)
        aim: dict[str, Any] = {} if self.target is None else {"target": torch.full_like(batch.y, self.target)}
        mine = rng if self.fork is None else rng.fold_in(self.fork)
        return self.attack(self.view, batch.x, batch.y, rng=mine, **aim)


@dataclass
class Evaluation:
    """One model on one split, and where finished batches are kept."""

    model: nn.Module
    split: Split
    seed: int
    draws: int
    batch_size: int
    state: State
    progress: Callable[[Progress], None] | None
    steps: int = 0  # begun so far

    def run(self, step: Step, todo: Tensor) -> "pd.DataFrame":
        """The records of a step on the examples at positions `todo`; finished batches are not attacked again."""
        frames, number = self.state.load(self.steps), self.steps
        self.steps += 1
        before = done = sum(map(len, frames)) // self.draws
        began = time.monotonic()
        self._say(step, done, before, len(todo), began)
        while done < len(todo):
            here = todo[done : done + self.batch_size]
            with MemoryGuard() as guard:
                frame = self._batch(step, here)
            note = self._halve(step, len(here)) if guard.failed else ""
            if not guard.failed:
                self.state.save(number, done, frame)
                frames.append(frame)
                done += len(here)
            self._say(step, done, before, len(todo), began, note)
        return joined(frames)

    def _batch(self, step: Step, here: Tensor) -> "pd.DataFrame":
        part, device = self.split.select(here), self.split.labels.device
        batch = Batch(part.images, part.labels, part.indices, part.policy)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(self.seed, step.name, step.surrogate, step.component, int(here[0])))
            x_adv = step.search(batch, self.seed)
            frame = judge(self.model, x_adv, batch, valid(x_adv, batch.x, step.threat), self.draws)
        return labelled(frame, step.name, step.surrogate, step.component, step.eps)

    def _halve(self, step: Step, size: int) -> str:
        """Half the batch from here on, and the sentence that says so."""
        if size == 1:
            raise InputError(
                f"{step.name} {step.component}".strip() + " needs more memory than there is for a single image: "
                "free some, use another device, or a smaller model."
            )
        self.batch_size = (size + 1) // 2
        self.state.shrink(self.batch_size)
        return f"Out of memory with {size} images at a time: going on with {self.batch_size}."

    def _say(self, step: Step, done: int, before: int, total: int, began: float, note: str = "") -> None:
        if self.progress is not None:
            seconds = time.monotonic() - began
            eta = seconds / (done - before) * (total - done) if done > before else None
            self.progress(Progress(step.name, step.surrogate, step.component, done, total, seconds, eta, note))


def joined(frames: "list[pd.DataFrame]") -> "pd.DataFrame":
    """One frame, with all columns even where there is nothing."""
    import pandas as pd

    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(COLUMNS))


def _seed(*facts: object) -> int:
    """A number for torch's own generator, from which stochastic models and attacks without `draws` draw."""
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:7], "big")


FAMILY = "of each class"  # how the views that are aimed at one class each are called together


@dataclass(frozen=True)
class SurrogateGroup:
    """What records call a surrogate: one view, or a family of views that are aimed at one class each.

    Args:
        name: in the column `surrogate`.
        views: by their name in the column `component`; a single view has "".
    """

    name: str
    views: Mapping[str, nn.Module]

    @property
    def family(self) -> bool:
        """Whether its views are aimed at classes."""
        return "" not in self.views


def group_surrogates(surrogates: Mapping[str, nn.Module]) -> list[SurrogateGroup]:
    """The surrogates in their order; those with a `target` that differ by its number only ("gate 0", "gate 1") are a family."""
    found: dict[str, dict[str, nn.Module]] = {}
    for name, view in surrogates.items():
        target = getattr(view, "target", None)
        if target is None:
            found[name] = {"": view}
        else:
            found.setdefault(f"{name.removesuffix(str(target)).strip()} {FAMILY}", {})[name] = view
    return [SurrogateGroup(name, views) for name, views in found.items()]


def is_search(attack: Attack) -> bool:
    """Whether an attack is cheap enough for every view to meet it in full: no cascade and no restarts."""
    return not hasattr(attack, "components") and getattr(attack, "restarts", 1) == 1


def compatible_attacks(attacks: Mapping[str, Attack], view: nn.Module) -> dict[str, Attack]:
    """Those attacks that a view of a stochastic model meets: a random view those that average gradients over draws, a
    deterministic one the others; all, where there are none of that kind."""
    fit = {
        name: attack
        for name, attack in attacks.items()
        if _averages(attack) == bool(getattr(view, "stochastic", False))
    }
    return fit or dict(attacks)


def _averages(attack: Attack) -> bool:
    """Whether a search takes the mean gradient of several draws; AutoAttack does so in its rand version only."""
    return getattr(attack, "version", "rand") == "rand" and getattr(attack, "eot", 1) > 1


def targeted_attacks(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    """The attacks that a family meets: searches on the margin, which reach a class soonest; else all that can be targeted."""
    able = {name: attack for name, attack in attacks.items() if hasattr(attack, "targeted")}
    margin = {n: a for n, a in able.items() if is_search(a) and getattr(a, "objective", "") == "margin"}
    return margin or able


def select_groups(attack: Attack, doors: Sequence[SurrogateGroup]) -> list[SurrogateGroup]:
    """Which single views a costly attack meets: restarts those with an `objective`, a cascade the others; all, if there are none."""
    single = [door for door in doors if not door.family]
    joint = [door for door in single if getattr(door.views[""], "objective", None)]
    rest = [door for door in single if door not in joint]
    return (rest if hasattr(attack, "components") else joint) or single


def components(attack: Attack, view: nn.Module, classes: int) -> dict[str, Attack]:
    """The parts of a cascade that a view meets: all, or those by APGD if it is `relaxed`, the deployed logits with softer gates."""
    parts: dict[str, Attack] = attack.components(classes)  # type: ignore[attr-defined]
    steep: dict[str, Attack] = {name: part for name, part in parts.items() if isinstance(part, APGD)}
    return steep if steep and getattr(view, "relaxed", False) else parts


def adapt(attack: Attack, view: nn.Module) -> Attack:
    """The attack as a view asks for it: targeted where it has a `target`, with its `objective` in place of "ce"."""
    changes: dict[str, Any] = {}
    if getattr(view, "target", None) is not None:
        changes["targeted"] = True
    if (objective := getattr(view, "objective", None)) and getattr(attack, "objective", "") == "ce":
        changes["objective"] = objective
    return replace(attack, **changes) if changes else attack  # type: ignore[type-var]


CLEAN, BEFORE = (
    "clean",
    "before",
)  # components of a cascade that were not needed: wrong without attack, broken before it


@dataclass
class AttackSchedule:
    """Everything that was found so far.

    Args:
        job: of one model on one split.
        stochastic: whether every example meets everything, since nothing is broken for good.
        classes: how many the model tells apart.
        frames: all records, the clean ones first.
        broken: the first record that each broken example was broken by.
    """

    job: Evaluation
    stochastic: bool
    classes: int
    frames: "list[pd.DataFrame]" = field(default_factory=list)
    broken: "pd.DataFrame" = field(default_factory=lambda: joined([]))

    def begin(self) -> None:
        """The clean images, all of them."""
        everyone = torch.arange(len(self.job.split), device=self.job.split.labels.device)
        self._add(self.job.run(Step(CLEAN), everyone))

    def deployed(self, attacks: Mapping[str, Attack]) -> None:
        """Every attack on the model itself, in full."""
        for name, attack in attacks.items() if len(self.job.split) else ():
            self._meet(self._steps(name, attack, SurrogateGroup("", {"": self.job.model})))

    def others(
        self,
        attacks: Mapping[str, Attack],
        surrogates: Mapping[str, nn.Module],
        sources: Mapping[str, nn.Module],
        minimum: bool,
    ) -> None:
        """Searches on every surrogate and source, in full (unless only the `minimum` is asked for); then what is costly, on
        every surrogate, for those examples that withstood everything before."""
        views, twins = group_surrogates(surrogates), group_surrogates(sources)
        if not len(self.job.split):
            return
        searches = {name: attack for name, attack in attacks.items() if is_search(attack)}
        for name, attack in searches.items():
            for door in [door for door in (*views, *twins) if not door.family and self._meant(name, attacks, door)]:
                self._meet(self._steps(name, attack, door), minimum)
        for name, attack in targeted_attacks(attacks).items():
            for door in [door for door in views if door.family]:
                self._meet(self._steps(name, attack, door), minimum)
        for name, attack in attacks.items():
            for door in select_groups(attack, views) if name not in searches else ():
                if self._meant(name, attacks, door):
                    self._meet(self._steps(name, attack, door), after_all=True)

    def _meant(self, name: str, attacks: Mapping[str, Attack], door: SurrogateGroup) -> bool:
        """Whether a single view of a stochastic model meets an attack; of others, every one does."""
        return not self.stochastic or name in compatible_attacks(attacks, door.views[""])

    def _steps(self, name: str, attack: Attack, door: SurrogateGroup) -> list[Step]:
        """One step, or one for each view of a family or each component of a cascade."""
        threat = getattr(attack, "threat", None)  # a cascade's is that of all its components
        steps: list[Step] = []
        for member, module in door.views.items():
            view, target = (
                SurrogateModel(module, self.job.model) if door.name else module,
                getattr(module, "target", None),
            )
            whole = not hasattr(attack, "components")
            parts = {member: attack} if whole else components(attack, module, self.classes)
            for component, part in parts.items():
                fork = len(steps) if component else None
                adapted = adapt(part, module) if door.name else part
                steps.append(Step(name, adapted, view, door.name, component, threat, fork, target))
        return steps

    def _meet(self, steps: list[Step], after_all: bool = False) -> None:
        """The records of an attack's steps, each on what withstood those before it; of a stochastic model, on everything."""
        standing, first, device = self._standing(after_all), steps[0], self.job.split.labels.device
        if not self.stochastic:
            self._keep(first, self._lost(after_all))
        if first.target is not None:  # its own images stay where they are
            self._keep(first, self._clean(standing & self._of(first.target)))
        for step in steps:
            here = standing if step.target is None else standing & ~self._of(step.target)
            todo = here.nonzero()[:, 0]
            frame = self.job.run(step, todo.to(device))
            if not self.stochastic:
                standing[todo] = torch.from_numpy(_right(frame)).view(-1, self.job.draws).all(1)
            self._add(frame)

    def _keep(self, step: Step, rows: "pd.DataFrame") -> None:
        """What is known of those that an attack leaves out, in its name; a component says so where there are components."""
        why = np.where(rows["attack"] == CLEAN, CLEAN, BEFORE) if step.fork is not None else ""
        self._add(labelled(rows, step.name, step.surrogate, why, step.eps))

    def _of(self, label: int) -> Tensor:
        """(N,) bool: which examples are of a class."""
        return self.job.split.labels.cpu() == label

    def _standing(self, after_all: bool) -> Tensor:
        """(N,) bool: who is right without attack or, `after_all`, withstood everything; all, if the model is stochastic."""
        lost = self.broken if after_all else self.broken[self.broken["attack"] == CLEAN]
        gone = np.isin(self.job.split.indices.cpu().numpy(), lost["index"].to_numpy(dtype=np.int64))
        return torch.from_numpy(~gone) | self.stochastic

    def _lost(self, after_all: bool) -> "pd.DataFrame":
        """What broke those that are not attacked any more."""
        lost, draws = self.broken if after_all else self.broken[self.broken["attack"] == CLEAN], self.job.draws
        return lost.loc[lost.index.repeat(draws)].assign(draw=np.tile(np.arange(draws), len(lost)))

    def _clean(self, which: Tensor) -> "pd.DataFrame":
        """The clean records of some examples (N,) bool."""
        return self.frames[0][which.repeat_interleave(self.job.draws).numpy()]

    def _add(self, frame: "pd.DataFrame") -> None:
        self.frames.append(frame)
        wrong = frame[~_right(frame)].drop_duplicates("index")
        new = wrong[~wrong["index"].isin(self.broken["index"])]
        self.broken = joined([self.broken, new])


def _right(frame: "pd.DataFrame") -> "np.ndarray":
    return robust_correct(frame).to_numpy(dtype=bool, copy=True)
