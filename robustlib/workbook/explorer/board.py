"""What is on the screen: the map of a layer, the panels beside it, and the controls; what they do is in `app`.

Panels are HTML and SVG in the colours of the page around them: light or dark, at any width.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from robustlib.data import Dataset, Split
from robustlib.figures.canvas import styles
from robustlib.figures.features import class_centre
from robustlib.runs import Run
from robustlib.workbook.explorer.grid import Grid, Projection, explorer_attacks
from robustlib.workbook.tables import percent

HERE = Path(__file__).parent
ALL = -1  # the choice of every class
FEW = 10  # classes that colours and names can still tell apart
MANY = ("#0173b2", "#d55e00")  # clean and adversarial images where they are more
COLOURS = [str(style["color"]) for style in styles(map(str, range(FEW))).values()]
MAGNIFY = 10.0  # of the perturbation, less where that would leave the grey scale
BARS = 10  # classes whose probabilities are shown
WIDE, HIGH = 460, 200  # of the curve, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 18, 36  # its margins


# ---- widgets with a half of their own in JavaScript: those of ipywidgets and plotting libraries say nothing to a screen reader


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


# ---- the map


class FeatureMap:
    """A `Scatter` of a `Projection`: circles clean, crosses adversarial, a path for the chosen image.

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

    def draw(self, projection: Projection, grid: Grid, step: int, image: int, keep: np.ndarray) -> None:
        """Moves everything to where it is at this step; what eps does not move is sent again only if it changed."""
        points, names = projection.points.round(4), self.class_names
        low, high = points.min((0, 1)), points.max((0, 1))
        shown: Sequence[int] = np.unique(self.labels[keep]).tolist() if len(names) <= FEW else []
        self.scatter.still = {
            "frame": [*low.tolist(), *(high + 1e-6).tolist()],
            "clean": points[0].tolist(),
            "colours": self.colours,
            "faint": np.flatnonzero(~keep).tolist(),
            "names": [(*class_centre(points[0][self.labels == k]), names[k]) for k in shown],
            "said": self._words(grid, 0),
        }
        said, path = self._words(grid, step), points[: step + 1, image].tolist()
        alt = f"Map of {len(self.labels)} clean images and the adversarial ones made of them. Chosen: {said[image]}."
        self.scatter.moving = {"crosses": points[step].tolist(), "said": said, "path": path, "alt": alt}

    def _words(self, grid: Grid, step: int) -> list[str]:
        kind = f"eps {grid.radii[step]:.3g}" if step else "clean"
        names, predictions = self.class_names, grid.steps[step].predictions.tolist()
        pairs = enumerate(zip(self.labels, predictions, strict=True))
        return [f"image {i}, {kind}: class {names[y]}, called {names[p]}" for i, (y, p) in pairs]


# ---- the panels


def _panel(title: str, body: str) -> str:
    return f"<h3>{escape(title)}</h3>{body}"


def _figure(image: Tensor, alt: str, caption: str, kind: str = "") -> str:
    """An image uint8 (C, H, W), C 1 or 3, with its caption."""
    stream, array = io.BytesIO(), image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(stream, "png")
    source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'


def _class_name(name: str, right: bool) -> str:
    """A class with a sign, so that colour is never all there is."""
    sign, kind = ("✓", "rl-right") if right else ("✕", "rl-wrong")
    return f'<b class="{kind}">{sign} {escape(name)}</b>'


def pictures_panel(grid: Grid, image: int, step: int, names: Sequence[str]) -> str:
    """The clean image, what the attack added, and the adversarial image, each with the model's answer."""
    clean, now, label = grid.clean, grid.steps[step], int(grid.clean.labels[image])
    assert clean.images is not None
    assert now.images is not None
    before, after = clean.images[image], now.images[image]
    change = (after.int() - before.int()).float() / 255
    most = float(change.abs().max())
    factor = round(min(MAGNIFY, 0.5 / most), 1) if most else MAGNIFY
    noise = ((0.5 + factor * change) * 255).round().clamp(0, 255).to(torch.uint8)
    answers = []
    for k, at in ((0, clean), (step, now)):
        prediction, sure = int(at.predictions[image]), float(grid.probabilities(image, k).max())
        answers.append(f"{_class_name(names[prediction], prediction == label)} <small>{100 * sure:.0f} %</small>")
    eps, name, times = f"{grid.radii[step]:.3g}", names[label], f"{factor:.3g}"
    caption = f"perturbation × {times}<br><small>at most {most:.3g}</small>"
    figures = (
        _figure(before, f"clean image of class {name}", f"clean<br>{answers[0]}"),
        _figure(noise, f"perturbation, magnified {times} times", caption),
        _figure(after, f"adversarial image at eps {eps}", f"{escape(grid.attack)}, eps {eps}<br>{answers[1]}"),
    )
    first = next((r for r, at in zip(grid.radii, grid.steps, strict=True) if not at.correct[image]), None)
    text = f"The smallest radius here that fools it: <b>{first or 0:.3g}</b>."
    if not first:
        text = "It withstands every radius shown here." if first is None else "The model errs on it without any attack."
    return _panel(f"Image {image}: class {name}", f'<div class="rl-three">{"".join(figures)}</div><p>{text}</p>')


