"""The checks of a model, by number: 1 to 8 ask whether another attack would have found more, 9 to 11 whether there is a gradient that
leads somewhere, 12 and 13 whether the model answers the same twice and is counted fairly."""

import itertools

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.objectives import ce, margin_of
from robustlib.audit.attacks import BATCH, RESTARTS, AuditAttacks
from robustlib.audit.binarisation import binarised
from robustlib.audit.verdicts import (
    Check,
    Part,
    accuracy_percent,
    align,
    effect,
    inconsistent,
    make_check,
    minimum,
    mismatched,
    not_applicable,
)
from robustlib.data import Split
from robustlib.evaluation import wilson
from robustlib.rng import uniform_point

MULTIPLES = (0.25, 0.5, 1, 1.5, 2, 2.5)  # of eps
LARGE, LARGEST = 8, 0.5  # multiple of eps at which nothing may be left, and the linf radius that is enough for it
POINT_SLACK = 0.5  # PGD may leave so many points more than FGSM
COLLAPSE = 25.0  # FGSM may leave so many points more than PGD (catastrophic overfitting, baselines of Wong et al. 2020)
RISE, ABOVE_CHANCE, UNBOUNDED = 1.0, 2.0, 0.5
DOUBLING, RESTART, LOSS = 3.0, 6.0, 6.0
GAP_AMBER, GAP_RED = 8.0, 12.0
NEWLY = 1.0
IMAGES = 5  # an effect of fewer images is never taken for one
NOISE = 0.5  # % of the points called robust
VANISHED, VANISHING, ALIGNED = 1e-12, 1.0, 0.2  # a gradient's length, % of images, cosine
FELL = 1.0  # % of images whose loss an attack may lower
FOUND = 75.0  # % of the known adversarial examples
FEWEST = 8  # readouts that say something
ASKED = 5  # times the same images
DIFFERENT = 1e-4  # of normalised logits (AutoAttack's own flag)
MOVING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # what behaves differently in train mode


def check_iterations(e: AuditAttacks) -> Check:
    """1: many small steps find what one large step finds and not much more, and no attack improves a model."""
    clean, once, pgd = e.accuracy(e.clean), e.accuracy(e.fgsm), e.accuracy(e.pgd20)
    worse, leak, n = effect(pgd, torch.minimum(once, clean)), effect(once, clean), len(e.x)
    said = f"PGD-20 leaves {accuracy_percent(pgd)}, FGSM {accuracy_percent(once)} of {accuracy_percent(clean)} clean"
    fine = "many steps find more than one"
    missed = "one step finds what many do not, so gradients mislead the search"
    leaks = "attacked images are easier, so the attack leaks the label"
    collapse = (
        "one step is far too weak here, as after catastrophic overfitting, and no number made with FGSM means anything"
    )
    return make_check(
        1,
        "iterations",
        Part(worse.value, POINT_SLACK, worse.low > POINT_SLACK, said, fine, missed, images=n),
        Part(leak.value, 0.0, leak.low > 0, said, fine, leaks, images=n),
        Part(-worse.value, COLLAPSE, worse.high < -COLLAPSE, said, fine, collapse, "amber", images=n),
    )


def check_radii(e: AuditAttacks) -> Check:
    """2: accuracy falls with the radius, to chance at large ones and to nothing without bound."""
    eps, linf = e.threat.eps, e.threat.norm == "linf"
    whole = 1.0 if linf else float(e.x[0].numel() ** 0.5)
    large = min(LARGE * eps, LARGEST) if linf else min(LARGE * eps, whole)
    radii = sorted({r for m in MULTIPLES if (r := min(m * eps, whole)) != eps})
    curve = {0.0: e.accuracy(e.clean), eps: e.accuracy(e.pgd20)} | {r: e.accuracy(e.radius(r)) for r in radii}
    rises = [(effect(curve[b], curve[a]), a, b) for a, b in itertools.pairwise(sorted(curve))]
    rise, low, high = max(rises, key=lambda r: r[0].low)
    at_large = e.accuracy(e.radius(large, 50)) if large > eps else curve[eps]
    unbounded = e.accuracy(e.radius(whole, 100))
    rose = f"Accuracy rises from {accuracy_percent(curve[low])} at eps {low:g} to {accuracy_percent(curve[high])} at {high:g}"
    return make_check(
        2,
        "radii",
        _nothing_left(at_large, 100 / e.classes + ABOVE_CHANCE, f"eps {large:g}"),
        _nothing_left(unbounded, UNBOUNDED, f"eps {whole:g}, where every image is allowed,"),
        Part(rise.value, RISE, rise.low > RISE, rose, "", "the attack fails", images=len(e.x)),
    )


