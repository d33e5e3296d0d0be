"""The checks that need a model and its attacks only, by number: 1 to 8 ask whether another attack would have found more, 9 to 11
whether there is a gradient that leads somewhere, 12 whether the model answers the same twice. A threshold is broken only by an effect
that the images at hand cannot leave to chance."""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.memory import halving
from robustlib.attacks.objectives import ce, margin_of
from robustlib.audit.attacks import BATCH, RESTARTS, AuditAttacks
from robustlib.audit.binarisation import binarised
from robustlib.evaluation import wilson
from robustlib.evaluation.metrics import paired_interval
from robustlib.models.classifier import logits_of
from robustlib.rng import uniform_point
from robustlib.threat import exact, widest

Verdict = Literal["pass", "amber", "red", "n/a"]
VERDICTS: tuple[Verdict, ...] = ("n/a", "pass", "amber", "red")  # from harmless to grave

MULTIPLES = (0.25, 0.5, 1, 1.5, 2, 2.5)  # of eps
LARGE, LARGEST = 8, 0.5  # multiple of eps at which nothing may be left, and the linf radius that is enough for it
POINT_SLACK = 0.5  # PGD may leave so many points more than FGSM
COLLAPSE = 25.0  # FGSM may leave so many points more than PGD (catastrophic overfitting, baselines of Wong et al. 2020)
RISE, ABOVE_CHANCE, UNBOUNDED = 1.0, 2.0, 0.5
DOUBLING, RESTART, LOSS = 3.0, 6.0, 6.0
NEWLY = 1.0
IMAGES = 5  # an effect of fewer images is never taken for one
NOISE = 0.5  # % of the points called robust
VANISHED, VANISHING, ALIGNED = 1e-12, 1.0, 0.2  # a gradient's length, % of images, cosine
FELL = 1.0  # % of images whose loss an attack may lower
FOUND = 75.0  # % of the known adversarial examples
FEWEST = 8  # readouts that say something
ASKED = 5  # times the same images
OWN = "from the audit's own start"  # of what the evaluation measures too, from another one
DIFFERENT = 1e-4  # of normalised logits (AutoAttack's own flag)


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


def make_check(number: int, name: str, *parts: Part, otherwise: str = "") -> Check:
    """The gravest broken criterion speaks for a check, else a doubtful one, else the first; `otherwise` says why there is none."""
    if not parts:
        return Check(name, "n/a", None, None, otherwise, number)
    beyond = [p for p in parts if (p.value < p.threshold if p.least else p.value > p.threshold)]
    broken = sorted((p for p in parts if p.broken), key=lambda p: -VERDICTS.index(p.grave))
    doubtful = [p for p in beyond if p.images > 0] if not broken else []
    part = (broken or doubtful or list(parts))[0]
    side = "below" if part.least else "above"
    unsure = f"{side} {part.threshold:.4g} {part.unit}, but {part.images} images cannot tell"
    follows = part.bad if broken else unsure if doubtful else part.fine
    meaning = f"{': '.join(filter(None, (part.said, follows)))}."
    verdict, shares = part.grave if broken else "pass", part.unit in ("points", "%")
    value, threshold = round(part.value, 2 if shares else 4), round(part.threshold, 2) if shares else part.threshold
    return Check(name, verdict, value, threshold, meaning, number, part.unit, bool(doubtful))


@dataclass(frozen=True)
class Effect:
    """A mean difference over `n` images in points, or a share of them in %, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def above(self, most: float, said: str, fine: str, bad: str, grave: Verdict = "red", unit: str = "points") -> Part:
        """The criterion that it is no more than `most`."""
        return Part(self.value, most, self.low > most, said, fine, bad, grave, unit, self.n)


def effect(weaker: Tensor, stronger: Tensor) -> Effect:
    """How many points of accuracy (N,) `stronger` leaves less than `weaker` (N,) on the same images.

    The interval is `paired_interval`.
    """
    d = exact(weaker - stronger)
    low, high = paired_interval(d.cpu())
    return Effect(100 * float(d.mean()) if len(d) else 0.0, 100 * low, 100 * high, len(d))


def share(count: int, n: int) -> Effect:
    """`count` of `n` images in %, with Wilson's interval."""
    low, high = wilson(min(count, n), n)
    return Effect(100 * count / n, 100 * low, 100 * high, n)