def probabilities_panel(grid: Grid, image: int, step: int, names: Sequence[str]) -> str:
    """A table of the probabilities of the likeliest classes, clean and adversarial, with a bar for each."""
    both = torch.stack([grid.probabilities(image, k) for k in (0, step)])
    label, kinds = int(grid.clean.labels[image]), ("clean", "adversarial")
    rows = []
    for k in both.amax(0).argsort(descending=True, stable=True)[:BARS].sort().values.tolist():
        cells = "".join(
            f'<td><span class="rl-bar"><i class="rl-{kind}" style="width:{100 * float(p[k]):.1f}%"></i></span>'
            f"<small>{100 * float(p[k]):.0f} %</small></td>"
            for p, kind in zip(both, kinds, strict=True)
        )
        name = f"<b>{escape(names[k])} ✓</b>" if k == label else escape(names[k])
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    head = "".join(f'<th scope="col"><i class="rl-{kind}"></i> {kind}</th>' for kind in kinds)
    table = f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return _panel("Probabilities", f'<table class="rl-bars">{table}</table>')


def neighbours_panel(grid: Grid, layer: str, image: int, step: int, names: Sequence[str], k: int) -> str:
    """The clean images nearest to the adversarial one, and how many are of another class than its own."""
    y, images = grid.clean.labels, grid.clean.images
    assert images is not None
    near = {at: grid.neighbours(layer, image, at, k) for at in (0, step)}
    before, now = (int((y[near[at]] != y[image]).sum()) for at in (0, step))
    figures = []
    for place in near[step].tolist():
        own, name = bool(y[place] == y[image]), names[int(y[place])]
        alt = f"clean image {place} of class {name}"
        figures.append(_figure(images[place], alt, _class_name(name, own), "" if own else "rl-foreign"))
    text = (
        f"By cosine in <code>{escape(layer)}</code>: <b>{now} of {k}</b> are of another class than "
        f"{escape(names[int(y[image])])}; before the attack {before}. Its features moved by "
        f"<b>{100 * grid.gap(layer, image, step):.0f} %</b> of their length."
    )
    title = "Nearest clean images to the adversarial one"
    return _panel(title, f'<div class="rl-near">{"".join(figures)}</div><p>{text}</p>')


def curve_panel(grid: Grid, keep: Tensor, step: int, of: str) -> str:
    """Accuracy of the images in `keep`, bool (N,), over eps with its 95 % band; `of` says which these are, such as " of class 3"."""
    rows, eps, n = grid.curve(keep), grid.radii[step], int(keep.sum())
    row = rows[step]
    text = f"At eps {eps:.3g}: <b>{percent(row['accuracy'], row['low'], row['high'])}</b>, 95 % interval."
    if not row["correct"]:
        text = (
            f"<b>None of the {n} images{escape(of)} survives</b> {escape(grid.attack)} at eps {eps:.3g}: take a smaller eps to "
            "see survivors."
        )
    title = f"Accuracy of {n} images{of} under {grid.attack} alone"
    drawn = _draw_curve(rows, rows[step], grid.eps, title)
    return _panel(title, f"{drawn}<p>{text} One attack alone: an upper bound of robust accuracy.</p>")


