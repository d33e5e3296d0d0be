"""Checks 8 to 11: is there a gradient, does it lead anywhere, and does the attack do what it says?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.draws import uniform_point
from robustlib.attacks.objectives import ce, margin_of
from robustlib.audit.binarise import binarised
from robustlib.audit.check import Check, Part, effect, judge, missing
from robustlib.audit.evidence import BATCH, Evidence
from robustlib.evaluation import wilson

NOISE = 0.5  # % of the points called robust
VANISHED, VANISHING, ALIGNED = 1e-12, 1.0, 0.2  # a gradient's length, % of images, cosine
FELL = 1.0  # % of images whose loss an attack may lower
FOUND = 75.0  # % of the known adversarial examples
FEWEST = 8  # readouts that say something


def check_noise(e: Evidence) -> Check:
    """8: random points of the ball break nothing that gradient attacks leave standing."""
    white = e.accuracy(e.white)
    both = e.accuracy(e.white, e.random)
    robust = torch.ones_like(white, dtype=torch.bool) if e.stochastic else white > 0
    if not bool(robust.any()):
        return missing(8, "noise", "Nothing withstands the gradient attacks, so noise has nothing to break.")
    newly = effect(white[robust], both[robust])
    said = f"The worst of {e.noise} random points breaks {newly.value:.1f} % of what gradient attacks call robust"
    bad, n = "these attacks cannot search", int(robust.sum())
    part = Part(newly.value, NOISE, newly.low > NOISE, said, "", bad, unit="%", images=n)
    return judge(8, "noise", [part])


def check_gradients(e: Evidence) -> Check:
    """9: the margin has a gradient, and nearly the same one a little further on."""
    clean, there = e.x, uniform_point(e.threat, e.x, e.draws.fork(81))
    views = [_gradients(view, e, clean, there) for view in e.views]
    gone, cosine = min(views, key=lambda view: (float(view[0].double().mean()), -view[1]))
    count = int(gone.sum())
    share, low = 100 * count / len(gone), 100 * wilson(count, len(gone))[0]
    said = f"The margin's gradient is zero or undefined for {share:.1f} % of images and turns by a cosine of {cosine:.2f} within the ball"
    rough = "the loss surface is too rough for one step, as in catastrophic overfitting"
    blind, n = "attacks are blind there", len(gone)
    return judge(
        9,
        "gradients",
        [
            Part(cosine, ALIGNED, cosine < ALIGNED, said, "it shows the way", rough, "amber", "cosine"),
            Part(share, VANISHING, low > VANISHING, said, "", blind, unit="%", images=n),
        ],
    )


def _gradients(view: nn.Module, e: Evidence, x: Tensor, there: Tensor) -> tuple[Tensor, float]:
    """(N,) bool whether the gradient is gone at x, and the upper 95 % bound of the mean cosine to the one at `there`."""
    here, other = (_margin_gradient(view, point, e.y, e.eot) for point in (x, there))
    gone = ~here.isfinite().all(1) | (here.norm(dim=1) < VANISHED)
    cosines = F.cosine_similarity(here.double(), other.double(), eps=1e-200).nan_to_num(
        0.0
    )  # float32 squares underflow
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


def check_sanity(e: Evidence) -> Check:
    """10: all adversarial images lie in the ball and in [0, 1], and attacking raises the loss."""
    before, after = (_loss(e, x) for x in (e.x, e.trajectory[20][1][0]))
    attacked = e.standing
    fell = (after < before - 1e-6) & attacked | after.isnan()
    count, n = int(fell.sum()), max(int(attacked.sum()), 1)
    share, low = 100 * count / n, 100 * wilson(min(count, n), n)[0]
    said = f"PGD-20 lowers the loss of {share:.1f} % of the attacked images"
    inside, bad = f"all {e.made} images made lie in the ball", "it does not climb"
    outside = f"{e.invalid} of {e.made} images lie outside ball or box"
    return judge(
        10,
        "attack sanity",
        [
            Part(share, FELL, low > FELL, said, inside, bad, unit="%", images=n),
            Part(e.invalid, 0, e.invalid > 0, outside, unit="count"),
        ],
    )


def _loss(e: Evidence, x: Tensor) -> Tensor:
    """Cross-entropy (N,) in float64, the mean over draws."""
    return torch.stack([ce(e.forward(x).double(), e.y) for _ in range(e.k)]).mean(0)


def check_binarised(e: Evidence, images: int) -> Check:
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
        return missing(
            11, "binarisation", f"A readout with a certain adversarial example exists for fewer than {FEWEST} images."
        )
    return judge(11, "binarisation", sorted(parts, key=lambda part: part.value))
