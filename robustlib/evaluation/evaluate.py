"""Attacks a model on a whole split, step by step, and judges what they found.

Where a model has `surrogates()`, these meet the adaptive attacks, and sources (other models) those of them that are searches:

- a search (without components or restarts) meets every surrogate and source in full;
- surrogates with a class as `target` are a family, which meets the search on the margin only, aimed at each of their classes in
  turn: a cascade over classes, in which the images of a class do not meet its own view;
- anything costlier meets only what still stands after everything before, on all views. Its rows hold for the others the record
  that broke them (component "before", of a cascade): the accuracy of "autoattack@head 1" is the share that withstood it
  and everything before it. The minimum over all is the same as if each had met all images.

A surrogate's attribute `objective` takes the place of an attack's "ce": it is a loss of several heads, which meets attacks with
restarts in place of cascades, and the others cascades in place of restarts (all meet both where none has one). One that is `relaxed`,
the deployed logits with softer gates, meets only the parts of a cascade that are APGD, to save time.

Of a stochastic model every example meets everything that its view does: a random view what averages gradients over draws, a
deterministic view or source what does not (see `compatible_attacks`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.cache import State, facts
from robustlib.models.classifier import full_float32

if TYPE_CHECKING:
    import pandas as pd

from robustlib.evaluation.schedule import AttackSchedule, Evaluation, Progress, joined

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
    adaptive: Mapping[str, Attack] | None = None,
    sources: Mapping[str, nn.Module] | None = None,
    minimum: bool = False,
) -> "pd.DataFrame":
    """Tidy per-example records of the clean model and of each attack; the verdict is always the deployed float32 model's.

    Every attack meets the model itself in full, as its paper would have it. An attack with `components` (AutoAttack) is a cascade:
    each component meets the examples that withstood those before it, in full batches. Misclassified images are not
    attacked: they keep their clean row. Surrogates and sources are met by the rule above; the deployed model judges.

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
        adaptive: what the surrogates meet; None for `attacks`.
        sources: other models of the same images, named as they are among the surrogates of the records.
        minimum: only the per-example minimum is asked for: every attack but those on the model itself is costly.

    Returns:
        Columns index (in the original file), label, attack, surrogate ("" = searched on the model itself), component (of a
        cascade, or view of a family; "clean" or "before" where not needed), eps, draw, prediction (-1: no answer), margin
        (z_y - max z_k, float32), valid (x_adv finite, inside ball and [0, 1]). The rows of attack "clean" come first.

    Raises:
        InputError: fewer than 2 classes, labels that are none, a reserved name, another evaluation's state, too little memory.
    """
    stochastic = bool(getattr(model, "stochastic", False))
    draws = (DRAWS if stochastic else 1) if draws is None else draws
    adaptive, sources = attacks if adaptive is None else adaptive, sources or {}
    _check({**attacks, **adaptive}, batch_size, draws, stochastic)
    split = split.to(device_of(model, split))
    surrogates: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    store = State(None)
    if state is not None:
        settings = {"seed": seed, "draws": draws, "batch_size": batch_size, "minimum": minimum}
        store = State.open(state, facts(model, {**surrogates, **sources}, split, attacks, adaptive, **settings))
    job = Evaluation(model, split, seed, draws, min(batch_size, store.limit or batch_size), store, progress)
    with frozen_eval(model), full_float32():
        rounds = AttackSchedule(job, stochastic, _classes(model, split) if len(split) else 0)
        rounds.begin()
        rounds.deployed(attacks)
        rounds.others(adaptive, surrogates, sources, minimum)
    return joined(rounds.frames)


def _classes(model: nn.Module, split: Split) -> int:
    """How many classes the model tells apart."""
    part = split.select(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad(), torch.random.fork_rng([part.labels.device] if part.labels.is_cuda else []):
        return int(model(part.images.float() / 255).shape[1])


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
            "adversarial example and once to score it; others at least once. For a deterministic evaluation of a "
            "stochastic model fix its randomness with a seed: model.fixed(seed)."
        )
    for name in attacks:
        if name in RESERVED or "@" in name:
            raise InputError(
                f"An attack cannot be called {name!r}: {', '.join(RESERVED)} and names with @ have a meaning."
            )
