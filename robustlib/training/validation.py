"""What is measured of a model between epochs, and what these measurements warn of."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.base import Precision, frozen_eval, validation_view
from robustlib.attacks.memory import halving
from robustlib.attacks.pgd import FGSM, PGD
from robustlib.data import Batch, Split
from robustlib.models.classifier import full_float32, logits_of
from robustlib.rng import ExampleRNG, forked, uniform_point
from robustlib.threat import Threat, exact

BATCH = 500
TRAIN_EXAMPLES = 512  # fixed training images whose robust accuracy shows overfitting
PROBE_EXAMPLES = 256

# Thresholds of baselines practice: Wong et al. 2020 (drop of 20 points), Andriushchenko and Flammarion 2020 (alignment).
DROP, COLLAPSE, ONCE, GAP, ALIGNMENT = 0.20, 0.05, 0.20, 0.25, 0.3
ROBUST_OVERFITTING, GENERALISATION, RISING = 0.02, 0.15, 5


def validate(
    model: nn.Module, train: Split, val: Split, threat: Threat, seed: int, precision: Precision
) -> tuple[dict[str, float], Tensor, bool]:
    """Clean, FGSM and PGD-10 accuracy on `val`, PGD-10 accuracy on fixed images of `train`, gradient alignment; which
    images of `val` withstood PGD, bool (N,), to compare epochs in pairs; and whether all of `val` gets one class. Accuracies are NaN
    where a logit is not finite.

    Attacks and the alignment use the model's `attack_view`; accuracies and losses are always the deployed model's. A model that
    does not predict yet has nothing to validate. A stochastic model is scored on one draw for each image, the same one in every
    epoch and under every attack; attacks do not know it and draw their own.
    """
    if not getattr(model, "predicts", True):
        return {}, torch.zeros(0, dtype=torch.bool), False
    pgd, view = PGD(threat, steps=10, early_stop=True, precision=precision), validation_view(model)
    few = train.sample(min(TRAIN_EXAMPLES, len(val)))
    with frozen_eval(model), full_float32():
        clean = _logits(model, view, val, None, seed)
        attacked = _logits(model, view, val, pgd, seed)
        fgsm = _logits(model, view, val, FGSM(threat, precision=precision), seed)
        trained = _logits(model, view, few, pgd, seed)
        batch = probe_batch(val)
        alignment = gradient_alignment(view, batch.x, batch.y, threat, ExampleRNG.for_examples(seed, batch.index))
    numbers = {
        "clean_val": _accuracy(clean, val),
        "fgsm_val": _accuracy(fgsm, val),
        "robust_val": _accuracy(attacked, val),
        "robust_loss_val": float(F.cross_entropy(attacked, val.labels)),
        "robust_train": _accuracy(trained, few),
        "gradient_alignment": alignment,
    }
    return numbers, (attacked.argmax(1) == val.labels).cpu(), len(clean.argmax(1).unique()) == 1


def _logits(model: nn.Module, view: nn.Module, split: Split, attack: PGD | None, seed: int) -> Tensor:
    """The model's logits (N, K) on the images, or on the adversarial examples that `attack` finds on `view`."""

    def answers(rows: slice) -> Tensor:
        batch = split.batch(rows)
        rng = ExampleRNG.for_examples(seed, batch.index)
        x = batch.x if attack is None else attack(view, batch.x, batch.y, rng=rng)
        with torch.no_grad(), torch_seed(seed, x.device):
            return logits_of(model, x).float()

    return torch.cat([*halving(answers, len(split), BATCH)])


def _accuracy(logits: Tensor, split: Split) -> float:
    return float((logits.argmax(1) == split.labels).float().mean()) if bool(logits.isfinite().all()) else math.nan


@contextmanager
def torch_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Within, torch's global generators start from `seed`; afterwards they continue as if nothing had been drawn."""
    with forked(device):
        torch.manual_seed(seed)
        yield


