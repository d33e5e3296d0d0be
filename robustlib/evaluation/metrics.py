"""From answers to numbers: records of predictions, accuracies with intervals, the per-example worst case, cascades."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from robustlib.attacks.inputs import check_labels
from robustlib.attacks.objectives import margin_of
from robustlib.data import Batch
from robustlib.models.classifier import logits_of
from robustlib.threat import Threat, exact

TOLERANCE = 1e-6  # float32 rounding of x + delta, relative where eps exceeds 1
COLUMNS = ["index", "label", "attack", "surrogate", "component", "eps", "passes"]  # an example under an attack
COLUMNS += ["draw", "prediction", "margin", "valid"]  # and what the model answers
CANDIDATE = ["attack", "surrogate", "component"]  # what found one adversarial image of an example
Z95 = 1.959963984540054  # standard normal quantile of 0.975


def valid(x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """(B,) bool: finite, inside [0, 1] and, where a threat is given, inside its ball up to float32 rounding."""
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # False for NaN
    if threat is None:
        return inside
    near = threat.distance(exact(x_adv), exact(x)) <= threat.eps + TOLERANCE * max(1.0, threat.eps)
    return inside & near.to(inside.device)


def answer(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, K) in float32, and the predicted class (B,) of each image; -1 where a logit is not finite."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = logits_of(model, x).float()
    return logits, torch.where(logits.isfinite().all(1), logits.argmax(1), -1)


def predict(model: nn.Module, x_adv: Tensor, batch: Batch, ok: Tensor, draws: int = 1) -> pd.DataFrame:
    """The model's answers to `x_adv` (B, C, H, W), `draws` times each, example by example: columns index, label, draw, prediction
    (-1: no answer), margin (z_y - max z_k) and valid, which is `ok` (B,) bool."""
    answers = []
    for _ in range(draws):
        logits, prediction = answer(model, x_adv)
        check_labels(batch.y, logits.shape[1])
        answers.append((prediction, margin_of(logits, batch.y)))
    prediction, margin = (torch.stack(parts, 1).flatten() for parts in zip(*answers, strict=True))
    each = {"index": batch.index, "label": batch.y, "valid": ok}
    columns = {name: column.repeat_interleave(draws) for name, column in each.items()}
    columns |= {"draw": torch.arange(draws).repeat(len(batch)), "prediction": prediction, "margin": margin}
    return pd.DataFrame({name: columns[name].cpu().numpy() for name in COLUMNS if name in columns})


def labelled(
    frame: pd.DataFrame, attack: str, surrogate: str, component: str | np.ndarray, eps: float, passes: float = 0.0
) -> pd.DataFrame:
    """The frame of `predict` with the names of what attacked, its radius and its passes an image, columns in their order."""
    return frame.assign(attack=attack, surrogate=surrogate, component=component, eps=eps, passes=passes)[COLUMNS]


def robust_correct(records: pd.DataFrame) -> pd.Series:
    """Whether each record is a right answer to a valid image; a broken attack is never robustness."""
    return ((records["prediction"] == records["label"]) & records["valid"]).astype(bool)


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each attack with its 95 % Wilson interval, and of the per-example worst case over everything.

    Invalid adversarial examples count as errors of the model. The accuracy of a stochastic model is the mean over its draws; where an
    example has several adversarial images, the strongest on its odd draws is scored on the even ones (on the same draws, luck would
    look like strength). Where that choice went wrong so often that a single attack leaves less, its number is the headline.

    Returns:
        One row an attack, then one for each attack on a surrogate ("attack@surrogate"), then "worst", the headline. Columns
        attack, eps, n, correct (a fraction where draws disagree), accuracy, low, high, single (accuracy of draw 0 alone),
        invalid (examples), passes (forward and backward of the search, mean over all n; of "worst" those of all attacks
        together, 0 where nothing was counted); accuracies in [0, 1].
    """
    table = with_correct(records)
    rows: list[dict[str, Any]] = [{"attack": attack, **_row(group)} for attack, group in by_attack(table)]
    if len(rows) > 1:
        whole = _row(table)
        least = min((whole, *rows), key=lambda row: row["accuracy"])
        rows.append({**least, "attack": "worst", **{name: whole[name] for name in ("eps", "invalid", "passes")}})
    return pd.DataFrame(rows, columns=["attack", "eps", *accuracy(0, 0), "single", "invalid", "passes"])


