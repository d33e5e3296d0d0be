"""Which examples an attack meets, on which view of a model, and what is written down: the schedule behind `evaluate`.

Views are the deployed model, its surrogates and other models as sources of transfer. An example leaves once it is broken.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import APGD, Attack
from robustlib.attacks.base import SurrogateModel
from robustlib.attacks.inputs import images_like
from robustlib.attacks.memory import MemoryGuard
from robustlib.attacks.passes import count_passes
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.metrics import COLUMNS, labelled, predict, robust_correct, valid
from robustlib.models.classifier import logits_of
from robustlib.rng import ExampleRNG, forked
from robustlib.runs import read_json, write_atomic, write_json
from robustlib.threat import Threat
from robustlib.training.devices import Team

CLEAN, BEFORE = "clean", "before"  # components of a cascade not needed: wrong without attack, broken before it
FAMILY = "of each class"  # how surrogates that are aimed at one class each are called together


@dataclass(frozen=True)
class Progress:
    """How far a step is."""

    attack: str  # this and the next two as in the records
    surrogate: str
    component: str
    done: int  # examples that this step has finished
    total: int  # and will have to
    seconds: float  # spent on it in this call
    eta: float | None  # seconds to its end at the pace so far; None before the first batch
    note: str = ""  # what the user should know, such as a smaller batch


@dataclass(frozen=True)
class Step:
    """One attack, or one component of a cascade, on one view of the model; without attack, the clean images."""

    name: str
    attack: Attack | None = None
    view: nn.Module | None = None
    surrogate: str = ""
    component: str = ""
    threat: Threat | None = None  # the allowed perturbations; None for the clean images, and where an attack names none
    stream: int | None = None  # which random numbers a component draws
    target: int | None = None  # the class that a targeted attack aims at

    @property
    def eps(self) -> float:
        """The radius that records give: the threat's, or the `bound` of an attack that moves pixels; 0 where there is none."""
        return float(self.threat.eps if self.threat is not None else getattr(self.attack, "bound", None) or 0)


Attacks = Mapping[str, Attack]
Views = Mapping[str, nn.Module]  # by name, which for those of one surrogate is its `component`; a single view has ""


def group_surrogates(surrogates: Views) -> dict[str, Views]:
    """The views by their name in the column `surrogate`; those with a `target` that differ by its number only ("gate 0", "gate 1")
    are a family."""
    groups: dict[str, dict[str, nn.Module]] = {}
    for name, view in surrogates.items():
        target = getattr(view, "target", None)
        group = name if target is None else f"{name.removesuffix(str(target)).strip()} {FAMILY}"
        groups.setdefault(group, {})["" if target is None else name] = view
    return dict(groups)


def is_search(attack: Attack) -> bool:
    """Whether an attack is cheap enough for every view to meet it in full: no cascade and no restarts."""
    return not hasattr(attack, "components") and getattr(attack, "restarts", 1) == 1


def compatible_attacks(attacks: Attacks, view: nn.Module) -> dict[str, Attack]:
    """What a view of a stochastic model meets: a random view what averages gradients over draws (AutoAttack in its rand version
    only), a deterministic one the others; all attacks, where there are none of that kind."""
    random = bool(getattr(view, "stochastic", False))
    averages = {n: getattr(a, "version", "rand") == "rand" and getattr(a, "eot", 1) > 1 for n, a in attacks.items()}
    return {name: attack for name, attack in attacks.items() if averages[name] == random} or dict(attacks)


def select_views(attack: Attack, groups: Mapping[str, Views]) -> dict[str, Views]:
    """Which single views a costly attack meets: restarts those with an `objective`, a cascade the others; all, if there are none."""
    single = {name: views for name, views in groups.items() if "" in views}
    joint = not hasattr(attack, "components")
    return {n: views for n, views in single.items() if bool(getattr(views[""], "objective", None)) == joint} or single


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


