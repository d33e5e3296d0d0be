"""What is on the screen: controls, panels and how they are laid out; what they do is in `session`.

The widgets that ipywidgets lacks, each with its other half in JavaScript. Imported only when an explorer is made.

The map of a layer: where its clean and adversarial images lie, and the path of one of them as the attack grows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import torch
import traitlets

from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.figures.canvas import styles
from robustlib.representation import embed_path, principal_components
from robustlib.representation.measures import unit
from robustlib.runs import Run
from robustlib.workbook.explorer import grid as panels
from robustlib.workbook.explorer.grid import Grid, explorer_attacks

if TYPE_CHECKING:
    import ipywidgets


HERE = Path(__file__).parent


class Scatter(anywidget.AnyWidget):
    """Circles and crosses in a plane, some names and one path; coordinates are the map's own.

    Args:
        still: what eps does not move: frame [x0, y0, x1, y1], clean [[x, y], ...], colours (one a point, or one for circles and one
            for crosses), faint (places of points to dim), names [[x, y, text], ...], said (words for each circle).
        moving: crosses [[x, y], ...], said (words for each cross), path [[x, y], ...], alt (what is to be seen, in words).
        clicked: the place of the point that was clicked last and a number that differs from click to click.
    """

    _esm = HERE / "scatter.js"

    still = traitlets.Dict().tag(sync=True)
    moving = traitlets.Dict().tag(sync=True)
    clicked = traitlets.List([-1, 0]).tag(sync=True)


class Slider(anywidget.AnyWidget):
    """A choice among ordered words. Unlike that of ipywidgets, its handle has a name and says the word to a screen reader.

    Args:
        name: what is chosen.
        options: the words.
        value: position of the chosen one.
    """

    _esm = HERE / "slider.js"

    name = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    value = traitlets.Int(0).tag(sync=True)


class Status(anywidget.AnyWidget):
    """A sentence that a screen reader reads when it changes, and beside it the progress of a computation.

    Args:
        said: the sentence, plain text.
        doing: what is computed, plain text; "" hides the progress.
        share: how much of it is done, in [0, 1].
    """

    _esm = HERE / "status.js"

    said = traitlets.Unicode().tag(sync=True)
    doing = traitlets.Unicode().tag(sync=True)
    share = traitlets.Float(0.0).tag(sync=True)


FEW = 10  # classes that colours and names can still tell apart
MANY = ("#0173b2", "#d55e00")  # clean and adversarial images where they are more
COLOURS = [str(style["color"]) for style in styles(map(str, range(FEW))).values()]


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


ALL = -1  # the choice of every class


class Board:
    """The explorer's widgets, each an attribute; `widget` holds them all.

    Controls: run, attack, layer, label (class; -1 for all), eps (a step of the grid), image (a position among the examples),
    view ("PCA" or "UMAP"); buttons back, forth, fooled. Panels: cloud, pictures, bars, near, curve, note, status.

    Args:
        dataset: whose classes are listed, those that have images.
        runs: to choose from.
        split: the images on the map.
        choose: called with the position of an image that was clicked on the map.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[Run], split: Split, choose: Callable[[int], object]) -> None:
        self._controls(dataset, runs, split)
        self.cloud = Cloud(split.labels.numpy(), dataset.class_names, choose)
        self._layout()

    @property
    def redrawn(self) -> "tuple[ipywidgets.Widget, ...]":
        """Controls that change what is looked at, not what is computed."""
        return self.layer, self.eps, self.image

    def say(self, words: str) -> None:
        """A sentence in the last line."""
        self.status.said = words

    def progress(self, share: float, words: str) -> None:
        """How much of a computation is done, in [0, 1], and what it is."""
        self.status.share, self.status.doing = share, words

    def ready(self) -> None:
        """Hides the progress."""
        self.status.doing = ""

    def _controls(self, dataset: Dataset, runs: Sequence[Run], split: Split) -> None:
        import ipywidgets as w

        attacks, names = list(explorer_attacks(dataset.threat)), dataset.class_names
        self.run = w.Dropdown(options=_titles(runs), description="Run", layout={"width": "400px"})
        switch = {"orientation": "horizontal", "layout": {"width": "auto"}}
        self.attack = w.RadioButtons(
            options=attacks, value="PGD-20", description="Attack", tooltip="What makes the adversarial images", **switch
        )
        self.layer = w.Dropdown(options=["features"], description="Layer", layout={"width": "200px"})
        self.label = w.Dropdown(
            options=[("all", ALL), *((names[k], k) for k in split.labels.unique().tolist())],
            description="Class",
            layout={"width": "160px"},
        )
        self.eps = Slider(name="eps", layout={"flex": "1 1 320px", "width": "auto"})
        self.image = w.Dropdown(description="Image", layout={"width": "220px"})
        self.back = w.Button(description="‹ Previous", tooltip="The previous image", layout={"width": "auto"})
        self.forth = w.Button(description="Next ›", tooltip="The next image", layout={"width": "auto"})
        self.fooled = w.Button(
            description="Next fooled ›",
            tooltip="The next image that the attack fools at this eps",
            layout={"width": "auto"},
        )
        self.view = w.RadioButtons(
            options=["PCA", "UMAP"], description="Map", tooltip="How features become points", **switch
        )

    def _layout(self) -> None:
        import ipywidgets as w

        self.pictures, self.bars, self.near, self.curve, self.note = (w.HTML() for _ in range(5))
        self.status = Status()
        cards = [
            _card(
                _row(self.run, self.attack, self.layer, self.label),
                _row(self.eps, self.image, self.back, self.forth, self.fooled),
                kind="rl-whole",
            ),
            _card(_row(self.view), self.cloud.scatter, self.note, kind="rl-map"),
            _card(self.pictures),
            _card(self.bars, kind="rl-narrow"),
            _card(self.curve),
            _card(self.near, kind="rl-narrow"),
            _card(self.status, kind="rl-whole"),
        ]
        grid = w.Box(cards)
        grid.add_class("rl-panels")
        self.widget = w.VBox([w.HTML(panels.sheet()), grid])
        self.widget.add_class("rl-explorer")


def in_words(error: Exception) -> str:
    """What went wrong, as it is told: an InputError is a sentence, others need their type."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _titles(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Runs by what people call them, what they changed from their preset included."""
    found = []
    for run in runs:
        params = run.params()
        words = [
            params.get("title") or params["method"],
            params["arch"],
            f"seed {params['seed']}",
            run.changed,
        ]
        found.append((" · ".join(filter(None, words)), run))
    names = [name for name, _ in found]
    return [(f"{name} · {run.path.name[-8:]}" if names.count(name) > 1 else name, run) for name, run in found]


def _row(*children: Any) -> Any:
    import ipywidgets as w

    row = w.Box(children)
    row.add_class("rl-controls")
    return row


def _card(*children: Any, kind: str = "") -> Any:
    import ipywidgets as w

    card = w.VBox(children)
    for name in filter(None, ("rl-card", kind)):
        card.add_class(name)
    return card
