"""Checks 12 and 13: does the model answer the same twice, and are its answers counted fairly?"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustlib.audit.check import Check, Part, effect, judge, percent
from robustlib.audit.evidence import Evidence
from robustlib.audit.records import strange, unfair
from robustlib.data import Split

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
    said = f"Asked {ASKED} times, it changes its prediction of {flips:.1f} % of clean images"
    if not e.stochastic:
        moves, same = apart > DIFFERENT, "The model answers the same twice"
        bad = f"logits move by {apart:.2g} without declaring `stochastic`, so attacks judge it by luck and need EOT"
        return judge(
            12, "randomness", [Part(apart, DIFFERENT, moves, said if moves else same, "", bad, unit="distance")]
        )
    control, worst = e.clean[0].all(1), e.right(_strongest(e))[0].all(1)
    cost = effect(control.double(), worst.double())
    said += (
        f", as declared; {percent(control)} are right in all of {e.k} draws, under PGD-100 on any view {percent(worst)}"
    )
    bad = "attacked images are easier than clean ones"
    return judge(12, "randomness", [Part(cost.value, 0.0, cost.high < 0, said, "", bad, images=len(worst), least=True)])


def _strongest(e: Evidence) -> Tensor:
    """For each example the image (N, C, H, W) of PGD-100 on any view that fewest draws withstood; to be scored afresh."""
    results, found = e.trajectory[100]
    return torch.stack(found)[results.double().mean(2).argmin(0), torch.arange(len(e.x), device=e.x.device)]


def check_bookkeeping(
    e: Evidence,
    before: list[str],
    during: list[str],
    records: "pd.DataFrame | None",
    split: Split,
) -> Check:
    """13: eval mode, wrong clean images count as wrong, and every attack met the same images, those of the split."""
    problems = [f"{len(before)} layer(s) were left in train mode ({before[0]})"] if before else []
    problems += [f"{len(during)} layer(s) stay in train mode after eval() ({during[0]})"] if during else []
    problems += [] if records is None or records.empty else [*strange(records, split, e.threat), *unfair(records)]
    fine = "The model is in eval mode, wrong clean images count as wrong, and all attacks met the same images"
    bad = "; ".join(problems)
    said = "The number was not counted fairly" if problems else fine
    return judge(13, "bookkeeping", [Part(len(problems), 0, bool(problems), said, "", bad, unit="count")])
