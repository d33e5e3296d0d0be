"""Checks 1 to 7: would another attack have found more?"""

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustlib.audit.check import Check, Part, Verdict, effect, judge, percent
from robustlib.audit.evidence import RESTARTS, Evidence
from robustlib.audit.records import accuracies, minimum, together

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
    worse, leak, n = effect(pgd, torch.minimum(once, clean)), effect(once, clean), len(e.x)
    said = f"PGD-20 leaves {percent(pgd)}, FGSM {percent(once)} of {percent(clean)} clean"
    fine = "many steps find more than one"
    missed = "one step finds what many do not, so gradients mislead the search"
    leaks = "attacked images are easier, so the attack leaks the label"
    collapse = (
        "one step is far too weak here, as after catastrophic overfitting, and no number made with FGSM means anything"
    )
    collapsed = worse.high < -COLLAPSE
    return judge(
        1,
        "iterations",
        [
            Part(worse.value, POINT_SLACK, worse.low > POINT_SLACK, said, fine, missed, images=n),
            Part(leak.value, 0.0, leak.low > 0, said, fine, leaks, images=n),
            Part(-worse.value, COLLAPSE, collapsed, said, fine, collapse, "amber", images=n),
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
    rose = f"Accuracy rises from {percent(curve[low])} at eps {low:g} to {percent(curve[high])} at {high:g}"
    return judge(
        2,
        "radii",
        [
            _rest(at_large, 100 / e.classes + ABOVE_CHANCE, f"eps {large:g}"),
            _rest(unbounded, UNBOUNDED, f"eps {whole:g}, where every image is allowed,"),
            Part(rise.value, RISE, rise.low > RISE, rose, "", "the attack fails", images=len(e.x)),
        ],
    )


def _rest(left: Tensor, most: float, where: str) -> Part:
    """That hardly anything is left at a radius."""
    rest = effect(left, torch.zeros_like(left))
    said = f"PGD at {where} leaves {percent(left)}"
    fine, bad = "large perturbations break it", "the search fails"
    return Part(rest.value, most, rest.low > most, said, fine, bad, images=len(left))


def check_steps(e: Evidence) -> Check:
    """3: PGD has converged: doubling its steps once more changes little."""
    curve = {steps: e.accuracy(found) for steps, (found, _) in e.trajectory.items()}
    last, before = curve[100], curve[50]
    gain = effect(before, last)
    said = ", ".join(f"{percent(share)} after {steps}" for steps, share in curve.items()) + " steps"
    most, fine, bad = (
        max(DOUBLING, 100 * IMAGES / len(last)),
        "the search has converged",
        "it still falls, use more steps",
    )
    return judge(3, "steps", [Part(gain.value, most, gain.low > most, said, fine, bad, "amber", images=len(last))])


def check_restarts(e: Evidence) -> Check:
    """4: the result does not hang on the random start."""
    one, many = e.accuracy(e.pgd20), e.accuracy(e.restarts)
    gain = effect(one, many)
    said = f"{RESTARTS} random starts leave {percent(many)}, one {percent(one)}"
    fine, bad = "the start matters little", "use more restarts"
    return judge(
        4, "restarts", [Part(gain.value, RESTART, gain.low > RESTART, said, fine, bad, "amber", images=len(one))]
    )


def check_losses(e: Evidence) -> Check:
    """5: other objectives and other scales of the logits find no more than the cross-entropy does."""
    ce = e.accuracy(e.pgd20)
    gains = {name: effect(ce, e.accuracy(result)) for name, result in e.losses.items()}
    name, gain = max(gains.items(), key=lambda item: item[1].low)
    said = f"PGD-20 on the cross-entropy leaves {percent(ce)}, the strongest alternative ({name}) {gain.value:.1f} points less"
    fine, bad = "the loss matters little", "the scale or shape of the logits hides gradients"
    parts = [Part(gain.value, LOSS, gain.low > LOSS, said, fine, bad, images=len(ce))]
    if bool((e.logits >= 0).all()) and bool(((e.logits.sum(1) - 1).abs() < 1e-5).all()):
        bad = "the cross-entropy of them saturates and attacks are weak"
        parts.insert(0, Part(100.0, 0.0, True, "The outputs are probabilities, not logits", "", bad, unit="%"))
    return judge(5, "losses", parts)


def check_gap(e: Evidence, records: "pd.DataFrame | None") -> Check:
    """6: PGD-20 and AutoAttack (its own, or that of all the records) are close, as on healthy models; no view hides from it."""
    pgd, auto, whose = e.accuracy(e.pgd20), e.accuracy(e.apgd, e.square), "APGD and Square"
    if records is not None and not e.stochastic and {"pgd20", "autoattack"} <= set(records["attack"]):
        pgd, auto = together(accuracies(records, "pgd20"), accuracies(records, "autoattack"))
        whose = "AutoAttack"
    said = f"PGD-20 leaves {percent(pgd)}, {whose} {percent(auto)}"
    parts = _apart(pgd, auto, said, "a gap as healthy models have it", "a PGD number says little here")
    return judge(6, "gap to AutoAttack", [*parts, *_hidden(e, records)])


def _apart(weaker: Tensor, stronger: Tensor, said: str, fine: str, bad: str) -> list[Part]:
    """That two accuracies are close: amber, then red."""
    gap = effect(weaker, stronger)
    limits: tuple[tuple[float, Verdict], ...] = ((GAP_AMBER, "amber"), (GAP_RED, "red"))
    return [Part(gap.value, most, gap.low > most, said, fine, bad, grave, images=len(weaker)) for most, grave in limits]


def _hidden(e: Evidence, records: "pd.DataFrame | None") -> list[Part]:
    """That nothing is hidden from those who attack what the evaluation attacks: the model and its declared surrogates."""
    parts, fine = [], "nothing is hidden"
    if e.declared < len(e.views):
        pgd, every = e.accuracy(e.pgd20[: e.declared]), e.accuracy(e.white, e.square)
        said = f"PGD-20 leaves {percent(pgd)}, all attacks {percent(every)} when they see head(features(x)) as well"
        bad = "the model's output hides adversarial examples, declare a surrogate and evaluate again"
        parts += _apart(pgd, every, said, fine, bad)
    if records is not None:
        found = dict(zip(e.index.tolist(), e.accuracy(e.white, e.square).tolist(), strict=True))
        reported, ours = together(minimum(records), found)
        said = f"The evaluation's attacks leave {percent(reported)} of the {len(ours)} images that both saw, the audit's {percent(ours)}"
        parts += _apart(reported, ours, said, fine, "the evaluation missed adversarial examples")
    return parts


def check_black_box(e: Evidence) -> Check:
    """7: attacks without this model's gradients find no more than those with them."""
    white = e.accuracy(e.white)
    sources = {"Square": e.square} | {f"transfer from {name}": found for name, found in e.transferred.items()}
    parts, most = [], max(NEWLY, 100 * IMAGES / len(white))
    fine, bad = "gradients show the way", "gradients hide what needs no gradient to find"
    fine += ", though of a model that answers at random Square learns little" if e.stochastic else ""
    for name, found in sources.items():
        alone = e.accuracy(found)
        better, newly = effect(white, alone), effect(white, e.accuracy(e.white, found))
        said = f"{name} alone leaves {percent(alone)}, all gradient attacks {percent(white)}; it breaks {newly.value:.1f} points more"
        found_more, n = newly.value > most and newly.low > NEWLY, len(white)
        parts.append(Part(newly.value, most, found_more, said, fine, bad, images=n))
        parts.append(Part(better.value, 0.0, better.low > 0, said, fine, bad, images=n))
    return judge(7, "black box", parts)
