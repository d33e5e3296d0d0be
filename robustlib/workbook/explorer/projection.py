"""Maps of one run's features at every radius, or of two runs' together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustlib import representation
from robustlib.representation.measures import unit
from robustlib.workbook.explorer.grid import Grid

Place = tuple[Grid, str]  # a run's answers, and the layer that is looked at


class Projection(NamedTuple):
    """Coordinates (T, N, 2) of every image at every radius, and how they were made."""

    points: np.ndarray
    note: str
    frame: tuple[float, ...] = ()  # x0, y0, x1, y1 of all maps that were made together; () for its own


def pca_projection(places: Sequence[Place]) -> tuple[Projection, ...]:
    """The first two principal components of the unit vectors of all steps together; one Projection a place."""
    tables, turned = _tables(places)
    scores, shares = representation.principal_components(torch.cat([unit(table) for table in tables]), 2)
    flat = np.pad(scores.numpy(), ((0, 0), (0, 2 - scores.shape[1])))
    note = "PCA of clean and adversarial features of all radii together, each scaled to length 1; the two axes hold"
    return _split(flat, places, f"{note} {float(shares[:2].sum()):.0%} of the variance.{turned}")


def umap_projection(places: Sequence[Place], seed: int) -> tuple[Projection, ...]:
    """The joint UMAP of all steps, kept beside the first run unless that was deleted meanwhile; one Projection a place."""
    tables, turned = _tables(places)
    run = places[0][0].run
    made = representation.embed_path(tables, seed=seed, cache=run.path if run.finished else None)
    return _split(made.points, places, f"{made}{turned}")


def _tables(places: Sequence[Place]) -> tuple[tuple[Tensor, ...], str]:
    """The features of all steps (N, D), and what was done to the second run's, in words.

    Two networks lay the same images out in coordinates that have nothing to do with each other. The second's features are turned by
    the orthogonal matrix that brings its images of all radii, scaled to length 1, nearest to the first's (Schönemann 1966): angles stay.
    The clean ones alone are fewer than a layer has dimensions, and would leave what attacks add turned anyhow.
    """
    tables = [[step[layer] for step in grid.steps] for grid, layer in places]
    if len(places) == 1:
        return tuple(tables[0]), ""
    widths = [steps[0].shape[1] for steps in tables]
    first, second = ([_padded(table, max(widths)) for table in steps] for steps in tables)
    left, _, right = torch.linalg.svd(unit(torch.cat(second)).T @ unit(torch.cat(first)))
    said = f" One map of both runs: the second's features were turned towards the first's (orthogonal Procrustes on the {len(first[0])} images at all radii)"
    said += f", zeros making up {min(widths)} for {max(widths)} dimensions." if min(widths) < max(widths) else "."
    return (*first, *(table @ (left @ right) for table in second)), said


def _padded(table: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))


def _split(points: np.ndarray, places: Sequence[Place], note: str) -> tuple[Projection, ...]:
    counts = [len(grid.steps) for grid, _ in places]
    every = points.reshape(sum(counts), -1, 2)
    frame = (*every.min((0, 1)).tolist(), *every.max((0, 1)).tolist())
    return tuple(Projection(part, note, frame) for part in np.split(every, np.cumsum(counts)[:-1]))
