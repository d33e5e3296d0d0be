"""One map for clean and adversarial features: UMAP of their nearest neighbours by angle, fitted on both together.

Fitted on the clean ones alone, UMAP would push adversarial points to the edges of clusters and fake or hide a gap. Near means, as for
alignment and exclusion, a small angle at the origin; angles about the mean name other neighbours: ReLU features lie far off the origin.
"""

import importlib.metadata
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.errors import InputError, Share, typed
from robustlib.representation.features import as_features, cached_tensors, rows_at_once
from robustlib.representation.measures import check_neighbours, principal_components, unit
from robustlib.runs import digest, versions

PACKAGES = ("umap-learn", "numpy", "numba", "scikit-learn")  # whose versions can move points
NEIGHBOURS, ANCHORS = 15, 1000  # of the trustworthiness: neighbours, and the points whose neighbours are counted
SAME = 5e-4  # unit vectors that are nearer have one cosine in float32, so no nearest neighbours
NO_MAP = "no map can be drawn: all features point the same way (a collapsed encoder), or some are not finite"


@dataclass(frozen=True, eq=False)
class Embedding:
    """Two-dimensional views of T tables of N features, all of the same examples: clean ones first, then adversarial ones."""

    points: np.ndarray  # UMAP coordinates, float32 (T, N, 2)
    pca: np.ndarray  # the first two principal components of the unit vectors, float32 (T, N, 2)
    explained: float  # share of their variance that those two hold, in [0, 1]
    trustworthiness: float  # of `points`, in [0, 1]; NaN, and all points 0, where no map can be drawn
    pca_trustworthiness: float
    parameters: Mapping[str, Any]  # how the map was made

    @property
    def made(self) -> str:
        """How the map was made, in sentences."""
        p, (tables, n, _) = self.parameters, self.points.shape
        return (
            f"UMAP of {n} clean images and {(tables - 1) * n} changed ones, fitted together ({p['neighbours']} neighbours, min_dist "
            f"{p['min_dist']:g}, seed {p['seed']}). Near means a small angle between features, seen from the origin, as for "
            "alignment and exclusion. Distances between clusters and their sizes mean nothing."
        )

    @property
    def trust(self) -> str:
        """How far to trust the map, or why there is none, in a few words."""
        return NO_MAP if math.isnan(self.trustworthiness) else f"trustworthiness {self.trustworthiness:.2f}"

    def __str__(self) -> str:
        """What to print under the map."""
        if math.isnan(self.trustworthiness):
            return f"N{NO_MAP[1:]}."
        linear = f"(PCA view: {self.pca_trustworthiness:.3f}, {self.explained:.0%} of the variance)"
        return f"{self.made} Trustworthiness {self.trustworthiness:.3f} {linear}."


def embed(clean: Tensor, adversarial: Tensor, **settings: Any) -> Embedding:
    """Maps clean and adversarial features to the plane together: `embed_path` of two tables, with its settings."""
    return embed_path((clean, adversarial), **settings)


def embed_path(
    tables: Sequence[Tensor], *, neighbours: int = 30, min_dist: float = 0.5, seed: int = 0, cache: Path | None = None
) -> Embedding:
    """Maps several tables of features to the plane together (McInnes et al. 2018); the same call gives the same map.

    Tables (N, D) are of the same examples in the same order, clean features first; 5 000 to 10 000 rows in all show enough. UMAP's
    graph has fewer `neighbours` than rows; `min_dist` in [0, 1] is how close it may draw points: at 0.1, its authors' default, the
    islands of digits shrink to dots. Coordinates repeat on one machine; between machines only their structure does. They are kept
    in the directory `cache` (a run's), by a digest of features, parameters and the packages' versions.
    """
    if not tables:
        raise InputError("A map needs features: give at least one table.")
    tables = as_features(*(table.cpu() for table in tables), finite=False)
    check_neighbours(len(tables) * len(tables[0]) - 1, neighbours)
    typed(neighbours, int, "UMAP neighbours", "[2, inf)"), typed(min_dist, Share, "UMAP min_dist")
    parameters = {"neighbours": neighbours, "min_dist": min_dist, "seed": seed, "metric": "angle"}
    file = None
    if cache is not None:
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        shape, numerics = tuple(tables[0].shape), versions("measures/embedding")
        facts = repr((len(tables), shape, sorted(parameters.items()), packages, numerics))
        key = digest(facts, *(table.contiguous().numpy().tobytes() for table in tables))
        file = Path(cache) / "embeddings" / f"{key}.npz"
    names = [field.name for field in fields(Embedding) if field.name != "parameters"]
    if _collapsed(unit(torch.cat(tables))):
        flat, none = torch.zeros(len(tables), len(tables[0]), 2), torch.tensor(torch.nan)
        made = {name: flat if name in ("points", "pca") else none for name in names}
    else:
        made = cached_tensors(file, names, lambda: _embed(tables, parameters))
    known: dict[str, Any] = {name: made[name].numpy() if made[name].ndim else made[name].item() for name in names}
    return Embedding(**known, parameters=parameters)


