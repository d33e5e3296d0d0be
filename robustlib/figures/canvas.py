"""What all figures share: how they look, and how they reach a notebook or a file.

Figures are made without pyplot, so that no backend is chosen and nothing is left open.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from robustlib.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from pandas import DataFrame, Series

DPI = 150
CSS_DPI = 96  # a CSS pixel is 1/96 inch: figures keep their size in print and stay crisp on dense screens
INK, MUTED = "#1f2933", "#66717d"
MARKERS = "osD^vPX<>h*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


class Figure(NamedTuple):
    """A figure and the words for those who cannot see it.

    Attributes:
        fig: the matplotlib figure.
        alt: what it shows, with its main numbers, in a sentence or three.
    """

    fig: "Canvas"
    alt: str


@contextmanager
def style() -> Iterator[None]:
    """How every figure looks: the one place where that is said."""
    import matplotlib
    import seaborn

    own: dict[str, Any] = {
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.edgecolor": "#b8c1cb",
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.family": ["DejaVu Sans"],  # shipped with matplotlib, so that figures look the same everywhere
        "font.size": 10,
        "grid.color": "#e6eaee",
        "grid.linewidth": 0.8,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
    settings: dict[Any, Any] = {**seaborn.axes_style("whitegrid"), **seaborn.plotting_context("notebook"), **own}
    with matplotlib.rc_context(settings):
        yield


def axes(columns: int = 1, *, rows: int = 1, height: float = 3.6) -> tuple["Canvas", list["Axes"]]:
    """An empty figure, 8 inches wide, and its axes from left to right, row by row."""
    from matplotlib.figure import Figure as Canvas

    fig = Canvas(figsize=(8.0, height))
    return fig, list(fig.subplots(rows, columns, squeeze=False).flat)


def panels(names: Sequence[str], *, height: float) -> tuple["Canvas", list["Axes"]]:
    """A titled panel for each name, at most three in a row, each row `height` inches high; four make a square."""
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    fig, every = axes(columns, rows=rows, height=height * rows)
    for axis in every[len(names) :]:
        axis.remove()
    for axis, name in zip(every, names, strict=False):
        axis.set_title(name)
    return fig, every[: len(names)]


def title_of(row: "Mapping[Any, Any] | Series") -> str:
    """What a row calls its method: its title, or the name if it has none."""
    title = row.get("title")
    return str(title) if isinstance(title, str) and title else str(row["method"])


def same_length(what: str, **arrays: Any) -> None:
    """Raises InputError where arrays of one figure do not speak of the same number of examples, or of none."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not any(lengths.values()):
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The {what} figure needs the same examples in all its data, at least one; given: {told}.")


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each name; the same set of names always gets the same ones."""
    import seaborn

    colours = seaborn.color_palette("colorblind").as_hex()
    ordered = enumerate(dict.fromkeys(names))
    return {
        name: {"color": colours[k % len(colours)], "marker": MARKERS[k % len(MARKERS)], "ls": LINES[k % len(LINES)]}
        for k, name in ordered
    }


def percent(axis: "Axes", which: str = "y") -> None:
    """Write the fractions of an axis ("x" or "y") as percentages."""
    from matplotlib.ticker import FuncFormatter

    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %".replace("-", "−")))


def pc(value: float) -> str:
    """A fraction in words: 0.5 is "50.0 %"."""
    return f"{100 * value:.1f} %"


def needs(what: str, frame: "DataFrame", columns: Sequence[str]) -> "DataFrame":
    """The rows of `frame` that have numbers in all of `columns`; at least one, or an InputError that says so."""
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"The {what} figure needs the column {missing[0]!r}; given: {', '.join(map(str, frame))}.")
    usable = frame.dropna(subset=list(columns))
    if usable.empty:
        raise InputError(f"The {what} figure needs {' and '.join(columns)} of at least one run; {len(frame)} given.")
    return usable


def whiskers(rows: "DataFrame", name: str) -> Any:
    """Distances from `name` to the ends of its interval, (2, runs); None where the intervals are not given."""
    import numpy as np

    if not {f"{name}_low", f"{name}_high"} <= set(rows):
        return None
    ends = np.stack([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]).astype(float)
    return np.nan_to_num(ends).clip(min=0)


def to_png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.fig.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def show(figure: Figure) -> None:
    """Display the figure in a notebook as a PNG that carries its alt text; outside a notebook print the alt text."""
    from IPython import get_ipython
    from IPython.display import display

    png = to_png(figure)
    width = round(figure.fig.get_figwidth() * CSS_DPI)
    if get_ipython() is None:
        print(figure.alt)
        return
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": figure.alt}
    display(data, raw=True, metadata={"image/png": {"alt": figure.alt, "width": width}})
