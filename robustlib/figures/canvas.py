"""What all figures share: how they look, and how they reach a notebook or a file.

Figures are made without pyplot, so that no backend is chosen and nothing is left open.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pandas import DataFrame, Series

from robustlib.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CSS_DPI = 96  # a CSS pixel is 1/96 inch: figures keep their size in print and stay crisp on dense screens
INK, MUTED = "#1f2933", "#66717d"
# Seaborn's colour-blind safe palette, whose pink and yellow fade on white, and its sky blue at the end: darker ones instead
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#949494", "#332288", "#882255")
MARKERS = "osD^vPX<>h*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


class Figure(NamedTuple):
    """A figure, the words for those who cannot see it, and its numbers."""

    fig: "Canvas"
    alt: str  # what it shows, with its main numbers, in a sentence or three
    data: DataFrame  # what it draws, a tidy table: one row a point, bar or answer; numbers and words only


@contextmanager
def style() -> Iterator[None]:
    """How every figure looks, said in this place only: `with style():`, or `@style()` above a function that draws."""
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
        axis.set_title(fill(name, 78 // columns))
    return fig, every[: len(names)]


def title_of(row: Mapping[Any, Any] | Series) -> str:
    """What a row calls its method: its title, or the name if it has none, and what was changed of it."""
    title, changed = row.get("title"), row.get("changed")
    name = str(title) if isinstance(title, str) and title else str(row["method"])
    changes = changed.removesuffix("compiled").removesuffix(", ") if isinstance(changed, str) else ""
    return " · ".join(filter(None, (name, changes)))  # a compiled model is no other method


def legend_below(fig: "Canvas", axis: "Axes") -> None:
    """The legend of `axis` below the figure, in as many columns as its texts leave room for; the axes keep their size."""
    handles, labels = axis.get_legend_handles_labels()
    columns, rows = _legend_shape(labels, fig.get_figwidth())
    fig.set_figheight(fig.get_figheight() + 0.2 * (rows - 1))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3)


def legends_below(fig: "Canvas", row: Sequence["Axes"]) -> None:
    """The legend of each of the axes of one row below it, where it hides no curve; the axes keep their size."""
    most = 1
    for axis in row:
        handles, labels = axis.get_legend_handles_labels()
        columns, rows = _legend_shape(labels, fig.get_figwidth() / len(row))
        most = max(most, rows)
        if labels:
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
            axis.legend(handles, labels, ncols=columns, handlelength=3, **place)
    fig.set_figheight(fig.get_figheight() + 0.2 * most)


def _legend_shape(labels: Sequence[str], width: float) -> tuple[int, int]:
    """In how many columns, at most 4, the entries of a legend fit into so many inches, and in how many rows they stand."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", size=9)
    points = [TextToPath().get_text_width_height_descent(label, font, ismath=False)[0] for label in labels]
    inches = np.array(points) / 72 + 0.73  # with the line before a text and the gap after it
    counts = range(1, min(4, len(labels)) + 1)
    fitting = [n for n in counts if sum(part.max() for part in np.array_split(inches, n)) <= width]
    columns = max(fitting, default=1)
    return columns, -(-len(labels) // columns)


def same_length(what: str, **arrays: Any) -> None:
    """Raises InputError where arrays of one figure do not hold the same number of examples, or none."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not any(lengths.values()):
        given = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The {what} figure needs the same examples in all its data, at least one; given: {given}.")


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each name; the same set of names always gets the same ones."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "ls": LINES[k % len(LINES)]}
        for k, name in enumerate(dict.fromkeys(names))
    }


def dots(mark: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Options that draw the markers of a style without its line."""
    return {"marker": mark["marker"], "color": mark["color"], "ls": "none", **options}


def band(axis: "Axes", x: Any, curve: DataFrame, mark: Mapping[str, Any]) -> None:
    """The interval of a curve, from its columns `low` to `high`."""
    axis.fill_between(x, curve["low"], curve["high"], color=mark["color"], alpha=0.15, lw=0)


def percent_axis(axis: "Axes", which: str = "y") -> None:
    """Write the fractions of an axis ("x" or "y") as percentages."""
    from matplotlib.ticker import FuncFormatter

    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %".replace("-", "−")))


def require_columns(what: str, frame: DataFrame, columns: Sequence[str]) -> DataFrame:
    """The rows of `frame` that have numbers in all of `columns`; at least one, or an InputError that says so."""
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"The {what} figure needs the column {missing[0]!r}; given: {', '.join(map(str, frame))}.")
    usable = frame.dropna(subset=list(columns))
    if usable.empty:
        raise InputError(f"The {what} figure needs {' and '.join(columns)} of at least one run; {len(frame)} given.")
    return usable


def whiskers(rows: DataFrame, name: str, prefix: str = "") -> Any:
    """Distances (2, rows) from column `name` to the ends of its interval, `low` and `high` behind `prefix`; None without."""
    low, high = f"{prefix}low", f"{prefix}high"
    if not {low, high} <= set(rows):
        return None
    ends = np.stack([rows[name] - rows[low], rows[high] - rows[name]]).astype(float)
    return np.nan_to_num(ends).clip(min=0)


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.fig.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def show(figure: Figure) -> None:
    """Display the figure in a notebook as a PNG that carries its alt text and, as CSV, its numbers.

    Outside a notebook the alt text is printed.
    """
    from IPython import get_ipython
    from IPython.display import display

    png = to_png(figure)
    if get_ipython() is None:
        print(figure.alt)
        return
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": figure.alt}
    metadata = {"alt": figure.alt, "width": round(figure.fig.get_figwidth() * CSS_DPI)}
    metadata["csv"] = figure.data.to_csv(index=False, float_format="%.6g")
    display(data, raw=True, metadata={"image/png": metadata})
