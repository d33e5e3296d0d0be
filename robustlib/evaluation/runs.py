"""The standard evaluation of a finished run, stored with it."""

import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.evaluation.cache import state_key
from robustlib.evaluation.evaluate import evaluate, robustness_curve
from robustlib.evaluation.measurements import OnProgress, images_of, measure_randomness, protocol_of, threat_of
from robustlib.evaluation.metrics import cascade_steps
from robustlib.evaluation.protocols import EOT, TRANSFER, TRANSFER_METHODS, Suite
from robustlib.runs import Run, attack_names, measured, transfer_sources, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

EPS_MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)  # of the threat's eps, for the curve
STEPS = (0, 1, 2, 5, 10, 20, 50)  # of PGD, for the curve
CURVE_EXAMPLES = 500
LAST = ("fgsm", "pgd20", "cw50")  # attacks on the last epoch's weights


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: OnProgress = None,
) -> dict[str, Any]:
    """The standard evaluation of a finished run, stored in the run; a stored one is returned, an interrupted one resumed.

    The best weights meet all `standard_attacks`, those of the last epoch only the quick ones (see LAST): enough to see
    whether the training overfitted, which is a question of PGD against PGD. Of a model with `surrogates()` these meet the
    `adaptive_attacks` (see `evaluate`), and examples found on finished runs of TRANSFER_METHODS beside it are tried as well. A
    stochastic model meets what the preset's `StochasticProtocol` allows, and `measure_randomness` follows.

    Args:
        dataset: of the run; its test split is attacked.
        n: a stratified choice of so many images, the same for all runs; None or 0 for all. Of a stochastic model no more than its
            protocol's. What fewer images show never replaces what more have shown.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, numerics, rows (one an attack, see `summarise`, with the
        protocol that made it; the last, "worst", is the headline), cascade (see `cascade_steps`; of the deployed model), last
        (rows of the last epoch), curve (over eps) and steps_curve; of a model with surrogates also transfer (the sources by
        method), of a stochastic one budget. It is evaluated again when a method of TRANSFER_METHODS has a finished run that had none.
    """
    split, facts = _evaluation_facts(run, dataset, n, seed)
    stored = run.results()
    keep = stored.get("n", 0) <= len(split) or stored.get("numerics") != facts["numerics"]
    measure = partial(_evaluate_weights, run, dataset, split, facts, device, progress, keep)
    results = measured(run, "results.json", facts, measure) if keep else {**facts, **measure()}
    if results != stored:
        shutil.rmtree(run.evaluation, ignore_errors=True)
    if "budget" in facts:
        measure_randomness(run, dataset, device=device, progress=progress)
    return results


def _evaluation_facts(run: Run, dataset: Dataset, n: int | None, seed: int) -> tuple[Split, dict[str, Any]]:
    """The images, and the facts by which a stored evaluation is known again."""
    split, model, protocol, threat = images_of(run, dataset, n), run.model(), protocol_of(run), threat_of(run)
    if model.stochastic:
        split = images_of(run, dataset, min(len(split), protocol.images))
    suite = Suite.of(model, threat, protocol, {})
    names = attack_names([*suite.attacks.values(), *suite.adaptive.values(), PGD(threat)])
    facts: dict[str, Any] = {
        "n": len(split),
        "split": "test",
        "checkpoint": "best",
        "threat": str(threat),
        "seed": seed,
    }
    facts |= {"numerics": versions("measures/evaluation", *names)}
    facts |= {"budget": protocol.facts()} if model.stochastic else {}
    return split, facts | ({"transfer": _sources(run)} if has_new_sources(run) else {})


def _evaluate_weights(
    run: Run,
    dataset: Dataset,
    split: Split,
    facts: Mapping[str, Any],
    device: str,
    progress: OnProgress,
    keep: bool,
) -> dict[str, Any]:
    """What results.json holds besides its facts; the records of best and last weights are stored if they shall be kept."""
    run.model().check_data(dataset)
    where, threat, protocol, random = resolve_device(device), threat_of(run), protocol_of(run), "budget" in facts
    sources = transfer_sources(run, TRANSFER_METHODS) if run.model().surrogates() else {}
    transfer = {"transfer": _sources(run)} if run.model().surrogates() else {}
    quick, tables, frames = LAST[:2] if random else LAST, {}, {}
    key = state_key({**facts, **transfer}, where)
    for which, others, only in (("best", sources, ()), ("last", {}, quick)):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload,arg-type]
        suite = Suite.of(model, threat, protocol, others, only)
        found = {TRANSFER + method: source.model().to(where) for method, source in others.items()}
        suites: dict[str, Any] = {"attacks": suite.attacks, "adaptive": suite.adaptive, "sources": found}
        state = run.evaluation / f"{which}-{key}"
        frames[which] = evaluate(model, split, **suites, seed=facts["seed"], state=state, progress=progress)
        tables[which] = suite.table(frames[which])
    cascade = cascade_steps(frames["best"][frames["best"]["surrogate"] == ""]).to_dict("records")
    few = split.sample(protocol.curve if random else CURVE_EXAMPLES)
    curves = _curves(run.model().to(where), few, threat, facts["seed"])
    if keep:  # before results.json, which would have no proof without; what judged older numbers goes with them
        for old in ("audit.json", "randomness.json"):
            (run.path / old).unlink(missing_ok=True)
        both = [frame.assign(checkpoint=which) for which, frame in frames.items()]
        run.write_frame("records.parquet", pd.concat(both, ignore_index=True))
    return {**transfer, "rows": tables["best"], "cascade": cascade, "last": {"rows": tables["last"]}, **curves}


def _curves(model: nn.Module, split: Split, threat: Threat, seed: int) -> dict[str, Any]:
    stochastic = bool(getattr(model, "stochastic", False))
    attack = PGD(threat, steps=20, early_stop=not stochastic, eot=EOT if stochastic else 1)
    radii = sorted({threat.scaled(multiple).eps for multiple in EPS_MULTIPLES})
    over_eps = robustness_curve(model, split, attack, eps=radii, seed=seed)
    over_steps = robustness_curve(model, split, attack, steps=STEPS, seed=seed)
    return {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}


def _sources(run: Run) -> dict[str, str]:
    return {method: source.place for method, source in transfer_sources(run, TRANSFER_METHODS).items()}


def has_new_sources(run: Run) -> bool:
    """Whether an evaluated model with surrogates would now be attacked by way of other runs than it was: more, or fitter ones."""
    stored = run.results()
    return "transfer" in stored and _sources(run) not in ({}, stored["transfer"])
