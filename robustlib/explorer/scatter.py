"""The widget that draws a map in the browser; scatter.js is its other half. Imported only when an explorer is made."""

from pathlib import Path

import anywidget
import traitlets


class Scatter(anywidget.AnyWidget):
    """Circles and crosses in a plane, some names and one path; coordinates are the map's own.

    Args:
        still: what eps does not move: frame [x0, y0, x1, y1], clean [[x, y], ...], colours (one a point, or one for circles and one
            for crosses), faint (places of points to dim), names [[x, y, text], ...], said (words for each circle).
        moving: crosses [[x, y], ...], said (words for each cross), path [[x, y], ...], alt (what is to be seen, in words).
        clicked: the place of the point that was clicked last and a number that differs from click to click.
    """

    _esm = Path(__file__).with_name("scatter.js")

    still = traitlets.Dict().tag(sync=True)
    moving = traitlets.Dict().tag(sync=True)
    clicked = traitlets.List([-1, 0]).tag(sync=True)
