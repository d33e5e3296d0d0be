"""A check and how it is judged: a threshold is broken only by an effect that the images at hand cannot leave to chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Verdict = Literal["pass", "amber", "red", "n/a"]
VERDICTS: tuple[Verdict, ...] = ("n/a", "pass", "amber", "red")  # from harmless to grave
Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: e.g. "more steps".
        verdict: "pass"; "amber" (the search was weak, or a warning); "red" (do not believe the number); "n/a".
        value: what was measured, in `unit`; None where nothing was.
        threshold: what it is compared with, in `unit`, points and % rounded like `value` to two decimals; broken only if the
            95 % bound of `value` is beyond it.
        meaning: one sentence.
        number: of the check in the house's list (Carlini et al. 2019, Tramer et al. 2020, Zimmermann et al. 2022).
        unit: "points" (of accuracy), "%" (of images), "cosine", "distance" (of unit logits), "count".
        doubtful: whether it passed for want of images: the value is beyond the threshold, its bound is not.
    """

    name: str
    verdict: Verdict
    value: float | None
    threshold: float | None
    meaning: str
    number: int
    unit: str = "points"
    doubtful: bool = False


@dataclass(frozen=True)
class Part:
    """One criterion of a check: what was measured in words, what follows if it holds or is broken, and how grave that is.

    A value beyond its threshold that `images` cannot tell from chance is called so; 0 where nothing is left to chance. A
    threshold that is a lower limit has `least`.
    """

    value: float
    threshold: float
    broken: bool
    said: str
    fine: str = ""
    bad: str = ""
    grave: Verdict = "red"
    unit: str = "points"
    images: int = 0
    least: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether the value is beyond the threshold and its bound is not."""
        beyond = self.value < self.threshold if self.least else self.value > self.threshold
        return beyond and not self.broken and self.images > 0

    @property
    def meaning(self) -> str:
        """One sentence."""
        side = "below" if self.least else "above"
        unsure = f"{side} {self.threshold:.4g} {self.unit}, but {self.images} images cannot tell"
        follows = self.bad if self.broken else unsure if self.doubtful else self.fine
        return f"{': '.join(filter(None, (self.said, follows)))}."


def judge(number: int, name: str, parts: Sequence[Part]) -> Check:
    """The check that has these criteria: its gravest broken one speaks for it, else a doubtful one, else the first."""
    broken = sorted((p for p in parts if p.broken), key=lambda p: -VERDICTS.index(p.grave))
    part = (broken or [p for p in parts if p.doubtful] or list(parts))[0]
    value, threshold = part.value, part.threshold
    if part.unit in ("points", "%"):
        value, threshold = round(value, 2), round(threshold, 2)
    verdict = part.grave if broken else "pass"
    return Check(name, verdict, round(value, 4), threshold, part.meaning, number, part.unit, part.doubtful)


def missing(number: int, name: str, why: str) -> Check:
    """A check that has nothing to compare with."""
    return Check(name, "n/a", None, None, why, number)


@dataclass(frozen=True)
class Effect:
    """A mean difference over images, in points, with its paired 95 % interval."""

    value: float
    low: float
    high: float


def effect(weaker: Tensor, stronger: Tensor) -> Effect:
    """How many points of accuracy (N,) `stronger` leaves less than `weaker` (N,) on the same images.

    The interval of Bonett and Price (2012, Psychological Methods 17): the Wald interval of paired proportions after adding one
    image to either kind of disagreement, which keeps its coverage for few or no disagreements. Written with sums, so that
    shares of draws (randomised models) fit as well as zeros and ones.
    """
    d = (weaker - stronger).double()
    n = len(d) + 2
    mean, square = float(d.sum()) / n, (float((d**2).sum()) + 2) / n
    error = Z * math.sqrt(max(square - mean**2, 0.0) / n)
    return Effect(100 * float(d.mean()) if len(d) else 0.0, 100 * (mean - error), 100 * (mean + error))


def percent(share: Tensor) -> str:
    """The mean of (N,) as "71.5 %"."""
    return f"{100 * float(share.double().mean()):.1f} %" if len(share) else "no image"