def _embed(tables: Sequence[Tensor], parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    every = unit(torch.cat(tuple(tables)))
    plane, shares = principal_components(every, 2)
    pca = np.pad(plane.numpy(), ((0, 0), (0, 2 - plane.shape[1])))
    points, linear = torch.from_numpy(_umap(every, pca, parameters)), torch.from_numpy(pca)
    scores = {"trustworthiness": trustworthiness(every, points), "pca_trustworthiness": trustworthiness(every, linear)}
    scores["explained"] = float(shares[:2].sum())
    made = {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}
    return made | {"points": points.view(len(tables), -1, 2), "pca": linear.view(len(tables), -1, 2)}


def _collapsed(u: Tensor) -> bool:
    """Whether unit vectors (N, D) cannot be told apart, or some are not finite."""
    return not float((u - u[0]).norm(dim=1).amax()) > SAME


def _umap(u: Tensor, start: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Coordinates float32 (N, 2) of unit vectors (N, D), from their graph of neighbours and first coordinates (N, 2)."""
    graph = nearest(u, parameters["neighbours"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that TensorFlow is missing, which only ParametricUMAP needs
        warnings.filterwarnings("ignore", "precomputed_knn.2.", UserWarning)  # that no new points can be added
        from umap import UMAP, layouts, umap_

        own = getattr(layouts, "_nb_optimize_layout_euclidean_single_epoch", None)  # a private name
        for compiled in filter(None, (umap_.smooth_knn_dist, umap_.compute_membership_strengths, own)):
            compiled.enable_caching()  # on disk: compiling them takes every process 8 CPU-seconds

        # Starting from PCA keeps what global structure there is and needs no connected graph (Kobak and Linderman 2021); besides
        # the graph, UMAP uses the data for this alone. A seed allows one thread only, and saying so spares a warning.
        graph_and_start = {"n_neighbors": parameters["neighbours"], "precomputed_knn": graph, "init": "pca"}
        model = UMAP(min_dist=parameters["min_dist"], random_state=parameters["seed"], n_jobs=1, **graph_and_start)
        return np.asarray(model.fit_transform(start), dtype=np.float32)


def nearest(u: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each of N unit vectors (N, D), itself first: positions int64 and distances |u - v| float32, (N, k).

    UMAP would compile an approximate search for this, which takes longer than the exact answer for 10 000 points.
    """
    n = len(u)
    positions, distances = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32)
    for rows in torch.arange(n).split(rows_at_once(n)):
        cosines = u[rows] @ u.T
        cosines[torch.arange(len(rows)), rows] = torch.inf
        near = cosines.topk(k, dim=1)
        positions[rows], distances[rows] = near.indices.numpy(), (2 - 2 * near.values).clamp_min(0).sqrt().numpy()
    return positions, distances


def trustworthiness(features: Tensor, flat: Tensor) -> float:
    """Whether neighbours on the map are neighbours in feature space, in [0, 1]; 1 = all of them (Venna and Kaski 2001).

    Of features (n, D) and coordinates (n, 2): 1 - 2 / (n k (2 n - 3 k - 1)) times the sum of r - k over every k-neighbour on the
    map that is only the r-th neighbour (r > k) in feature space, by cosine; k = 15, or fewer where n < 2 k + 2. A map at random
    has about 0.5. Beyond 1 000 points the sum is estimated from 1 000 of them, evenly chosen, each neighbour ranked among all
    (scikit-learn's takes n^2 distances). NaN where all features point the same way, or a feature or coordinate is not finite.
    """
    n = len(features)
    if n < 4:
        raise InputError(f"The trustworthiness of {n} points says nothing: give at least four.")
    k, total, u = min(NEIGHBOURS, (n - 1) // 2), 0, unit(features)
    if _collapsed(u) or not bool(flat.isfinite().all()):
        return math.nan
    anchors = torch.linspace(0, n - 1, min(n, ANCHORS)).round().long()
    for rows in anchors.split(rows_at_once(n)):
        line = torch.arange(len(rows))
        distances = torch.cdist(flat[rows], flat)
        distances[line, rows] = torch.inf
        cosines = u[rows] @ u.T
        cosines[line, rows] = -torch.inf
        for neighbour in distances.topk(k, dim=1, largest=False).indices.T:
            rank = torch.count_nonzero(cosines > cosines[line, neighbour][:, None], dim=1) + 1
            total += int((rank - k).clamp_min(0).sum())
    return 1 - 2 * total / (len(anchors) * k * (2 * n - 3 * k - 1))
