"""One map for clean and adversarial features: UMAP of their nearest neighbours by angle, fitted on both together.

Fitted on the clean ones alone, UMAP would push adversarial points to the edges of clusters and fake or hide a gap. Near means here
what it means for alignment, exclusion and trustworthiness: a small distance between unit vectors, that is a small angle at the origin.
Angles about the mean, as after a centred PCA, name other neighbours: the features of ReLU networks lie far off the origin.
"""

import hashlib
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.errors import InputError
from robustlib.representation.features import as_features, rows_at_once
from robustlib.representation.measures import unit
from robustlib.representation.probes import check_neighbours
from robustlib.representation.spectrum import principal_components
from robustlib.runs import versions, write_atomic

PACKAGES = ("umap-learn", "numpy", "numba", "scikit-learn")  # whose versions can move points
COUNTED, ANCHORS = 15, 1000  # neighbours of the trustworthiness, and the points whose neighbours are looked at


@dataclass(frozen=True, eq=False)
class Embedding:
    """Two-dimensional views of T tables of N features, all of the same examples: clean ones first, then adversarial ones.

    Args:
        points: UMAP coordinates, float32 (T, N, 2).
        pca: the first two principal components of the unit vectors, float32 (T, N, 2).
        explained: share of their variance that those two hold, in [0, 1].
        trustworthiness, pca_trustworthiness: of the two views, in [0, 1], see `trustworthiness`.
        parameters: how the map was made.
    """

    points: np.ndarray
    pca: np.ndarray
    explained: float
    trustworthiness: float
    pca_trustworthiness: float
    parameters: Mapping[str, Any]

    @property
    def clean(self) -> np.ndarray:
        """UMAP coordinates (N, 2) of the first table; of `embed`, the clean one."""
        return self.points[0]

    @property
    def adversarial(self) -> np.ndarray:
        """UMAP coordinates (N, 2) of the last table; of `embed`, the adversarial one."""
        return self.points[-1]

    @property
    def pca_clean(self) -> np.ndarray:
        """Principal components (N, 2) of the first table."""
        return self.pca[0]

    @property
    def pca_adversarial(self) -> np.ndarray:
        """Principal components (N, 2) of the last table."""
        return self.pca[-1]

    @property
    def made(self) -> str:
        """How the map was made, in sentences."""
        p, (tables, n, _) = self.parameters, self.points.shape
        return (
            f"UMAP of {n} clean images and {(tables - 1) * n} changed ones, fitted together ({p['neighbours']} neighbours, min_dist "
            f"{p['min_dist']:g}, seed {p['seed']}). Near means a small angle between features, seen from the origin, as for "
            "alignment and exclusion. Distances between clusters and their sizes mean nothing."
        )

    def __str__(self) -> str:
        """What to print under the map."""
        return (
            f"{self.made} Trustworthiness {self.trustworthiness:.3f} (PCA view: {self.pca_trustworthiness:.3f}, "
            f"{self.explained:.0%} of the variance)."
        )


def embed(clean: Tensor, adversarial: Tensor, **settings: Any) -> Embedding:
    """Maps clean and adversarial features to the plane together: `embed_path` of two tables, with its settings."""
    return embed_path((clean, adversarial), **settings)


def embed_path(
    tables: Sequence[Tensor],
    *,
    neighbours: int = 30,
    min_dist: float = 0.5,
    seed: int = 0,
    cache: Path | str | None = None,
) -> Embedding:
    """Maps several tables of features to the plane together (McInnes et al. 2018); the same call gives the same map.

    Args:
        tables: T of (N, D), of the same examples in the same order: clean features, then adversarial ones, of one radius or of
            several growing ones, or of other copies; 5 000 to 10 000 rows in all show enough.
        neighbours: of UMAP's graph, fewer than T N.
        min_dist: how close UMAP may draw points, in [0, 1]; at 0.1, its authors' default, the islands of digits shrink to dots.
        seed: of UMAP. Coordinates repeat on one machine; between machines only their structure does.
        cache: directory (a run's) where coordinates are kept below embeddings/ under a digest of the features, the
            parameters and the versions of the packages; the same call takes them from there.

    Raises:
        InputError: no tables, shapes that differ, fewer examples than neighbours, parameters out of range.
    """
    if not tables:
        raise InputError("A map needs features: give at least one table.")
    tables = as_features(*(table.cpu() for table in tables))
    check_neighbours(len(tables) * len(tables[0]) - 1, neighbours)
    if neighbours < 2 or not 0 <= min_dist <= 1:
        asked = f"neighbours={neighbours!r}, min_dist={min_dist!r}"
        raise InputError(f"UMAP with {asked}: give at least 2 neighbours, and min_dist in [0, 1].")
    parameters: dict[str, Any] = {
        "neighbours": neighbours,
        "min_dist": min_dist,
        "seed": seed,
        "metric": "angle",
    }
    file = None if cache is None else Path(cache) / "embeddings" / f"{_key(tables, parameters)}.npz"
    stored = None if file is None else _load(file, parameters)
    if stored is not None:
        return stored
    made = _embed(tables, parameters)
    if file is not None:
        write_atomic(file, _bytes(made))
    return made


