"""What is on the screen: a run's answers as an attack grows, the map of a layer, the panels beside it, and the controls.

What the controls do is in `app`. Panels (panels.html.j2) are HTML and SVG in the colours of the page around them, at any width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from robustlib.attacks import APGD, FGSM, Attack
from robustlib.data import Dataset, Split
from robustlib.errors import InputError, check_known
from robustlib.evaluation import accuracy
from robustlib.evaluation.protocols import EOT
from robustlib.figures.canvas import COLOURS, encode_png
from robustlib.figures.features import class_centre
from robustlib.representation.features import Features
from robustlib.representation.measures import unit
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.workbook.tables import percent

Report = Callable[..., Any]
HERE = Path(__file__).parent
MULTIPLES = tuple(k / 4 for k in range(9))  # of the eps of the run's threat model: from nothing to twice as much
ALL = -1  # the choice of every class
FEW = 10  # classes that colours and names can still tell apart
MANY = ("#0173b2", "#d55e00")  # clean and adversarial images where they are more
MAGNIFY = 10.0  # of the perturbation, less where that would leave the grey scale
BARS = 10  # classes whose probabilities are shown


def explorer_attacks(threat: Threat, stochastic: bool = False) -> dict[str, Attack]:
    """The attacks to choose from, by their usual names; PGD-20 is `probe_attack`."""
    eot = EOT if stochastic else 1
    probe = replace(representation.probe_attack(threat), eot=eot)
    return {"FGSM": FGSM(threat, eot=eot), "PGD-20": probe, "APGD-CE": APGD(threat, steps=50, eot=eot)}


@dataclass(frozen=True, eq=False)
class Grid:
    """The same N images at T growing radii, and what the model of a run makes of them."""

    run: Run
    attack: str  # a name of `explorer_attacks`
    eps: float  # radius of the run's threat model, one of `radii`
    radii: tuple[float, ...]  # eps of each step, rising from 0
    steps: tuple[Features, ...]  # one a radius, with images and every layer; the first is clean

    @property
    def clean(self) -> Features:
        """The images before the attack."""
        return self.steps[0]

    def curve(self, keep: Tensor) -> list[dict[str, Any]]:
        """Accuracy of the images in `keep`, bool (N,), at each radius: eps, n, correct, accuracy, low, high (95 % Wilson).

        Each radius is attacked by itself, so this is no worst case, and may rise where the attack is too weak.
        """
        n = int(keep.sum())
        right = [int((step.correct & keep).sum()) for step in self.steps]
        return [{"eps": eps, **accuracy(k, n)} for eps, k in zip(self.radii, right, strict=True)]

    def is_adversarial(self, step: int) -> Tensor:
        """Which images are right before the attack and wrong at this step, bool (N,)."""
        return self.clean.correct & ~self.steps[step].correct

    def probabilities(self, image: int, step: int) -> Tensor:
        """softmax of one image's logits, (K,)."""
        return self.steps[step]["logits"][image].softmax(0)

    def neighbours(self, layer: str, image: int, step: int, k: int) -> Tensor:
        """Positions of the k clean images nearest to one image at this step, by cosine, int64 (k,); never itself."""
        likeness = unit(self.clean[layer]) @ unit(self.steps[step][layer][image : image + 1])[0]
        likeness[image] = -torch.inf
        return likeness.topk(k).indices


def make_grid(
    run: Run, dataset: Dataset, attack: str, *, n: int = 200, seed: int = 0, report: Report = lambda *_: None
) -> Grid:
    """The grid of a finished run under an attack, taken from beside the run, or computed: see `run_features`.

    Before each radius `report` is called with the number of radii done, of all, and the radius.
    """
    if not run.finished:
        raise InputError(f"There is no finished run in {run.path} any more: choose another one, or train it again.")
    model, threat = run.model(), Threat(**run.params()["threat"])
    known = explorer_attacks(threat, model.stochastic)
    check_known("attack of the explorer", attack, known)
    radii = tuple(dict.fromkeys(threat.scaled(multiple).eps for multiple in MULTIPLES))
    names = representation.layers(model)
    steps: list[Features] = []
    for done, eps in enumerate(radii[1:]):
        report(done, len(radii) - 1, eps)
        stronger = representation.at_eps(known[attack], eps)
        pair = representation.run_features(run, dataset, stronger, layers=names, n=n, seed=seed)
        steps = [*(steps or pair[:1]), pair[1]]
    return Grid(run, attack, threat.eps, radii, tuple(steps))


class Projection(NamedTuple):
    """Coordinates (T, N, 2) of every image at every radius, and how they were made."""

    points: np.ndarray
    note: str