def gradient_alignment(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRNG) -> float:
    """Mean cosine, in [-1, 1], of the loss gradients at x and at a random point of the ball; near 0 after catastrophic overfitting.

    1 - this is the GradAlign regulariser (Andriushchenko and Flammarion 2020, eq. 5). Both gradients of a stochastic model are of
    the same draw.
    """
    elsewhere = uniform_point(threat, x, rng)

    def cosine(rows: slice) -> Tensor:
        gradients: list[Tensor] = []
        for points in (x, elsewhere):
            point = points[rows].detach().requires_grad_(True)
            with torch_seed(0, x.device), torch.enable_grad():
                logits = exact(logits_of(model, point))
                loss = F.cross_entropy(logits, y[rows].to(logits.device), reduction="sum")
                gradients.append(torch.autograd.grad(loss, point)[0].flatten(1))
        return F.cosine_similarity(gradients[0], gradients[1], eps=1e-30)

    return float(torch.cat([*halving(cosine, len(x), BATCH)]).mean())


def probe_batch(val: Split) -> Batch:
    """The fixed validation batch that probes see."""
    return next(iter(val.sample(PROBE_EXAMPLES).batches(PROBE_EXAMPLES)))


def overfitting(rows: Sequence[Mapping[str, Any]], best: Tensor, now: Tensor) -> list[str]:
    """Sentences on catastrophic and robust overfitting after the last of `rows` (the validated epochs of one adversarial stage).

    Args:
        rows: metrics of these epochs so far, at least one.
        best, now: which validation images withstood PGD at the best and at the last epoch, (N,) bool.
    """
    row, before = rows[-1], rows[-2] if len(rows) > 1 else rows[-1]
    robust, once, aligned = row["robust_val"], max(r["robust_val"] for r in rows), row["gradient_alignment"]
    gap = row["fgsm_val"] - robust
    since = "one epoch" if (epochs := row["epoch"] - before["epoch"]) <= 1 else f"{epochs} epochs"
    turned = len(rows) > 1 and aligned < ALIGNMENT <= before["gradient_alignment"]
    fgsm, clean, fell = row["fgsm_val"], row["clean_val"], f"from {before['robust_val']:.0%} to {robust:.0%}"
    signs = (
        (before["robust_val"] - robust > DROP, f"PGD accuracy fell {fell} in {since}"),
        (once > ONCE and robust < COLLAPSE, f"PGD accuracy was {once:.0%} and is {robust:.0%}"),
        (gap > GAP, f"FGSM accuracy is {gap * 100:.0f} points above PGD accuracy"),
        (fgsm > clean + 0.01, f"FGSM accuracy {fgsm:.0%} is above clean accuracy {clean:.0%}"),
        (turned, f"input gradients lost their alignment (cosine {aligned:.2f})"),
    )
    catastrophic = [sign for present, sign in signs if present]
    difference = best.float() - now.float()  # on the same images
    lost, error = float(difference.mean()), float(difference.std(unbiased=False)) / math.sqrt(len(difference))
    unseen = row["robust_train"] - robust
    losses = [r["robust_loss_val"] for r in rows[-RISING - 1 :]]
    rising = len(losses) > RISING and all(a < b for a, b in itertools.pairwise(losses))
    worse = lost - 1.96 * error > ROBUST_OVERFITTING  # only what exceeds the noise of this validation set
    apart = unseen - 1.96 * math.sqrt(0.5 / len(now)) > GENERALISATION
    gradual = (
        (worse, f"robust validation accuracy is {lost * 100:.1f} points below its best epoch"),
        (apart, f"robust training accuracy is {unseen * 100:.0f} points above validation"),
        (
            rising,
            f"robust validation loss has risen for {row['epoch'] - rows[-RISING - 1]['epoch']} epochs"
            if rising
            else "",
        ),
    )
    said = [f"catastrophic overfitting: {'; '.join(catastrophic)}"] if catastrophic else []
    return said + [f"robust overfitting: {sign}" for present, sign in gradual if present]