def _embed(tables: Sequence[Tensor], parameters: Mapping[str, Any]) -> Embedding:
    every = unit(torch.cat(tuple(tables)))
    plane, shares = principal_components(every, 2)
    pca = np.pad(plane.numpy(), ((0, 0), (0, 2 - plane.shape[1])))
    flat = _umap(every, pca, parameters)
    trust = [trustworthiness(every, torch.from_numpy(view)) for view in (flat, pca)]
    points, pca = (view.reshape(len(tables), -1, 2) for view in (flat, pca))
    return Embedding(points, pca, float(shares[:2].sum()), trust[0], trust[1], parameters)


def _umap(u: Tensor, start: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Coordinates float32 (N, 2) of unit vectors (N, D), from their graph of neighbours and first coordinates (N, 2)."""
    graph = nearest(u, parameters["neighbours"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that TensorFlow is missing, which only ParametricUMAP needs
        warnings.filterwarnings("ignore", "precomputed_knn.2.", UserWarning)  # that no new points can be added
        from umap import UMAP

        # Starting from PCA keeps what global structure there is and needs no connected graph (Kobak and Linderman 2021); beside
        # the graph, UMAP looks at the data for this alone. A seed allows one thread only, and saying so spares a warning.
        made = UMAP(
            n_neighbors=parameters["neighbours"],
            min_dist=parameters["min_dist"],
            random_state=parameters["seed"],
            precomputed_knn=graph,
            init="pca",
            n_jobs=1,
        )
        return np.asarray(made.fit_transform(start), dtype=np.float32)


def nearest(u: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each of N unit vectors (N, D), itself first: positions int64 and distances |u - v| float32, (N, k).

    UMAP would compile an approximate search for this, which takes longer than the exact answer for 10 000 points.
    """
    n = len(u)
    positions, distances = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32)
    for rows in torch.arange(n).split(rows_at_once(n)):
        likeness = u[rows] @ u.T
        likeness[torch.arange(len(rows)), rows] = torch.inf
        near = likeness.topk(k, dim=1)
        positions[rows], distances[rows] = near.indices.numpy(), (2 - 2 * near.values).clamp_min(0).sqrt().numpy()
    return positions, distances


def trustworthiness(features: Tensor, flat: Tensor, k: int = COUNTED) -> float:
    """Whether neighbours on the map are neighbours in feature space, in [0, 1]; 1 = all of them (Venna and Kaski 2001).

    1 - 2 / (n k (2 n - 3 k - 1)) times the sum of r - k over every k-neighbour on the map that is only the r-th neighbour
    (r > k) in feature space, by cosine. A map at random has about 0.5. Every neighbour is ranked among all n points, but beyond
    1 000 points the sum is estimated from 1 000 of them, evenly chosen; scikit-learn's needs memory for n^2 numbers.

    Args:
        features: (N, D).
        flat: coordinates (N, 2).
        k: neighbours; fewer are taken where N < 2 k + 2.

    Raises:
        InputError: fewer than four points.
    """
    n = len(features)
    if n < 4:
        raise InputError(f"The trustworthiness of {n} points says nothing: give at least four.")
    k, total, u = min(k, (n - 1) // 2), 0, unit(features)
    anchors = torch.linspace(0, n - 1, min(n, ANCHORS)).round().long()
    for rows in anchors.split(rows_at_once(n)):
        here = torch.arange(len(rows))
        near = torch.cdist(flat[rows], flat)
        near[here, rows] = torch.inf
        likeness = u[rows] @ u.T
        likeness[here, rows] = -torch.inf
        for drawn in near.topk(k, dim=1, largest=False).indices.T:
            rank = torch.count_nonzero(likeness > likeness[here, drawn][:, None], dim=1) + 1
            total += int((rank - k).clamp_min(0).sum())
    return 1 - 2 * total / (len(anchors) * k * (2 * n - 3 * k - 1))


def _key(tables: Sequence[Tensor], parameters: Mapping[str, Any]) -> str:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    made = versions("measures/embedding")
    digest = hashlib.sha256(
        repr((len(tables), tuple(tables[0].shape), sorted(parameters.items()), packages, made)).encode()
    )
    for table in tables:
        digest.update(table.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


ARRAYS = ("points", "pca")
SCORES = ("explained", "trustworthiness", "pca_trustworthiness")


def _bytes(made: Embedding) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(getattr(made, name)) for name in (*ARRAYS, *SCORES)})


def _load(file: Path, parameters: Mapping[str, Any]) -> Embedding | None:
    """The stored map; None if there is none or it cannot be read: it is only a copy of what can be made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError):
        return None
    known: dict[str, Any] = {name: found[name] for name in ARRAYS} | {name: found[name].item() for name in SCORES}
    return Embedding(**known, parameters=parameters)