def plan(
    model: nn.Module, x: Tensor, attacks: Attacks, adaptive: Attacks, surrogates: Views, sources: Views, minimum: bool
) -> Iterator[tuple[list[Step], bool]]:
    """The steps of each attack on each view, and whether they meet only what withstood everything before; `x` is any image."""
    groups = group_surrogates(surrogates)
    searches = {name: attack for name, attack in adaptive.items() if is_search(attack)}
    with torch.no_grad(), forked(x.device):
        classes = logits_of(model, x).shape[1]

    def met(views: Views) -> Attacks:
        return compatible_attacks(adaptive, views[""]) if getattr(model, "stochastic", False) else adaptive

    for name, attack in attacks.items():
        yield _steps(name, attack, "", {"": model}, model, classes), False
    for name, attack in searches.items():
        for surrogate, views in {**groups, **group_surrogates(sources)}.items():
            if "" in views and name in met(views):
                yield _steps(name, attack, surrogate, views, model, classes), minimum
    # A family meets searches on the margin, which reach a class soonest; else all that can be targeted.
    able = {name: attack for name, attack in adaptive.items() if hasattr(attack, "targeted")}
    margin = {name: a for name, a in able.items() if name in searches and getattr(a, "objective", "") == "margin"}
    for name, attack in (margin or able).items():
        for family, views in groups.items():
            if "" not in views:
                yield _steps(name, attack, family, views, model, classes), minimum
    for name, attack in adaptive.items():
        for surrogate, views in select_views(attack, groups).items() if name not in searches else ():
            if name in met(views):
                yield _steps(name, attack, surrogate, views, model, classes), True


def _steps(name: str, attack: Attack, surrogate: str, views: Views, model: nn.Module, classes: int) -> list[Step]:
    """One step, or one for each view of a family or each component of a cascade."""
    threat = getattr(attack, "threat", None)  # a cascade's is that of all its components
    steps: list[Step] = []
    for member, module in views.items():
        view = SurrogateModel(module, model) if surrogate else module
        parts = components(attack, module, classes) if hasattr(attack, "components") else {member: attack}
        for component, part in parts.items():
            stream = len(steps) if component else None
            adapted, target = adapt(part, module) if surrogate else part, getattr(module, "target", None)
            steps.append(Step(name, adapted, view, surrogate, component, threat, stream, target))
    return steps


