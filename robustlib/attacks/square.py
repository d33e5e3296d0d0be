"""Square Attack: random search with square patches; it needs no gradient (Andriushchenko et al. 2020)."""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Annotated

import torch
from torch import Tensor

from robustlib.attacks.active_set import ActiveSet, IterativeAttack
from robustlib.attacks.base import AttackBatch, GradientOracle, Precision, others
from robustlib.attacks.objectives import margin
from robustlib.errors import Count
from robustlib.rng import ExampleRNG
from robustlib.threat import TINY, Threat, norms

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share of changed pixels is halved
TILES = 5  # along the shorter side, of the l2 attack's first perturbation


@dataclass(frozen=True)
class Square(IterativeAttack):
    """Square Attack on the margin (algorithms 1 to 3): random squares are kept where it rises. Successes leave at once."""

    threat: Threat
    queries: Count = 5000  # of the model for each example and restart
    p_init: Annotated[float, "(0, 1]"] = 0.8  # share of the pixels that the first squares change; halved at HALVINGS
    restarts: Count = 1  # independent searches
    votes: Count = 1  # draws of a stochastic model whose mean decides a query
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def _run(self, active_set: ActiveSet) -> None:
        for restart in active_set.rounds(self.restarts):
            active_set.update(self._search(active_set.oracle, active_set.batch, active_set.rng(restart)))

    def _search(self, oracle: GradientOracle, batch: AttackBatch, rng: ExampleRNG) -> Tensor:
        """One random search: for each example the first adversarial point, else the one of the largest loss."""
        start, step = (_stripes, _linf_step) if self.threat.norm == "linf" else (_tiles, _l2_step)
        best = start(batch.x, self.threat.eps, rng.fold_in(0))
        x_adv, active = best.clone(), torch.arange(len(best), device=best.device)
        loss = best.new_full((len(best),), -torch.inf)
        for query in range(self.queries):
            candidates, share = best, square_share(query, self.p_init)
            if query:
                candidates = step(batch.x, best, self.threat.eps, share, rng.fold_in(query))
            new = (candidates != best).flatten(1).any(1) | (query == 0) | oracle.stochastic
            rows = new.nonzero()[:, 0]  # a small square often lands where it changes nothing: no need to ask again
            if not len(rows):
                continue
            asked, y = candidates[rows], batch.y[rows]
            logits = oracle.fast_logits(asked, self.votes)
            value = margin(logits, y).nan_to_num(-torch.inf).to(loss.dtype)
            risen = torch.zeros_like(new).index_copy(0, rows, value > loss[rows]).view(-1, *[1] * (best.ndim - 1))
            best, loss[rows] = torch.where(risen, candidates, best), torch.maximum(loss[rows], value)
            success = oracle.successes(asked, logits, y)
            if len(success):
                x_adv[active[rows[success]]], stay = asked[success], others(rows[success], len(active))
                active, best, loss, batch, rng = active[stay], best[stay], loss[stay], batch[stay], rng[stay]
                if not len(active):
                    break
        x_adv[active] = best
        return x_adv


def square_share(query: int, p_init: float) -> float:
    """p of a query's square: `p_init`, halved at each of HALVINGS that lies behind (section 4)."""
    return p_init / 2 ** sum(query > at for at in HALVINGS)


def square_side(share: float, height: int, width: int, least: int = 1) -> int:
    """The side in pixels of a square that covers `share` of the image, from `least` to the image's shorter side."""
    return min(max(round(sqrt(share * height * width)), least), height, width)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _places(x: Tensor, side: int, rng: ExampleRNG) -> list[Tensor]:
    """The first row and the first column of a square at a random place of each image, (B, 1) both."""
    free = (n - side + 1 for n in x.shape[2:])
    return [(uniform * n).long()[:, None] for uniform, n in zip(rng.uniform(2).unbind(1), free, strict=True)]


