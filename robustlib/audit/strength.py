"""Checks 1 to 7: would another attack have found more?"""

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlib.audit.check import Check, Part, effect, judge, percent
from robustlib.audit.evidence import RESTARTS, Evidence
from robustlib.evaluation.records import withstood

if TYPE_CHECKING:
    import pandas as pd

MULTIPLES = (0.25, 0.5, 1, 1.5, 2, 2.5)  # of eps
LARGE, LARGEST = 8, 0.5  # multiple of eps at which nothing may be left, and the linf radius that is enough for it
POINT_SLACK = 0.5  # PGD may leave so many points more than FGSM
COLLAPSE = 25.0  # FGSM may leave so many points more than PGD (catastrophic overfitting, baselines of Wong et al. 2020)
RISE, ABOVE_CHANCE, UNBOUNDED = 1.0, 2.0, 0.5
DOUBLING, RESTART, LOSS = 3.0, 6.0, 6.0
GAP_AMBER, GAP_RED = 8.0, 12.0
NEWLY = 1.0
IMAGES = 5  # an effect of fewer images is never taken for one


def check_iterations(e: Evidence) -> Check:
    """1: many small steps find what one large step finds and not much more, and no attack improves a model."""
    clean, once, pgd = e.accuracy(e.clean), e.accuracy(e.fgsm), e.accuracy(e.pgd20)
    worse, leak = effect(pgd, torch.minimum(once, clean)), effect(once, clean)
    said = f"PGD-20 leaves {percent(pgd)}, FGSM {percent(once)} of {percent(clean)} clean"
    fine = f"{said}: many steps find more than one."
    missed = f"{said}: one step finds what many do not, so gradients mislead the search."
    leaks = f"{said}: attacked images are easier, so the attack leaks the label."
    collapse = f"{said}: catastrophic overfitting to one step, no number made with FGSM means anything here."
    collapsed = worse.high < -COLLAPSE
    return judge(
        1,
        "iterations",
        [
            Part(worse.value, POINT_SLACK, worse.low > POINT_SLACK, fine, missed),
            Part(leak.value, 0.0, leak.low > 0, fine, leaks),
            Part(-worse.value, COLLAPSE, collapsed, fine, collapse, "amber"),
        ],
    )


def check_radii(e: Evidence) -> Check:
    """2: accuracy falls with the radius, to chance at large ones and to nothing without bound."""
    eps, linf = e.threat.eps, e.threat.norm == "linf"
    whole = 1.0 if linf else float(e.x[0].numel() ** 0.5)
    large = min(LARGE * eps, LARGEST) if linf else min(LARGE * eps, whole)
    radii = sorted({r for m in MULTIPLES if (r := min(m * eps, whole)) != eps})
    curve = {0.0: e.accuracy(e.clean), eps: e.accuracy(e.pgd20)} | {r: e.accuracy(e.radius(r)) for r in radii}
    order = sorted(curve)
    rises = [(effect(curve[b], curve[a]), a, b) for a, b in itertools.pairwise(order)]
    rise, low, high = max(rises, key=lambda r: r[0].low)
    at_large = e.accuracy(e.radius(large, 50)) if large > eps else curve[eps]
    unbounded = e.accuracy(e.radius(whole, 100))
    return judge(
        2,
        "radii",
        [
            _rest(at_large, 100 / e.classes + ABOVE_CHANCE, f"eps {large:g}"),
            _rest(unbounded, UNBOUNDED, f"eps {whole:g}, where every image is allowed,"),
            Part(
                rise.value,
                RISE,
                rise.low > RISE,
                "",
                f"Accuracy rises from {percent(curve[low])} at eps {low:g} to {percent(curve[high])} at {high:g}: the attack fails.",
            ),
        ],
    )


def _rest(left: Tensor, most: float, where: str) -> Part:
    """That hardly anything is left at a radius."""
    rest = effect(left, torch.zeros_like(left))
    said = f"PGD at {where} leaves {percent(left)}"
    return Part(
        rest.value, most, rest.low > most, f"{said}: large perturbations break it.", f"{said}: the search fails."
    )