def pca_projection(grid: Grid, layer: str) -> Projection:
    """The first two principal components of the unit vectors of all steps together."""
    features = torch.cat([step[layer] for step in grid.steps])
    scores, shares = representation.principal_components(unit(features), 2)
    flat = np.pad(scores.numpy(), ((0, 0), (0, 2 - scores.shape[1])))
    note = "PCA of clean and adversarial features of all radii together, each scaled to length 1; the two axes hold"
    return Projection(flat.reshape(len(grid.steps), -1, 2), f"{note} {float(shares[:2].sum()):.0%} of the variance.")


def umap_projection(grid: Grid, layer: str, seed: int) -> Projection:
    """The joint UMAP of all steps, kept beside the run unless that was deleted meanwhile."""
    cache = grid.run.path if grid.run.finished else None
    made = representation.embed_path(tuple(step[layer] for step in grid.steps), seed=seed, cache=cache)
    return Projection(made.points, str(made))


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
        low, high = points.min((0, 1)), points.max((0, 1))
        shown: Sequence[int] = np.unique(self.classes[keep]).tolist() if self.few else []
        self.still = {
            "frame": [*low.tolist(), *(high + 1e-6).tolist()],
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


class Board:
    """The explorer's widgets, each an attribute; `widget` holds them all.

    Controls: run, attack, layer, label (of the images in `split`; -1 for all), eps (a step of the grid), image (a position among
    the examples), view ("PCA" or "UMAP"), back, forth, fooled. Panels: map, pictures, bars, near, curve, note, status.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[Run], split: Split) -> None:
        names = dataset.class_names
        classes = [("all", ALL), *((names[k], k) for k in split.labels.unique().tolist())]
        self.run = _labelled(w.Dropdown, "Run", "400px", options=_titles(runs))
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
        self.map = FeatureMap(split.labels.numpy(), names)
        self.pictures, self.bars, self.near, self.curve, self.note = (w.HTML() for _ in range(5))
        self.status = Status()
        chosen = _styled(w.Box, "rl-controls", self.run, self.attack, self.layer, self.label)
        stepped = _styled(w.Box, "rl-controls", self.eps, self.image, self.back, self.forth, self.fooled)
        cards = [
            _styled(w.VBox, "rl-card rl-whole", chosen, stepped),
            _styled(w.VBox, "rl-card rl-map", _styled(w.Box, "rl-controls", self.view), self.map, self.note),
            _styled(w.VBox, "rl-card", self.pictures),
            _styled(w.VBox, "rl-card rl-narrow", self.bars),
            _styled(w.VBox, "rl-card", self.curve),
            _styled(w.VBox, "rl-card rl-narrow", self.near),
            _styled(w.VBox, "rl-card rl-whole", self.status),
        ]
        sheet = w.HTML(f"<style>{(HERE / 'style.css').read_text()}</style>")
        self.widget = _styled(w.VBox, "rl-explorer", sheet, _styled(w.Box, "rl-panels", *cards))

    @property
    def of_class(self) -> str:
        """Which images are chosen, such as " of class 3"; "" for all."""
        return "" if self.label.value == ALL else f" of class {self.map.class_names[self.label.value]}"

    def fill(self, grid: Grid, keep: Tensor, k: int, notes: Sequence[str]) -> None:
        """Shows the chosen image, its probabilities, its k neighbours, and the accuracy of the images in `keep`, bool (N,)."""
        self.note.value = PANELS.notes(self.map.legend, notes)
        layer, image, step = self.layer.value, self.image.value, self.eps.value
        names, y = self.map.class_names, grid.clean.labels
        label = int(y[image])
        before, after = (cast(Tensor, features.images)[image].int() for features in (grid.clean, grid.steps[step]))
        change = (after - before).float() / 255
        most = float(change.abs().max())
        factor = round(min(MAGNIFY, 0.5 / most), 1) if most else MAGNIFY
        noise = ((0.5 + factor * change) * 255).round().clamp(0, 255).to(torch.uint8)
        smallest = next((r for r, at in zip(grid.radii, grid.steps, strict=True) if not at.correct[image]), None)
        self.pictures.value = PANELS.pictures(grid, image, step, names, label, noise, f"{factor:.3g}", most, smallest)
        both = torch.stack([grid.probabilities(image, at) for at in (0, step)])
        likeliest = both.amax(0).argsort(descending=True, stable=True)[:BARS].sort().values.tolist()
        self.bars.value = PANELS.probabilities(names, label, [(c, *both[:, c].tolist()) for c in likeliest])
        near = [grid.neighbours(layer, image, at, k) for at in (0, step)]
        unlike = [int((y[places] != label).sum()) for places in near]
        start, end = (grid.steps[at][layer][image : image + 1] for at in (0, step))
        gap = representation.feature_gap(start, end)
        self.near.value = PANELS.neighbours(grid, layer, names, label, near[1].tolist(), unlike, float(gap))
        rows = grid.curve(keep)
        interval = percent(*(rows[step][end] for end in ("accuracy", "low", "high")))
        self.curve.value = PANELS.curve(rows, rows[step], grid.eps, grid.attack, self.of_class, interval)


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