def _window(x: Tensor, side: int, rng: ExampleRNG) -> tuple[Tensor, ...]:
    """The index of the (B, C, side, side) pixels of a square at a random place of each image."""
    rows, columns = (first + torch.arange(side, device=x.device) for first in _places(x, side, rng))
    b, c = (torch.arange(n, device=x.device) for n in x.shape[:2])
    return b[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _stripes(x: Tensor, eps: float, rng: ExampleRNG) -> Tensor:
    """Vertical stripes of -eps and eps, a sign for each channel and column (section 4.1)."""
    return (x + eps * _signs(rng.uniform(x.shape[1], 1, x.shape[3])).to(x.dtype)).clamp(0, 1)


def _linf_step(x: Tensor, best: Tensor, eps: float, share: float, rng: ExampleRNG) -> Tensor:
    """A square whose every channel goes to a random corner of the ball (algorithm 2)."""
    side, signs = square_side(share, *x.shape[2:]), _signs(rng.fold_in(1).uniform(x.shape[1], 1, 1)).to(x.dtype)
    if 3 * side < x.shape[2]:  # else it is quicker to compute the whole image
        at = _window(x, side, rng.fold_in(0))
        candidates = best.clone()
        candidates[at] = _corner(x[at], best[at], eps, signs)
        return candidates
    (rows, columns), ends = _places(x, side, rng.fold_in(0)), [torch.arange(n, device=x.device) for n in x.shape[2:]]
    down, across = ((line >= first) & (line < first + side) for line, first in zip(ends, (rows, columns), strict=True))
    return torch.where(down[:, None, :, None] & across[:, None, None, :], _corner(x, best, eps, signs), best)


def _corner(x: Tensor, best: Tensor, eps: float, signs: Tensor) -> Tensor:
    """Clipped, it ends on the ball's surface."""
    return (best + 2 * eps * signs).clamp(0, 1).clamp(x - eps, x + eps)


def _tiles(x: Tensor, eps: float, rng: ExampleRNG) -> Tensor:
    """The l2 attack's start: a grid of 5 x 5 two-sided bumps with random signs, of length eps together (section 4.2)."""
    batch, channels, height, width = x.shape
    tile = max(min(height, width) // TILES, 1)
    down, across = height // tile, width // tile
    signs = _signs(rng.fold_in(0).uniform(channels, down, across)).to(x.dtype)
    bumps = _two_sided(tile, rng.fold_in(1), down * across).to(x).view(batch, down, across, tile, tile)
    grid = torch.einsum("bcij,bijhw->bcihjw", signs, bumps).reshape(batch, channels, down * tile, across * tile)
    delta = torch.zeros_like(x)
    top, left = (height - down * tile) // 2, (width - across * tile) // 2
    delta[:, :, top : top + down * tile, left : left + across * tile] = grid
    return (x + eps * delta / norms(delta, "l2")).clamp(0, 1)


def _l2_step(x: Tensor, best: Tensor, eps: float, share: float, rng: ExampleRNG) -> Tensor:
    """Takes the budget of one window and puts it, as a two-sided bump, into another (algorithm 3)."""
    side = square_side(share, x.shape[2], x.shape[3], least=3)
    side += (side % 2 == 0) * (-1 if side == min(x.shape[2:]) else 1)  # a bump has a middle
    delta = best - x
    unused = (eps**2 - norms(delta, "l2") ** 2).clamp_min(0)
    to, source = (_window(x, side, rng.fold_in(k)) for k in (0, 1))
    outside = delta.clone()
    outside[to] = 0
    budget = sum(part.square().sum((2, 3), keepdim=True) for part in (delta[to], outside[source]))  # of both windows
    bumps = _two_sided(side, rng.fold_in(2)).to(x) * _signs(rng.fold_in(3).uniform(x.shape[1], 1, 1)).to(x.dtype)
    mixed = bumps + _unit(delta[to])
    delta[source] = 0
    delta[to] = _unit(mixed) * (budget + unused / x.shape[1]).sqrt()
    return (x + eps * delta / norms(delta, "l2").clamp_min(TINY)).clamp(0, 1)


def _unit(window: Tensor) -> Tensor:
    """Each channel's window (B, C, s, s) at length 1; windows of zeros stay."""
    return window / window.square().sum((2, 3), keepdim=True).sqrt().clamp_min(TINY)


def _bump(height: int, width: int) -> Tensor:
    """Equation 2: the pyramid of inverse squares, largest in the middle, (height, width)."""
    half = height // 2
    rows, columns = ((torch.arange(n) - n // 2).abs() for n in (height, width))
    layers = half - torch.maximum(rows[:, None], columns)  # M(r, s); below 0 outside the pyramid
    return torch.stack([(layers >= k).float() / (half + 1 - k) ** 2 for k in range(half + 1)]).sum(0)


@lru_cache(64)
def _bumps(side: int, device: torch.device) -> Tensor:
    """Two bumps of opposite sign beside each other, of length 1 together, (side, side); made on the CPU and kept."""
    bumps = torch.cat([_bump(side, side // 2), -_bump(side, side - side // 2)], 1)
    return (bumps / bumps.norm()).to(device)


def _two_sided(side: int, rng: ExampleRNG, count: int = 1) -> Tensor:
    """Two bumps of opposite sign beside or, at random, above each other, of length 1: (B, count, side, side)."""
    bumps = _bumps(side, rng.seeds.device)
    return torch.where(rng.uniform(count, 1, 1) < 0.5, bumps.T, bumps)
