"""Attacks a model on a whole split and records what it answers, example by example.

Where a model has `surrogates()`, these meet the adaptive attacks, and sources (other models) those of them that are searches:

- a search (without components or restarts) meets every surrogate and source in full;
- surrogates with a class as `target` are a family, which meets the search on the margin only: a cascade over its classes, in which
  the images of a class do not meet its own view;
- anything costlier meets only what still stands after everything before, on all views. Its rows hold for the others the record
  that broke them (component "before", of a cascade): the accuracy of "autoattack@head 1" is the share that withstood it
  and everything before it. The minimum over all is the same as if each had met all images.

A surrogate's `objective` takes the place of an attack's "ce": a loss of several heads, which meets attacks with restarts in place of
cascades, as the others meet cascades in place of restarts (all meet both where none has one). A `relaxed` one, the deployed logits
with softer gates, meets only the parts of a cascade that are APGD, to save time.

Of a stochastic model every example meets everything that its view does (see `compatible_attacks`).
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.attacks.inputs import check_attack, check_model, owned
from robustlib.data import Split, check_split
from robustlib.errors import Count, InputError, Whole, shown, typed
from robustlib.evaluation.metrics import accuracy, robust_correct, summarise
from robustlib.evaluation.schedule import CLEAN, Attacks, AttackSchedule, Progress, Step, Views, concat_records, plan
from robustlib.models.classifier import full_float32
from robustlib.rng import forked
from robustlib.runs import attack_names, digest, read_json, versions, write_json
from robustlib.threat import Threat
from robustlib.training.devices import Team, launch, relayed

BATCH = 256
LOOKED_AT = 8  # clean images on which a model is asked for answers and gradients
DRAWS = 20  # of a stochastic model, for each adversarial example
RESERVED = (CLEAN, "worst")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the repr of what is no dataclass; another one in each process


def evaluate(
    model: nn.Module,
    split: Split,
    attacks: Attacks,
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    draws: int | None = None,
    state: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
    adaptive: Attacks | None = None,
    sources: Views | None = None,
    minimum: bool = False,
    devices: int = 1,
) -> pd.DataFrame:
    """Tidy per-example records of the clean model and of each attack; only the deployed model's float32 answers count.

    Every attack meets the model itself in full, as its paper would have it; each of the `components` of a cascade (AutoAttack) what
    withstood those before it. Misclassified images are not attacked: they keep their clean row.

    Args:
        model: x -> logits, on the device where it shall be evaluated.
        attacks: by the name they get in the records.
        batch_size: halved when memory runs out; it changes no random draw but those of a stochastic model, and the last digits.
        draws: how often each image is predicted; None = 20 for a stochastic model (at least 2), 1 for others.
        state: a directory for finished batches, from which the same call resumes after an interruption. The caller removes it.
        progress: called before and after each batch.
        adaptive: what the surrogates meet; None for `attacks`.
        sources: other models of the same images, by the names they get among the surrogates.
        devices: how many of the model's kind, a process each, share the batches of each attack; the records are the same.
        minimum: only the per-example minimum is asked for: every attack but those on the model itself is costly.

    Returns:
        Columns index (in the original file), label, attack, surrogate ("" = searched on the model itself), component (of a
        cascade, or view of a family; "clean" or "before" where not needed), eps, passes (forward and backward, mean over the
        images that the attack, component or view searched on; see `count_passes`), draw, prediction (-1: no answer), margin
        (z_y - max z_k, float32), valid (x_adv finite, inside ball and [0, 1]). The rows of attack "clean" come first.
    """
    stochastic = bool(getattr(model, "stochastic", False))
    draws = (DRAWS if stochastic else 1) if draws is None else typed(draws, Count, "draws")
    adaptive, sources = attacks if adaptive is None else adaptive, {} if sources is None else sources
    batch_size, seed = typed(batch_size, Count, "batch_size"), typed(seed, Whole, "seed")
    _check((attacks, adaptive), draws, stochastic)
    split = check_split(split).to(device_of(model, split))
    surrogates: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    if not isinstance(sources, Mapping):
        raise InputError(f"sources={shown(sources)}: give other models by their names.")
    for other in (*surrogates.values(), *sources.values()):
        check_model(other)
    path = None if state is None else Path(state)
    if path is not None:
        settings = {"seed": seed, "draws": draws, "batch_size": batch_size, "minimum": minimum}
        suites = {"attack": attacks, "adaptive attack": adaptive}
        _begin(path, model, {**surrogates, **sources}, split, suites, settings)
    schedule = (seed, draws, batch_size, path)
    scheduled = partial(_records, model, split, (attacks, adaptive), dict(sources), minimum, schedule)
    if typed(devices, Count, "devices") == 1:
        return scheduled(progress, Team(), split.labels.device)
    with relayed(progress) as told:
        return launch(split.labels.device.type, Team(0, devices), partial(scheduled, told))


def _records(
    model: nn.Module,
    split: Split,
    suites: tuple[Attacks, Attacks],
    sources: dict[str, nn.Module],
    minimum: bool,
    settings: tuple[int, int, int, Path | None],
    progress: Callable[[Progress], None] | None,
    team: Team,
    device: torch.device,
) -> pd.DataFrame:
    """The records of `evaluate`, in one of the processes that share its batches."""
    if team.size > 1:
        model, split = model.to(device), split.to(device)
        sources = {name: source.to(device) for name, source in sources.items()}
    surrogates: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    schedule = AttackSchedule(model, split, *settings, progress if team.writes else None, team)
    with frozen_eval(model), full_float32():
        schedule.run([Step(CLEAN)])
        if team.writes and suites[0] and not (surrogates or sources):
            _warn_of_silence(model, split.images[:LOOKED_AT].float() / 255)
        first = split.images[:1].float() / 255
        for steps, after_all in plan(model, first, *suites, surrogates, sources, minimum) if len(split) else ():
            schedule.run(steps, after_all)
    return concat_records(schedule.frames)


def _warn_of_silence(model: nn.Module, x: Tensor) -> None:
    """Warns of a model whose robust accuracy would say nothing: it answers NaN, or no gradient reaches the images x (B, C, H, W)."""
    with forked(x.device), torch.inference_mode(False), torch.enable_grad():
        images = owned(x).requires_grad_()
        logits = model(images.clone()).float()  # a model may change what it is given
        slope = None
        if logits.requires_grad:
            # A plain sum of probabilities has no slope.
            weights = torch.linspace(1, 2, logits.shape[-1], device=x.device)
            (slope,) = torch.autograd.grad((logits * weights).sum(), images, allow_unused=True)
    wrong = int((~logits.isfinite().flatten(1).all(1)).sum())
    if wrong:
        warnings.warn(
            f"The model answers NaN or infinity on {wrong} of {len(x)} clean images: it is broken.", stacklevel=2
        )
    elif len(x) and (slope is None or not slope.any()):
        says = "attacks that follow gradients leave them as they are, and what they leave right says nothing"
        remedy = "take out what cuts the graph (no_grad, detach, rounding), or attack by queries (Square)"
        warnings.warn(f"No gradient of the model reaches the images: {says}. Remedy: {remedy}.", stacklevel=2)


def device_of(model: nn.Module, split: Split) -> torch.device:
    """Where the model is, whose weights must be float32; the split's device for a model without tensors."""
    check_model(model)
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            raise InputError(
                f"The model has {tensor.dtype} weights, verdicts are given in float32: call model.float()."
            )
    return tensors[0].device if tensors else split.labels.device


