"""One step of an evaluation: an attack on one view of a model, batch by batch, each batch kept as soon as it is judged."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack, Draws
from robustlib.data import Batch, Split
from robustlib.errors import InputError, out_of_memory
from robustlib.evaluation.records import COLUMNS, judge, labelled, valid
from robustlib.evaluation.state import State
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
        draws = Draws.for_examples(seed, batch.index)
        aim: dict[str, Any] = {} if self.target is None else {"target": torch.full_like(batch.y, self.target)}
        mine = draws if self.fork is None else draws.fork(self.fork)
        return self.attack(self.view, batch.x, batch.y, draws=mine, **aim)


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
            frame = self._batch_within_memory(step, here)
            note = "" if frame is not None else self._halve(step, len(here))
            if frame is not None:
                self.state.save(number, done, frame)
                frames.append(frame)
                done += len(here)
            self._say(step, done, before, len(todo), began, note)
        return joined(frames)

    def _batch_within_memory(self, step: Step, here: Tensor) -> "pd.DataFrame | None":
        """The records of a batch; None if the memory does not suffice."""
        try:
            return self._batch(step, here)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        return None  # outside of `except`, where the error would still hold the batch's tensors

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
        if self.split.labels.device.type == "cuda":
            torch.cuda.empty_cache()
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