def percent(share: Tensor) -> str:
    """The mean of (N,) as "71.5 %"."""
    return f"{100 * float(exact(share).mean()):.1f} %" if len(share) else "no image"


# ---- would another attack have found more?


def check_iterations(e: AuditAttacks) -> Check:
    """1: many small steps find what one large step finds and not much more, and no attack improves a model."""
    clean, once, pgd = e.accuracy(e.clean), e.accuracy(e.fgsm), e.accuracy(e.pgd20)
    worse = effect(pgd, torch.minimum(once, clean))
    said, fine = (
        f"PGD-20 {OWN} leaves {percent(pgd)}, FGSM {percent(once)} of {percent(clean)} clean",
        "many steps find more than one",
    )
    missed = "one step finds what many do not, so gradients mislead the search"
    leaks = "attacked images are easier, so the attack leaks the label"
    weak = (
        "one step is far too weak here, as after catastrophic overfitting, and no number made with FGSM means anything"
    )
    collapse = Part(-worse.value, COLLAPSE, worse.high < -COLLAPSE, said, fine, weak, "amber", images=worse.n)
    parts = worse.above(POINT_SLACK, said, fine, missed), effect(once, clean).above(0.0, said, fine, leaks), collapse
    return make_check(1, "iterations", *parts)


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
    everywhere = f"eps {whole:g}, where every image is allowed,"
    most_at_large, parts = 100 / e.classes + ABOVE_CHANCE, []
    for place, most, accuracy in ((f"eps {large:g}", most_at_large, at_large), (everywhere, UNBOUNDED, unbounded)):
        said, rest = f"PGD at {place} leaves {percent(accuracy)}", effect(accuracy, torch.zeros_like(accuracy))
        parts.append(rest.above(most, said, "large perturbations break it", "the search fails"))
    said = f"Accuracy rises from {percent(curve[low])} at eps {low:g} to {percent(curve[high])} at {high:g}"
    return make_check(2, "radii", *parts, rise.above(RISE, said, "", "the attack fails"))


def check_steps(e: AuditAttacks) -> Check:
    """3: PGD has converged: doubling its steps once more changes little."""
    curve = {steps: e.accuracy(results) for steps, (results, _) in e.trajectory.items()}
    said = ", ".join(f"{percent(accuracy)} after {steps}" for steps, accuracy in curve.items()) + f" steps {OWN}"
    gain, bad = effect(curve[50], curve[100]), "it still falls, use more steps"
    most = max(DOUBLING, 100 * IMAGES / gain.n)
    return make_check(3, "steps", gain.above(most, said, "the search has converged", bad, "amber"))


def check_restarts(e: AuditAttacks) -> Check:
    """4: the result does not hang on the random start."""
    one, many = e.accuracy(e.pgd20), e.accuracy(e.restarts)
    said = f"{RESTARTS} random starts of the audit leave {percent(many)}, one {percent(one)}"
    part = effect(one, many).above(RESTART, said, "the start matters little", "use more restarts", "amber")
    return make_check(4, "restarts", part)


def check_losses(e: AuditAttacks) -> Check:
    """5: other objectives and other scales of the logits find no more than the cross-entropy does."""
    usual = e.accuracy(e.pgd20)
    gains = {name: effect(usual, e.accuracy(result)) for name, result in e.losses.items()}
    name, gain = max(gains.items(), key=lambda item: item[1].low)
    said = f"PGD-20 on the cross-entropy {OWN} leaves {percent(usual)}, the strongest alternative ({name}) {gain.value:.1f} points less"
    parts = [gain.above(LOSS, said, "the loss matters little", "the scale or shape of the logits hides gradients")]
    if bool((e.logits >= 0).all()) and bool(((e.logits.sum(1) - 1).abs() < 1e-5).all()):
        bad = "the cross-entropy of them saturates and attacks are weak"
        parts.insert(0, Part(100.0, 0.0, True, "The outputs are probabilities, not logits", "", bad, unit="%"))
    return make_check(5, "losses", *parts)