def _check(suites: Sequence[Attacks], draws: int, stochastic: bool) -> None:
    if draws < 1 + stochastic:
        why = "once to choose its strongest adversarial example and once to score it, or as model.fixed(seed)"
        raise InputError(f"draws={draws}: judge a stochastic model at least twice, {why}.")
    for suite in suites:
        if not isinstance(suite, Mapping):
            raise InputError(f"{shown(suite)} names no attacks: give e.g. {{'pgd20': PGD(threat, steps=20)}}.")
        for name, attack in suite.items():
            check_attack(name, attack)
            if name in RESERVED or "@" in name:
                raise InputError(
                    f"An attack cannot be called {name!r}: {', '.join(RESERVED)} and names with @ have a meaning."
                )


def _begin(
    path: Path, model: nn.Module, others: Views, split: Split, suites: dict[str, Attacks], settings: dict[str, Any]
) -> None:
    """Begins a state in `path`; an error if one there differs in anything that decides the records, such as how surrogates and
    sources, the `others`, ask to be attacked."""
    asks = {n: f"{getattr(view, 'target', None)} {getattr(view, 'objective', None)}" for n, view in others.items()}
    facts = {
        "model": model_digest(model),
        **{f"surrogate {name}": f"{model_digest(other)} {asks[name]}" for name, other in others.items()},
        "split": _tensor_digest(split.images, split.labels, split.indices),
        **{f"{kind} {n}": ADDRESS.sub("", repr(a)) for kind, suite in suites.items() for n, a in suite.items()},
        "order of attacks": [list(suite) for suite in suites.values()],
        **settings,
        "numerics": versions("measures/evaluation", *attack_names(a for s in suites.values() for a in s.values())),
        "device": split.labels.device.type,
        "torch": torch.__version__,
    }
    stored, asked = read_json(path / "protocol.json"), json.loads(json.dumps(facts, default=str))
    if not stored:
        for orphan in path.glob("part-*.parquet"):  # nobody knows what they are of
            orphan.unlink()
        write_json(path / "protocol.json", asked)
        return
    # What follows from the attacks is named last, if nothing else differs.
    for name in sorted(asked | stored, key=("order of attacks", "numerics").__contains__):
        if stored.get(name) != asked.get(name):
            raise InputError(
                f"The evaluation state in {path} was begun with another {name} "
                f"({stored.get(name, 'none')} there, {asked.get(name, 'none')} now): delete that directory, or give "
                "another one as `state`."
            )


