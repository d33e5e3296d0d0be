"""From records to numbers: accuracies with intervals, and robustness curves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.records import BATCH, evaluate
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd


def summarise(records: "pd.DataFrame", *, worst: bool = True) -> "pd.DataFrame":
    """Accuracy of each attack with its 95 % Wilson interval, and of the per-example worst case over all attacks.

    Invalid adversarial examples count as errors of the model and are shown in `invalid`: a broken attack is never reported
    as robustness.

    Returns:
        Columns attack, eps, n, correct, accuracy, low, high, invalid; accuracies in [0, 1]; "worst" is the last row.
    """
    import pandas as pd

    table = records.assign(correct=(records.prediction == records.label) & records.valid)
    groups = [(name, group) for name, group in table.groupby("attack", sort=False)]
    if worst and len(groups) > 1:
        least = table.groupby("index", as_index=False).agg({"correct": "min", "eps": "max", "valid": "min"})
        groups.append(("worst", least))
    rows = []
    for name, group in groups:
        numbers = accuracy(int(group.correct.sum()), len(group))
        rows.append({"attack": name, "eps": float(group.eps.max()), **numbers, "invalid": int((~group.valid).sum())})
    return pd.DataFrame(rows)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); (0, 1) without observations."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def robustness_curve(
    model: nn.Module,
    split: Split,
    attack: PGD,
    *,
    eps: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> "pd.DataFrame":
    """Accuracy under `attack` over radii, or over numbers of steps; nested: an example once broken stays broken.

    Args:
        attack: the protocol; its threat's eps, or its steps, are replaced along the curve (the step size stays eps / 4 unless
            given).
        eps: radii in pixel units, any order; 0 is the clean accuracy.
        steps: numbers of steps, >= 0; 0 is the clean accuracy.

    Returns:
        Columns eps or steps, n, correct, accuracy, low, high; accuracy never rises along the curve.

    Raises:
        InputError: neither or both of `eps` and `steps` given.
    """
    import pandas as pd

    if (eps is None) == (steps is None):
        raise InputError("Give robustness_curve either eps=[...] or steps=[...].")
    name, values = ("eps", eps or ()) if eps is not None else ("steps", steps or ())
    split = split.to(next(model.parameters()).device)
    standing, rows = torch.arange(len(split), device=split.labels.device), []
    for value in sorted(values):
        attacks = {"curve": _at(attack, name, value)} if value else {}
        if len(standing):
            records = evaluate(model, split.select(standing), attacks, batch_size=batch_size, seed=seed)
            records["ok"] = (records.prediction == records.label) & records.valid
            ok = records.groupby("index", sort=False).ok.min().to_numpy(copy=True)
            standing = standing[torch.from_numpy(ok).to(standing.device)]
        rows.append({name: value, **accuracy(len(standing), len(split))})
    return pd.DataFrame(rows)


def _at(attack: PGD, name: str, value: float) -> PGD:
    """The attack at one point of a curve."""
    if name == "steps":
        return replace(attack, steps=int(value))
    return replace(attack, threat=Threat(attack.threat.norm, float(value)))


def accuracy(correct: int, n: int) -> dict[str, float]:
    """{"n", "correct", "accuracy", "low", "high"} with the 95 % Wilson interval."""
    low, high = wilson(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / max(n, 1), "low": low, "high": high}
