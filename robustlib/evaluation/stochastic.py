"""How much of a randomised model's robustness is luck: draws counted apart (DiffHammer, NeurIPS 2024, and the control that its critics
asked for), randomness fixed (arXiv 2404.14309 and 2505.22839), and a vote in place of a draw (Hill et al. 2021).

What the randomness of an evaluated run is worth, stored with it; and whether its attacks had reached their plateau.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from robustlib.attacks import APGD, PGD, PGDEOT, Attack
from robustlib.attacks.base import attack_context
from robustlib.data import Dataset, Split
from robustlib.errors import InputError, check_counts
from robustlib.evaluation.cache import images_of, state_key
from robustlib.evaluation.distances import bootstrap
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.metrics import accuracy, headline, summarise, verdicts
from robustlib.evaluation.protocols import StochasticProtocol, stochastic_protocol
from robustlib.evaluation.schedule import Progress
from robustlib.runs import Run, read_json, versions, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd


WORST_OF = 10  # draws
SEEDS = (0, 1, 2)  # of fixed randomness
SAMPLES = (1, 5, 20)  # gradient samples over which PGD+EOT is measured
SLACK = 0.03  # accuracy: what more of an attack may still take and be called no stronger
BPDA = "bpda"  # the surrogate that is differentiated as if the purified image were the image


def draw_statistics(records: "pd.DataFrame", draws: int = WORST_OF) -> dict[str, Any]:
    """What the same stored draws say of clean and attacked images if they are counted in other ways.

    The worst of K draws falls by random failures alone, so it is given for clean images as well. Attacked images are those of
    the headline (see `robustlib.evaluation.metrics.headline`): where they were chosen among several, on odd draws, they are counted
    on even ones.

    Args:
        records: of `evaluate`, of a stochastic model.
        draws: K.

    Returns:
        {"draws": K, "clean": {"expected", "single", "worst": accuracies}, "attacked": the same, "successes" (attacked images
        that fail in draw 0), "repeated" (the share of the other draws in which these fail again; None without any)}.

    Raises:
        InputError: fewer than 2 K draws of each image.
    """
    table = verdicts(records)
    if not len(table) or table["draw"].max() < 2 * draws - 1:
        raise InputError(f"The worst of {draws} draws needs {2 * draws} of each image: evaluate a stochastic model.")
    clean, attacked = headline(table[table["attack"] == "clean"]), headline(table)
    lost = attacked[attacked[0] == 0]
    again = float(1 - lost.drop(columns=0).to_numpy().mean()) if len(lost) and lost.shape[1] > 1 else None
    counted = {"draws": draws, "clean": _counted(clean, draws), "attacked": _counted(attacked, draws)}
    return counted | {"successes": len(lost), "repeated": again}


def _counted(stood: "pd.DataFrame", draws: int) -> dict[str, dict[str, float]]:
    """Accuracies of (images, draws) zeros and ones: the mean, that of draw 0, and that of images right in all of K draws."""
    some = stood.iloc[:, :draws]
    shares = {"expected": stood.mean(axis=1), "single": stood[0], "worst": some.min(axis=1)}
    return {name: accuracy(float(share.sum()), len(stood)) for name, share in shares.items()}


def fixed_draw(model: nn.Module, seed: int | None = None) -> nn.Module:
    """The model with its randomness drawn once, from a seed; one that has none as it is.

    Raises:
        InputError: a stochastic model and no seed, or none whose randomness can be fixed (no method `fixed`).
    """
    if not getattr(model, "stochastic", False):
        return model
    fix: Callable[[int], nn.Module] | None = getattr(model, "fixed", None)
    if seed is None or fix is None:
        asked = "give a seed" if fix is not None else "its class needs a method fixed(seed)"
        raise InputError(
            f"{type(model).__name__} is stochastic, and a deterministic evaluation fixes its draw: {asked}."
        )
    return fix(seed)


def fixed_accuracies(
    model: nn.Module,
    split: Split,
    threat: Threat,
    budget: StochasticProtocol,
    *,
    seeds: Sequence[int] = SEEDS,
    seed: int = 0,
    state: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """The deterministic white box: PGD on two objectives and APGD see the very draw by which they are judged.

    Args:
        model: stochastic, with a method `fixed`.
        split: the examples.
        threat: the allowed perturbations.
        budget: whose numbers of steps the attacks take; of fixed randomness each gradient is exact.
        seeds: each fixes another draw, the same for all images.
        seed: of the attacks.
        state: where what is unfinished is kept, for each seed in a directory of its own that begins with this name.
        progress: called before and after each batch.

    Returns:
        {"seed", "clean", "attacked"} for each of the seeds; accuracies, `attacked` of the per-example minimum.
    """
    pgd = PGD(threat, budget.pgd_eot[0], early_stop=True)
    attacks: dict[str, Attack] = {
        "pgd": pgd,
        "cw": replace(pgd, objective="margin"),
        "apgd": APGD(threat, budget.pgd_eot[0]),
    }
    rows = []
    for fixed in seeds:
        kept = _kept(state, f"fixed{fixed}")
        records = evaluate(
            fixed_draw(model, fixed), split, attacks, seed=seed, adaptive={}, state=kept, progress=progress
        )
        found = _by_attack(summarise(records))
        rows.append({"seed": fixed, "clean": found["clean"], "attacked": found["worst"]})
    return rows


def eot_curve(
    model: nn.Module,
    split: Split,
    threat: Threat,
    pairs: Iterable[tuple[int, int]],
    *,
    seed: int = 0,
    state: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """Expected accuracy under PGD+EOT as it grows stronger.

    Args:
        model: stochastic; its surrogates are left out.
        split: the examples.
        threat: the allowed perturbations.
        pairs: (steps, gradient samples of each) by point.
        seed: of the attacks.
        state: where unfinished points are kept, each in a directory of its own that begins with this name.
        progress: called before and after each batch.

    Returns:
        {"steps", "samples", an accuracy, and "stood" (of each image, in order: the share of draws that it withstood)} for each point.
    """
    rows = []
    for steps, samples in pairs:
        kept = _kept(state, f"{steps}x{samples}")
        attacks: dict[str, Attack] = {"eot": PGDEOT(threat, steps, samples)}
        records = evaluate(model, split, attacks, seed=seed, adaptive={}, state=kept, progress=progress)
        stood = headline(records[records["attack"] == "eot"]).mean(axis=1).sort_index().round(4).tolist()
        numbers = _by_attack(summarise(records, worst=False))["eot"]
        rows.append({"steps": steps, "samples": samples, **numbers, "stood": stood})
    return rows


def _kept(state: Path | None, name: str) -> Path | None:
    """The directory for a part of the work."""
    return None if state is None else state.with_name(f"{state.name}-{name}")


def last_step(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the last step of a curve took, with its 95 % bootstrap interval over images, and whether the plateau is reached.

    Args:
        curve: of `eot_curve`, two points at least, on the same images.

    Returns:
        {"lost", "low", "high": shares of the images, "verdict": "flat" (surely less than 3 points), "falling" (surely some), or
        "unclear": so many images cannot tell}.
    """
    import numpy as np

    before, last = (np.array(point["stood"]) for point in curve[-2:])
    low, high = bootstrap(lambda one, two: float((one - two).mean()), before, last)
    verdict = "flat" if high < SLACK else "falling" if low > 0 else "unclear"
    return {"lost": float((before - last).mean()), "low": low, "high": high, "verdict": verdict}


