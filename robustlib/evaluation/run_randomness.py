"""What the randomness of an evaluated run is worth, stored with it; and whether its attacks had reached their plateau."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from robustlib.attacks import PGDEOT
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation.budgets import budget_of
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import summarise
from robustlib.evaluation.randomness import eot_curve, fixed_accuracies, luck
from robustlib.evaluation.run_images import images_of
from robustlib.evaluation.steps import Progress
from robustlib.runs import Run, read_json, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

FACTS = ("n", "seed", "code", "threat", "budget")  # of results.json, by which randomness.json belongs to it
SLACK = 0.03  # accuracy that the full PGD+EOT may take from the headline and be called the same


def measure_randomness(run: Run, dataset: Dataset, *, device: str = "auto") -> dict[str, Any]:
    """What becomes of an evaluated randomised run if its draws are counted otherwise or fixed; stored in randomness.json.

    Args:
        run: of a stochastic model, evaluated by `evaluate_run`, whose images, seed and budget are taken.
        dataset: whose test images are attacked.
        device: "cpu", "cuda" or "auto".

    Returns:
        The content of randomness.json: facts of the evaluation, then those of `luck`, "fixed" (see `fixed_accuracies`; empty
        if the model has no method `fixed`) and "eot" (see `eot_curve`).

    Raises:
        InputError: the run is not evaluated, or its model answers the same each time.
    """
    results, images, facts = _evaluated(run, dataset)
    stored = read_json(run.path / "randomness.json")
    if stored and {name: stored.get(name) for name in FACTS} == facts:
        return stored
    model, threat, budget = run.model().to(resolve_device(device)), _threat(run), budget_of(run.params().get("preset"))
    seed, few = results["seed"], images.sample(budget.curve)
    found: dict[str, Any] = {**facts, **luck(run.records())}
    fixable = hasattr(model, "fixed")
    found["fixed"] = fixed_accuracies(model, images, threat, budget, seed=seed) if fixable else []
    found["eot"] = eot_curve(model, few, threat, budget, seed=seed)
    write_json(run.path / "randomness.json", found)
    return found


def check_plateau(
    run: Run, dataset: Dataset, *, device: str = "auto", progress: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """One PGD+EOT at full strength on the images of an evaluated randomised run; results.json keeps what it found.

    Where it leaves less than the headline by more than 3 points, its number becomes the headline; the other is kept beside it.

    Args:
        run, dataset, device: as for `measure_randomness`.
        progress: called before and after each batch.

    Returns:
        The content of results.json, with "plateau": {"full" (the attack's row), "worst" (the headline before it), "taken"}.

    Raises:
        InputError: as `measure_randomness`.
    """
    results, images, _ = _evaluated(run, dataset)
    if "plateau" in results:
        return results
    attack = PGDEOT(_threat(run), *budget_of(run.params().get("preset")).full)
    model, state = run.model().to(resolve_device(device)), run.evaluation / "plateau"
    settings: dict[str, Any] = {"seed": results["seed"], "state": state, "progress": progress, "adaptive": {}}
    records = evaluate(model, images, {"pgd_eot": attack}, **settings)
    row: dict[Any, Any] = summarise(records, worst=False).to_dict("records")[-1]
    results = with_plateau(results, {**row, "protocol": repr(attack)})
    if results["plateau"]["taken"]:
        (run.path / "audit.json").unlink(missing_ok=True)  # it judged another number
    write_json(run.path / "results.json", results)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    return results


def with_plateau(results: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the row of a full-strength PGD+EOT, which is the headline if it is lower by more than 3 points."""
    *rows, worst = results["rows"]
    taken = worst["accuracy"] - full["accuracy"] > SLACK + 1e-9
    if taken:
        before = f"the worst case over the attacks above leaves {100 * worst['accuracy']:.1f} %"
        rows.append({**full, "attack": "worst", "protocol": f"{full['protocol']}, the plateau check; {before}"})
    else:
        rows.append(worst)
    return {**results, "rows": rows, "plateau": {"full": dict(full), "worst": worst, "taken": taken}}


def _evaluated(run: Run, dataset: Dataset) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The results of a randomised run, its images, and the facts that what is measured on it must share."""
    results = run.results()
    if not results:
        raise InputError(f"{run.path} has no evaluation: call `robustlib evaluate {run.path}` first.")
    if "budget" not in results:
        raise InputError(f"{run.path} answers the same each time: there is no randomness to measure.")
    return results, images_of(run, dataset, results["n"]), {name: results.get(name) for name in FACTS}


def _threat(run: Run) -> Threat:
    return Threat(**run.params()["threat"])