@dataclass
class AttackSchedule:
    """One model on one split: runs steps one after another and collects their records. A finished batch is kept in a file whose name
    says where it belongs; a killed process leaves whole files only."""

    model: nn.Module
    split: Split
    seed: int
    draws: int
    batch_size: int  # halved when memory runs out
    path: Path | None  # a directory for finished batches; None to remember nothing
    progress: Callable[[Progress], None] | None
    team: Team = field(default_factory=Team)  # processes that share the batches of a step
    frames: list[pd.DataFrame] = field(default_factory=list)  # all records, the clean ones first
    broken: pd.DataFrame = field(default_factory=lambda: concat_records([]))  # the record that first broke each example
    steps: int = 0  # begun so far

    def __post_init__(self) -> None:
        self.stochastic = bool(getattr(self.model, "stochastic", False))  # then nothing is broken for good
        if self.path is not None:
            self.batch_size = min(self.batch_size, read_json(self.path / "memory.json").get("limit", self.batch_size))

    def run(self, steps: Sequence[Step], after_all: bool = False) -> None:
        """The records of an attack's steps, each on what withstood those before it; of a stochastic model, on everything. The first
        one meets what the model has right without attack or, with `after_all`, what withstood everything so far."""
        first, labels = steps[0], self.split.labels.cpu()
        lost = self.broken if after_all else self.broken[self.broken["attack"] == CLEAN]
        out = np.isin(self.split.indices.cpu().numpy(), lost["index"].to_numpy(dtype=np.int64))
        standing = torch.from_numpy(~out) | self.stochastic
        if not self.stochastic:
            rows = lost.loc[lost.index.repeat(self.draws)]
            self._keep(first, rows.assign(draw=np.tile(np.arange(self.draws), len(lost))))
        if first.target is not None:  # images of its own class stay as they are
            own = standing & (labels == first.target)
            self._keep(first, self.frames[0][own.repeat_interleave(self.draws).numpy()])
        for step in steps:
            todo = (standing if step.target is None else standing & (labels != step.target)).nonzero()[:, 0]
            frame = self._run_step(step, todo.to(self.split.labels.device))
            if not self.stochastic:
                right = robust_correct(frame).to_numpy(copy=True)
                standing[todo] = torch.from_numpy(right).view(-1, self.draws).all(1)
            self._add(frame)

    def _run_step(self, step: Step, todo: Tensor) -> pd.DataFrame:
        """The records of a step on the examples at positions `todo`; finished batches are not attacked again."""
        began, part = time.monotonic(), f"part-{self.steps:03d}"
        frames = self._finished(part)
        self.steps += 1
        before = done = sum(map(len, frames)) // self.draws

        def report(note: str = "") -> None:
            if self.progress is not None:
                seconds = time.monotonic() - began
                eta = seconds / (done - before) * (len(todo) - done) if done > before else None
                names = (step.name, step.surrogate, step.component)
                self.progress(Progress(*names, done, len(todo), seconds, eta, note))

        report()
        while done < len(todo):
            starts = range(done, len(todo), self.batch_size)[: self.team.size]  # a batch for each device
            batches = [todo[start : start + self.batch_size] for start in starts]
            for rows, frame in zip(batches, self._attack_batches(step, batches), strict=True):
                if frame is None:
                    report(self._halve(step, len(rows)))
                    break
                if self.path is not None and self.team.writes:
                    buffer = io.BytesIO()
                    frame.to_parquet(buffer, index=False)
                    write_atomic(self.path / f"{part}-{done:08d}.parquet", buffer.getvalue())
                frames.append(frame)
                done += len(rows)
                report()
        frame = concat_records(frames)
        return frame.assign(passes=frame["passes"].mean()) if len(frame) else frame

    def _finished(self, part: str) -> list[pd.DataFrame]:
        frames: list[pd.DataFrame] = []
        done = 0
        while self.path is not None and (file := self.path / f"{part}-{done:08d}.parquet").exists():
            try:
                frames.append(pd.read_parquet(file))
            except (OSError, ValueError) as error:
                raise InputError(f"{file} is damaged ({error}): delete {self.path} and evaluate again.") from error
            done += len(frames[-1]) // self.draws
        return frames

    def _attack_batches(self, step: Step, batches: Sequence[Tensor]) -> list[pd.DataFrame | None]:
        """The records of each batch, of which this process attacks one; None where memory ran out."""
        frame: pd.DataFrame | None = None
        if self.team.rank < len(batches):
            with MemoryGuard():
                frame = self._attack_batch(step, batches[self.team.rank])
        return self.team.exchanged(frame)[: len(batches)]

    def _attack_batch(self, step: Step, rows: Tensor) -> pd.DataFrame:
        batch, device = self.split.batch(rows), self.split.labels.device
        rng, x_adv = ExampleRNG.for_examples(self.seed, batch.index), batch.x
        # What has no `rng`, such as a stochastic model, draws from torch's own generator.
        facts = repr((self.seed, step.name, step.surrogate, step.component, int(rows[0])))
        with forked(device), count_passes() as passes:
            torch.manual_seed(int.from_bytes(hashlib.sha256(facts.encode()).digest()[:7], "big"))
            if step.attack is not None and step.view is not None:
                aim: Any = {} if step.target is None else {"target": torch.full_like(batch.y, step.target)}
                aim["rng"] = rng if step.stream is None else rng.fold_in(step.stream)
                found = step.attack(step.view, batch.x.clone(), batch.y.clone(), **aim)  # it may change what it gets
                x_adv = images_like(batch.x, found, f"The answer of {step.name!r}")
            frame = predict(self.model, x_adv, batch, valid(x_adv, batch.x, step.threat), self.draws)
        return labelled(frame, step.name, step.surrogate, step.component, step.eps, passes.total() / len(rows))

    def _halve(self, step: Step, size: int) -> str:
        """Half the batch from here on, and the sentence that says so."""
        if size == 1:
            raise InputError(
                f"{step.name} {step.component}".strip() + " needs more memory than there is for a single image: "
                "free some, use another device, or a smaller model."
            )
        self.batch_size = (size + 1) // 2
        if self.path is not None and self.team.writes:
            write_json(self.path / "memory.json", {"limit": self.batch_size})
        return f"Out of memory with {size} images at a time: going on with {self.batch_size}."

    def _keep(self, step: Step, rows: pd.DataFrame) -> None:
        """What is known of those that an attack leaves out, in its name; a component says so where there are components."""
        if len(rows):
            why = np.where(rows["attack"] == CLEAN, CLEAN, BEFORE) if step.stream is not None else ""
            self._add(labelled(rows, step.name, step.surrogate, why, step.eps))

    def _add(self, frame: pd.DataFrame) -> None:
        self.frames.append(frame)
        wrong = frame[~robust_correct(frame)].drop_duplicates("index")
        self.broken = concat_records([self.broken, wrong[~wrong["index"].isin(self.broken["index"])]])


def concat_records(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame, with all columns even where there is nothing."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)