def _nothing_left(left: Tensor, most: float, where: str) -> Part:
    rest = effect(left, torch.zeros_like(left))
    said = f"PGD at {where} leaves {accuracy_percent(left)}"
    fine, bad = "large perturbations break it", "the search fails"
    return Part(rest.value, most, rest.low > most, said, fine, bad, images=len(left))


def check_steps(e: AuditAttacks) -> Check:
    """3: PGD has converged: doubling its steps once more changes little."""
    curve = {steps: e.accuracy(found) for steps, (found, _) in e.trajectory.items()}
    gain, n = effect(curve[50], curve[100]), len(e.x)
    said = ", ".join(f"{accuracy_percent(share)} after {steps}" for steps, share in curve.items()) + " steps"
    most = max(DOUBLING, 100 * IMAGES / n)
    fine, bad = "the search has converged", "it still falls, use more steps"
    return make_check(3, "steps", Part(gain.value, most, gain.low > most, said, fine, bad, "amber", images=n))


def check_restarts(e: AuditAttacks) -> Check:
    """4: the result does not hang on the random start."""
    one, many = e.accuracy(e.pgd20), e.accuracy(e.restarts)
    gain, n = effect(one, many), len(one)
    said = f"{RESTARTS} random starts leave {accuracy_percent(many)}, one {accuracy_percent(one)}"
    fine, bad = "the start matters little", "use more restarts"
    return make_check(4, "restarts", Part(gain.value, RESTART, gain.low > RESTART, said, fine, bad, "amber", images=n))


def check_losses(e: AuditAttacks) -> Check:
    """5: other objectives and other scales of the logits find no more than the cross-entropy does."""
    ce = e.accuracy(e.pgd20)
    gains = {name: effect(ce, e.accuracy(result)) for name, result in e.losses.items()}
    name, gain = max(gains.items(), key=lambda item: item[1].low)
    said = f"PGD-20 on the cross-entropy leaves {accuracy_percent(ce)}, the strongest alternative ({name}) {gain.value:.1f} points less"
    fine, bad = "the loss matters little", "the scale or shape of the logits hides gradients"
    parts = [Part(gain.value, LOSS, gain.low > LOSS, said, fine, bad, images=len(ce))]
    if bool((e.logits >= 0).all()) and bool(((e.logits.sum(1) - 1).abs() < 1e-5).all()):
        bad = "the cross-entropy of them saturates and attacks are weak"
        parts.insert(0, Part(100.0, 0.0, True, "The outputs are probabilities, not logits", "", bad, unit="%"))
    return make_check(5, "losses", *parts)


def check_gap(e: AuditAttacks, records: pd.DataFrame | None) -> Check:
    """6: PGD-20 and AutoAttack (its own, or that of all the records) are close, as on healthy models; no view hides from it."""
    pgd, auto, whose = e.accuracy(e.pgd20), e.accuracy(e.apgd, e.square), "APGD and Square"
    if records is not None and not e.stochastic and {"pgd20", "autoattack"} <= set(records["attack"]):
        pgd, auto = align(*(minimum(records[records["attack"] == attack]) for attack in ("pgd20", "autoattack")))
        whose = "AutoAttack"
    said = f"PGD-20 leaves {accuracy_percent(pgd)}, {whose} {accuracy_percent(auto)}"
    fine = "a gap as healthy models have it"
    parts = _disagreement(pgd, auto, said, fine, "a PGD number says little here")
    if e.declared < len(e.views):
        pgd, every = e.accuracy(e.pgd20[: e.declared]), e.accuracy(e.white, e.square)
        said = f"PGD-20 leaves {accuracy_percent(pgd)}, all attacks {accuracy_percent(every)} when they see head(features(x)) as well"
        bad = "the model's output hides adversarial examples, declare a surrogate and evaluate again"
        parts += _disagreement(pgd, every, said, "nothing is hidden", bad)
    if records is not None:
        found = dict(zip(e.index.tolist(), e.accuracy(e.white, e.square).tolist(), strict=True))
        reported, ours = align(minimum(records), found)
        said = f"The evaluation's attacks leave {accuracy_percent(reported)} of the {len(ours)} images that both saw, the audit's {accuracy_percent(ours)}"
        parts += _disagreement(reported, ours, said, "nothing is hidden", "the evaluation missed adversarial examples")
    return make_check(6, "gap to AutoAttack", *parts)


