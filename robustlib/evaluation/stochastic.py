"""How much of a randomised model's robustness is luck: the same draws counted in other ways (DiffHammer, NeurIPS 2024, and the
control that its critics asked for), randomness fixed (arXiv 2404.14309 and 2505.22839), a vote in place of a draw (Hill et al. 2021),
and whether the attack has reached its plateau."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from robustlib.attacks import APGD, PGD, PGDEOT, Attack
from robustlib.attacks.base import attack_context
from robustlib.data import Split
from robustlib.errors import InputError, check_counts
from robustlib.evaluation.distances import bootstrap
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.metrics import accuracy, headline_draws, summarise, with_correct
from robustlib.evaluation.protocols import StochasticProtocol
from robustlib.threat import Threat

WORST_OF = 10  # draws
SEEDS = (0, 1, 2)  # of fixed randomness
SLACK = 0.03  # accuracy: what more of an attack may still take and be called no stronger
BPDA = "bpda"  # the surrogate that is differentiated as if the purified image were the image


def draw_statistics(records: pd.DataFrame, draws: int = WORST_OF) -> dict[str, Any]:
    """What the same stored draws say of clean and attacked images if they are counted in other ways.

    The worst of K draws falls by random failures alone, so it is given for clean images as well. Attacked images are those of
    the headline (see `headline_draws`): where they were chosen among several, on odd draws, they are counted on even ones.

    Args:
        records: of `evaluate`, of a stochastic model.
        draws: K, at most half of the draws of each image.

    Returns:
        {"draws": K, "clean": {"expected", "single", "worst": accuracies}, "attacked": the same, "successes" (attacked images
        that fail in draw 0), "repeated" (the share of the other draws in which these fail again; None without any)}.
    """
    table = with_correct(records)
    if not len(table) or table["draw"].max() < 2 * draws - 1:
        raise InputError(f"The worst of {draws} draws needs {2 * draws} of each image: evaluate a stochastic model.")
    clean, attacked = headline_draws(table[table["attack"] == "clean"]), headline_draws(table)
    lost = attacked[attacked[0] == 0]
    again = float(1 - lost.drop(columns=0).to_numpy().mean()) if len(lost) and lost.shape[1] > 1 else None
    counted = {"draws": draws, "clean": _counted(clean, draws), "attacked": _counted(attacked, draws)}
    return counted | {"successes": len(lost), "repeated": again}


def _counted(correct: pd.DataFrame, draws: int) -> dict[str, dict[str, float]]:
    """Accuracies of (images, draws) zeros and ones: the mean, that of draw 0, and that of images right in all of K draws."""
    shares = {"expected": correct.mean(axis=1), "single": correct[0], "worst": correct.iloc[:, :draws].min(axis=1)}
    return {name: accuracy(float(share.sum()), len(correct)) for name, share in shares.items()}


def fixed_accuracies(
    model: nn.Module,
    split: Split,
    threat: Threat,
    protocol: StochasticProtocol,
    *,
    seeds: Sequence[int] = SEEDS,
    state: Path | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """The deterministic white box: PGD on two objectives and APGD see the very draw by which they are judged.

    Args:
        model: stochastic, with a method `fixed`.
        protocol: whose number of PGD+EOT's steps the attacks take; of fixed randomness each gradient is exact.
        seeds: each fixes another draw, the same for all images.
        state: where unfinished work is kept, for each seed in a directory of its own that begins with this name.
        settings: seed and progress of `evaluate`.

    Returns:
        {"seed", "clean", "attacked"} for each of the seeds; accuracies, `attacked` of the per-example minimum.
    """
    pgd = PGD(threat, protocol.pgd_eot[0], early_stop=True)
    attacks: dict[str, Attack] = {
        "pgd": pgd,
        "cw": replace(pgd, objective="margin"),
        "apgd": APGD(threat, protocol.pgd_eot[0]),
    }
    rows = []
    for fixed in seeds:
        state_dir = _part_of(state, f"fixed{fixed}")
        drawn: nn.Module = model.fixed(fixed)  # type: ignore[operator]
        records = evaluate(drawn, split, attacks, adaptive={}, state=state_dir, **settings)
        found = _accuracies(summarise(records))
        rows.append({"seed": fixed, "clean": found["clean"], "attacked": found["worst"]})
    return rows


def eot_curve(
    model: nn.Module,
    split: Split,
    threat: Threat,
    pairs: Iterable[tuple[int, int]],
    *,
    state: Path | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Expected accuracy under PGD+EOT as it grows stronger.

    `pairs` are (steps, gradient samples of each); `state` and `settings` as for `fixed_accuracies`. Surrogates are left out.

    Returns:
        {"steps", "samples", an accuracy, and "stood" (of each image, in order: the share of draws that it withstood)} for each point.
    """
    rows = []
    for steps, samples in pairs:
        state_dir = _part_of(state, f"{steps}x{samples}")
        attacks: dict[str, Attack] = {"eot": PGDEOT(threat, steps, samples)}
        records = evaluate(model, split, attacks, adaptive={}, state=state_dir, **settings)
        stood = headline_draws(records[records["attack"] == "eot"]).mean(axis=1).sort_index().round(4).tolist()
        point = _accuracies(summarise(records, worst=False))["eot"]
        rows.append({"steps": steps, "samples": samples, **point, "stood": stood})
    return rows