def accuracies(records: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The `accuracy` of each row of `summarise`, by attack."""
    rows: Any = summarise(records).to_dict("records")
    return {row["attack"]: accuracy(row["correct"], row["n"]) for row in rows}


def headline_draws(records: pd.DataFrame) -> pd.DataFrame:
    """Whether each example of a stochastic model withstood, in each draw, what makes the row "worst" of `summarise`: the strongest
    of all its adversarial images, or the single attack that leaves less. Index: examples; a column a draw."""
    table = with_correct(records)
    candidates = [_strongest_draws(group) for group in (table, *(group for _, group in by_attack(table)))]
    return min(candidates, key=lambda draws: float(draws.mean(axis=1).mean()))


def withstood(records: pd.DataFrame) -> "pd.Series[float]":
    """Whether each example withstands everything in the records, by index: 0 or 1, of a stochastic model the share of its headline's draws."""
    if records["draw"].max() > 0:
        return headline_draws(records).mean(axis=1)
    return robust_correct(records).groupby(records["index"]).min().astype(float)


def by_attack(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The records of each attack, then of each attack on a surrogate ("attack@surrogate"), by name."""
    name = table["attack"].where(table["surrogate"] == "", table["attack"] + "@" + table["surrogate"])
    return sorted(table.groupby(name, sort=False), key=lambda group: "@" in str(group[0]))  # a stable sort


def cascade_steps(records: pd.DataFrame) -> pd.DataFrame:
    """What each component of each cascade took from those before it; the first row of each is the clean model.

    Returns:
        Columns attack, surrogate, component, attacked (examples), broken (a fraction where draws disagree), accuracy (after
        it, of all examples), passes (mean over those attacked); no rows without a cascade.
    """
    table, rows = with_correct(records), []
    clean = table[table["attack"] == "clean"]
    for (attack, surrogate), group in table[table["component"] != ""].groupby(["attack", "surrogate"], sort=False):
        parts = {"clean": clean, **dict(list(group[group["component"] != "clean"].groupby("component", sort=False)))}
        n = clean["index"].nunique()
        before: float = n
        for k, (component, part) in enumerate(parts.items(), 1):
            after = _score(pd.concat(list(parts.values())[:k]))["correct"].sum()
            numbers = part["index"].nunique(), before - after, after / n, float(part["passes"].mean())
            rows.append((attack, surrogate, component, *numbers))
            before = after
    names = ["attack", "surrogate", "component", "attacked", "broken", "accuracy", "passes"]
    return pd.DataFrame(rows, columns=names)


def with_correct(records: pd.DataFrame) -> pd.DataFrame:
    """The records with the column `correct`; those of version 0.1 knew no surrogates, components and passes."""
    missing = {name: 0.0 if name == "passes" else "" for name in COLUMNS if name not in records}
    return records.assign(**missing, correct=robust_correct(records))


def _row(group: pd.DataFrame) -> dict[str, float]:
    scores = _score(group)
    numbers = accuracy(float(scores["correct"].sum()), len(scores))
    invalid = group.loc[~group["valid"], "index"].nunique()
    numbers["passes"] = float(group.loc[group["draw"] == 0, "passes"].sum()) / max(len(scores), 1)
    return {"eps": float(group["eps"].max()), **numbers, "single": float(scores["single"].mean()), "invalid": invalid}


def _score(table: pd.DataFrame) -> pd.DataFrame:
    """For each example under its strongest adversarial image: `correct`, the mean over draws in [0, 1], and `single`."""
    if table["draw"].max() == 0:
        least = table.groupby("index")["correct"].min()
        return least.to_frame("correct").assign(single=least)
    draws = _strongest_draws(table)
    return draws.mean(axis=1).to_frame("correct").assign(single=draws[0].astype(float))


def _strongest_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Whether each example of a stochastic model withstood its strongest adversarial image, a column for each draw: of several, that is
    chosen by the odd draws of the example and, to the same weight, of all examples; then the even draws count."""
    key, several = ["index", *CANDIDATE], len(table[CANDIDATE].drop_duplicates()) > 1
    choosing, scoring = table[table["draw"] % 2 == 1], table[table["draw"] % 2 == 0] if several else table
    strength = choosing.groupby(key, sort=False)[["correct", "margin"]].mean().reset_index()
    # Of many candidates some look strong by luck: how strong each is on all examples counts as much as on this one.
    strength["correct"] += strength.groupby(CANDIDATE)["correct"].transform("mean")
    chosen = strength.sort_values(["correct", "margin"], kind="stable").drop_duplicates("index").set_index(key).index
    draws = scoring.groupby([*key, "draw"])["correct"].mean().unstack().reindex(chosen)
    return draws.reset_index(CANDIDATE, drop=True).astype(float)


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) without observations. For `correct` a sum of expectations it is on the
    safe side: a mean of numbers in [0, 1] varies most when they are 0 or 1."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z95**2
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / 4 / n**2)
    low, high = ((p + z2 / 2 / n + side * half) / (1 + z2 / n) for side in (-1, 1))
    return (0.0 if correct == 0 else max(low, 0.0)), (1.0 if correct == n else min(high, 1.0))


def paired_interval(differences: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of a mean of paired differences (N,) in [-1, 1] of Bonett and Price (2012, Psychological Methods 17): the Wald
    interval of paired proportions after adding one image to either kind of disagreement. With sums, so that shares of draws fit too."""
    d = np.asarray(differences, dtype=float)
    n = len(d) + 2
    mean, square = float(d.sum()) / n, (float((d**2).sum()) + 2) / n
    error = Z95 * math.sqrt(max(square - mean**2, 0.0) / n)
    return mean - error, mean + error


def t_interval(values: Sequence[float], level: float = 0.95, *, least_sd: float = 0.0) -> tuple[float, float]:
    """Student's t interval of the mean of independent values (at least two); NaN where one of them is. Their standard deviation counts
    as `least_sd` at least, e.g. as that of rounding."""
    from scipy.stats import sem, t

    mean, n = sum(values) / len(values), len(values)
    half = float(t.ppf((1 + level) / 2, n - 1) * max(sem(values), least_sd / math.sqrt(n)))
    return mean - half, mean + half


def accuracy(correct: float, n: int) -> dict[str, float]:
    """{"n", "correct", "accuracy", "low", "high"} with the 95 % Wilson interval."""
    low, high = wilson(correct, n)
    whole = int(correct) if correct == int(correct) else correct
    return {"n": n, "correct": whole, "accuracy": correct / max(n, 1), "low": low, "high": high}
