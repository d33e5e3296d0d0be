"""A check and its verdict: a threshold is broken only by an effect that the images at hand cannot leave to chance. And the records
of an evaluation as the audit uses them: do they belong here, were they counted fairly, what withstood what?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from robustlib.data import Split
from robustlib.evaluation.metrics import headline_draws, robust_correct
from robustlib.threat import Threat

Verdict = Literal["pass", "amber", "red", "n/a"]
VERDICTS: tuple[Verdict, ...] = ("n/a", "pass", "amber", "red")  # from harmless to grave
CLOSE = 1e-6  # of eps, relative
Z = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Check:
    """What one check found; a threshold is broken only if the 95 % bound of the value is beyond it."""

    name: str
    verdict: Verdict  # "amber": the search was weak, or a warning; "red": do not believe the number
    value: float | None  # what was measured, in `unit`, points and % to two decimals; None where nothing was
    threshold: float | None
    meaning: str  # one sentence
    number: int  # in the audit's list (Carlini et al. 2019, Tramer et al. 2020, Zimmermann et al. 2022)
    unit: str = "points"  # of accuracy; or "%" of images, "cosine", "distance" of unit logits, "count"
    doubtful: bool = False  # it passed for want of images: the value is beyond the threshold, its bound is not


@dataclass(frozen=True)
class Part:
    """One criterion of a check: what was measured in words, what follows if it holds or is broken, and how grave that is."""

    value: float
    threshold: float
    broken: bool
    said: str
    fine: str = ""
    bad: str = ""
    grave: Verdict = "red"
    unit: str = "points"
    images: int = 0  # which may be too few to tell; 0 where nothing is left to chance
    least: bool = False  # whether the threshold is a lower limit

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


def make_check(number: int, name: str, *parts: Part) -> Check:
    """The check that has these criteria: its gravest broken one speaks for it, else a doubtful one, else the first."""
    broken = sorted((p for p in parts if p.broken), key=lambda p: -VERDICTS.index(p.grave))
    part = (broken or [p for p in parts if p.doubtful] or list(parts))[0]
    value, threshold = part.value, part.threshold
    if part.unit in ("points", "%"):
        value, threshold = round(value, 2), round(threshold, 2)
    verdict = part.grave if broken else "pass"
    return Check(name, verdict, round(value, 4), threshold, part.meaning, number, part.unit, part.doubtful)


def not_applicable(number: int, name: str, why: str) -> Check:
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


def accuracy_percent(share: Tensor) -> str:
    """The mean of (N,) as "71.5 %"."""
    return f"{100 * float(share.double().mean()):.1f} %" if len(share) else "no image"


def mismatched(records: pd.DataFrame, split: Split, threat: Threat) -> list[str]:
    """Why these records are not of these images under this threat; nothing else can be read off them then."""
    labels = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    met = records[["index", "label"]].drop_duplicates()
    other = sum(labels.get(index) != label for index, label in met.itertuples(index=False))
    problems = [f"the records have {other} images that are not among those audited"] if other else []
    radii = set(records["eps"][records["attack"] != "clean"]) - {0.0}  # of an attack without a threat
    other_radii = sorted(eps for eps in radii if abs(eps - threat.eps) > CLOSE * threat.eps)
    return problems + [f"the records are of eps {eps:g} and not {threat.eps:g}" for eps in other_radii[:1]]


def matching(records: pd.DataFrame | None, split: Split, threat: Threat) -> pd.DataFrame | None:
    """The records if there are some, of these images under this threat; else None."""
    return None if records is None or records.empty or mismatched(records, split, threat) else records


def inconsistent(records: pd.DataFrame) -> list[str]:
    """What is wrong with how the records of `evaluate` were counted."""
    attacks, right = records["attack"], records["prediction"] == records["label"]
    met = {frozenset(some) for _, some in records["index"].groupby(attacks)}
    problems = ["the attacks did not meet the same images"] if len(met) > 1 else []
    if records["draw"].max() == 0:  # a stochastic model may be right by luck
        wrong = set(records["index"][(attacks == "clean") & ~right])
        robust = right.groupby([attacks, records["index"]]).min()
        counted = wrong & set(robust[robust].index.get_level_values("index"))
        problems += [f"{len(counted)} wrong clean images count as robust"] if counted else []
    return problems


def minimum(records: pd.DataFrame) -> dict[int, float]:
    """Whether each example withstands everything, by index; of a stochastic model the share of draws that make its headline."""
    random = records["draw"].max() > 0
    least = headline_draws(records).mean(axis=1) if random else robust_correct(records).groupby(records["index"]).min()
    return dict(zip(least.index.tolist(), map(float, least), strict=True))


def align(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    """Both (N,) on the images that both have, in the same order."""
    both = sorted(set(one) & set(other))
    first, second = (torch.tensor([some[i] for i in both], dtype=torch.float64) for some in (one, other))
    return first, second