def _disagreement(weaker: Tensor, stronger: Tensor, said: str, fine: str, bad: str) -> list[Part]:
    """That two accuracies are close: amber, then red."""
    gap, n = effect(weaker, stronger), len(weaker)
    amber = Part(gap.value, GAP_AMBER, gap.low > GAP_AMBER, said, fine, bad, "amber", images=n)
    return [amber, Part(gap.value, GAP_RED, gap.low > GAP_RED, said, fine, bad, "red", images=n)]


def check_black_box(e: AuditAttacks) -> Check:
    """7: attacks without this model's gradients find no more than those with them."""
    white, n = e.accuracy(e.white), len(e.x)
    sources = {"Square": e.square} | {f"transfer from {name}": found for name, found in e.transferred.items()}
    parts, most = [], max(NEWLY, 100 * IMAGES / n)
    fine, bad = "gradients show the way", "gradients hide what needs no gradient to find"
    fine += ", though of a model that answers at random Square learns little" if e.stochastic else ""
    for name, found in sources.items():
        alone = e.accuracy(found)
        better, newly = effect(white, alone), effect(white, e.accuracy(e.white, found))
        said = f"{name} alone leaves {accuracy_percent(alone)}, all gradient attacks {accuracy_percent(white)}; it breaks {newly.value:.1f} points more"
        found_more = newly.value > most and newly.low > NEWLY
        parts.append(Part(newly.value, most, found_more, said, fine, bad, images=n))
        parts.append(Part(better.value, 0.0, better.low > 0, said, fine, bad, images=n))
    return make_check(7, "black box", *parts)


def check_noise(e: AuditAttacks) -> Check:
    """8: random points of the ball break nothing that gradient attacks leave standing."""
    white = e.accuracy(e.white)
    both = e.accuracy(e.white, e.random)
    robust = torch.ones_like(white, dtype=torch.bool) if e.stochastic else white > 0
    if not bool(robust.any()):
        return not_applicable(8, "noise", "Nothing withstands the gradient attacks, so noise has nothing to break.")
    newly = effect(white[robust], both[robust])
    said = f"The worst of {e.noise} random points breaks {newly.value:.1f} % of what gradient attacks call robust"
    bad, n = "these attacks cannot search", int(robust.sum())
    return make_check(8, "noise", Part(newly.value, NOISE, newly.low > NOISE, said, "", bad, unit="%", images=n))


def check_gradients(e: AuditAttacks) -> Check:
    """9: the margin has a gradient, and nearly the same one a little further on."""
    nearby = uniform_point(e.threat, e.x, e.rng.fold_in(81))
    views = [_gradients(view, e, e.x, nearby) for view in e.views]
    gone, cosine = min(views, key=lambda view: (float(view[0].double().mean()), -view[1]))
    count, n = int(gone.sum()), len(gone)
    share, low = 100 * count / n, 100 * wilson(count, n)[0]
    said = f"The margin's gradient is zero or undefined for {share:.1f} % of images and turns by a cosine of {cosine:.2f} within the ball"
    rough = "the loss surface is too rough for one step, as in catastrophic overfitting"
    return make_check(
        9,
        "gradients",
        Part(cosine, ALIGNED, cosine < ALIGNED, said, "it shows the way", rough, "amber", "cosine"),
        Part(share, VANISHING, low > VANISHING, said, "", "attacks are blind there", unit="%", images=n),
    )


def _gradients(view: nn.Module, e: AuditAttacks, x: Tensor, nearby: Tensor) -> tuple[Tensor, float]:
    """(N,) bool whether the gradient is gone at x, and the upper 95 % bound of the mean cosine to the one nearby."""
    here, other = (_margin_gradient(view, point, e.y, e.eot) for point in (x, nearby))
    gone = ~here.isfinite().all(1) | (here.norm(dim=1) < VANISHED)
    cosines = F.cosine_similarity(here.double(), other.double(), eps=1e-200)  # float32 squares underflow
    cosines = cosines.nan_to_num(0.0)
    return gone, float(cosines.mean() + 1.96 * cosines.std(unbiased=False) / len(cosines) ** 0.5)


def _margin_gradient(view: nn.Module, x: Tensor, y: Tensor, samples: int) -> Tensor:
    """The gradient of z_y - max z_k (N, D), the mean of `samples`."""
    parts = []
    for points, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        total = torch.zeros_like(points)
        for _ in range(samples):
            point = points.detach().requires_grad_(True)
            with torch.enable_grad():
                margin = margin_of(view(point).double(), labels).sum()
            total += torch.autograd.grad(margin, point)[0] / samples
        parts.append(total.flatten(1))
    return torch.cat(parts)


