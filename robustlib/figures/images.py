"""Images before and after an attack, through the steps of a purifier, and how far its random transform changes them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, Figure, axes, require_columns, same_length, style
from robustlib.figures.labels import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MOST, LONG = 10, 9  # images side by side that can still be seen, and letters of a class from which on it is two fewer
POINTS = 740.0  # letters of 1 point that fit on one line beside the words of a row
WRONG = "#b3261e"


@style()
def example_strips(
    clean: ArrayLike,
    adversarial: ArrayLike,
    labels: ArrayLike,
    predictions: tuple[ArrayLike, ArrayLike],
    class_names: Sequence[str] = (),
) -> Figure:
    """Clean images, what the attack added (magnified, grey is nothing), the adversarial images, and what the model says.

    Args:
        clean, adversarial: (N, C, H, W) in [0, 1], C 1 or 3; the first ten are shown (eight if names are long).
        labels: (N,) true classes.
        predictions: for the clean and for the adversarial images, (N,) each.
    """
    before, after, y = np.asarray(clean, dtype=float), np.asarray(adversarial, dtype=float), np.asarray(labels)
    answers = dict(zip(("predictions", "adversarial predictions"), map(np.asarray, predictions), strict=True))
    same_length("example", clean=before, adversarial=after, labels=y, **answers)
    if before.ndim != 4 or before.shape != after.shape or before.shape[1] not in (1, 3):
        raise InputError(
            f"The example figure needs images (N, 1 or 3, H, W), both alike; given {before.shape}, {after.shape}."
        )
    columns = zip(("label", "before", "after"), (y, *answers.values()), strict=True)
    names = DataFrame({column: [_class_name(int(k), class_names) for k in part[:MOST]] for column, part in columns})
    count = len(names) if names.map(len).to_numpy().max() < LONG else min(len(names), MOST - 2)
    data = names[:count].rename_axis("example").reset_index()
    noise, factor = _magnify(after[:count] - before[:count])
    fig = _draw_strips((before, noise, after), data, f"perturbation\n× {factor:g}")
    told = [f"{row['label']} is called {row['before']}, then {row['after']}" for row in data.to_dict("records")]
    alt = (
        f"{count} images, clean and adversarial, and the perturbation times {factor:g}. "
        f"Before and after the attack: {'; '.join(told)}."
    )
    return Figure(fig, alt, data)


def _draw_strips(rows: Sequence[NDArray[Any]], data: DataFrame, added: str) -> "Canvas":
    """A row each of clean images, perturbations and adversarial images; the classes above, the answers below."""
    headings = ["clean\n(above: class,\nbelow: answer)", added, "adversarial\n(below: answer)"]
    count = len(data)
    fig, every = axes(count, rows=3, height=3 * 6.6 / count + 0.9 if count > 3 else 5.6)
    for row, images in enumerate(rows):
        for column, example in enumerate(data.to_dict("records")):
            axis = every[row * count + column]
            _draw_image(axis, images[column])
            if row == 0:
                axis.set_title(**_fit(example["label"], count, "label"), loc="center")
            if row != 1:
                _write_answer(axis, example["after" if row else "before"], example["label"], count)
        every[row * count].set_ylabel(headings[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
    return fig


def _fit(text: str, count: int, key: str) -> dict[str, Any]:
    """The text in the size that fits above or below one of `count` images side by side; cut where it would be too small."""
    room = POINTS / count
    size = min(9.5, max(6.5, room / len(text)))
    return {key: text if len(text) * size <= room + 1 else f"{text[: int(room / size) - 1]}…", "fontsize": size}


def _magnify(change: NDArray[Any], factor: float | None = None) -> tuple[NDArray[Any], float]:
    """What was added, magnified around grey, and the factor: 10, or less where 10 times it would leave the grey scale."""
    most = float(np.abs(change).max())
    if factor is None:
        factor = next((f for f in (10.0, 5.0, 2.0) if f * most <= 0.5 + 1e-6), 1.0)
    return np.clip(0.5 + factor * change, 0, 1), factor


def _draw_image(axis: "Axes", image: NDArray[Any]) -> None:
    """Draws an image (C, H, W) in [0, 1], C 1 or 3, into axes without ticks."""
    grey: dict[str, Any] = {"cmap": "gray"} if image.shape[0] == 1 else {}
    axis.imshow(image.transpose(1, 2, 0).squeeze(-1) if grey else image.transpose(1, 2, 0), vmin=0, vmax=1, **grey)
    axis.grid(visible=False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("#b8c1cb")


def _write_answer(axis: "Axes", answer: str, label: str, count: int) -> None:
    """The answer below its image; a wrong one has a cross and a red frame, so that colour is not all there is."""
    right = answer == label
    options: dict[str, Any] = {"color": INK if right else WRONG, "weight": "normal" if right else "bold", "labelpad": 3}
    axis.set_xlabel(**_fit(f"{'✓' if right else '✕'} {answer}", count, "xlabel"), **options)
    if not right:
        axis.spines[:].set_color(WRONG)
        axis.spines[:].set_linewidth(1.8)


def _class_name(label: int, names: Sequence[str]) -> str:
    """The class of a label: its name, its number if it has none, "no answer" below 0."""
    return "no answer" if label < 0 else str(names[label]) if label < len(names) else str(label)


SHOWN = 3  # images side by side, three pictures each, that can still be seen
KINDS = ("clean", "attacked")
CELL = 0.82  # inches of a picture
Steps = Mapping[str, tuple[NDArray[Any], ...]]


@style()
def purification_steps(
    clean: Mapping[str, ArrayLike],
    adversarial: Mapping[str, ArrayLike],
    labels: ArrayLike,
    answers: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    class_names: Sequence[str] = (),
) -> Figure:
    """A clean image and its attacked copy through the steps of a purifier, a row each, and beside them their difference.

    Differences are magnified around grey by one factor: 10, or less where 10 times the attack would leave the grey scale.

    Args:
        clean, adversarial: step -> images (N, C, H, W) in [0, 1], C 1 or 3, in order, the images themselves first; the first
            three of each are shown.
        labels: (N,) true classes.
        answers: step -> answers (N,) to the clean and to the attacked images as they are after it, written below them.
    """
    y = np.asarray(labels)[:SHOWN]
    steps = {
        step: tuple(np.asarray(side[step], dtype=float)[:SHOWN] for side in (clean, adversarial) if step in side)
        for step in {**clean, **adversarial}
    }
    wanted = (len(y), 1), (len(y), 3)
    if not len(y) or not all(len(pair) == 2 and all(x.shape[:2] in wanted for x in pair) for pair in steps.values()):
        shapes = ", ".join(f"{step} {' and '.join(str(x.shape) for x in pair)}" for step, pair in steps.items())
        raise InputError(f"The purification figure needs clean and attacked images of every step; given: {shapes}.")
    words = {
        step: [[_class_name(int(k), class_names) for k in np.asarray(side)[:SHOWN]] for side in pair]
        for step, pair in (answers or {}).items()
    }
    names = [_class_name(int(k), class_names) for k in y]
    first, second = next(iter(steps.values()))
    factor = _magnify(second - first)[1]
    data = _steps_table(steps, names, words)
    return Figure(_draw_steps(steps, names, words, factor), _describe_steps(data, factor), data)


def _draw_steps(
    steps: Steps, names: Sequence[str], answers: Mapping[str, Sequence[Sequence[str]]], factor: float
) -> "Canvas":
    """A row a step; for each image three columns, then a gap."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    widths = [1.0, 1.0, 1.0, 0.12] * len(names)
    fig = Canvas(layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    fig.set_size_inches((8.0, CELL * len(steps) + 0.19 * len(answers) + 0.62))
    grid = fig.add_gridspec(len(steps), len(widths) - 1, width_ratios=widths[:-1])
    for row, (step, (before, after)) in enumerate(steps.items()):
        for image, name in enumerate(names):
            headings = (KINDS[0], f"class {name}\n{KINDS[1]}", f"change × {factor:g}")
            shown = (before[image], after[image], _magnify(after[image] - before[image], factor)[0])
            for kind, content in enumerate(shown):
                axis = fig.add_subplot(grid[row, 4 * image + kind])
                _draw_image(axis, content)
                if row == 0:
                    axis.set_title(headings[kind], loc="center", fontsize=8, weight="normal")
                if step in answers and kind < len(KINDS):
                    _write_answer(axis, answers[step][kind][image], name, 3 * len(names))
                if image == kind == 0:
                    text = f"{step}\n(below: what the\nclassifier says)" if step in answers else step
                    axis.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    return fig


def _steps_table(steps: Steps, names: Sequence[str], answers: Mapping[str, Any]) -> DataFrame:
    """A row for each image and step: how far clean and attacked lie apart, and the answers where there are some."""
    rows = []
    for step, (before, after) in steps.items():
        for image, name in enumerate(names):
            given = {kind: answers[step][k][image] if step in answers else "" for k, kind in enumerate(KINDS)}
            difference = float(np.abs(after[image] - before[image]).mean())
            rows.append({"example": image, "label": name, "step": step, "difference": difference, **given})
    return DataFrame(rows)


def _describe_steps(data: DataFrame, factor: float) -> str:
    differences = data.groupby("step", sort=False)["difference"].mean().items()
    means = ", ".join(f"{step} {value:.3f}" for step, value in differences)
    told = [
        f"after {row['step']}, {row['label']} is called {row['clean']} and, attacked, {row['attacked']}"
        for row in data[data["clean"] != ""].to_dict("records")
    ]
    text = (
        f"{data['example'].nunique()} images and their attacked copies through {data['step'].nunique()} steps of the purifier, "
        f"differences times {factor:g}. Mean absolute difference between both after each step: {means}."
    )
    return text + (f" Answers: {'; '.join(told)}." if told else "")


GREYS = 255  # levels of a pixel
SURFACES = {
    "apart": ("What is left of the attack", "$|t(x') - t(x)|$, both by one draw"),
    "changed": ("What the transform changes", "$|t(x') - x'|$"),
}


@style()
def transform_surface(table: DataFrame) -> Figure:
    """How far a random transform moves images, against missing rate and number of mixed copies; two heat maps, one colour scale.

    The table is a full grid, as of `robustlib.representation.transform_surface`: `missing` (share), `mixes`, `apart`, `changed`
    (mean absolute difference of a pixel, in [0, 1]).
    """
    columns = ["missing", "mixes", *SURFACES]
    rows = require_columns("transform", table, columns).sort_values(["mixes", "missing"])
    rates, mixes = (np.unique(rows[name]) for name in ("missing", "mixes"))
    if len(rows) != len(rates) * len(mixes) or rows.duplicated(["missing", "mixes"]).any():
        raise InputError(
            f"The transform figure needs each missing rate with each number of mixes once: {len(rows)} rows for "
            f"{len(rates)} x {len(mixes)}."
        )
    grids = {name: GREYS * rows[name].to_numpy(float).reshape(len(mixes), len(rates)) for name in SURFACES}
    top = max(float(grid.max()) for grid in grids.values()) or 1.0
    fig, every = axes(len(SURFACES), height=1.9 + 0.34 * len(mixes))
    for axis, (name, grid) in zip(every, grids.items(), strict=True):
        mesh = axis.imshow(grid, cmap="cividis", vmin=0, vmax=top, aspect="auto", origin="lower")
        for (up, across), value in np.ndenumerate(grid):
            colour, digits = "white" if value < 0.55 * top else INK, 0 if value >= 9.95 else 1
            axis.text(across, up, f"{value:.{digits}f}", ha="center", va="center", color=colour, size=8)
        axis.grid(visible=False)
        axis.set_title("\n".join(SURFACES[name]), fontsize=10)
        axis.set_xticks(range(len(rates)), [f"{100 * rate:.3g}" for rate in rates])
        axis.set_yticks(range(len(mixes)), [f"{count:g}" for count in mixes])
        axis.set_xlabel("missing rate, % of the blocks")
    every[0].set_ylabel("mixed copies")
    fig.colorbar(mesh, ax=every, label=f"grey levels of {GREYS},\nmean over pixels", shrink=0.9)
    corners = [(k, n) for k in (0, -1) for n in (0, -1)]
    described = "; ".join(
        f"{SURFACES[name][0].lower()} "
        + ", ".join(f"{grid[k, n]:.3g} at {mixes[k]:g} copies and {percent(rates[n])} missing" for k, n in corners)
        for name, grid in grids.items()
    )
    alt = f"Mean absolute difference of a pixel in grey levels of {GREYS}: {described}."
    return Figure(fig, alt, rows[columns].reset_index(drop=True))
