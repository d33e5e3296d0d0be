"""What all figures share: how they look, how attacks and numbers are written, and how they reach a notebook or a file.

Figures are made without pyplot, so that no backend is chosen and nothing is left open.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pandas import DataFrame

from robustlib.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 8.0  # inches of every figure
PANELS = 9  # variants on one figure, or maps beside each other, that a reader can still compare
# Methods that are drawn before others: the usual baselines, and those of the five papers.
FIRST = ("standard", "pgd_at", "trades", "afd", "ancra", "claf", "atop", "rep_spectral")
CSS_DPI = 96  # a CSS pixel is 1/96 inch: figures keep their size in print and stay crisp on dense screens
INK, MUTED, PALE, ALARM = "#1f2933", "#66717d", "#b8c1cb", "#b3261e"
# Seaborn's colour-blind safe palette, with darker colours where its pink, yellow and sky blue fade on white
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#949494", "#332288", "#882255")
MARKERS = "osD^vPX<>h*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
DOTS: dict[str, Any] = {"ls": "none", "mec": "white"}  # what makes of a style its markers without a line


class Figure(NamedTuple):
    """A figure, the words for those who cannot see it, and its numbers."""

    fig: "Canvas"
    alt: str  # what it shows, with its main numbers, in a sentence or three
    data: DataFrame  # what it draws, a tidy table: one row a point, bar or answer; numbers and words only
    left_out: Sequence[str] = ()  # variants that the data have and the picture has not


@contextmanager
def style() -> Iterator[None]:
    """How every figure looks, as canvas.mplstyle says: `with style():`, or `@style()` above a function that draws."""
    import matplotlib.style

    with matplotlib.style.context(Path(__file__).with_suffix(".mplstyle")):
        yield


def axes(columns: int = 1, *, rows: int = 1, height: float = 3.6) -> tuple["Canvas", list["Axes"]]:
    """An empty figure, WIDTH inches wide, and its axes from left to right, row by row."""
    from matplotlib.figure import Figure as Canvas

    fig = Canvas(figsize=(WIDTH, height))
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


def legend_below(fig: "Canvas", *row: "Axes") -> None:
    """The legend of each axes of a row below it, in as many columns as there is room for; the axes keep their size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, width, most = FontProperties(family="DejaVu Sans", size=9), fig.get_figwidth() / len(row), 1
    for axis in row:
        handles, labels = axis.get_legend_handles_labels()
        points = [TextToPath().get_text_width_height_descent(label, font, ismath=False)[0] for label in labels]
        inches = np.array(points) / 72 + 0.73  # with the line before a text and the gap after it
        counts = range(1, min(4, len(labels)) + 1)
        fitting = [n for n in counts if sum(part.max() for part in np.array_split(inches, n)) <= width]
        columns = max(fitting, default=1)
        most = max(most, -(-len(labels) // columns))
        if len(row) == 1:
            fig.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3)
        elif labels:
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
            axis.legend(handles, labels, ncols=columns, handlelength=3, **place)
    fig.set_figheight(fig.get_figheight() + 0.2 * (most - (len(row) == 1)))


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of each name; the same set of names always gets the same ones."""
    return {
        name: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "ls": LINES[k % len(LINES)]}
        for k, name in enumerate(dict.fromkeys(names))
    }


def percent_axis(axis: "Axes", which: str = "y") -> None:
    """Write the fractions of an axis ("x" or "y") as percentages."""
    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(lambda value, _: f"{100 * value:.6g} %".replace("-", "−"))


def first_variants(rows: DataFrame) -> tuple[list[str], list[str]]:
    """The `titles` of rows that a figure draws, at most PANELS, those by `precedence`, and those that it leaves out; each sorted."""
    known = {
        title: (*precedence(str(row["method"]), _changes(row)), str(row["method"]), _changes(row))
        for title, row in zip(titles(rows), rows.to_dict("records"), strict=True)
    }
    order = sorted(known, key=lambda title: known[title])
    return sorted(order[:PANELS]), sorted(order[PANELS:])


def precedence(method: str, changed: str) -> tuple[bool, int]:
    """Sorts a figure's variants: those without changes before others, and of each kind the methods in FIRST before others."""
    return bool(changed), FIRST.index(method) if method in FIRST else len(FIRST)


def titles(rows: DataFrame) -> list[str]:
    """What each row calls its method: its title, or the name if it has none, and what was changed of it."""
    names = []
    for row in rows.to_dict("records"):
        title = row.get("title")
        name = str(title) if isinstance(title, str) and title else str(row["method"])
        names.append(" · ".join(filter(None, (name, _changes(row)))))
    return names


def _changes(row: Mapping[Any, Any]) -> str:
    """What was changed of a row's method; a compiled model is no other one."""
    changed = row.get("changed")
    return changed.removesuffix("compiled").removesuffix(", ") if isinstance(changed, str) else ""


def require_columns(what: str, frame: DataFrame, columns: Sequence[str]) -> DataFrame:
    """The rows of `frame` that have numbers in all of `columns`; at least one, or an InputError that says so."""
    if missing := [name for name in columns if name not in frame]:
        raise InputError(f"The {what} figure needs the column {missing[0]!r}; given: {', '.join(map(str, frame))}.")
    usable = frame.dropna(subset=list(columns))
    if usable.empty:
        raise InputError(f"The {what} figure needs {' and '.join(columns)} of at least one run; {len(frame)} given.")
    return usable


def grid_axes(what: str, frame: DataFrame, x: str, y: str, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The values of columns x and y, rising, at least so many; an InputError if the frame has not each pair of them once."""
    across, up = np.unique(frame[x]), np.unique(frame[y])
    if len(frame) != len(across) * len(up) or min(len(across), len(up)) < least or frame.duplicated([x, y]).any():
        given = f"{len(frame)} rows for {len(across)} x {len(up)} points"
        raise InputError(f"The {what} needs each {x} with each {y} once: {given}.")
    return across, up


def same_length(what: str, **arrays: Any) -> None:
    """Raises InputError where arrays of one figure do not hold the same number of examples, or none."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not any(lengths.values()):
        given = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"The {what} figure needs the same examples in all its data, at least one; given: {given}.")


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes.

    A palette of 256 colours, which lines and marks do not need in full, makes it a third as large; photographs keep theirs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    page, own = FigureCanvasAgg(figure.fig), figure.fig.dpi
    figure.fig.set_dpi(dpi)
    page.draw()  # once; `savefig` draws to lay out and then again
    picture = Image.fromarray(np.asarray(page.buffer_rgba())).convert("RGB")
    figure.fig.set_dpi(own)
    if not any(axes.images for axes in figure.fig.axes):
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(packed := io.BytesIO(), "png", optimize=True)
    return packed.getvalue()


def encode_png(pixels: np.ndarray, **options: Any) -> str:
    """Pixels uint8 (H, W, C), C 1 or 3, as a PNG in base64."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(stream, "png", **options)
    return base64.b64encode(stream.getvalue()).decode()


def show(figure: Figure) -> None:
    """Display a PNG with alt text and, as CSV, its numbers in a notebook; elsewhere print the alt text."""
    from IPython import get_ipython
    from IPython.display import display

    png = base64.b64encode(to_png(figure)).decode()
    if get_ipython() is None:
        print(figure.alt)
        return
    metadata = {"alt": figure.alt, "width": round(figure.fig.get_figwidth() * CSS_DPI)}
    metadata["csv"] = figure.data.to_csv(index=False, float_format="%.6g")
    display({"image/png": png, "text/plain": figure.alt}, raw=True, metadata={"image/png": metadata})
    if left_out := figure.left_out:
        said = f"{len(left_out)} more variants are not drawn; their numbers are in the data of the figure (CSV)"
        names = escape("; ".join(left_out))
        html = f'<details class="code"><summary>{said}</summary><p>{names}</p></details>'
        display({"text/html": html, "text/plain": f"{said}: {'; '.join(left_out)}."}, raw=True)


ATTACKS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd50x10": "PGD-50×10",  # 10 restarts
    "cw50": "CW-50",
    "pgd100x5": "PGD-100×5",  # 5 restarts, on surrogates
    "cw100x5": "CW-100×5",
    "pgd_eot": "PGD+EOT",
    "square": "Square",
    "aa_standard": "AutoAttack, standard version",
    "autoattack": "AutoAttack",
    "worst": "worst case",
    "known": "known attacks, worst case",
    "l2": "unseen: L2",
    "stadv": "unseen: StAdv",
}
# How a verdict of the audit is written: a sign and a word, so that colour is never all there is. The gravest first.
VERDICTS = {"red": "✕ red", "amber": "▲ amber", "": "– not audited", "pass": "✓ pass", "n/a": "– n/a"}


def attack_name(attack: str) -> str:
    """The attack's name for people; "pgd20@denoiser" is "PGD-20 on denoiser" (a surrogate)."""
    name, at, surrogate = attack.partition("@")
    return ATTACKS.get(name, name) + (f" on {surrogate}" if at else "")


def verdict_label(word: object) -> str:
    """A verdict with its sign, e.g. "▲ amber"; nothing, or none that is known, is "– not audited"."""
    return VERDICTS.get(str(word), VERDICTS[""])


def worst_verdict(verdicts: Iterable[object]) -> str:
    """The gravest of several verdicts; one that is missing weighs more than one that passed."""
    known = [str(word) if str(word) in VERDICTS else "" for word in verdicts]
    return min(known, key=list(VERDICTS).index, default="")


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A fraction as "75.2 %", with its interval "75.2 % (71.3–78.8)"; "–" for a number that is not there."""
    if value is None or value != value:
        return "–"
    interval = f" ({100 * low:.1f}–{100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{interval}"


def mean_percent(mean: float | None, std: float | None) -> str:
    """The mean of fractions over seeds as "75.2 ± 1.3 %"; one seed has no deviation."""
    if mean is None or mean != mean or std is None or std != std:
        return percent(mean)
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, "+2.4" or "−2.4"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def clock(seconds: float) -> str:
    """0:41, 12:05 or 3:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
