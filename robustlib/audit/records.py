"""The records of an evaluation as the audit uses them: do they belong here, were they counted fairly, what withstood what?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlib.data import Split
from robustlib.evaluation.numbers import headline
from robustlib.evaluation.records import withstood
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

CLOSE = 1e-6  # of eps, relative


def strange(records: "pd.DataFrame", split: Split, threat: Threat) -> list[str]:
    """Why these records are not of these images under this threat; nothing else can be read off them then."""
    labels = dict(zip(split.indices.tolist(), split.labels.tolist(), strict=True))
    met = records[["index", "label"]].drop_duplicates()
    other = sum(labels.get(index) != label for index, label in met.itertuples(index=False))
    problems = [f"the records have {other} images that are not among those audited"] if other else []
    radii = set(records["eps"][records["attack"] != "clean"]) - {0.0}  # of an attack without a threat
    other_radii = sorted(eps for eps in radii if abs(eps - threat.eps) > CLOSE * threat.eps)
    return problems + [f"the records are of eps {eps:g} and not {threat.eps:g}" for eps in other_radii[:1]]


def fitting(records: "pd.DataFrame | None", split: Split, threat: Threat) -> "pd.DataFrame | None":
    """The records if there are some, of these images under this threat; else None."""
    return None if records is None or records.empty or strange(records, split, threat) else records


def unfair(records: "pd.DataFrame") -> list[str]:
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


def accuracies(records: "pd.DataFrame", attack: str) -> dict[int, float]:
    """Whether each example of a deterministic model's records withstands an attack, by index."""
    return minimum(records[records["attack"] == attack])


def minimum(records: "pd.DataFrame") -> dict[int, float]:
    """Whether each example withstands everything, by index; of a stochastic model the share of draws that make its headline."""
    random = records["draw"].max() > 0
    least = headline(records).mean(axis=1) if random else withstood(records).groupby(records["index"]).min()
    return dict(zip(least.index.tolist(), map(float, least), strict=True))


def together(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    """Both (N,) on the images that both have, in the same order."""
    both = sorted(set(one) & set(other))
    first, second = (torch.tensor([some[i] for i in both], dtype=torch.float64) for some in (one, other))
    return first, second
