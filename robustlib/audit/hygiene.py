"""Checks 12 and 13: does the model answer the same twice, and are its answers counted fairly?"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from robustlib.audit.check import Check, Part, judge, percent
from robustlib.audit.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd

ASKED = 5  # times the same images
DIFFERENT = 1e-4  # of normalised logits (AutoAttack's own flag)
MOVING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # what behaves differently in train mode


def modes(model: nn.Module) -> list[str]:
    """The names of the BatchNorm and Dropout layers that are in train mode."""
    return [name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, MOVING) and m.training]


def check_randomness(e: Evidence) -> Check:
    """12: a model that answers at random says so."""
    answers = torch.stack([e.forward(e.x) for _ in range(ASKED)])
    unit = answers / answers.flatten(2).norm(dim=2, keepdim=True).clamp_min(1e-12)
    apart = float((unit - unit[0]).norm(dim=2).amax(0).nan_to_num(0.0).mean())
    flips = 100 * float((answers.argmax(2) != answers[0].argmax(1)).any(0).double().mean())
    said = f"Asked {ASKED} times, the model changes its prediction of {flips:.1f} % of clean images"
    if not e.stochastic:
        bad = f"{said} (logits by {apart:.2g}) without declaring `stochastic`: attacks judge it by luck and need EOT."
        return judge(
            12,
            "randomness",
            [Part(apart, DIFFERENT, apart > DIFFERENT, "The model answers the same twice.", bad, unit="count")],
        )
    worst, control = (percent(found[0].all(1)) for found in (e.trajectory[100][0], e.clean))
    fine = f"{said}, as declared; under PGD-100 {worst} are right in all {e.k} draws, without attack {control}."
    return judge(12, "randomness", [Part(flips, 100.0, False, fine, "", unit="%")])


def check_bookkeeping(e: Evidence, before: list[str], during: list[str], records: "pd.DataFrame | None") -> Check:
    """13: eval mode, wrong clean images count as wrong, and every attack met the same images."""
    problems = [f"{len(before)} layer(s) were left in train mode ({before[0]})"] if before else []
    problems += [f"{len(during)} layer(s) stay in train mode after eval() ({during[0]})"] if during else []
    problems += [] if records is None else _wrong_records(records)
    part = Part(
        len(problems),
        0,
        bool(problems),
        "The model is in eval mode, wrong clean images count as wrong, and all attacks met the same images.",
        f"The number was not counted fairly: {'; '.join(problems)}.",
        unit="count",
    )
    return judge(13, "bookkeeping", [part])


def _wrong_records(records: "pd.DataFrame") -> list[str]:
    """What is wrong with the records of `evaluate`."""
    attacks, right = records["attack"], records["prediction"] == records["label"]
    met = {frozenset(some) for _, some in records["index"].groupby(attacks)}
    problems = ["the attacks did not meet the same images"] if len(met) > 1 else []
    if records["draw"].max() == 0:  # a stochastic model may be right by luck
        wrong = set(records["index"][(attacks == "clean") & ~right])
        robust = right.groupby([attacks, records["index"]]).min()
        counted = wrong & set(robust[robust].index.get_level_values("index"))
        problems += [f"{len(counted)} wrong clean images count as robust"] if counted else []
    return problems