class Vote(nn.Module):
    """x -> the mean logits (B, K) of several draws of a randomised model, made in batches that memory holds; no gradients.

    It is asked once and counts as deterministic, as it does where it is published; logits are averaged as they are there.

    Args:
        model: x -> logits.
        draws: how many vote.

    Raises:
        InputError: draws < 1.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws
        check_counts(self, "draws")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        with attack_context(self.model, x, ()) as oracle:
            return oracle.logits(x, self.draws)


def vote(
    model: nn.Module,
    split: Split,
    threat: Threat,
    budget: StochasticProtocol,
    *,
    seed: int = 0,
    state: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """BPDA+EOT as Hill et al. (2021) report it: a `Vote` answers. For comparison with their numbers, never part of a headline.

    Images that the vote gets wrong without attack stay as they are.

    Args:
        model: stochastic, with a surrogate "bpda"; else there is nothing to compare.
        split: the examples.
        threat: the allowed perturbations.
        budget: whose `bpda` searches, from the image itself, and whose `defence` is the number of draws.
        seed: of the attack.
        state: where what is unfinished is kept, in a directory that begins with this name.
        progress: called before and after each batch.

    Returns:
        {"draws", "protocol", "clean", "attacked"}, the last two accuracies; {} without that surrogate.
    """
    views: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    if BPDA not in views:
        return {}
    attack, judge = PGDEOT(threat, *budget.bpda), Vote(model, budget.defence)
    suites: dict[str, Any] = {"attacks": {}, "adaptive": {"pgd_eot": attack}, "sources": {BPDA: views[BPDA]}}
    records = evaluate(judge, split, **suites, seed=seed, state=_kept(state, "vote"), progress=progress)
    found = _by_attack(summarise(records))
    said = {"draws": budget.defence, "protocol": f"{attack!r}, searched on {BPDA}, judged by the mean logits of a vote"}
    return {**said, "clean": found["clean"], "attacked": found[f"pgd_eot@{BPDA}"]}


def _by_attack(table: "pd.DataFrame") -> dict[str, dict[str, float]]:
    rows = zip(table["attack"], table["correct"], table["n"], strict=True)
    return {name: accuracy(float(correct), int(n)) for name, correct, n in rows}


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
        The content of randomness.json: facts of the evaluation, then those of `draw_statistics`, "fixed" (see `fixed_accuracies`; empty
        if the model has no method `fixed`), "eot" (see `eot_curve`; over gradient samples, on the budget's images of curves) and
        "vote" (see `vote`; on the same images).

    Raises:
        InputError: the run is not evaluated, or its model answers the same each time.
    """
    results, images, facts = _evaluated(run, dataset)
    stored = read_json(run.path / "randomness.json")
    if stored and {name: stored.get(name) for name in FACTS} == facts:
        return stored
    where, threat, budget = resolve_device(device), _threat(run), stochastic_protocol(run.params().get("preset"))
    model, few, pairs = run.model().to(where), images.sample(budget.curve), _samples(budget, SAMPLES)
    unfinished = run.path / "randomness"
    state = unfinished / state_key(facts, where)
    settings: dict[str, Any] = {"seed": results["seed"], "state": state, "progress": progress}
    found: dict[str, Any] = {**facts, **draw_statistics(run.records())}
    found["fixed"] = fixed_accuracies(model, images, threat, budget, **settings) if hasattr(model, "fixed") else []
    found["eot"] = eot_curve(model, few, threat, pairs, **settings)
    found["vote"] = vote(model, few, threat, budget, **settings)
    write_json(run.path / "randomness.json", found)
    shutil.rmtree(unfinished, ignore_errors=True)
    return found


def _samples(budget: StochasticProtocol, counts: Iterable[int]) -> list[tuple[int, int]]:
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
    threat, budget, where = _threat(run), stochastic_protocol(run.params().get("preset")), resolve_device(device)
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
    budget: StochasticProtocol,
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
