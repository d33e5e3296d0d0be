"""How much of a randomised model's robustness is luck: draws counted apart (DiffHammer, NeurIPS 2024, and the control that its critics
asked for), and randomness fixed (arXiv 2404.14309 and 2505.22839)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from robustlib.attacks import APGD, PGD, PGDEOT, Attack
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.budgets import Budget
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import accuracy, held, summarise, verdicts
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

WORST_OF = 10  # draws
SEEDS = (0, 1, 2)  # of fixed randomness
SAMPLES = (1, 5, 20)  # gradient samples of the EOT plateau


def luck(records: "pd.DataFrame", draws: int = WORST_OF) -> dict[str, Any]:
    """What the same stored draws say of clean and attacked images if they are counted in other ways.

    The worst of K draws falls by random failures alone, so it is given for clean images as well. Attacked images are the
    strongest for each example, chosen on odd draws; everything is counted on even ones.

    Args:
        records: of `evaluate`, of a stochastic model.
        draws: K.

    Returns:
        {"draws": K, "clean": {"expected", "single", "worst": accuracies}, "attacked": the same, "successes" (attacked images
        that fail in draw 0), "repeated" (the share of the other even draws in which these fail again; None without any)}.

    Raises:
        InputError: fewer than 2 K draws of each image.
    """
    table = verdicts(records)
    if not len(table) or table["draw"].max() < 2 * draws - 1:
        raise InputError(f"The worst of {draws} draws needs {2 * draws} of each image: evaluate a stochastic model.")
    clean = held(table[table["attack"] == "clean"])
    attacked = held(table[table["attack"] != "clean"]) if (table["attack"] != "clean").any() else clean
    lost = attacked[attacked[0] == 0]
    again = float(1 - lost.drop(columns=0).to_numpy().mean()) if len(lost) and lost.shape[1] > 1 else None
    counted = {"draws": draws, "clean": _counted(clean, draws), "attacked": _counted(attacked, draws)}
    return counted | {"successes": len(lost), "repeated": again}


def _counted(held: "pd.DataFrame", draws: int) -> dict[str, dict[str, float]]:
    """Accuracies of (images, draws) zeros and ones: the mean, that of draw 0, and that of images right in all of K draws."""
    some = held.iloc[:, :draws]
    shares = {"expected": held.mean(axis=1), "single": held[0], "worst": some.min(axis=1)}
    return {name: accuracy(float(share.sum()), len(held)) for name, share in shares.items()}


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
    model: nn.Module, split: Split, threat: Threat, budget: Budget, *, seeds: Sequence[int] = SEEDS, seed: int = 0
) -> list[dict[str, Any]]:
    """The deterministic white box: PGD on two objectives and APGD see the very draw by which they are judged.

    Args:
        model: stochastic, with a method `fixed`.
        split: the examples.
        threat: the allowed perturbations.
        budget: whose numbers of steps the attacks take; of fixed randomness each gradient is exact.
        seeds: each fixes another draw, the same for all images.
        seed: of the attacks.

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
        records = evaluate(fixed_draw(model, fixed), split, attacks, seed=seed, adaptive={})
        found = _by_attack(summarise(records))
        rows.append({"seed": fixed, "clean": found["clean"], "attacked": found["worst"]})
    return rows


def eot_curve(
    model: nn.Module, split: Split, threat: Threat, budget: Budget, *, samples: Sequence[int] = SAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Expected accuracy under PGD+EOT over gradient samples: {"samples", and an accuracy}, which should reach a plateau."""
    rows = []
    for count in samples:
        attack = PGDEOT(threat, budget.pgd_eot[0], count)
        records = evaluate(model, split, {"eot": attack}, seed=seed, adaptive={})
        rows.append({"samples": count, **_by_attack(summarise(records, worst=False))["eot"]})
    return rows


def _by_attack(table: "pd.DataFrame") -> dict[str, dict[str, float]]:
    rows = zip(table["attack"], table["correct"], table["n"], strict=True)
    return {name: accuracy(float(correct), int(n)) for name, correct, n in rows}
