"""How much of a randomised model's robustness is luck: the same draws counted in other ways (DiffHammer, NeurIPS 2024, and the
control that its critics asked for), randomness fixed (arXiv 2404.14309 and 2505.22839), a vote in place of a draw (Hill et al. 2021),
and whether the attack has reached its plateau."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from robustlib.attacks import APGD, PGD, PGDEOT, Attack, in_precision
from robustlib.attacks.base import Precision, attack_context
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.distances import bootstrap
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.measurements import OnProgress, images_of, protocol_of, search_precision, state_key, threat_of
from robustlib.evaluation.metrics import accuracies, accuracy, headline_draws, summarise, with_correct
from robustlib.evaluation.protocols import StochasticProtocol
from robustlib.runs import Run, measured, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

WORST_OF = 10  # draws
SEEDS = (0, 1, 2)  # of fixed randomness
SLACK = 0.03  # accuracy: what more of an attack may still take and be called no stronger
BPDA = "bpda"  # the surrogate that is differentiated as if the purified image were the image
FACTS = ("n", "seed", "numerics", "threat", "budget")  # of results.json, by which randomness.json belongs to it
SAMPLES = (1, 5, 20)  # gradient samples over which PGD+EOT is measured
PLATEAU_SAMPLES, PLATEAU_STEPS = (*SAMPLES, 50), (20, 100, 200)  # of PGD+EOT in the plateau check


def draw_statistics(records: pd.DataFrame) -> dict[str, Any]:
    """What the same stored draws of a stochastic model say of clean and attacked images if they are counted in other ways.

    The worst of 10 draws falls by random failures alone, so it is given for clean images as well. Attacked images are those of
    `headline_draws`.

    Returns:
        {"draws": 10, "clean": {"expected", "single", "worst": accuracies}, "attacked": the same, "successes" (attacked images
        that fail in draw 0), "repeated" (the share of the other draws in which these fail again; None without any)}.
    """
    table = with_correct(records)
    if not len(table) or table["draw"].max() < 2 * WORST_OF - 1:
        message = f"The worst of {WORST_OF} draws needs {2 * WORST_OF} of each image: evaluate a stochastic model."
        raise InputError(message)
    counted: dict[str, Any] = {"draws": WORST_OF}
    for kind, part in (("clean", table[table["attack"] == "clean"]), ("attacked", table)):
        correct = headline_draws(part)
        worst = correct.iloc[:, :WORST_OF].min(axis=1)
        shares = {"expected": correct.mean(axis=1), "single": correct[0], "worst": worst}
        counted[kind] = {name: accuracy(float(share.sum()), len(correct)) for name, share in shares.items()}
    lost = correct[correct[0] == 0].drop(columns=0)
    again = float(1 - lost.to_numpy().mean()) if lost.size else None
    return counted | {"successes": len(lost), "repeated": again}


def fixed_accuracies(
    model: nn.Module,
    split: Split,
    threat: Threat,
    protocol: StochasticProtocol,
    precision: Precision = "32-true",
    **settings: Any,
) -> list[dict[str, Any]]:
    """The deterministic white box: PGD on two objectives and APGD see the very draw by which they are judged.

    Each of SEEDS fixes another draw of the model, the same for all images; so each gradient is exact, and the attacks take the steps
    of the protocol's PGD+EOT. `settings` are seed, progress and state of `evaluate`. Returns {"seed", "clean", "attacked"} for
    each; accuracies, `attacked` of the per-example minimum.
    """
    pgd, rows = PGD(threat, protocol.pgd_eot[0], early_stop=True, precision=precision), []
    apgd = APGD(threat, pgd.steps, precision=precision)
    attacks: dict[str, Attack] = {"pgd": pgd, "cw": replace(pgd, objective="margin"), "apgd": apgd}
    for seed in SEEDS:
        drawn: nn.Module = model.fixed(seed)  # type: ignore[operator]
        shares = accuracies(evaluate(drawn, split, attacks, adaptive={}, **_part(settings, f"fixed{seed}")))
        rows.append({"seed": seed, "clean": shares["clean"], "attacked": shares["worst"]})
    return rows


def eot_curve(
    model: nn.Module,
    split: Split,
    threat: Threat,
    pairs: Iterable[tuple[int, int]],
    precision: Precision = "32-true",
    **settings: Any,
) -> list[dict[str, Any]]:
    """Expected accuracy under PGD+EOT as it grows stronger, without surrogates: {"steps", "samples", an accuracy, and "stood" (of each
    image, in order: the share of draws that it withstood)} for each of `pairs` (steps, gradient samples of each)."""
    rows = []
    for steps, samples in pairs:
        attack, part = in_precision(PGDEOT(threat, steps, samples), precision), _part(settings, f"{steps}x{samples}")
        records = evaluate(model, split, {"eot": attack}, adaptive={}, **part)
        stood = headline_draws(records[records["attack"] == "eot"]).mean(axis=1).sort_index().round(4).tolist()
        rows.append({"steps": steps, "samples": samples, **accuracies(records)["eot"], "stood": stood})
    return rows


def last_step(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the last step of an `eot_curve` took: {"lost", "low", "high": shares of the images, 95 % bootstrap, "verdict": "flat" (surely
    less than 3 points), "falling" (surely some), or "unclear": so many images cannot tell}."""
    before, last = (np.array(point["stood"]) for point in curve[-2:])
    low, high = bootstrap(lambda one, two: float((one - two).mean()), before, last)
    verdict = "flat" if high < SLACK else "falling" if low > 0 else "unclear"
    return {"lost": float((before - last).mean()), "low": low, "high": high, "verdict": verdict}


