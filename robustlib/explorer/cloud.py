"""The map of a layer: where its clean and adversarial images lie, and the path of one of them as the attack grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robustlib.explorer.grid import Grid
from robustlib.figures.canvas import looks
from robustlib.representation import embed_path, principal_components
from robustlib.representation.geometry import unit

FEW = 10  # classes that colours and names can still tell apart
MANY = ("#0173b2", "#d55e00")  # clean and adversarial images where they are more
COLOURS = [str(look["color"]) for look in looks(map(str, range(FEW))).values()]


@dataclass(frozen=True, eq=False)
class View:
    """Coordinates (T, N, 2) of every image at every radius, and how they were made."""

    points: np.ndarray
    note: str


def pca_view(grid: Grid, layer: str) -> View:
    """The first two principal components of the unit vectors of all steps together."""
    tables = grid.tables(layer)
    scores, shares = principal_components(unit(torch.cat(tables)), 2)
    flat = np.pad(scores.numpy(), ((0, 0), (0, 2 - scores.shape[1])))
    return View(
        flat.reshape(len(tables), -1, 2),
        f"PCA of clean and adversarial features of all radii together, each scaled to length 1; the two axes hold {float(shares[:2].sum()):.0%} of the variance.",
    )


def umap_view(grid: Grid, layer: str, seed: int) -> View:
    """The joint UMAP of all steps, kept beside the run unless that was deleted meanwhile."""
    made = embed_path(grid.tables(layer), seed=seed, cache=grid.run.path if grid.run.finished else None)
    return View(made.points, str(made))


class Cloud:
    """A `Scatter` of a `View`: circles clean, crosses adversarial, a path for the chosen image.

    Args:
        labels: classes (N,).
        class_names: by label.
        choose: called with the position of an image that was clicked.
    """

    def __init__(self, labels: np.ndarray, class_names: Sequence[str], choose: Callable[[int], object]) -> None:
        from robustlib.explorer.widgets import Scatter

        self.labels, self.class_names = labels, class_names
        few = len(class_names) <= FEW
        self.colours = [[COLOURS[k] for k in labels] if few else [kind] for kind in MANY]
        marks = "● clean, × adversarial at this eps, in the colour of the class"
        if not few:
            marks = "● clean (blue), × adversarial at this eps (orange), of all classes"
        self.legend = f"{marks}; the line is the path of the chosen image. Click a point."
        self.scatter = Scatter()
        self.scatter.observe(lambda change: choose(change["new"][0]), "clicked")

    def draw(self, view: View, grid: Grid, step: int, image: int, keep: np.ndarray) -> None:
        """Moves everything to where it is at this step; what eps does not move is sent again only if it changed."""
        points, names = view.points.round(4), self.class_names
        low, high = points.min((0, 1)), points.max((0, 1))
        hearts = []
        if len(names) <= FEW:
            hearts = [(*_heart(points[0][self.labels == k]), names[k]) for k in np.unique(self.labels[keep])]
        self.scatter.still = {
            "frame": [*low.tolist(), *(high + 1e-6).tolist()],
            "clean": points[0].tolist(),
            "colours": self.colours,
            "faint": np.flatnonzero(~keep).tolist(),
            "names": hearts,
            "said": self._words(grid, 0),
        }
        said, path = self._words(grid, step), points[: step + 1, image].tolist()
        alt = f"Map of {len(self.labels)} clean images and the adversarial ones made of them. Chosen: {said[image]}."
        self.scatter.moving = {"crosses": points[step].tolist(), "said": said, "path": path, "alt": alt}

    def _words(self, grid: Grid, step: int) -> list[str]:
        kind = f"eps {grid.radii[step]:.3g}" if step else "clean"
        names, said = self.class_names, grid.steps[step].predictions.tolist()
        pairs = enumerate(zip(self.labels, said, strict=True))
        return [f"image {i}, {kind}: class {names[y]}, called {names[p]}" for i, (y, p) in pairs]


def _heart(points: np.ndarray) -> tuple[float, float]:
    """The point nearest to the median of all: inside the class also where it lies in pieces."""
    x, y = points[np.abs(points - np.median(points, axis=0)).sum(1).argmin()].tolist()
    return x, y