def check_steps(e: Evidence) -> Check:
    """3: PGD has converged: doubling its steps once more changes little."""
    curve = {steps: e.accuracy(found) for steps, (found, _) in e.trajectory.items()}
    last, before = curve[100], curve[50]
    gain = effect(before, last)
    said = ", ".join(f"{percent(share)} after {steps}" for steps, share in curve.items()) + " steps"
    most = max(DOUBLING, 100 * IMAGES / len(last))
    return judge(
        3,
        "steps",
        [
            Part(
                gain.value,
                most,
                gain.low > most,
                f"{said}: the search has converged.",
                f"{said}: it still falls, use more steps.",
                "amber",
            )
        ],
    )


def check_restarts(e: Evidence) -> Check:
    """4: the result does not hang on the random start."""
    one, many = e.accuracy(e.pgd20), e.accuracy(e.restarts)
    gain = effect(one, many)
    said = f"{RESTARTS} random starts leave {percent(many)}, one {percent(one)}"
    return judge(
        4,
        "restarts",
        [
            Part(
                gain.value,
                RESTART,
                gain.low > RESTART,
                f"{said}: the start matters little.",
                f"{said}: use more restarts.",
                "amber",
            )
        ],
    )


def check_losses(e: Evidence) -> Check:
    """5: other objectives and other scales of the logits find no more than the cross-entropy does."""
    ce = e.accuracy(e.pgd20)
    gains = {name: effect(ce, e.accuracy(result)) for name, result in e.losses.items()}
    name, gain = max(gains.items(), key=lambda item: item[1].low)
    said = f"PGD-20 on the cross-entropy leaves {percent(ce)}, the strongest alternative ({name}) {gain.value:.1f} points less"
    parts = [
        Part(
            gain.value,
            LOSS,
            gain.low > LOSS,
            f"{said}: the loss matters little.",
            f"{said}: the scale or shape of the logits hides gradients.",
        )
    ]
    if bool((e.logits >= 0).all()) and bool(((e.logits.sum(1) - 1).abs() < 1e-5).all()):
        bad = "The outputs are probabilities, not logits: the cross-entropy of them saturates and attacks are weak."
        parts.insert(0, Part(100.0, 0.0, True, "", bad, unit="%"))
    return judge(5, "losses", parts)


def check_gap(e: Evidence, records: "pd.DataFrame | None") -> Check:
    """6: PGD-20 and AutoAttack (its own, or that of the records) are close, as on healthy models."""
    pgd, auto = e.accuracy(e.pgd20), e.accuracy(e.apgd, e.square)
    whose = "APGD and Square"
    if records is not None and not e.stochastic and {"pgd20", "autoattack"} <= set(records["attack"]):
        pgd, auto = (accuracies(records, name) for name in ("pgd20", "autoattack"))
        whose = "AutoAttack"
    gap = effect(pgd, auto)
    said = f"PGD-20 leaves {percent(pgd)}, {whose} {percent(auto)}"
    fine, bad = f"{said}: a gap as healthy models have it.", f"{said}: a PGD number says little here."
    return judge(
        6,
        "gap to AutoAttack",
        [
            Part(gap.value, GAP_AMBER, gap.low > GAP_AMBER, fine, bad, "amber"),
            Part(gap.value, GAP_RED, gap.low > GAP_RED, fine, bad),
        ],
    )


def accuracies(records: "pd.DataFrame", attack: str) -> Tensor:
    """(N,) whether each example of a deterministic model's records withstands an attack, by index."""
    rows = records[records["attack"] == attack]
    right = withstood(rows).groupby(rows["index"]).min()
    return torch.from_numpy(right.to_numpy(dtype=float, copy=True))


def check_black_box(e: Evidence) -> Check:
    """7: attacks without this model's gradients find no more than those with them."""
    white = e.accuracy(e.white)
    sources = {"Square": e.square} | {f"transfer from {name}": found for name, found in e.transferred.items()}
    parts, most = [], max(NEWLY, 100 * IMAGES / len(white))
    for name, found in sources.items():
        alone = e.accuracy(found)
        better, newly = effect(white, alone), effect(white, e.accuracy(e.white, found))
        said = f"{name} alone leaves {percent(alone)}, all gradient attacks {percent(white)}; it breaks {newly.value:.1f} points more"
        fine, bad = f"{said}: gradients show the way.", f"{said}: gradients hide what needs no gradient to find."
        parts.append(Part(newly.value, most, newly.value > most and newly.low > NEWLY, fine, bad))
        parts.append(Part(better.value, 0.0, better.low > 0, fine, bad))
    return judge(7, "black box", parts)