class Vote(nn.Module):
    """x -> the mean logits (B, K) of several draws of a randomised model, made in batches that memory holds; no gradients. It counts as
    deterministic, as it does where it is published."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        with attack_context(self.model, x, ()) as oracle:
            return oracle.logits(x, self.draws)


def vote(
    model: nn.Module,
    split: Split,
    threat: Threat,
    protocol: StochasticProtocol,
    precision: Precision = "32-true",
    **settings: Any,
) -> dict[str, Any]:
    """BPDA+EOT as Hill et al. (2021) report it: a `Vote` answers. For comparison with their numbers, never part of a headline.

    The protocol's `bpda` searches, from the image itself; its `defence` is the number of draws. Returns {"draws", "protocol", "clean",
    "attacked"}, the last two accuracies; {} for a model without a surrogate "bpda".
    """
    views: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    if BPDA not in views:
        return {}
    attack, judge = in_precision(PGDEOT(threat, *protocol.bpda), precision), Vote(model, protocol.defence)
    suites: dict[str, Any] = {"adaptive": {"pgd_eot": attack}, "sources": {BPDA: views[BPDA]}}
    shares = accuracies(evaluate(judge, split, {}, **suites, **_part(settings, "vote")))
    said = f"{attack!r}, searched on {BPDA}, judged by the mean logits of a vote"
    return {"draws": judge.draws, "protocol": said, "clean": shares["clean"], "attacked": shares[f"pgd_eot@{BPDA}"]}


def _part(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    state = settings.get("state")
    return {**settings, "state": state and state.with_name(f"{state.name}-{name}")}


# ---- runs


def measure_randomness(
    run: Run, dataset: Dataset, *, device: str = "auto", progress: OnProgress = None
) -> dict[str, Any]:
    """What becomes of an evaluated randomised run if its draws are counted otherwise or fixed; stored in randomness.json.

    The images, seed and protocol are those of `evaluate_run`. An interrupted measurement is resumed.

    Returns:
        Facts of the evaluation, then those of `draw_statistics`, "fixed" (see `fixed_accuracies`; empty if the model has no method
        `fixed`), "eot" (see `eot_curve`; over gradient samples, on the protocol's images of curves) and "vote" (on the same).
    """
    images, facts = _randomised(run, dataset)

    def measure() -> dict[str, Any]:
        where, threat, protocol = resolve_device(device), threat_of(run), protocol_of(run)
        model, few, counted = run.model().to(where), images.sample(protocol.curve), draw_statistics(run.records())
        settings: dict[str, Any] = {"state": run.path / "randomness" / state_key(facts, where)}
        settings |= {"seed": facts["seed"], "precision": facts["precision"], "progress": progress}
        fixed = fixed_accuracies(model, images, threat, protocol, **settings) if hasattr(model, "fixed") else []
        eot = eot_curve(model, few, threat, [(protocol.pgd_eot[0], count) for count in SAMPLES], **settings)
        return counted | {"fixed": fixed, "eot": eot, "vote": vote(model, few, threat, protocol, **settings)}

    stored = measured(run, "randomness.json", facts, measure)
    shutil.rmtree(run.path / "randomness", ignore_errors=True)
    return stored


def _randomised(run: Run, dataset: Dataset) -> tuple[Split, dict[str, Any]]:
    """The images of an evaluated randomised run, and the facts that what is measured on it must share."""
    results = run.results()
    if not results:
        raise InputError(f"{run.path} has no evaluation: call `robustlib evaluate {run.argument}` first.")
    if "budget" not in results:
        raise InputError(f"{run.path} answers the same each time: there is no randomness to measure.")
    facts = {name: results.get(name) for name in FACTS}
    facts["precision"] = search_precision(run)
    facts["numerics"] = {**results.get("numerics", {}), **versions("measures/randomness")}
    return images_of(run, dataset, results["n"]), facts


def check_plateau(run: Run, dataset: Dataset, *, device: str = "auto", progress: OnProgress = None) -> dict[str, Any]:
    """One PGD+EOT at full strength on the images of an evaluated randomised run, and more of its gradient samples and of its
    steps; results.json keeps what they found. An interrupted check is resumed.

    Where the first leaves less than the headline by more than 3 points, its number becomes the headline. The others say whether the
    attack has reached its plateau (see `last_step`). What the evaluation measured at full strength is not repeated.

    Returns:
        The content of results.json, with "plateau": {"full" (the attack's row), "worst" (the headline before it), "taken",
        "samples" and "steps"}: the last two {"points" (see `eot_curve`), "last" (see `last_step`)}.
    """
    images, facts = _randomised(run, dataset)
    results = run.results()
    if "plateau" in results:
        return results
    threat, protocol, where = threat_of(run), protocol_of(run), resolve_device(device)
    attack, model = in_precision(PGDEOT(threat, *protocol.full), facts["precision"]), run.model().to(where)
    settings: dict[str, Any] = {"seed": results["seed"], "progress": progress}
    settings |= {"state": run.evaluation / f"plateau-{state_key(facts, where)}"}
    if protocol.full == protocol.pgd_eot:
        full = next(row for row in results["rows"] if row["attack"] == "pgd_eot")
    else:
        rows: Any = summarise(evaluate(model, images, {"pgd_eot": attack}, **settings, adaptive={})).to_dict("records")
        full = next({**row, "protocol": repr(attack)} for row in rows if row["attack"] == "pgd_eot")
    known = measure_randomness(run, dataset, device=device, progress=progress)["eot"]
    results = with_plateau(results, full)
    steps, samples = protocol.pgd_eot
    pairs = {"samples": [(steps, k) for k in PLATEAU_SAMPLES], "steps": [(k, samples) for k in PLATEAU_STEPS]}
    points = {(point["steps"], point["samples"]): point for point in known if point["n"] == len(images)}
    todo = [pair for pair in dict.fromkeys([*pairs["samples"], *pairs["steps"]]) if pair not in points]
    points |= zip(todo, eot_curve(model, images, threat, todo, facts["precision"], **settings), strict=True)
    for name, curve in pairs.items():
        over = [points[pair] for pair in curve]
        results["plateau"][name] = {"points": over, "last": last_step(over)}
    if results["plateau"]["taken"]:
        (run.path / "audit.json").unlink(missing_ok=True)  # it judged another number
    run.write("results.json", results)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    return results


def with_plateau(results: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the row of a full-strength PGD+EOT, which is the headline if it is lower by more than 3 points."""
    *rows, worst = results["rows"]
    taken = worst["accuracy"] - full["accuracy"] > SLACK + 1e-9
    before = f"the worst case over the attacks above leaves {100 * worst['accuracy']:.1f} %"
    lower = {**full, "attack": "worst", "protocol": f"{full['protocol']}, the plateau check; {before}"}
    plateau = {"full": dict(full), "worst": worst, "taken": taken}
    return {**results, "rows": [*rows, lower if taken else worst], "plateau": plateau}
