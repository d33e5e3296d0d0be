"""Images before and after an attack, through a purifier and its random transform, and what a model says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame

from robustlib.errors import InputError
from robustlib.figures import canvas
from robustlib.figures.canvas import INK, MUTED, Figure, percent, require_columns, same_length

Pair = tuple[ArrayLike, ArrayLike]  # of the clean and of the attacked images
Steps = Mapping[str, ArrayLike]
Answers = Mapping[str, Pair] | None
GAP = 0.012  # white between two classes, a share of all images
LINE = 0.2  # inches from one label to the next, at least
STAYED = "#cdd4db"
BANDS = 15  # classes whose bands can still be followed
OTHERS = 10**9  # sorts after all classes
LETTERS = 20  # of a name beside a band
COLOURS = canvas.COLOURS * 2  # of the bands


@canvas.style()
def confusion_flow(clean: ArrayLike, adversarial: ArrayLike, class_names: Sequence[str] = ()) -> Figure:
    """From what a model says of clean images to what it says of the adversarial ones: bands as wide as their share.

    Predictions (N,) are whole numbers for the same images, below 0 for no answer. Those that stay are grey, the others in
    the colour of where they come from; of more than 15 classes, those that change least are one, "other classes".
    """
    before, after = (np.maximum(np.asarray(side), -1) for side in (clean, adversarial))
    same_length("confusion-flow", clean=before, adversarial=after)
    changed = percent(float(np.mean(before != after)))
    classes, places = np.unique(np.concatenate([before, after]), return_inverse=True)
    if len(classes) > BANDS:
        often = np.bincount(places, np.tile(before != after, 2), len(classes))
        kept = classes[np.argsort(-often, kind="stable")[: BANDS - 1]]
        before, after = (np.where(np.isin(side, kept), side, OTHERS) for side in (before, after))
        classes = np.unique(np.concatenate([before, after]))
    share = np.array([[np.mean((before == a) & (after == b)) for b in classes] for a in classes])
    names = ["other classes" if k == OTHERS else _class_name(k, class_names) for k in classes]
    height = max(3.6, 0.46 * len(classes) + 0.8)
    fig, (axis,) = canvas.axes(height=height)
    starts = _starts(share.sum(1))[:, None] + np.cumsum(share, 1) - share
    ends = _starts(share.sum(0))[None, :] + np.cumsum(share, 0) - share
    x = np.linspace(0, 1, 60)
    moves = [(share[a, b], a, b) for a, b in zip(*np.nonzero(share), strict=True)]
    for part, a, b in sorted(moves, key=lambda move: move[1] != move[2]):  # those that stay lie below the others
        y = starts[a, b] + (ends[a, b] - starts[a, b]) * (3 * x**2 - 2 * x**3)
        colour, alpha = (STAYED, 0.6) if a == b else (COLOURS[a], 0.8)
        axis.fill_between(0.012 + 0.976 * x, y, y + part, color=colour, alpha=alpha, lw=0)
    _draw_classes(axis, share, names, LINE / height)
    axis.set_axis_off()
    axis.set_title(f"What the attack makes of each class: {changed} of the answers change")
    changes = [f"{names[a]} to {names[b]} {percent(part)}" for part, a, b in sorted(moves, reverse=True) if a != b]
    alt = f"Answers to clean and to adversarial images: {changed} change."
    alt += f" The most frequent changes, of all images: {', '.join(changes[:5])}." if changes else ""
    data = [(names[a], names[b], part) for part, a, b in moves]
    return Figure(fig, alt, DataFrame(data, columns=["clean answer", "adversarial answer", "share"]))


def _starts(totals: NDArray[Any]) -> NDArray[Any]:
    """Where the bar of each class begins."""
    return np.cumsum(totals) - totals + GAP * np.arange(len(totals))


def _draw_classes(axis: "canvas.Axes", share: NDArray[Any], names: Sequence[str], line: float) -> None:
    """A bar for each class on both sides, with name and share; labels at least `line` apart, the last in its place."""
    from matplotlib.patches import Rectangle

    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names]
    for x, totals in ((0, share.sum(1)), (1, share.sum(0))):
        starts = _starts(totals)
        steps = line * np.arange(len(totals))
        down = np.maximum.accumulate(starts + totals / 2 - steps) + steps
        heights = np.minimum.accumulate((np.minimum(down, starts[-1] + totals[-1] / 2) - steps)[::-1])[::-1] + steps
        for k in np.flatnonzero(totals):
            axis.add_patch(Rectangle((x - 0.012, starts[k]), 0.024, totals[k], color=COLOURS[k], lw=0, zorder=4))
            text = f"{short[k]}   {100 * totals[k]:.0f} %" if x else f"{100 * totals[k]:.0f} %   {short[k]}"
            place = 1.025 * x - 0.025 * (1 - x), heights[k]
            axis.text(*place, text, ha="left" if x else "right", va="center", fontsize=9.5)
        text = f"answer to the {'adversarial' if x else 'clean'} image"
        axis.text(x, -0.02, text, ha="right" if x else "left", va="bottom", color=MUTED, fontsize=9)
    side = max(0.22, 0.015 * (max(map(len, short)) + 5))
    axis.set(xlim=(-side, 1 + side), ylim=(1 + GAP * len(names), -0.06))


MOST, LONG = 10, 9  # images side by side that can still be seen, and letters of a class from which on it is two fewer
POINTS = 740.0  # letters of 1 point that fit on one line beside the words of a row


@canvas.style()
def example_strips(
    clean: ArrayLike, adversarial: ArrayLike, labels: ArrayLike, predictions: Pair, class_names: Sequence[str] = ()
) -> Figure:
    """Clean images, what the attack added (magnified around grey), adversarial images, and what the model says of both.

    Images (N, C, H, W) are in [0, 1], C 1 or 3, labels and predictions (N,); the first ten are shown (eight of long names).
    """
    before, after, y = np.asarray(clean, dtype=float), np.asarray(adversarial, dtype=float), np.asarray(labels)
    answers = dict(zip(("predictions", "adversarial predictions"), map(np.asarray, predictions), strict=True))
    same_length("example", clean=before, adversarial=after, labels=y, **answers)
    if before.ndim != 4 or before.shape != after.shape or before.shape[1] not in (1, 3):
        given = f"{before.shape}, {after.shape}"
        raise InputError(f"The example figure needs images (N, 1 or 3, H, W), both alike; given {given}.")
    columns = zip(("label", "before", "after"), (y, *answers.values()), strict=True)
    names = DataFrame({column: [_class_name(k, class_names) for k in part[:MOST]] for column, part in columns})
    count = len(names) if names.map(len).to_numpy().max() < LONG else min(len(names), MOST - 2)
    data = names[:count].rename_axis("example").reset_index()
    noise, factor = _magnify(after[:count] - before[:count])
    fig, every = canvas.axes(count, rows=3, height=3 * 6.6 / count + 0.9 if count > 3 else 5.6)
    added = f"perturbation\n× {factor:g}"
    headings = ("clean\n(above: class,\nbelow: answer)", added, "adversarial\n(below: answer)")
    shown = zip((before, noise, after), headings, ("before", "", "after"), strict=True)
    for row, (images, heading, answer) in enumerate(shown):
        for axis, image, example in zip(every[row * count :], images, data.to_dict("records"), strict=False):
            _draw_image(axis, image)
            if row == 0:
                axis.set_title(**_fit(example["label"], count, "label"), loc="center")
            if answer:
                _write_answer(axis, example[answer], example["label"], count)
        every[row * count].set_ylabel(heading, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
    described = [f"{row['label']} is called {row['before']}, then {row['after']}" for row in data.to_dict("records")]
    alt = f"{count} images, clean and adversarial, and the perturbation times {factor:g}. "
    return Figure(fig, f"{alt}Before and after the attack: {'; '.join(described)}.", data)


def _fit(text: str, count: int, key: str) -> dict[str, Any]:
    """The text in the size that fits above or below one of `count` images; cut where it would be too small."""
    room = POINTS / count
    size = min(9.5, max(6.5, room / len(text)))
    return {key: text if len(text) * size <= room + 1 else f"{text[: int(room / size) - 1]}…", "fontsize": size}


def _magnify(change: NDArray[Any], factor: float | None = None) -> tuple[NDArray[Any], float]:
    """What was added, magnified around grey, and the factor: 10, or less where that would leave the grey scale."""
    most = float(np.abs(change).max())
    if factor is None:
        factor = next((f for f in (10.0, 5.0, 2.0) if f * most <= 0.5 + 1e-6), 1.0)
    return np.clip(0.5 + factor * change, 0, 1), factor


def _draw_image(axis: "canvas.Axes", image: NDArray[Any]) -> None:
    """Draws an image (C, H, W) in [0, 1], C 1 or 3, into axes without ticks."""
    grey: dict[str, Any] = {"cmap": "gray"} if image.shape[0] == 1 else {}
    axis.imshow(image.transpose(1, 2, 0).squeeze(-1) if grey else image.transpose(1, 2, 0), vmin=0, vmax=1, **grey)
    axis.grid(visible=False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(canvas.PALE)


def _write_answer(axis: "canvas.Axes", answer: str, label: str, count: int) -> None:
    """The answer below its image; a wrong one has a cross and a red frame, so that colour is not all there is."""
    right = answer == label
    form: dict[str, Any] = {"color": INK} if right else {"color": canvas.ALARM, "weight": "bold"}
    axis.set_xlabel(**_fit(f"{'✓' if right else '✕'} {answer}", count, "xlabel"), labelpad=3, **form)
    if not right:
        axis.spines[:].set(color=canvas.ALARM, linewidth=1.8)


def _class_name(label: Any, names: Sequence[str]) -> str:
    """The class of a label: its name, its number if it has none, "no answer" below 0."""
    k = int(label)
    return "no answer" if k < 0 else str(names[k]) if k < len(names) else str(k)


SHOWN = 3  # images side by side, three pictures each, that can still be seen
KINDS = ("clean", "attacked")
CELL = 0.82  # inches of a picture


@canvas.style()
def purification_steps(
    clean: Steps, adversarial: Steps, labels: ArrayLike, answers: Answers = None, class_names: Sequence[str] = ()
) -> Figure:
    """Clean images and their attacked copies through the steps of a purifier, a row each, and their differences.

    By step images (N, C, H, W) in [0, 1], C 1 or 3, themselves first, and `answers` (N,) to both as they are after it, beside
    true classes (N,); three are shown. Differences are magnified by one factor: 10, or less to stay within the grey scale.
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
    rows = []
    for step, (before, after) in steps.items():
        sides = (answers or {}).get(step)
        for image, label in enumerate(y):
            words = [_class_name(np.asarray(side)[image], class_names) for side in sides] if sides else ["", ""]
            difference = float(np.abs(after[image] - before[image]).mean())
            row = {"example": image, "label": _class_name(label, class_names), "step": step, "difference": difference}
            rows.append(row | dict(zip(KINDS, words, strict=True)))
    data = DataFrame(rows)
    first, second = next(iter(steps.values()))
    factor = _magnify(second - first)[1]
    means = [f"{s} {value:.3f}" for s, value in data.groupby("step", sort=False)["difference"].mean().items()]
    alt = f"{len(y)} images and their attacked copies through {len(steps)} steps of the purifier, differences times"
    alt += f" {factor:g}. Mean absolute difference between both after each step: {', '.join(means)}."
    form = "after {step}, {label} is called {clean} and, attacked, {attacked}"
    described = [form.format(**row) for row in rows if row["clean"]]
    alt += f" Answers: {'; '.join(described)}." if described else ""
    return Figure(_draw_steps(steps, data, factor), alt, data)