def check_black_box(e: AuditAttacks) -> Check:
    """7: attacks without this model's gradients find no more than those with them."""
    white, parts = e.accuracy(e.white), []
    fine, bad = "gradients show the way", "gradients hide what needs no gradient to find"
    fine += ", though of a model that answers at random Square learns little" if e.stochastic else ""
    for name, results in {"Square": e.square, **{f"transfer from {k}": v for k, v in e.transferred.items()}}.items():
        alone = e.accuracy(results)
        better, newly = effect(white, alone), effect(white, e.accuracy(e.white, results))
        said = f"{name} alone leaves {percent(alone)}, all gradient attacks {percent(white)}; it breaks {newly.value:.1f} points more"
        most = max(NEWLY, 100 * IMAGES / newly.n)
        more = newly.value > most and newly.low > NEWLY
        parts.append(Part(newly.value, most, more, said, fine, bad, images=newly.n))
        parts.append(better.above(0.0, said, fine, bad))
    return make_check(7, "black box", *parts)


def check_noise(e: AuditAttacks) -> Check:
    """8: random points of the ball break nothing that gradient attacks leave standing."""
    white, both = e.accuracy(e.white), e.accuracy(e.white, e.random)
    robust = torch.ones_like(white, dtype=torch.bool) if e.stochastic else white > 0
    newly, bad = effect(white[robust], both[robust]), "these attacks cannot search"
    said = f"The worst of {e.noise} random points breaks {newly.value:.1f} % of what gradient attacks call robust"
    parts = [newly.above(NOISE, said, "", bad, unit="%")] if newly.n else []
    why = "Nothing withstands the gradient attacks, so noise has nothing to break."
    return make_check(8, "noise", *parts, otherwise=why)


# ---- is there a gradient that leads somewhere?


def check_gradients(e: AuditAttacks) -> Check:
    """9: the margin has a gradient, and nearly the same one a little further on."""
    nearby, measured = uniform_point(e.threat, e.x, e.rng.fold_in(81)), []  # by view: share without gradient, cosine
    for view in e.views:
        at_x, at_nearby = (_margin_gradient(view, points, e.y, e.eot) for points in (e.x, nearby))
        vanished = ~at_x.isfinite().all(1) | (at_x.norm(dim=1) < VANISHED)
        cosines = F.cosine_similarity(exact(at_x), exact(at_nearby), eps=1e-200)  # float32 squares underflow
        cosines = cosines.nan_to_num(0.0)
        bound = float(cosines.mean() + 1.96 * cosines.std(unbiased=False) / len(cosines) ** 0.5)  # upper, 95 %
        measured.append((share(int(vanished.sum()), len(vanished)), bound))
    blind, cosine = min(measured, key=lambda view: (view[0].value, -view[1]))
    said = f"The margin's gradient is zero or undefined for {blind.value:.1f} % of images and turns by a cosine of {cosine:.2f} within the ball"
    rough = "the loss surface is too rough for one step, as in catastrophic overfitting"
    rough_part = Part(cosine, ALIGNED, cosine < ALIGNED, said, "it shows the way", rough, "amber", "cosine")
    return make_check(9, "gradients", rough_part, blind.above(VANISHING, said, "", "attacks are blind there", unit="%"))


