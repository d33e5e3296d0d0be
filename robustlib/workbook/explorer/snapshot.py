"""What a saved notebook shows of the explorer where no kernel runs it: a sentence, and a picture of how it opened."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from robustlib import figures
from robustlib.figures.canvas import CSS_DPI

NEEDED = "Run this notebook in JupyterLab to use the explorer."
HIDDEN = "rl-saved"  # a class that style.css, which comes with the live explorer, hides


def show_widget(widget: Any) -> None:
    """Displays a widget; a sentence where it cannot be drawn, in place of its repr."""
    _display({**widget._repr_mimebundle_(), "text/plain": NEEDED}, NEEDED)


def show_snapshot(points: np.ndarray, labels: ArrayLike, class_names: Sequence[str], said: str) -> None:
    """Displays a map (2, N, 2) of clean and adversarial images as a picture, which the live explorer hides."""
    figure = figures.umap_atlas({"PCA": (points[0], points[1])}, labels, class_names)
    png, width = base64.b64encode(figures.to_png(figure)).decode(), round(figure.fig.get_figwidth() * CSS_DPI)
    words = f"How the explorer opened. {said}"
    image = f'<img alt="{escape(figure.alt)}" width="{width}" src="data:image/png;base64,{png}">'
    _display({"text/html": f'<div class="{HIDDEN}"><p>{escape(words)}</p>{image}</div>', "text/plain": words}, words)


def _display(bundle: dict[str, Any], words: str) -> None:
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(words)
    else:
        display(bundle, raw=True)
