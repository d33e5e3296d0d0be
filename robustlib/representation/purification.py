"""What a purifier does to images, to features and to running time: the data of the figures and tables of AToP's notebook.

Models run in eval mode and are left as found; clean images and their adversarial copies are (B, C, H, W) in [0, 1], alike.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.models import Purified
from robustlib.models.purified import Randomness, RandomTransform
from robustlib.representation.features import FEATURES, Features, features
from robustlib.representation.pairs import CLEAN

RATES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
MIXES = (1, 2, 4, 8, 16)
IMAGE, PURIFIED = "image", "purified"
ROUNDS = 15  # interleaved, of which the median counts


class Steps(NamedTuple):
    """Images after each step of a purifier, by the step's name and in order, each (B, C, H, W) on the CPU.

    Attributes:
        clean, adversarial: the images.
        answers: step -> the classifier's answers (B,) to both as they are after it; of the images and of the purified ones.
    """

    clean: dict[str, Tensor]
    adversarial: dict[str, Tensor]
    answers: dict[str, tuple[Tensor, Tensor]]


def purification_steps(model: Purified, clean: Tensor, adversarial: Tensor, *, seed: int = 0) -> Steps:
    """Images and their attacked copies on their way through a model, both by the same draw of its randomness.

    The steps: "image"; "noise added"; "blocks hidden" (of rt3 behind the first of its N masks); "holes filled", where hidden
    pixels alone are the purifier's; "purified", what the classifier sees: all pixels are the purifier's. Steps that the model does
    not take are left out.
    """
    if clean.shape != adversarial.shape:
        raise InputError(
            f"Clean images {tuple(clean.shape)} and attacked ones {tuple(adversarial.shape)} must be the same images."
        )
    with frozen_eval(model), torch.no_grad():
        pair = [x.to(model.mean.device) for x in (clean, adversarial)]
        randomness = model.transform.draw(pair[0], torch.Generator().manual_seed(seed))
        sides = [_steps(model, x, randomness) for x in pair]
        first, second = ([model.classify(side[step]).argmax(1).cpu() for step in (IMAGE, PURIFIED)] for side in sides)
    before, after = ({step: x.cpu() for step, x in side.items()} for side in sides)
    return Steps(before, after, dict(zip((IMAGE, PURIFIED), zip(first, second, strict=True), strict=True)))


def _steps(model: Purified, x: Tensor, randomness: Randomness) -> dict[str, Tensor]:
    """The images x after each step that the model takes."""
    pure = model.purify(x, randomness)
    if not bool(model.purifying):
        return {IMAGE: x, PURIFIED: pure}
    mask = randomness.masks[0]
    noisy = model.transform.apply(x, Randomness(randomness.noise, torch.zeros_like(mask)[None]))[0]
    steps = {IMAGE: x}
    if randomness.noise is not None:
        steps["noise added"] = noisy
    if bool(mask.any()):
        steps["blocks hidden"] = model.transform.apply(x, randomness)[0]
        steps["holes filled"] = noisy * (1 - mask) + model.outputs(x, randomness)[-1][0] * mask
    return {**steps, PURIFIED: pure}


def transform_surface(transform: RandomTransform, clean: Tensor, adversarial: Tensor, *, seed: int = 0) -> pd.DataFrame:
    """How far a random transform moves images, against its missing rate and the number of copies that are mixed.

    T is the mean of several draws of the transform (noise, then blocks at mid-grey; of rt3 one mask a draw). With it, what the attack
    did shrinks by the missing rate alone, while what the transform itself does averages out: mixing brings the attack back out of
    the noise. After the released "impact of missing rate and mix number", whose figure has 4000 times the same numbers for masks of
    single pixels; here blocks, noise and radius are those of the model. Missing rates are those near RATES that its grid can have.

    Returns:
        A row for each rate and number of MIXES: missing, mixes, apart (|T(x') - T(x)|, both by the same draws), changed
        (|T(x') - x'|); means over images and pixels, in [0, 1].
    """
    rows = []
    for rate in sorted({round(rate * transform.blocks) / transform.blocks for rate in RATES} - {1.0}):
        mask = replace(transform, kind="rt2" if transform.noisy else "rt1", missing=rate)
        generator = torch.Generator().manual_seed(seed)
        sums = [torch.zeros_like(clean), torch.zeros_like(clean)]
        for count in range(1, MIXES[-1] + 1):
            drawn = mask.draw(clean, generator)
            sums = [total + mask.apply(x, drawn)[0] for total, x in zip(sums, (clean, adversarial), strict=True)]
            if count in MIXES:
                one, other = (total / count for total in sums)
                distances = {"apart": other - one, "changed": other - adversarial}
                means = {name: float(distance.abs().mean()) for name, distance in distances.items()}
                rows.append({"missing": rate, "mixes": count, **means})
    return pd.DataFrame(rows)


def purified_copies(model: Purified, split: Split, attack: Attack, *, seed: int = 0) -> dict[str, Features]:
    """Penultimate features of the same images with and without the purifier before the classifier, N each in one order.

    "clean" and "attacked" are those of the bare classifier, "purified" and "attacked, purified" those behind the purifier, by one
    draw. The attack is on the whole model; its images are rounded to 256 levels. For `consistency`, `displacement` and `embed_path`.
    """
    pure = features(model, split, seed=seed)
    attacked = features(model, split, attack=attack, seed=seed, keep_images=True)
    shown, bare = replace(split, images=attacked.images), _Classifier(model)  # type: ignore[arg-type]
    return {
        CLEAN: features(bare, split, layers=FEATURES),
        "purified": pure,
        "attacked": features(bare, shown, layers=FEATURES),
        "attacked, purified": features(model, shown, seed=seed),
    }


class _Classifier(nn.Module):
    """The bare classifier of a model, with the names that `features` looks for."""

    def __init__(self, model: Purified) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.head
        self.whole = model  # last, or the names above would be below it

    def forward(self, x: Tensor) -> Tensor:
        return self.whole.classify(x)


def forward_cost(model: Purified, x: Tensor) -> pd.DataFrame:
    """The time for an image of x (B, C, H, W) with the purifier and without: a forward pass, and one with its gradient.

    Both take turns, so that other work of the machine falls on both; the median of 15 rounds counts. A row a pass: pass
    ("forward", "forward and gradient"), classifier, purified (milliseconds an image), ratio.
    """
    sides: dict[str, Callable[[Tensor], Tensor]] = {"classifier": model.classify, "purified": model}
    rows, x = [], x.to(model.mean.device)
    with frozen_eval(model):
        for name, backwards in (("forward", False), ("forward and gradient", True)):
            times = [[_seconds(call, x, backwards) for call in sides.values()] for _ in range(ROUNDS + 1)]
            medians = (
                1000 * torch.tensor(times[1:], dtype=torch.float64).median(0).values / len(x)
            )  # the first warms up
            milliseconds = dict(zip(sides, medians.tolist(), strict=True))
            rows.append({"pass": name, **milliseconds, "ratio": milliseconds["purified"] / milliseconds["classifier"]})
    return pd.DataFrame(rows)


def _seconds(call: Callable[[Tensor], Tensor], x: Tensor, backwards: bool) -> float:
    """Of one call, until the device is done."""
    x = x.detach().clone().requires_grad_(backwards)
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    with torch.set_grad_enabled(backwards):
        answer = call(x)
    if backwards:
        answer.sum().backward()
    wait()
    return time.perf_counter() - began
