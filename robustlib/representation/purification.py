"""What a purifier does to images, to features and to the clock: what the pictures and tables of AToP's notebook are made of."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from robustlib.attacks import Attack
from robustlib.attacks.base import frozen_eval
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.models import Purified
from robustlib.models.purified import Randomness, RandomTransform
from robustlib.representation.features import FEATURES, Features, features
from robustlib.representation.measures import CLEAN

if TYPE_CHECKING:
    import pandas as pd


RATES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
MIXES = (1, 2, 4, 8, 16)
IMAGE, PURIFIED = "image", "purified"
ROUNDS = 15  # interleaved, of which the median counts


class Steps(NamedTuple):
    """Images after each step of a purifier, by the step's name and in order, each (B, C, H, W); the arguments of
    `robustlib.figures.purification_steps`; on the CPU.

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

    Args:
        model: in eval mode for the time and left as found.
        clean, adversarial: (B, C, H, W) in [0, 1], alike.
        seed: of the draw.

    Raises:
        InputError: images of another shape than the model's, or not as many of both.
    """
    if clean.shape != adversarial.shape:
        raise InputError(
            f"Clean images {tuple(clean.shape)} and attacked ones {tuple(adversarial.shape)} must be the same images."
        )
    with frozen_eval(model), torch.no_grad():
        pair = [x.to(model.mean.device) for x in (clean, adversarial)]
        randomness = model.transform.draw(pair[0], torch.Generator().manual_seed(seed))
        sides = [_steps(model, x, randomness) for x in pair]
        told = [{step: model.classify(side[step]).argmax(1).cpu() for step in (IMAGE, PURIFIED)} for side in sides]
    before, after = ({step: x.cpu() for step, x in side.items()} for side in sides)
    return Steps(before, after, {step: (told[0][step], told[1][step]) for step in told[0]})


def _steps(model: Purified, x: Tensor, randomness: Randomness) -> dict[str, Tensor]:
    """The images x after each step that the model takes."""
    pure = model.purify(x, randomness)
    if not bool(model.purifying):
        return {IMAGE: x, PURIFIED: pure}
    mask = randomness.masks[0]
    noisy = model.transform.apply(x, Randomness(randomness.noise, torch.zeros_like(mask)[None]))[0]
    found = {IMAGE: x}
    if randomness.noise is not None:
        found["noise added"] = noisy
    if bool(mask.any()):
        found["blocks hidden"] = model.transform.apply(x, randomness)[0]
        found["holes filled"] = noisy * (1 - mask) + model.outputs(x, randomness)[-1][0] * mask
    return {**found, PURIFIED: pure}


def transform_surface(
    transform: RandomTransform,
    clean: Tensor,
    adversarial: Tensor,
    *,
    rates: Sequence[float] | None = None,
    mixes: Sequence[int] = MIXES,
    seed: int = 0,
) -> "pd.DataFrame":
    """How far a random transform moves images, against its missing rate and the number of copies that are mixed.

    T is the mean of `mixes` draws of the transform (noise, then blocks at mid-grey; of rt3 one mask a draw). With it, what the attack
    did shrinks by the missing rate alone, while what the transform itself does averages out: mixing brings the attack back out of
    the noise. After the released "impact of missing rate and mix number", whose figure has 4000 times the same numbers for masks of
    single pixels; here blocks, noise and radius are those of the model.

    Args:
        transform: whose sigma, grid and clipping are taken; its own missing rate is not.
        clean, adversarial: (B, C, H, W) in [0, 1], alike.
        rates: missing rates, in [0, 1); None = those near RATES that the grid can have.
        mixes: numbers of copies, at least 1.
        seed: of the draws.

    Returns:
        A row for each rate and number: missing, mixes, apart (|T(x') - T(x)|, both by the same draws), changed (|T(x') - x'|); means
        over images and pixels, in [0, 1].

    Raises:
        InputError: a number of copies below 1, or a missing rate that the transform does not take.
    """
    import pandas as pd

    if not mixes or min(mixes) < 1:
        raise InputError(f"mixes={tuple(mixes)}: give how many copies are mixed, at least 1.")
    near = {round(rate * transform.blocks) / transform.blocks for rate in RATES}
    rows = []
    for rate in sorted(near - {1.0}) if rates is None else rates:
        mask = replace(transform, kind="rt2" if transform.noisy else "rt1", missing=rate)
        generator = torch.Generator().manual_seed(seed)
        sums, seen = [torch.zeros_like(clean), torch.zeros_like(clean)], 0
        for count in sorted(set(mixes)):
            for _ in range(count - seen):
                drawn = mask.draw(clean, generator)
                sums = [total + mask.apply(x, drawn)[0] for total, x in zip(sums, (clean, adversarial), strict=True)]
            seen = count
            one, other = (total / count for total in sums)
            moved = {"apart": other - one, "changed": other - adversarial}
            rows.append({"missing": rate, "mixes": count} | {k: float(v.abs().mean()) for k, v in moved.items()})
    return pd.DataFrame(rows)


def purified_copies(model: Purified, split: Split, attack: Attack, *, seed: int = 0) -> dict[str, Features]:
    """Penultimate features of the same images with and without the purifier before the classifier, N each in one order.

    "clean" and "attacked" are what the bare classifier makes of the images, "purified" and "attacked, purified" what it makes of them
    behind the purifier, by one draw. For `consistency`, `displacement` and `embed_path`.

    Args:
        model: left as found.
        split: the images.
        attack: on the whole model; the attacked images are rounded to 256 levels.
        seed: of the attack and of the draws.

    Raises:
        InputError: as `features`.
    """
    pure = features(model, split, seed=seed)
    attacked = features(model, split, attack=attack, seed=seed, keep_images=True)
    shown = replace(split, images=attacked.images)  # type: ignore[arg-type]
    return {
        CLEAN: _bare(model, split),
        "purified": pure,
        "attacked": _bare(model, shown),
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


def _bare(model: Purified, split: Split) -> Features:
    return features(_Classifier(model), split, layers=FEATURES)


def forward_cost(model: Purified, x: Tensor, *, rounds: int = ROUNDS) -> "pd.DataFrame":
    """What an image costs with the purifier and without: one forward pass, and one with its gradient, as an attacker needs it.

    Both take turns, so that what else the machine does falls on both; the median of the rounds counts.

    Args:
        model: in eval mode for the time and left as found.
        x: images (B, C, H, W), all at once.
        rounds: at least 1.

    Returns:
        A row a pass: pass ("forward", "forward and gradient"), classifier, purified (milliseconds an image), ratio.

    Raises:
        InputError: rounds < 1.
    """
    import pandas as pd

    if rounds < 1:
        raise InputError(f"rounds={rounds!r}: a time needs at least 1 round.")
    sides: dict[str, Callable[[Tensor], Tensor]] = {"classifier": model.classify, "purified": model}
    rows, x = [], x.to(model.mean.device)
    with frozen_eval(model):
        for name, backwards in (("forward", False), ("forward and gradient", True)):
            times: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(rounds + 1):  # the first warms up
                for side, call in sides.items():
                    spent = _seconds(call, x, backwards)
                    times[side] += [spent] * (turn > 0)
            middle = {side: 1000 * float(torch.tensor(spent).median()) / len(x) for side, spent in times.items()}
            rows.append({"pass": name, **middle, "ratio": middle["purified"] / middle["classifier"]})
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
