"""How fast features change around an image: their Jacobian, and the metric that they pull back onto images.

Models run in eval mode and are left as found. f is the part of a model up to `layer`, see `layers`; None = the penultimate features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.errors import InputError, Whole, typed
from robustlib.representation.features import layer_function
from robustlib.representation.measures import TINY
from robustlib.threat import exact

ENTRIES = 2**23  # of Jacobians held at once: 32 MB
FLAT = 1e-5  # three images whose triangle is flatter than this, relative to its sides, span no plane in float32


def feature_jacobian_norm(
    model: nn.Module, x: Tensor, *, layer: str | None = None, projections: int = 8, generator: Generator | None = None
) -> Tensor:
    """The Frobenius norm |df/dx|_F at each image x (B, C, H, W), (B,) in [0, inf).

    Estimated by |J|_F^2 = E |J'v|^2 over v ~ N(0, I) (Hutchinson 1990; for networks Hoffman et al. 2019, eq. 9): the relative
    standard error of one image's norm is at most sqrt(1 / (2 projections)). As many `projections`, each a backward pass, as f has
    outputs, or 0, give the exact norm. The generator is on the images' device.
    """
    typed(projections, Annotated[Whole, "backward passes, or 0 for the exact norm"], "projections")
    f, x = layer_function(model, layer), x.detach().requires_grad_(True)
    with frozen_eval(model), torch.enable_grad():
        answer, total = f(x), torch.zeros(len(x), device=x.device)
        exact = not 0 < projections < answer.shape[1]
        random = (torch.randn(answer.shape, generator=generator, device=x.device) for _ in range(projections))
        directions: Iterable[Tensor] = _units(answer) if exact else random
        for v in directions:
            slope = torch.autograd.grad(answer, x, v, retain_graph=True)[0]
            total += slope.flatten(1).square().sum(1)
    return (total if exact else total / projections).sqrt()


def pullback_metric(model: nn.Module, x: Tensor, *, layer: str | None = None) -> tuple[Tensor, Tensor]:
    """The top eigenvalue and the log volume element of the metric g = J'J, J = df/dx, at each image; (B,) in [0, inf), (B,).

    The top eigenvalue is the squared length that the most visible unit step in pixels has among features (rep-spectral bounds it
    layer by layer; Yang et al. 2024, section 2). The log volume element is 1/2 log det g, and where features are fewer than
    pixels, and g singular, the same of JJ': the volume along those directions that f sees; -inf where f is flat along one. Exact, by
    min(pixels, features) backward passes, of a twice differentiable f where pixels are fewer. Images x may lie outside [0, 1].
    """
    f = layer_function(model, layer)
    with frozen_eval(model):
        with torch.no_grad():
            features = f(x[:1]).shape[1]
        piece = max(1, ENTRIES // (features * x[0].numel()))
        sigma = torch.cat([torch.linalg.svdvals(exact(_jacobian(f, part))) for part in x.split(piece)])
    top, volume = sigma[:, 0].square(), sigma.log().sum(1)
    return top.to(x.device, torch.float32), volume.to(x.device, torch.float32)


def _jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """df/dx (B, D, d) of an f that treats each of the images x (B, ...) by itself; by columns or by rows, whichever are fewer."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        answer = f(x)
        if x[0].numel() > answer.shape[1]:
            return _slopes(answer, x)
        u = torch.zeros_like(answer, requires_grad=True)
        (pulled,) = torch.autograd.grad(answer, x, u, create_graph=True)  # J'u, linear in u
        return _slopes(pulled, u).transpose(1, 2)


def _slopes(answer: Tensor, at: Tensor) -> Tensor:
    """d answer / d at (B, outputs, inputs), by one backward pass an output."""
    rows = [torch.autograd.grad(answer, at, v, retain_graph=True)[0].flatten(1) for v in _units(answer)]
    return torch.stack(rows, 1)


def _units(answer: Tensor) -> Iterator[Tensor]:
    for k in range(answer[0].numel()):
        v = torch.zeros_like(answer)
        v.flatten(1)[:, k] = 1
        yield v


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane of images with coordinates in pixel units: lengths in it are L2 distances between images."""

    origin: Tensor  # the image (C, H, W) at (0, 0)
    across: Tensor  # orthonormal directions (C, H, W) of the two coordinates
    up: Tensor

    @classmethod
    def through(cls, images: Tensor) -> "Plane":
        """The plane of three images (3, C, H, W): the first at (0, 0), the second on the first axis, the third above it."""
        if images.ndim != 4 or len(images) != 3:
            raise InputError(f"A plane goes through three images (3, C, H, W), not {tuple(images.shape)}.")
        first, *others = images.float()
        across, up = (image - first for image in others)
        longest, base = float(max(across.norm(), up.norm())), across.norm()
        across = across / base.clamp_min(TINY)
        up = up - (up * across).sum() * across
        if not float(min(base, up.norm())) > FLAT * longest:
            raise InputError("The three images lie on one line and span no plane: choose others.")
        return cls(first, across, up / up.norm())

    def at(self, coordinates: Tensor) -> Tensor:
        """The images (N, C, H, W) at coordinates (N, 2); away from the three they may leave [0, 1]."""
        a, b = coordinates.to(self.origin).T[:, :, None, None, None]
        return self.origin + a * self.across + b * self.up

    def of(self, images: Tensor) -> Tensor:
        """The coordinates (N, 2) of images (N, C, H, W), or of the points of the plane nearest to them."""
        shifts = images.to(self.origin) - self.origin
        return torch.stack([(shifts * direction).sum((1, 2, 3)) for direction in (self.across, self.up)], 1)


def metric_over_plane(
    models: Mapping[str, nn.Module], plane: Plane, around: Tensor, *, steps: int = 51, margin: float = 0.15
) -> pd.DataFrame:
    """The answers of models, and the metric their penultimate features pull back, on a grid over a part of a plane.

    The grid, of `steps` points a side, surrounds the projections of the images `around` (N, C, H, W), with a `margin` on each
    side as a share of their extent. Models, by name, are on the plane's device and of K classes. A row for each model and point:
    model, across, up (coordinates), top_eigenvalue, log_volume, logit 0 .. logit K - 1.
    """
    if steps < 2 or not margin >= 0 or not models:
        given = f"steps={steps!r}, margin={margin!r}, {len(models)} models"
        raise InputError(f"{given}: give at least 2 steps, a margin of at least 0 and a model.")
    places = plane.of(around)
    low, high = places.amin(0), places.amax(0)
    beyond = margin * (high - low)
    sides = [torch.linspace(float(a), float(b), steps) for a, b in zip(low - beyond, high + beyond, strict=True)]
    grid = torch.cartesian_prod(*sides)
    x, parts = plane.at(grid), []
    for name, model in models.items():
        top, volume = pullback_metric(model, x)
        with frozen_eval(model), torch.no_grad():
            logits = torch.cat([model(part) for part in x.split(512)])
        columns = {"across": grid[:, 0], "up": grid[:, 1], "top_eigenvalue": top, "log_volume": volume}
        columns |= {f"logit {k}": column for k, column in enumerate(logits.T)}
        parts.append(pd.DataFrame({"model": name, **{key: value.cpu().numpy() for key, value in columns.items()}}))
    return pd.concat(parts, ignore_index=True)
