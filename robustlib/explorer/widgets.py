"""The widgets that ipywidgets lacks, each with its other half in JavaScript. Imported only when an explorer is made."""

from pathlib import Path

import anywidget
import traitlets

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