def _margin_gradient(view: nn.Module, x: Tensor, y: Tensor, samples: int) -> Tensor:
    """The gradient of z_y - max z_k (N, D), the mean of `samples`."""

    def of(rows: slice) -> Tensor:
        total = torch.zeros_like(x[rows])
        for _ in range(samples):
            point = x[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = exact(logits_of(view, point))
                margin = margin_of(logits, y[rows].to(logits.device)).sum()
            total += torch.autograd.grad(margin, point)[0] / samples
        return total.flatten(1)

    return torch.cat([*halving(of, len(x), BATCH)])


def check_sanity(e: AuditAttacks) -> Check:
    """10: all adversarial images lie in the ball and in [0, 1], and attacking raises the loss."""
    images = e.x, e.trajectory[20][1][0]
    before, after = (torch.stack([_loss(e, x) for _ in range(e.draws)]).mean(0) for x in images)
    fell = (after < before - 1e-6) & e.standing | after.isnan()
    lower = share(int(fell.sum()), max(int(e.standing.sum()), 1))
    said = f"PGD-20 lowers the loss of {lower.value:.1f} % of the attacked images"
    climbs = lower.above(FELL, said, f"all {e.made} images made lie in the ball", "it does not climb", unit="%")
    outside = f"{e.invalid} of {e.made} images lie outside ball or box"
    return make_check(10, "attack sanity", climbs, Part(e.invalid, 0, e.invalid > 0, outside, unit="count"))


def _loss(e: AuditAttacks, x: Tensor) -> Tensor:
    """The cross-entropy (N,) of the deployed model, of a draw."""
    logits = exact(e.forward(x))
    return ce(logits, e.y.to(logits.device)).to(e.y.device, widest(e.y.device))


def check_binarisation(e: AuditAttacks) -> Check:
    """11: PGD finds adversarial examples that are known to be there, for readouts of the features and of the logits."""
    parts = []
    for name, (possible, success_mask) in binarised(e).items():
        n = int(possible.sum())
        if n >= FEWEST:
            hits = share(int(success_mask.sum()), n)
            said = f"PGD finds an adversarial example for {hits.value:.0f} % of {n} readouts of the {name} that certainly have one"
            few, bad = hits.high < FOUND, "it misses many"
            parts.append(Part(hits.value, FOUND, few, said, "", bad, "amber", "%", images=n, least=True))
    why = f"A readout with a certain adversarial example exists for fewer than {FEWEST} images."
    return make_check(11, "binarisation", *sorted(parts, key=lambda part: part.value), otherwise=why)


def check_randomness(e: AuditAttacks) -> Check:
    """12: a model that answers at random says so."""
    answers = torch.stack([e.forward(e.x) for _ in range(ASKED)])
    unit = answers / answers.flatten(2).norm(dim=2, keepdim=True).clamp_min(1e-12)
    distance = float((unit - unit[0]).norm(dim=2).amax(0).nan_to_num(0.0).mean())
    flips = 100 * float(exact((answers.argmax(2) != answers[0].argmax(1)).any(0)).mean())
    said = f"Asked {ASKED} times, it changes its prediction of {flips:.1f} % of clean images"
    if not e.stochastic:
        moves = distance > DIFFERENT
        bad = f"logits move by {distance:.2g} without declaring `stochastic`, so attacks judge it by luck and need EOT"
        said = said if moves else "The model answers the same twice"
        return make_check(12, "randomness", Part(distance, DIFFERENT, moves, said, "", bad, unit="distance"))
    results, images = e.trajectory[100]  # of each example, the image of PGD-100 on any view that fewest draws withstood
    strongest = torch.stack(images)[
        exact(results).mean(2).argmin(0).to(e.x.device), torch.arange(len(e.x), device=e.x.device)
    ]
    control, worst = e.clean[0].all(1), e.right(strongest)[0].all(1)
    cost, bad = effect(exact(control), exact(worst)), "attacked images are easier than clean ones"
    said += f", as declared; {percent(control)} are right in all of {e.draws} draws, under PGD-100 on any view {percent(worst)}"
    part = Part(cost.value, 0.0, cost.high < 0, said, "", bad, images=cost.n, least=True)
    return make_check(12, "randomness", part)


CHECKS = (
    *(check_iterations, check_radii, check_steps, check_restarts, check_losses, check_black_box, check_noise),
    *(check_gradients, check_randomness, check_binarisation, check_sanity),
)
