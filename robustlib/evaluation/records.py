"""What attacks did to a model, example by example."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.attacks import FGSM, PGD, Attack, Draws
from robustlib.attacks.float32 import full_float32
from robustlib.attacks.objectives import margin_of
from robustlib.attacks.search import borrowed, check_labels
from robustlib.data import Batch, Split
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256
TOLERANCE = 1e-6  # float32 rounding of x + delta
Progress = Callable[[str, int, int], None]  # attack name, examples done, examples in all


def standard_attacks(threat: Threat) -> dict[str, Attack]:
    """The common protocol's gradient attacks: FGSM, PGD-20, PGD-50 with 10 restarts, and 50 steps on the C&W margin.

    All take steps of eps / 4 (2/255 at 8/255) and stop an example at its first success, which is never weaker than judging
    the last iterate.
    """
    pgd = PGD(threat, early_stop=True)
    return {
        "fgsm": FGSM(threat),
        "pgd20": replace(pgd, steps=20),
        "pgd50x10": replace(pgd, steps=50, restarts=10),
        "cw50": replace(pgd, steps=50, objective="margin"),
    }


def evaluate(
    model: nn.Module,
    split: Split,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Tidy per-example records of the clean model and of each attack; the verdict is always the float32 model's.

    Args:
        model: x -> logits, on the device where it shall be evaluated; it is put in eval mode for the time.
        split: the examples, all of them.
        attacks: by the name they get in the records.
        batch_size: examples at a time; it changes no number, since random draws belong to examples.
        seed: of the attacks' random starts.
        progress: called after each batch.

    Returns:
        Columns index (in the original file), label, attack, eps, draw, prediction, margin (z_y - max z_k, float32) and valid
        (x_adv finite, inside the ball and inside [0, 1]). The rows of attack "clean" come first.
    """
    import pandas as pd

    split = split.to(next(model.parameters()).device)
    frames = []
    with borrowed(model), full_float32():
        for name, attack in {"clean": None, **attacks}.items():
            done = 0
            for batch in split.batches(batch_size):
                frames.append(_records(model, batch, name, attack, seed))
                done += len(batch.y)
                if progress is not None:
                    progress(name, done, len(split))
    return pd.concat(frames, ignore_index=True)


def _records(model: nn.Module, batch: Batch, name: str, attack: Attack | None, seed: int) -> "pd.DataFrame":
    """Attacks one batch and judges the result."""
    x_adv, threat = batch.x, getattr(attack, "threat", None)
    if attack is not None:
        x_adv = attack(model, batch.x, batch.y, draws=Draws.for_examples(seed, batch.index))
    frame = _judge(model, x_adv, batch, valid(x_adv, batch.x, threat))
    frame.insert(2, "attack", name)
    frame.insert(3, "eps", 0.0 if threat is None else threat.eps)
    return frame


def valid(x_adv: Tensor, x: Tensor, threat: Threat | None) -> Tensor:
    """(B,) bool: finite, inside [0, 1] and, where a threat is given, inside its ball up to float32 rounding."""
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)  # False for NaN
    return inside if threat is None else inside & (threat.distance(x_adv, x) <= threat.eps + TOLERANCE)


def _judge(model: nn.Module, x_adv: Tensor, batch: Batch, ok: Tensor) -> "pd.DataFrame":
    import pandas as pd

    with torch.no_grad(), torch.autocast(x_adv.device.type, enabled=False):
        logits = model(x_adv).float()
    check_labels(batch.y, logits.shape[1])
    finite = logits.isfinite().all(1)
    prediction = torch.where(finite, logits.argmax(1), -1)  # a model without an answer is wrong
    columns = (batch.index, batch.y, 0 * batch.y, prediction, margin_of(logits, batch.y), ok)
    names = ("index", "label", "draw", "prediction", "margin", "valid")
    return pd.DataFrame({name: column.cpu().numpy() for name, column in zip(names, columns, strict=True)})
