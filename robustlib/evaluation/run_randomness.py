"""What the randomness of an evaluated run is worth, stored with it; and whether its attacks had reached their plateau."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from robustlib.attacks import PGDEOT
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.budgets import Budget, budget_of
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import summarise
from robustlib.evaluation.randomness import SAMPLES, SLACK, eot_curve, fixed_accuracies, last_step, luck, vote
from robustlib.evaluation.run_images import images_of
from robustlib.evaluation.state import state_key
from robustlib.evaluation.steps import Progress
from robustlib.runs import Run, read_json, versions, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

FACTS = ("n", "seed", "numerics", "threat", "budget")  # of results.json, by which randomness.json belongs to it
PLATEAU_SAMPLES = (*SAMPLES, 50)  # gradient samples of the plateau check
STEPS = (20, 100, 200)  # of PGD+EOT in the plateau check


def measure_randomness(
    run: Run, dataset: Dataset, *, device: str = "auto", progress: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """What becomes of an evaluated randomised run if its draws are counted otherwise or fixed; stored in randomness.json.

    It goes on where it was interrupted.

    Args:
        run: of a stochastic model, evaluated by `evaluate_run`, whose images, seed and budget are taken.
        dataset: whose test images are attacked.
        device: "cpu", "cuda" or "auto".
        progress: called before and after each batch.

    Returns:
        The content of randomness.json: facts of the evaluation, then those of `luck`, "fixed" (see `fixed_accuracies`; empty
        if the model has no method `fixed`), "eot" (see `eot_curve`; over gradient samples, on the budget's images of curves) and
        "vote" (see `vote`; on the same images).

    Raises:
        InputError: the run is not evaluated, or its model answers the same each time.
    """
    results, images, facts = _evaluated(run, dataset)
    stored = read_json(run.path / "randomness.json")
    if stored and {name: stored.get(name) for name in FACTS} == facts:
        return stored
    where, threat, budget = resolve_device(device), _threat(run), budget_of(run.params().get("preset"))
    model, few, pairs = run.model().to(where), images.sample(budget.curve), _samples(budget, SAMPLES)
    unfinished = run.path / "randomness"
    state = unfinished / state_key(facts, where)
    settings: dict[str, Any] = {"seed": results["seed"], "state": state, "progress": progress}
    found: dict[str, Any] = {**facts, **luck(run.records())}
    found["fixed"] = fixed_accuracies(model, images, threat, budget, **settings) if hasattr(model, "fixed") else []
    found["eot"] = eot_curve(model, few, threat, pairs, **settings)
    found["vote"] = vote(model, few, threat, budget, **settings)
    write_json(run.path / "randomness.json", found)
    shutil.rmtree(unfinished, ignore_errors=True)
    return found


def _samples(budget: Budget, counts: Iterable[int]) -> list[tuple[int, int]]:
    """(steps, gradient samples) of PGD+EOT with the budget's steps."""
    return [(budget.pgd_eot[0], count) for count in counts]


def check_plateau(
    run: Run, dataset: Dataset, *, device: str = "auto", progress: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """One PGD+EOT at full strength on the images of an evaluated randomised run, and more of its gradient samples and of its
    steps; results.json keeps what they found. It goes on where it was interrupted.

    Where the first leaves less than the headline by more than 3 points, its number becomes the headline; the other is kept beside
    it. The others say whether the attack has reached its plateau (see `last_step`). What the evaluation measured is not repeated:
    with the published budget it was at full strength.

    Args:
        run, dataset, device: as for `measure_randomness`.
        progress: called before and after each batch.

    Returns:
        The content of results.json, with "plateau": {"full" (the attack's row), "worst" (the headline before it), "taken",
        "samples" and "steps"}: the last two {"points" (see `eot_curve`), "last" (see `last_step`)}.

    Raises:
        InputError: as `measure_randomness`.
    """
    results, images, facts = _evaluated(run, dataset)
    if "plateau" in results:
        return results
    threat, budget, where = _threat(run), budget_of(run.params().get("preset")), resolve_device(device)
    attack, model = PGDEOT(threat, *budget.full), run.model().to(where)
    state = run.evaluation / f"plateau-{state_key(facts, where)}"
    settings: dict[str, Any] = {"seed": results["seed"], "state": state, "progress": progress}
    if budget.full == budget.pgd_eot:
        full = next(row for row in results["rows"] if row["attack"] == "pgd_eot")
    else:
        records = evaluate(model, images, {"pgd_eot": attack}, **settings, adaptive={})
        full = {**summarise(records, worst=False).to_dict("records")[-1], "protocol": repr(attack)}
    known = measure_randomness(run, dataset, device=device, progress=progress)["eot"]
    results = with_plateau(results, full)
    results["plateau"] |= _grid(model, images, threat, budget, known, settings)
    if results["plateau"]["taken"]:
        (run.path / "audit.json").unlink(missing_ok=True)  # it judged another number
    write_json(run.path / "results.json", results)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    return results


def _grid(
    model: nn.Module,
    images: Split,
    threat: Threat,
    budget: Budget,
    known: list[dict[str, Any]],
    settings: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """PGD+EOT over gradient samples and over steps, the other number being the budget's; what is known is not measured again."""
    pairs = {"samples": _samples(budget, PLATEAU_SAMPLES), "steps": [(count, budget.pgd_eot[1]) for count in STEPS]}
    found = {(point["steps"], point["samples"]): point for point in known if point["n"] == len(images)}
    todo = [pair for pair in dict.fromkeys([*pairs["samples"], *pairs["steps"]]) if pair not in found]
    found |= zip(todo, eot_curve(model, images, threat, todo, **settings), strict=True)
    curves = {name: [found[pair] for pair in curve] for name, curve in pairs.items()}
    return {name: {"points": points, "last": last_step(points)} for name, points in curves.items()}


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
    facts = {name: results.get(name) for name in FACTS}
    facts["numerics"] = {**results.get("numerics", {}), **versions("measures/randomness")}
    return results, images_of(run, dataset, results["n"]), facts


def _threat(run: Run) -> Threat:
    return Threat(**run.params()["threat"])
