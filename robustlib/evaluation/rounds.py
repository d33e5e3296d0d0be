"""The rounds of an evaluation: which examples an attack meets, and what is written down of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.search import View
from robustlib.evaluation.records import labelled, withstood
from robustlib.evaluation.steps import Evaluation, Step, joined
from robustlib.evaluation.views import Door, aimed, components, doors, is_search, meant_for, suited, takers

if TYPE_CHECKING:
    import pandas as pd

CLEAN, BEFORE = (
    "clean",
    "before",
)  # components of a cascade that were not needed: wrong without attack, broken before it


@dataclass
class Rounds:
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
            self._meet(self._steps(name, attack, Door("", {"": self.job.model})))

    def others(
        self,
        attacks: Mapping[str, Attack],
        surrogates: Mapping[str, nn.Module],
        sources: Mapping[str, nn.Module],
        minimum: bool,
    ) -> None:
        """Searches on every surrogate and source, in full (unless only the `minimum` is asked for); then what is costly, on
        every surrogate, for those examples that withstood everything before."""
        views, twins = doors(surrogates), doors(sources)
        if not len(self.job.split):
            return
        searches = {name: attack for name, attack in attacks.items() if is_search(attack)}
        for name, attack in searches.items():
            for door in [door for door in (*views, *twins) if not door.family and self._meant(name, attacks, door)]:
                self._meet(self._steps(name, attack, door), minimum)
        for name, attack in aimed(attacks).items():
            for door in [door for door in views if door.family]:
                self._meet(self._steps(name, attack, door), minimum)
        for name, attack in attacks.items():
            for door in takers(attack, views) if name not in searches else ():
                if self._meant(name, attacks, door):
                    self._meet(self._steps(name, attack, door), after_all=True)

    def _meant(self, name: str, attacks: Mapping[str, Attack], door: Door) -> bool:
        """Whether a single view of a stochastic model meets an attack; of others, every one does."""
        return not self.stochastic or name in meant_for(attacks, door.views[""])

    def _steps(self, name: str, attack: Attack, door: Door) -> list[Step]:
        """One step, or one for each view of a family or each component of a cascade."""
        threat = getattr(attack, "threat", None)  # a cascade's is that of all its components
        steps: list[Step] = []
        for member, module in door.views.items():
            view, target = View(module, self.job.model) if door.name else module, getattr(module, "target", None)
            whole = not hasattr(attack, "components")
            parts = {member: attack} if whole else components(attack, module, self.classes)
            for component, part in parts.items():
                fork = len(steps) if component else None
                fitting = suited(part, module) if door.name else part
                steps.append(Step(name, fitting, view, door.name, component, threat, fork, target))
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
    return withstood(frame).to_numpy(dtype=bool, copy=True)
