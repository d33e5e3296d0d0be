"""How fast features change around an image: the steepest rise an attack finds, and the size of the Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustlib.attacks import Draws
from robustlib.attacks.inputs import check_inputs
from robustlib.attacks.search import borrowed
from robustlib.errors import InputError
from robustlib.representation.layers import layer_function
from robustlib.threat import Threat

TINY = 1e-12


def local_lipschitz(
    model: nn.Module,
    x: Tensor,
    threat: Threat,
    *,
    layer: str | None = None,
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """The largest |f(x') - f(x)|_2 / |x' - x| found over x' of the ball and of [0, 1], for each image, (B,) in [0, inf).

    Projected ascent on the ratio from a random start, steps of eps / 4; the length in the denominator is the threat's norm.
    What is found is a lower bound of the local Lipschitz constant. After Yang et al. (2020, "A closer look at accuracy vs.
    robustness", eq. 3), who take the L1 norm of the outputs: with L2 and an l2 threat a linear layer has its spectral norm.

    Args:
        model: x -> logits; in eval mode for the time and left as found.
        x: (B, C, H, W) in [0, 1].
        threat: where to look, eps above 0.
        layer: f, see `layers`; None = the penultimate features.
        steps: of the ascent, at least 1.
        seed: of the start, one stream an image.

    Raises:
        InputError: eps of 0, fewer than 1 step, no such layer, images outside [0, 1].
    """
    check_inputs(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
    if not threat.eps or steps < 1:
        raise InputError(
            f"eps={threat.eps:g} and steps={steps!r}: a slope needs a ball of eps > 0 and at least 1 step."
        )
    f = layer_function(model, layer)
    draws = Draws.for_examples(seed, torch.arange(len(x), device=x.device))
    point = threat.random_start(x, draws.uniform(*x.shape[1:]), draws.fork(0).normal(*x.shape[1:]))
    best = torch.zeros(len(x), device=x.device)
    with borrowed(model):
        with torch.no_grad():
            origin = f(x)
        for step in range(steps + 1):
            ratio, gradient = _ratio(f, point, x, origin, threat)
            best = torch.maximum(best, ratio)
            if step < steps:
                point = threat.project(point + threat.steepest_step(gradient, threat.eps / 4), x)
    return best


def _ratio(
    f: Callable[[Tensor], Tensor], point: Tensor, x: Tensor, origin: Tensor, threat: Threat
) -> tuple[Tensor, Tensor]:
    """The ratio at `point`, (B,), and the gradient of its numerator: the denominator is held, or no step would reach the border."""
    point = point.detach().requires_grad_(True)
    with torch.enable_grad():
        moved = (f(point) - origin).square().sum(1).clamp_min(TINY**2).sqrt()
        gradient = torch.autograd.grad(moved.sum(), point)[0]
    return moved.detach() / threat.distance(point.detach(), x).clamp_min(TINY), gradient


def feature_jacobian_norm(
    model: nn.Module,
    x: Tensor,
    *,
    layer: str | None = None,
    projections: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Frobenius norm |df/dx|_F of each image, (B,) in [0, inf).

    Estimated by |J|_F^2 = E |J'v|^2 over v ~ N(0, I) (Hutchinson 1990; for networks Hoffman et al. 2019, eq. 9): the relative
    standard error of one image's norm is at most sqrt(1 / (2 projections)). Where that is no cheaper than exact, it is exact.

    Args:
        model: x -> logits; in eval mode for the time and left as found.
        x: (B, C, H, W).
        layer: f, see `layers`; None = the penultimate features.
        projections: backward passes, at least 1; as many as f has outputs, or 0, give the exact norm.
        generator: of the projections, on the images' device; None = torch's global one.

    Raises:
        InputError: a negative number of projections, no such layer.
    """
    if projections < 0:
        raise InputError(f"projections={projections!r}: give a number of backward passes, or 0 for the exact norm.")
    f, x = layer_function(model, layer), x.detach().requires_grad_(True)
    with borrowed(model), torch.enable_grad():
        answer = f(x)
        outputs = answer.shape[1]
        exact = not 0 < projections < outputs
        total = torch.zeros(len(x), device=x.device)
        for k in range(outputs if exact else projections):
            if exact:
                v = torch.zeros_like(answer)
                v[:, k] = 1
            else:
                v = torch.randn(answer.shape, generator=generator, device=x.device)
            slope = torch.autograd.grad(answer, x, v, retain_graph=True)[0]
            total += slope.flatten(1).square().sum(1)
    return (total if exact else total / projections).sqrt()