def model_digest(model: nn.Module) -> str:
    """Sixteen characters for a model's class, weights, buffers and plain settings such as a temperature."""
    weights = model.state_dict()
    settings = [
        ADDRESS.sub("", f"{name}.{key}={value!r}")
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "training" and (value is None or isinstance(value, (bool, int, float, str, tuple)))
    ]
    words = f"{type(model).__qualname__} {ADDRESS.sub('', str(model))} {sorted(weights)} {settings}"
    unsaved = (buffer for name, buffer in model.named_buffers() if name not in weights)
    return _tensor_digest(*(weights[name] for name in sorted(weights)), *unsaved, words=words)


def _tensor_digest(*tensors: Tensor, words: str = "") -> str:
    parts: list[str | bytes] = [words]
    for tensor in tensors:
        parts.append(f"{tensor.dtype}{tuple(tensor.shape)}")
        parts.append(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest(*parts)


def robustness_curve(
    model: nn.Module,
    split: Split,
    attack: PGD,
    *,
    eps: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy under `attack` over radii, or over numbers of steps; nested: an example once broken stays broken, and surrogates meet
    what still stands. Of a stochastic model it is the expected accuracy at each point by itself, without surrogates.

    Args:
        attack: its threat's eps, or its steps, are replaced along the curve (the step size stays eps / 4 unless given).
        eps: radii in pixel units, any order.
        steps: numbers of steps; 0 is, as of eps, the clean accuracy.

    Returns:
        Columns eps or steps, n, correct, accuracy, low, high; accuracy never rises along the curve of a deterministic model.
    """
    if (eps is None) == (steps is None):
        raise InputError("Give robustness_curve either eps=[...] or steps=[...].")
    stochastic, norm = bool(getattr(model, "stochastic", False)), attack.threat.norm
    points: dict[float, PGD] = {k: replace(attack, steps=k) for k in steps or () if k}
    points |= {radius: replace(attack, threat=Threat(norm, radius)) for radius in eps or () if radius}
    split = check_split(split).to(device_of(model, split))
    standing, rows = torch.arange(len(split), device=split.labels.device), []
    for value in sorted(steps or eps or ()):
        attacks = {"curve": points[value]} if value else {}
        correct: float = len(standing)
        if len(standing):
            settings: dict[str, Any] = {"seed": seed, "adaptive": {} if stochastic else None, "minimum": True}
            records = evaluate(model, split.select(standing), attacks, **settings)
            correct = float(summarise(records)["correct"].iloc[-1])
            if not stochastic:
                ok = robust_correct(records).groupby(records["index"], sort=False).min().to_numpy(copy=True)
                standing = standing[torch.from_numpy(ok).to(standing.device)]
        rows.append({"eps" if eps is not None else "steps": value, **accuracy(correct, len(split))})
    return pd.DataFrame(rows)