def last_step(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the last step of an `eot_curve` took, with its 95 % bootstrap interval over images, and whether the plateau is reached.

    {"lost", "low", "high": shares of the images, "verdict": "flat" (surely less than 3 points), "falling" (surely some), or
    "unclear": so many images cannot tell}.
    """
    before, last = (np.array(point["stood"]) for point in curve[-2:])
    low, high = bootstrap(lambda one, two: float((one - two).mean()), before, last)
    verdict = "flat" if high < SLACK else "falling" if low > 0 else "unclear"
    return {"lost": float((before - last).mean()), "low": low, "high": high, "verdict": verdict}


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


class Vote(nn.Module):
    """x -> the mean logits (B, K) of several draws of a randomised model, made in batches that memory holds; no gradients.

    It is asked once and counts as deterministic, as it does where it is published; logits are averaged as they are there.
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
    protocol: StochasticProtocol,
    *,
    state: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """BPDA+EOT as Hill et al. (2021) report it: a `Vote` answers. For comparison with their numbers, never part of a headline.

    Images that the vote gets wrong without attack stay as they are.

    The protocol's `bpda` searches, from the image itself, and its `defence` is the number of draws; `state` and `settings` as for
    `fixed_accuracies`.

    Returns:
        {"draws", "protocol", "clean", "attacked"}, the last two accuracies; {} for a model without a surrogate "bpda".
    """
    views: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    if BPDA not in views:
        return {}
    attack = PGDEOT(threat, *protocol.bpda)
    suites: dict[str, Any] = {"attacks": {}, "adaptive": {"pgd_eot": attack}, "sources": {BPDA: views[BPDA]}}
    records = evaluate(Vote(model, protocol.defence), split, **suites, state=_part_of(state, "vote"), **settings)
    found = _accuracies(summarise(records))
    said = f"{attack!r}, searched on {BPDA}, judged by the mean logits of a vote"
    result = {"draws": protocol.defence, "protocol": said, "clean": found["clean"]}
    return result | {"attacked": found[f"pgd_eot@{BPDA}"]}


def _part_of(state: Path | None, name: str) -> Path | None:
    """The directory for a part of the work."""
    return None if state is None else state.with_name(f"{state.name}-{name}")


def _accuracies(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By attack, of the rows of `summarise`."""
    rows = zip(table["attack"], table["correct"], table["n"], strict=True)
    return {name: accuracy(float(correct), int(n)) for name, correct, n in rows}