def _draw_steps(steps: Mapping[str, Sequence[NDArray[Any]]], data: DataFrame, factor: float) -> "canvas.Canvas":
    """A row a step; for each image three columns, then a gap."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count, answered = data["example"].nunique(), data.loc[data["clean"] != "", "step"].unique()
    fig = Canvas(layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0))
    fig.set_size_inches((8.0, CELL * len(steps) + 0.19 * len(answered) + 0.62))
    grid = fig.add_gridspec(len(steps), 4 * count - 1, width_ratios=([1.0, 1.0, 1.0, 0.12] * count)[:-1])
    for place, row in enumerate(data.to_dict("records")):
        image, step = row["example"], row["step"]
        before, after = (side[image] for side in steps[step])
        headings = (KINDS[0], f"class {row['label']}\n{KINDS[1]}", f"change × {factor:g}")
        for k, content in enumerate((before, after, _magnify(after - before, factor)[0])):
            axis = fig.add_subplot(grid[place // count, 4 * image + k])
            _draw_image(axis, content)
            if place < count:
                axis.set_title(headings[k], loc="center", fontsize=8, weight="normal")
            if step in answered and k < len(KINDS):
                _write_answer(axis, row[KINDS[k]], row["label"], 3 * count)
            if image == k == 0:
                text = f"{step}\n(below: what the\nclassifier says)" if step in answered else step
                axis.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    return fig


GREYS = 255  # levels of a pixel
SURFACES = {
    "apart": ("What is left of the attack", "|t(x′) − t(x)|, both by one draw"),
    "changed": ("What the transform changes", "|t(x′) − x′|"),
}


@canvas.style()
def transform_surface(table: DataFrame) -> Figure:
    """How far a random transform moves images, against missing rate and mixed copies; two heat maps, one colour scale.

    From `robustlib.representation.transform_surface`: a full grid of `missing` and `mixes`; `apart`, `changed` in [0, 1].
    """
    columns = ["missing", "mixes", *SURFACES]
    rows = require_columns("transform", table, columns).sort_values(["mixes", "missing"])
    rates, mixes = canvas.grid_axes("transform figure", rows, "missing", "mixes")
    grids = {name: GREYS * rows[name].to_numpy(float).reshape(len(mixes), len(rates)) for name in SURFACES}
    top = max(float(grid.max()) for grid in grids.values()) or 1.0
    described = []
    fig, every = canvas.axes(len(SURFACES), height=1.9 + 0.34 * len(mixes))
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
        corners = [(k, n) for k in (0, -1) for n in (0, -1)]
        ends = [f"{grid[k, n]:.3g} at {mixes[k]:g} copies and {percent(rates[n])} missing" for k, n in corners]
        described.append(f"{SURFACES[name][0].lower()} {', '.join(ends)}")
    every[0].set_ylabel("mixed copies")
    fig.colorbar(mesh, ax=every, label=f"grey levels of {GREYS},\nmean over pixels", shrink=0.9)
    alt = f"Mean absolute difference of a pixel in grey levels of {GREYS}: {'; '.join(described)}."
    return Figure(fig, alt, rows[columns].reset_index(drop=True))
