"""The verdict on each example: what the deployed model says of an image, in float32."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.attacks.inputs import check_labels
from robustlib.attacks.objectives import margin_of
from robustlib.data import Batch
from robustlib.threat import Threat

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TOLERANCE = 1e-6  # float32 rounding of x + delta, relative where eps exceeds 1
COLUMNS = (
    *("index", "label", "attack", "surrogate", "component", "eps", "draw"),
    *("prediction", "margin", "valid"),
)


def valid(x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """(B,) bool: finite, inside [0, 1] and, where a threat is given, inside its ball up to float32 rounding."""
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # False for NaN
    if threat is None:
        return inside
    return inside & (threat.distance(x_adv.double(), x.double()) <= threat.eps + TOLERANCE * max(1.0, threat.eps))


def judge(model: nn.Module, x_adv: Tensor, batch: Batch, ok: Tensor, draws: int = 1) -> "pd.DataFrame":
    """The model's answers to `x_adv` (B, C, H, W), `draws` times each, example by example.

    Args:
        model: x -> logits; the caller has put it in eval mode.
        x_adv: what it is shown instead of the batch's images.
        batch: labels and indices.
        ok: (B,) bool, whether the attacker was allowed to.
        draws: how often a stochastic model is asked.

    Returns:
        Columns index, label, draw, prediction (-1 where a logit is not finite), margin (z_y - max z_k) and valid.
    """
    import pandas as pd

    answers = [_answer(model, x_adv, batch.y) for _ in range(draws)]
    prediction, margin = (torch.stack(parts, 1).flatten() for parts in zip(*answers, strict=True))
    each = {"index": batch.index, "label": batch.y, "valid": ok}
    columns = {name: column.repeat_interleave(draws) for name, column in each.items()}
    columns |= {"draw": torch.arange(draws).repeat(len(batch)), "prediction": prediction, "margin": margin}
    return pd.DataFrame({name: columns[name].cpu().numpy() for name in COLUMNS if name in columns})


def _answer(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and margins (B,)."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = model(x).float()
    check_labels(y, logits.shape[1])
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1), margin_of(logits, y)


def labelled(
    frame: "pd.DataFrame", attack: str, surrogate: str, component: "str | np.ndarray", eps: float
) -> "pd.DataFrame":
    """The frame of `judge` with the names of what attacked and its radius, columns in their order."""
    frame = frame.assign(attack=attack, surrogate=surrogate, component=component, eps=eps)
    return frame[list(COLUMNS)]


def withstood(records: "pd.DataFrame") -> "pd.Series":
    """Whether each record is a right answer to a valid image; a broken attack is never robustness."""
    return (records["prediction"] == records["label"]) & records["valid"]
