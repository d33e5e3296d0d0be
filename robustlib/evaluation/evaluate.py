"""Attacks a model on a whole split, step by step, and judges what they found."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.float32 import full_float32
from robustlib.attacks.search import View, borrowed
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.records import labelled, withstood
from robustlib.evaluation.state import State, facts
from robustlib.evaluation.steps import Evaluation, Progress, Step, joined

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256
DRAWS = 20  # of a stochastic model, for each adversarial example
RESERVED = ("clean", "worst")


def evaluate(
    model: nn.Module,
    split: Split,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    draws: int | None = None,
    state: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> "pd.DataFrame":
    """Tidy per-example records of the clean model and of each attack; the verdict is always the deployed float32 model's.

    Every attack searches on the model and, where it has `surrogates()`, on each of them. An attack with `components` (AutoAttack)
    is a cascade: each component meets the examples that withstood those before it, in full batches. Misclassified
    images are not attacked: they keep their clean row. Of a stochastic model every example meets everything, and is judged
    on fresh draws.

    Args:
        model: x -> logits, on the device where it shall be evaluated; it is put in eval mode for the time.
        split: the examples, all of them.
        attacks: by the name they get in the records.
        batch_size: examples at a time, halved when memory runs out; it changes no random draw, since these belong to
            examples (rounding may differ in the last digits; a stochastic model draws its own numbers by the batch).
        seed: of all random draws.
        draws: how often each image is judged; None = 20 for a stochastic model (at least 2), 1 for others.
        state: a directory in which every finished batch is kept. The same call after an interruption, however hard, goes
            on from there and ends with the same records. The caller removes it.
        progress: called before and after each batch.

    Returns:
        Columns index (in the original file), label, attack, surrogate ("" = searched on the model itself), component (of a
        cascade; "clean" where it was not needed), eps, draw, prediction (-1: no answer), margin (z_y - max z_k, float32) and
        valid (x_adv finite, inside the ball and inside [0, 1]). The rows of attack "clean" come first.

    Raises:
        InputError: fewer than 2 classes, labels that are none, a reserved name, a state of another evaluation, a single
            image that does not fit into memory.
    """
    stochastic = bool(getattr(model, "stochastic", False))
    draws = (DRAWS if stochastic else 1) if draws is None else draws
    _check(attacks, batch_size, draws, stochastic)
    split = split.to(device_of(model, split))
    surrogates: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    store = State(None)
    if state is not None:
        asked = facts(model, surrogates, split, attacks, seed=seed, draws=draws, batch_size=batch_size)
        store = State.open(state, asked)
    job = Evaluation(model, split, seed, draws, min(batch_size, store.limit or batch_size), store, progress)
    views = {"": model, **{name: View(surrogate, model) for name, surrogate in surrogates.items()}}
    with borrowed(model), full_float32():
        clean = job.run(Step("clean"), torch.arange(len(split), device=split.labels.device))
        frames = [clean]
        for name, attack in attacks.items() if len(split) else ():
            for surrogate, view in views.items():
                frames += _attacked(job, clean, list(_steps(job, name, attack, surrogate, view)), stochastic)
    return joined(frames)


def _attacked(job: Evaluation, clean: "pd.DataFrame", steps: list[Step], stochastic: bool) -> "Iterator[pd.DataFrame]":
    """The records of an attack's steps, each on what withstood those before it; of a stochastic model, on everything."""
    standing = torch.arange(len(job.split), device=job.split.labels.device)
    if not stochastic:
        right, first = _standing(clean, job.draws), steps[0]
        component = "clean" if first.fork is not None else ""
        wrong = clean[~right.repeat_interleave(job.draws).numpy()]
        yield labelled(wrong, first.name, first.surrogate, component, first.threat)
        standing = standing[right.to(standing.device)]
    for step in steps:
        frame = job.run(step, standing)
        yield frame
        if not stochastic:
            standing = standing[_standing(frame, job.draws).to(standing.device)]


def _standing(frame: "pd.DataFrame", draws: int) -> Tensor:
    """Which examples of a step withstood it, in their order: (N,) bool on the CPU."""
    return torch.from_numpy(withstood(frame).to_numpy(dtype=bool, copy=True)).view(-1, draws).all(1)


def _steps(job: Evaluation, name: str, attack: Attack, surrogate: str, view: nn.Module) -> Iterator[Step]:
    """One step, or one for each component of a cascade."""
    threat = getattr(attack, "threat", None)  # a cascade's is that of all its components
    if not hasattr(attack, "components"):
        yield Step(name, attack, view, surrogate, threat=threat)
        return
    for fork, (component, part) in enumerate(attack.components(_classes(job)).items()):
        yield Step(name, part, view, surrogate, component, threat, fork)


def _classes(job: Evaluation) -> int:
    """How many classes the model tells apart."""
    part = job.split.select(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad(), torch.random.fork_rng([part.labels.device] if part.labels.is_cuda else []):
        return int(job.model(part.images.float() / 255).shape[1])


def device_of(model: nn.Module, split: Split) -> torch.device:
    """Where the model is; the split's device for a model without tensors.

    Raises:
        InputError: its weights are not float32, in which verdicts are given.
    """
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            raise InputError(
                f"The model has {tensor.dtype} weights, verdicts are given in float32: call model.float()."
            )
    return tensors[0].device if tensors else split.labels.device


def _check(attacks: Mapping[str, Attack], batch_size: int, draws: int, stochastic: bool) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size!r} holds no example: give a whole number of at least 1.")
    if draws < 1 + stochastic:
        raise InputError(
            f"draws={draws!r} is too few: a stochastic model is judged at least twice, once to choose its strongest "
            "adversarial example and once to score it; others at least once."
        )
    for name in attacks:
        if name in RESERVED or "@" in name:
            raise InputError(
                f"An attack cannot be called {name!r}: {', '.join(RESERVED)} and names with @ have a meaning."
            )
