"""Robustness curves: accuracy as the attack grows stronger."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import BATCH, device_of, evaluate
from robustlib.evaluation.metrics import accuracy, robust_correct, summarise
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd


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

    Surrogates meet at each point what still stands there. Of a stochastic model it is the expected accuracy at each point by
    itself, of the model without surrogates: there, nothing is broken for good.

    Args:
        attack: the protocol; its threat's eps, or its steps, are replaced along the curve (the step size stays eps / 4 unless
            given).
        eps: radii in pixel units, any order; 0 is the clean accuracy.
        steps: numbers of steps, >= 0; 0 is the clean accuracy.

    Returns:
        Columns eps or steps, n, correct, accuracy, low, high; accuracy never rises along the curve of a deterministic model.

    Raises:
        InputError: neither or both of `eps` and `steps` given.
    """
    import pandas as pd

    if (eps is None) == (steps is None):
        raise InputError("Give robustness_curve either eps=[...] or steps=[...].")
    name, values = ("eps", eps or ()) if eps is not None else ("steps", steps or ())
    stochastic = bool(getattr(model, "stochastic", False))
    split = split.to(device_of(model, split))
    standing, rows = torch.arange(len(split), device=split.labels.device), []
    for value in sorted(values):
        attacks = {"curve": _at(attack, name, value)} if value else {}
        correct: float = len(standing)
        if len(standing):
            settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "adaptive": {} if stochastic else None}
            records = evaluate(model, split.select(standing), attacks, **settings, minimum=True)
            correct = float(summarise(records)["correct"].iloc[-1])
        if len(standing) and not stochastic:
            ok = robust_correct(records).groupby(records["index"], sort=False).min().to_numpy(copy=True)
            standing = standing[torch.from_numpy(ok).to(standing.device)]
        rows.append({name: value, **accuracy(correct, len(split))})
    return pd.DataFrame(rows)


def _at(attack: PGD, name: str, value: float) -> PGD:
    """The attack at one point of a curve."""
    if name == "steps":
        return replace(attack, steps=int(value))
    return replace(attack, threat=Threat(attack.threat.norm, float(value)))
