"""The standard evaluation of a run, stored with it."""

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.evaluation.budgets import budget_of
from robustlib.evaluation.curves import robustness_curve
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import cascade
from robustlib.evaluation.protocol import TRANSFER, TWINS, Suite
from robustlib.evaluation.run_images import images_of
from robustlib.evaluation.run_randomness import measure_randomness
from robustlib.evaluation.state import state_key
from robustlib.evaluation.steps import Progress
from robustlib.evaluation.suites import EOT
from robustlib.runs import Run, attack_names, transfer_sources, versions, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd

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
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """The standard evaluation of a finished run, stored in the run; a stored one is returned, an interrupted one resumed.

    The best weights meet all `standard_attacks`, those of the last epoch only the quick ones (see LAST): enough to see
    whether the training overfitted, which is a question of PGD against PGD. Of a model with `surrogates()` these meet the
    `adaptive_attacks` (see `evaluate`), and examples found on finished runs of TWINS beside it are tried as well. A stochastic
    model meets what the preset's budget for such models allows (see `Budget`), and `measure_randomness` follows.

    Args:
        run: finished, of the same data set.
        dataset: whose test split is attacked.
        n: use a stratified choice of this many test images, the same for all runs; None or 0 for all. Of a stochastic model
            no more than its budget's.
        device: "cpu", "cuda" or "auto".
        seed: of the attacks' random draws.
        progress: called before and after each batch of each attack.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, numerics, rows (one an attack, see `summarise`, with the
        protocol that made it; the last, "worst", is the headline), cascade (see `cascade`; of the deployed model), last
        (rows of the last epoch), curve (over eps) and steps_curve; of a model with surrogates also transfer (the twins by
        method), of a stochastic one budget. It is evaluated again when a method of TWINS has a finished run that had none.

    Raises:
        InputError: the run is not finished, or of another data set or other images or classes.
    """
    split, asked = _asked(run, dataset, n, seed)
    stored, random = run.results(), "budget" in asked
    if stored and all(stored.get(k) == v for k, v in asked.items()) and not has_new_twins(run):
        results = stored
    else:
        run.model().check_data(dataset)
        results, frames = _attacked(run, split, asked, resolve_device(device), progress)
        if (
            stored.get("n", 0) <= len(split) or stored.get("numerics") != asked["numerics"]
        ):  # never replace more images by fewer
            _store(run, results, frames)
        shutil.rmtree(run.evaluation, ignore_errors=True)
    if random:
        measure_randomness(run, dataset, device=device, progress=progress)
    return results


def _asked(run: Run, dataset: Dataset, n: int | None, seed: int) -> tuple[Split, dict[str, Any]]:
    """The images, and the facts by which a stored evaluation is known again."""
    split, facts, model, budget = images_of(run, dataset, n), {}, run.model(), budget_of(run.params().get("preset"))
    threat = Threat(**run.params()["threat"])
    if model.stochastic:
        split, facts = images_of(run, dataset, min(len(split), budget.images)), {"budget": budget.facts()}
    asked: dict[str, Any] = {"n": len(split), "split": "test", "checkpoint": "best"}
    suite = Suite.of(model, threat, {}, budget=budget)
    names = attack_names([*suite.attacks.values(), *suite.adaptive.values(), PGD(threat)])
    asked |= {"threat": str(threat), "seed": seed, "numerics": versions("measures/evaluation", *names)}
    return split, asked | facts


def _attacked(
    run: Run,
    split: Split,
    asked: dict[str, Any],
    where: torch.device,
    progress: Callable[[Progress], None] | None,
) -> "tuple[dict[str, Any], list[pd.DataFrame]]":
    """What results.json shall hold, and the records of best and last weights."""
    threat, tables, frames = Threat(**run.params()["threat"]), {}, []
    budget, seed = budget_of(run.params().get("preset")), asked["seed"]
    twins = transfer_sources(run, TWINS) if run.model().surrogates() else {}
    if run.model().surrogates():
        asked["transfer"] = {method: twin.place for method, twin in twins.items()}
    quick = LAST[:2] if "budget" in asked else LAST
    beside: Mapping[str, tuple[Any, Any]] = {"best": (twins, ()), "last": ({}, quick)}
    for which in ("best", "last"):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        suite = Suite.of(model, threat, *beside[which], budget)
        state = run.evaluation / f"{which}-{state_key(asked, where)}"
        sources = {TRANSFER + method: twin.model().to(where) for method, twin in suite.twins.items()}
        suites: dict[str, Any] = {"attacks": suite.attacks, "adaptive": suite.adaptive, "sources": sources}
        records = evaluate(model, split, **suites, seed=seed, state=state, progress=progress)
        frames.append(records.assign(checkpoint=which))
        tables[which] = suite.table(records)
    steps = cascade(frames[0][frames[0]["surrogate"] == ""]).to_dict("records")
    few = split.sample(budget.curve if "budget" in asked else CURVE_EXAMPLES)
    curves = _curves(run.model().to(where), few, threat, seed)
    return {**asked, "rows": tables["best"], "cascade": steps, "last": {"rows": tables["last"]}, **curves}, frames


def has_new_twins(run: Run) -> bool:
    """Whether an evaluated model with surrogates would now be attacked by way of other runs than it was: more, or fitter ones."""
    stored = run.results()
    if "transfer" not in stored:
        return False
    now = {method: twin.place for method, twin in transfer_sources(run, TWINS).items()}
    return bool(now) and now != stored["transfer"]


def _store(run: Run, results: dict[str, Any], frames: "list[pd.DataFrame]") -> None:
    """Records first: a results.json without its records would have no proof. What judged older numbers goes with them."""
    import pandas as pd

    for old in ("audit.json", "randomness.json"):
        (run.path / old).unlink(missing_ok=True)
    run.write_frame("records.parquet", pd.concat(frames, ignore_index=True))
    write_json(run.path / "results.json", results)


def _curves(model: nn.Module, split: Split, threat: Threat, seed: int) -> dict[str, Any]:
    stochastic = bool(getattr(model, "stochastic", False))
    attack = PGD(threat, steps=20, early_stop=not stochastic, eot=EOT if stochastic else 1)
    radii = sorted({threat.scaled(multiple).eps for multiple in EPS_MULTIPLES})
    over_eps = robustness_curve(model, split, attack, eps=radii, seed=seed)
    over_steps = robustness_curve(model, split, attack, steps=STEPS, seed=seed)
    return {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}
