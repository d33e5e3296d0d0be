"""Tangent Attack: the smallest l2 perturbation, from decisions alone (Ma et al. 2021, NeurIPS, arXiv 2111.07492)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.attacks.boundary import Walk
from robustlib.attacks.draws import Draws
from robustlib.attacks.hunt import Hunt
from robustlib.attacks.nearest import MinimumNorm
from robustlib.attacks.points import Points
from robustlib.attacks.search import PRECISIONS, Precision, Search
from robustlib.errors import InputError, check_choices, check_counts
from robustlib.threat import Threat

LEAST = 200  # queries of a walk: a start, a way to the boundary and a step


@dataclass(frozen=True)
class Tangent(MinimumNorm):
    """Tangent Attack on a hemisphere: from a point on the decision boundary to the tangent point, and back to the boundary.

    It looks for the smallest perturbation and knows no radius. Called as an attack, an example leaves as soon as its point lies
    within eps; `nearest` goes on to the end. It starts from Gaussian noise around the image. A step that leads farther away is
    not taken, unlike in the released code.

    Args:
        threat: the allowed perturbations, in l2.
        queries: of the model for each example, >= 200 a restart; no step begins that might go beyond them. 18 000 allow about 40
            steps of one walk.
        restarts: walks from other noise, which share the queries; the nearest point counts. The paper has 1, which often ends
            at the boundary of a farther class; >= 1.
        probes: directions by which the first step judges where the boundary lies; step t takes probes * sqrt(t); >= 1.
        gamma: how far the probes of later steps go: Gaussian ones of standard deviation gamma * distance / dimensions; > 0.
        precision: "bf16-mixed" searches in bf16; what it calls a success is verified in float32.

    Raises:
        InputError: at construction, a value outside these ranges, or a threat in another norm; at a call, images outside
            [0, 1], labels that are no class of the model, or a stochastic model, whose decisions have no boundary.
    """

    threat: Threat
    queries: int = 18_000
    restarts: int = 1
    probes: int = 100
    gamma: float = 1.0
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        check_counts(self, "probes", "restarts")
        check_counts(self, "queries", least=LEAST * self.restarts)
        check_choices(self, precision=PRECISIONS)
        if not 0 < self.gamma < float("inf"):
            raise InputError(f"Tangent gamma={self.gamma!r}: give a finite number above 0.")
        if self.threat.norm != "l2":
            raise InputError(f"Tangent measures distances in l2, got a threat in {self.threat.norm!r}: give 'l2'.")

    def _hunt(self, hunt: Hunt, model: nn.Module) -> None:
        for restart in range(self.restarts):
            if hunt:
                points = hunt.points
                walk = self._walk(hunt.search, points, hunt.draws(restart))
                hunt.offer(self.threat.project(walk.run(self.threat.eps), points.x))

    def _nearest(self, search: Search, points: Points, draws: Draws, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        best, spent = points.x.clone(), torch.zeros_like(points.y)
        least = points.x.new_full((len(points.x),), torch.inf)
        for restart in range(self.restarts):
            walk = self._walk(search, points, draws.fork(restart), None if restart else starts)
            found = walk.run()
            distance = self.threat.distance(found, points.x)
            closer = (distance > 0) & (distance < least)  # 0 where no start was found
            best[closer], least[closer] = found[closer], distance[closer]
            spent += walk.spent
        return best, spent

    def _walk(self, search: Search, points: Points, draws: Draws, starts: Tensor | None = None) -> Walk:
        return Walk(search, points, draws, self.queries // self.restarts, self.probes, self.gamma, starts)