def check_sanity(e: AuditAttacks) -> Check:
    """10: all adversarial images lie in the ball and in [0, 1], and attacking raises the loss."""
    before, after = (_loss(e, x) for x in (e.x, e.trajectory[20][1][0]))
    fell = (after < before - 1e-6) & e.standing | after.isnan()
    count, n = int(fell.sum()), max(int(e.standing.sum()), 1)
    share, low = 100 * count / n, 100 * wilson(min(count, n), n)[0]
    said = f"PGD-20 lowers the loss of {share:.1f} % of the attacked images"
    inside, bad = f"all {e.made} images made lie in the ball", "it does not climb"
    outside = f"{e.invalid} of {e.made} images lie outside ball or box"
    return make_check(
        10,
        "attack sanity",
        Part(share, FELL, low > FELL, said, inside, bad, unit="%", images=n),
        Part(e.invalid, 0, e.invalid > 0, outside, unit="count"),
    )


def _loss(e: AuditAttacks, x: Tensor) -> Tensor:
    """Cross-entropy (N,) in float64, the mean over draws."""
    return torch.stack([ce(e.forward(x).double(), e.y) for _ in range(e.k)]).mean(0)


def check_binarised(e: AuditAttacks, images: int) -> Check:
    """11: PGD finds adversarial examples that are known to be there, for readouts of the features and of the logits."""
    parts = []
    for name, test in binarised(e, images).items():
        n, count = int(test.possible.sum()), int(test.found.sum())
        if n >= FEWEST:
            share, high = 100 * count / n, 100 * wilson(count, n)[1]
            said = f"PGD finds an adversarial example for {share:.0f} % of {n} readouts of the {name} that certainly have one"
            broken, bad = high < FOUND, "it misses many"
            parts.append(Part(share, FOUND, broken, said, "", bad, "amber", "%", images=n, least=True))
    if not parts:
        why = f"A readout with a certain adversarial example exists for fewer than {FEWEST} images."
        return not_applicable(11, "binarisation", why)
    return make_check(11, "binarisation", *sorted(parts, key=lambda part: part.value))


def check_randomness(e: AuditAttacks) -> Check:
    """12: a model that answers at random says so."""
    answers = torch.stack([e.forward(e.x) for _ in range(ASKED)])
    unit = answers / answers.flatten(2).norm(dim=2, keepdim=True).clamp_min(1e-12)
    distance = float((unit - unit[0]).norm(dim=2).amax(0).nan_to_num(0.0).mean())
    flips = 100 * float((answers.argmax(2) != answers[0].argmax(1)).any(0).double().mean())
    said = f"Asked {ASKED} times, it changes its prediction of {flips:.1f} % of clean images"
    if not e.stochastic:
        moves = distance > DIFFERENT
        bad = f"logits move by {distance:.2g} without declaring `stochastic`, so attacks judge it by luck and need EOT"
        said = said if moves else "The model answers the same twice"
        return make_check(12, "randomness", Part(distance, DIFFERENT, moves, said, "", bad, unit="distance"))
    results, images = e.trajectory[100]  # of each example, the image of PGD-100 on any view that fewest draws withstood
    strongest = torch.stack(images)[results.double().mean(2).argmin(0), torch.arange(len(e.x), device=e.x.device)]
    control, worst = e.clean[0].all(1), e.right(strongest)[0].all(1)
    cost = effect(control.double(), worst.double())
    said += f", as declared; {accuracy_percent(control)} are right in all of {e.k} draws, under PGD-100 on any view {accuracy_percent(worst)}"
    bad = "attacked images are easier than clean ones"
    part = Part(cost.value, 0.0, cost.high < 0, said, "", bad, images=len(worst), least=True)
    return make_check(12, "randomness", part)


def train_mode_layers(model: nn.Module) -> list[str]:
    """The names of the BatchNorm and Dropout layers that are in train mode."""
    return [name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, MOVING) and m.training]


def check_bookkeeping(
    e: AuditAttacks, before: list[str], model: nn.Module, records: pd.DataFrame | None, split: Split
) -> Check:
    """13: eval mode, wrong clean images count as wrong, and every attack met the same images, those of the split.

    `before` are the layers that were in train mode before the audit put the model in eval mode.
    """
    during = train_mode_layers(model)
    problems = [f"{len(before)} layer(s) were left in train mode ({before[0]})"] if before else []
    problems += [f"{len(during)} layer(s) stay in train mode after eval() ({during[0]})"] if during else []
    if records is not None and not records.empty:
        problems += [*mismatched(records, split, e.threat), *inconsistent(records)]
    fine = "The model is in eval mode, wrong clean images count as wrong, and all attacks met the same images"
    said, bad = "The number was not counted fairly" if problems else fine, "; ".join(problems)
    return make_check(13, "bookkeeping", Part(len(problems), 0, bool(problems), said, "", bad, unit="count"))