def _draw_curve(rows: Sequence[dict[str, Any]], now: dict[str, Any], threat_eps: float, title: str) -> str:
    most, base = rows[-1]["eps"], HIGH - BOTTOM

    def x(eps: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * eps / most

    def y(share: float) -> float:
        return TOP + (base - TOP) * (1 - share)

    def path(name: str, rows: Sequence[dict[str, Any]]) -> str:
        return " ".join(f"{x(row['eps']):.1f},{y(row[name]):.1f}" for row in rows)

    def upright(eps: float, kind: str) -> str:
        return f'<line class="{kind}" x1="{x(eps):.1f}" x2="{x(eps):.1f}" y1="{TOP}" y2="{base}"/>'

    parts = [f'<line class="rl-grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(v)}" y2="{y(v)}"/>' for v in (0, 0.5, 1)]
    parts += [f'<text x="{LEFT - 6}" y="{y(v) + 4}" text-anchor="end">{v:.0%}</text>' for v in (0, 0.5, 1)]
    parts += [
        f'<text x="{x(r["eps"]):.1f}" y="{HIGH - 20}" text-anchor="middle">{r["eps"]:.2g}</text>' for r in rows[::2]
    ]
    parts += [
        f'<text x="{(WIDE + LEFT) / 2}" y="{HIGH - 4}" text-anchor="middle">eps</text>',
        upright(threat_eps, "rl-threat"),
        f'<text x="{x(threat_eps) + 4:.1f}" y="{TOP - 4}">threat model</text>',
        f'<polygon class="rl-band" points="{path("low", rows)} {path("high", rows[::-1])}"/>',
        f'<polyline class="rl-line" points="{path("accuracy", rows)}"/>',
    ]
    parts += [f'<circle class="rl-dot" cx="{x(r["eps"]):.1f}" cy="{y(r["accuracy"]):.1f}" r="2.6"/>' for r in rows]
    parts.append(upright(now["eps"], "rl-here"))
    parts.append(f'<circle class="rl-now" cx="{x(now["eps"]):.1f}" cy="{y(now["accuracy"]):.1f}" r="6"/>')
    alt = escape(f"{title}: " + ", ".join(f"{r['accuracy']:.0%} at {r['eps']:.3g}" for r in rows))
    return f'<svg class="rl-curve" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'


# ---- the board


class Board:
    """The explorer's widgets, each an attribute; `widget` holds them all.

    Controls: run, attack, layer, label (class; -1 for all), eps (a step of the grid), image (a position among the examples),
    view ("PCA" or "UMAP"); buttons back, forth, fooled. Panels: map, pictures, bars, near, curve, note, status.

    Args:
        dataset: whose classes are listed, those that have images.
        runs: to choose from.
        split: the images on the map.
        choose: called with the position of an image that was clicked on the map.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[Run], split: Split, choose: Callable[[int], object]) -> None:
        names = dataset.class_names
        classes = [("all", ALL), *((names[k], k) for k in split.labels.unique().tolist())]
        self.run = _dropdown("Run", "400px", _titles(runs))
        self.attack = _switch("Attack", "What makes the adversarial images", list(explorer_attacks(dataset.threat)))
        self.attack.value = "PGD-20"
        self.layer = _dropdown("Layer", "200px", ["features"])
        self.label = _dropdown("Class", "160px", classes)
        self.eps = Slider(name="eps", layout={"flex": "1 1 320px", "width": "auto"})
        self.image = _dropdown("Image", "220px")
        self.back = _button("‹ Previous", "The previous image")
        self.forth = _button("Next ›", "The next image")
        self.fooled = _button("Next fooled ›", "The next image that the attack fools at this eps")
        self.view = _switch("Map", "How features become points", ["PCA", "UMAP"])
        self.map = FeatureMap(split.labels.numpy(), names, choose)
        self.pictures, self.bars, self.near, self.curve, self.note = (w.HTML() for _ in range(5))
        self.status = Status()
        chosen = _styled(w.Box, "rl-controls", self.run, self.attack, self.layer, self.label)
        moved = _styled(w.Box, "rl-controls", self.eps, self.image, self.back, self.forth, self.fooled)
        cards = [
            _styled(w.VBox, "rl-card rl-whole", chosen, moved),
            _styled(w.VBox, "rl-card rl-map", _styled(w.Box, "rl-controls", self.view), self.map.scatter, self.note),
            _styled(w.VBox, "rl-card", self.pictures),
            _styled(w.VBox, "rl-card rl-narrow", self.bars),
            _styled(w.VBox, "rl-card", self.curve),
            _styled(w.VBox, "rl-card rl-narrow", self.near),
            _styled(w.VBox, "rl-card rl-whole", self.status),
        ]
        sheet = w.HTML(f"<style>{(HERE / 'style.css').read_text()}</style>")
        self.widget = _styled(w.VBox, "rl-explorer", sheet, _styled(w.Box, "rl-panels", *cards))

    def progress(self, share: float, doing: str) -> None:
        """How much of a computation is done, in [0, 1], and what it is."""
        self.status.share, self.status.doing = share, doing


def _dropdown(name: str, width: str, options: Sequence[Any] = ()) -> Any:
    return w.Dropdown(options=options, description=name, layout={"width": width})


def _switch(name: str, tooltip: str, options: Sequence[str]) -> Any:
    how = {"orientation": "horizontal", "layout": {"width": "auto"}}
    return w.RadioButtons(options=options, description=name, tooltip=tooltip, **how)


def _button(name: str, tooltip: str) -> Any:
    return w.Button(description=name, tooltip=tooltip, layout={"width": "auto"})


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
    unique = [
        name if names.count(name) == 1 else f"{name} · {run.path.name[-8:]}"
        for name, run in zip(names, runs, strict=True)
    ]
    return list(zip(unique, runs, strict=True))
