"""What is on the screen: a run's answers as an attack grows, the map of a layer, the panels beside it, and the controls.

What the controls do is in `app`. Panels (panels.html.j2) are HTML and SVG in the colours of the page around them, at any width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import anywidget
import ipywidgets as w
import numpy as np
import torch
import traitlets
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from robustlib import representation
from robustlib.data import Dataset, Split
from robustlib.figures.canvas import COLOURS, encode_png
from robustlib.figures.features import class_centre
from robustlib.runs import Run
from robustlib.workbook.explorer.grid import Grid, explorer_attacks
from robustlib.workbook.explorer.projection import Projection
from robustlib.workbook.tables import percent

HERE = Path(__file__).parent
ALL = -1  # the choice of every class
FEW = 10  # classes that colours and names can still tell apart
MANY = ("#0173b2", "#d55e00")  # clean and adversarial images where they are more
MAGNIFY = 10.0  # of the perturbation, less where that would leave the grey scale
BARS = 10  # classes whose probabilities are shown


_environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
_environment.filters |= {"png": lambda image: encode_png(image.permute(1, 2, 0).contiguous().numpy())}
_environment.filters |= {"short": "{:.3g}".format, "share": lambda p: f"{100 * p:.0f} %"}
PANELS: Any = _environment.get_template("panels.html.j2").module  # a function for each macro


# Widgets with a half of their own in JavaScript: those of ipywidgets and plotting libraries say nothing to a screen reader.
class Slider(anywidget.AnyWidget):
    """A choice among ordered words; its handle has a name and says the word to a screen reader."""

    _esm = HERE / "slider.js"

    name = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    value = traitlets.Int(0).tag(sync=True)  # position of the chosen word


class Status(anywidget.AnyWidget):
    """A sentence that a screen reader reads when it changes, and beside it the progress of a computation."""

    _esm = HERE / "status.js"

    said = traitlets.Unicode().tag(sync=True)
    doing = traitlets.Unicode().tag(sync=True)  # what is computed; "" hides the progress
    share = traitlets.Float(0.0).tag(sync=True)  # how much of it is done, in [0, 1]


class FeatureMap(anywidget.AnyWidget):
    """A `Projection`: circles clean, crosses adversarial, names of classes, and the path of the chosen image."""

    _esm = HERE / "scatter.js"

    # what eps does not move, in the map's own coordinates: frame [x0, y0, x1, y1], clean [[x, y], ...], colours (one a point, or one
    # for circles and one for crosses), faint (places of points to dim), names [[x, y, text], ...], said (words for each circle)
    still = traitlets.Dict().tag(sync=True)
    # crosses [[x, y], ...], said (words for each cross), path [[x, y], ...], alt (what is to be seen, in words)
    moving = traitlets.Dict().tag(sync=True)
    # the place of the point that was clicked last, and a number that differs from click to click
    clicked = traitlets.List([-1, 0]).tag(sync=True)

    def __init__(self, labels: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__()
        self.classes, self.class_names, self.few = labels, class_names, len(class_names) <= FEW
        colours = "● clean (blue), × adversarial at this eps (orange), of all classes"
        marks = "● clean, × adversarial at this eps, in the colour of the class" if self.few else colours
        self.legend = f"{marks}; the line is the path of the chosen image. Click a point."

    def draw(self, projection: Projection, grid: Grid, step: int, image: int, keep: np.ndarray) -> None:
        """Moves everything to where it is at this step; what eps does not move is sent again only if it changed."""
        points, names = projection.points.round(4), self.class_names
        left, low, right, high = projection.frame or (*points.min((0, 1)).tolist(), *points.max((0, 1)).tolist())
        shown: Sequence[int] = np.unique(self.classes[keep]).tolist() if self.few else []
        self.still = {
            "frame": [left, low, right + 1e-6, high + 1e-6],
            "clean": points[0].tolist(),
            "colours": [[COLOURS[k] for k in self.classes] if self.few else [kind] for kind in MANY],
            "faint": np.flatnonzero(~keep).tolist(),
            "names": [(*class_centre(points[0][self.classes == k]), names[k]) for k in shown],
            "said": self._words(grid, 0),
        }
        said, path = self._words(grid, step), points[: step + 1, image].tolist()
        alt = f"Map of {len(self.classes)} clean images and the adversarial ones made of them. Chosen: {said[image]}."
        self.moving = {"crosses": points[step].tolist(), "said": said, "path": path, "alt": alt}

    def _words(self, grid: Grid, step: int) -> list[str]:
        kind = f"eps {grid.radii[step]:.3g}" if step else "clean"
        names, predictions = self.class_names, grid.steps[step].predictions.tolist()
        pairs = enumerate(zip(self.classes, predictions, strict=True))
        return [f"image {i}, {kind}: class {names[y]}, called {names[p]}" for i, (y, p) in pairs]


class Choice(NamedTuple):
    """What both runs are asked: an image, a step of the grid, how many neighbours, and of which class the others are (in words)."""

    image: int
    step: int
    k: int
    of_class: str


class Panels:
    """What is shown of one run, each an attribute: title, map, note, pictures, bars, curve, near; `cards` holds them all."""

    def __init__(self, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.map = FeatureMap(labels, class_names)
        self.title, self.pictures, self.bars, self.near, self.curve, self.note = (w.HTML() for _ in range(6))
        parts = [
            ("rl-map", self.title, self.map, self.note),
            ("", self.pictures),
            ("rl-narrow", self.bars),
            ("", self.curve),
            ("rl-narrow", self.near),
        ]
        self.cards = _styled(w.Box, "rl-panels", *(_styled(w.VBox, f"rl-card {kind}", *part) for kind, *part in parts))

    def fill(self, at: "Choice", grid: Grid, layer: str, keep: Tensor, notes: Sequence[str]) -> None:
        """Shows the chosen image, its probabilities, its k neighbours, and the accuracy of the images in `keep`, bool (N,)."""
        self.note.value = PANELS.notes(self.map.legend, notes)
        image, step, names, y = at.image, at.step, self.map.class_names, grid.clean.labels
        label = int(y[image])
        before, after = (cast(Tensor, features.images)[image].int() for features in (grid.clean, grid.steps[step]))
        change = (after - before).float() / 255
        most = float(change.abs().max())
        factor = round(min(MAGNIFY, 0.5 / most), 1) if most else MAGNIFY
        noise = ((0.5 + factor * change) * 255).round().clamp(0, 255).to(torch.uint8)
        smallest = next(
            (r for r, answers in zip(grid.radii, grid.steps, strict=True) if not answers.correct[image]), None
        )
        self.pictures.value = PANELS.pictures(grid, image, step, names, label, noise, f"{factor:.3g}", most, smallest)
        both = torch.stack([grid.probabilities(image, place) for place in (0, step)])
        likeliest = both.amax(0).argsort(descending=True, stable=True)[:BARS].sort().values.tolist()
        self.bars.value = PANELS.probabilities(names, label, [(c, *both[:, c].tolist()) for c in likeliest])
        near = [grid.neighbours(layer, image, place, at.k) for place in (0, step)]
        unlike = [int((y[places] != label).sum()) for places in near]
        start, end = (grid.steps[place][layer][image : image + 1] for place in (0, step))
        gap = representation.feature_gap(start, end)
        self.near.value = PANELS.neighbours(grid, layer, names, label, near[1].tolist(), unlike, float(gap))
        rows = grid.curve(keep)
        interval = percent(*(rows[step][end] for end in ("accuracy", "low", "high")))
        self.curve.value = PANELS.curve(rows, rows[step], grid.eps, grid.attack, at.of_class, interval)


class Board(Panels):
    """The explorer's widgets, each an attribute; `widget` holds them all.

    Controls: run, second (a run beside it, or None), attack, layer, label (of the images in `split`; -1 for all), eps (a step of the
    grid), image (a position among the examples), view ("PCA" or "UMAP"), back, forth, fooled. It is itself the panels of the first
    run; `beside` are those of the second. Status says what is chosen.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[Run], split: Split) -> None:
        names = dataset.class_names
        classes = [("all", ALL), *((names[k], k) for k in split.labels.unique().tolist())]
        super().__init__(split.labels.numpy(), names)
        self.beside, titles = Panels(split.labels.numpy(), names), _titles(runs)
        self.run = _labelled(w.Dropdown, "Run", "400px", options=titles)
        self.second = _labelled(w.Dropdown, "Beside it", "400px", options=[("nothing", None), *titles])
        self.attack = _switch("Attack", "What makes the adversarial images", list(explorer_attacks(dataset.threat)))
        self.attack.value = "PGD-20"
        self.layer = _labelled(w.Dropdown, "Layer", "200px", options=["features"])
        self.label = _labelled(w.Dropdown, "Class", "160px", options=classes)
        self.eps = Slider(name="eps", layout={"flex": "1 1 320px", "width": "auto"})
        self.image = _labelled(w.Dropdown, "Image", "220px")
        self.back = _labelled(w.Button, "‹ Previous", tooltip="The previous image")
        self.forth = _labelled(w.Button, "Next ›", tooltip="The next image")
        self.fooled = _labelled(w.Button, "Next fooled ›", tooltip="The next image that the attack fools at this eps")
        self.view = _switch("Map", "How features become points", ["PCA", "UMAP"])
        self.status = Status()
        chosen = _styled(w.Box, "rl-controls", self.run, self.second, self.attack, self.layer, self.label)
        stepped = _styled(w.Box, "rl-controls", self.eps, self.image, self.back, self.forth, self.fooled, self.view)
        controls = _styled(w.Box, "rl-panels", _styled(w.VBox, "rl-card rl-whole", chosen, stepped))
        self._sides = _styled(w.Box, "rl-sides", self.cards)
        said = _styled(w.Box, "rl-panels", _styled(w.VBox, "rl-card rl-whole", self.status))
        sheet = w.HTML(f"<style>{(HERE / 'style.css').read_text()}</style>")
        self.widget = _styled(w.VBox, "rl-explorer", sheet, controls, self._sides, said)

    @property
    def sides(self) -> tuple[Panels, ...]:
        """The panels that are shown."""
        return (self, self.beside)[: len(self._sides.children)]

    def show_sides(self, titles: Sequence[str]) -> None:
        """Shows panels for so many runs, one or two, and of two their titles."""
        two = len(titles) > 1
        (self._sides.add_class if two else self._sides.remove_class)("rl-two")
        self._sides.children = (self.cards, self.beside.cards)[: len(titles)]
        for side, title in zip(self.sides, titles, strict=True):
            side.title.value = PANELS.title(title) if two else ""

    @property
    def of_class(self) -> str:
        """Which images are chosen, such as " of class 3"; "" for all."""
        return "" if self.label.value == ALL else f" of class {self.map.class_names[self.label.value]}"


def _labelled(kind: Any, name: str, width: str = "auto", **traits: Any) -> Any:
    return kind(description=name, layout={"width": width}, **traits)


def _switch(name: str, tooltip: str, options: Sequence[str]) -> Any:
    return _labelled(w.RadioButtons, name, tooltip=tooltip, options=options, orientation="horizontal")


def _styled(box: Any, classes: str, *children: Any) -> Any:
    made = box(children)
    for name in classes.split():
        made.add_class(name)
    return made


def _titles(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Runs by title, what they changed from their preset included; those alike also by the end of their directory."""
    names = []
    for run in runs:
        params = run.params()
        parts = (params.get("title") or params["method"], params["arch"], f"seed {params['seed']}", run.changed)
        names.append(" · ".join(filter(None, parts)))
    pairs = zip(names, runs, strict=True)
    return [(f"{name} · {run.path.name[-8:]}" if names.count(name) > 1 else name, run) for name, run in pairs]
