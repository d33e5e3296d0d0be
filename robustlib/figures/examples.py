"""Images before and after an attack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, Figure, axes, same_length, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import ArrayLike, NDArray
    from pandas import DataFrame

MOST, LONG = 10, 9  # images side by side that can still be seen, and letters of a class from which on it is two fewer
ROOM = 740.0  # letters of 1 point that fit on one line beside the words of a row
FACTORS = (10.0, 5.0, 2.0)
WRONG = "#b3261e"


def example_strips(
    clean: "ArrayLike",
    adversarial: "ArrayLike",
    labels: "ArrayLike",
    predictions: "tuple[ArrayLike, ArrayLike]",
    class_names: Sequence[str] = (),
    *,
    magnify: float | None = None,
) -> Figure:
    """Clean images, what the attack added (magnified, grey is nothing), the adversarial images, and what the model says.

    Args:
        clean, adversarial: (N, C, H, W) in [0, 1], C 1 or 3; the first ten are shown (eight if names are long).
        labels: (N,) true classes.
        predictions: for the clean and for the adversarial images, (N,) each.
        class_names: by label; numbers if not given.
        magnify: the factor on the perturbation; None = 10, or less where 10 times it would leave the grey scale.

    Raises:
        InputError: no images, not as many of each, or not of this shape.
    """
    import numpy as np
    import pandas as pd

    before, after, y = np.asarray(clean, dtype=float), np.asarray(adversarial, dtype=float), np.asarray(labels)
    said = [np.asarray(part) for part in predictions]
    same_length(
        "example",
        clean=before,
        adversarial=after,
        labels=y,
        predictions=said[0],
        **{"adversarial predictions": said[1]},
    )
    if before.ndim != 4 or before.shape != after.shape or before.shape[1] not in (1, 3):
        raise InputError(
            f"The example figure needs images (N, 1 or 3, H, W), both alike; given {before.shape}, {after.shape}."
        )
    columns = {"label": y, "before": said[0], "after": said[1]}
    told = pd.DataFrame({key: [name_of(int(k), class_names) for k in part[:MOST]] for key, part in columns.items()})
    count = len(told) if told.map(len).to_numpy().max() < LONG else min(len(told), MOST - 2)
    data = told[:count].rename_axis("example").reset_index()
    noise, factor = magnified(after[:count] - before[:count], magnify)
    with style():
        fig = _strips((before, noise, after), data, f"perturbation\n× {factor:g}")
    return Figure(fig, _say(data, factor), data)


def _strips(rows: "Sequence[NDArray[Any]]", data: "DataFrame", added: str) -> "Canvas":
    """A row each of clean images, perturbations and adversarial images; the classes above, the answers below."""
    words = ["clean\n(above: class,\nbelow: answer)", added, "adversarial\n(below: answer)"]
    count = len(data)
    fig, every = axes(count, rows=3, height=3 * 6.6 / count + 0.9 if count > 3 else 5.6)
    for row, images in enumerate(rows):
        for column, told in enumerate(data.to_dict("records")):
            axis = every[row * count + column]
            picture(axis, images[column])
            if row == 0:
                axis.set_title(**_fit(told["label"], count, "label"), loc="center")
            if row != 1:
                answer(axis, told["after" if row else "before"], told["label"], count)
        every[row * count].set_ylabel(words[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
    return fig


def _fit(text: str, count: int, key: str) -> dict[str, Any]:
    """The text in the size that fits above or below one of so many images side by side; cut where it would be too small."""
    room = ROOM / count  # letters of 1 point
    size = min(9.5, max(6.5, room / len(text)))
    return {key: text if len(text) * size <= room + 1 else f"{text[: int(room / size) - 1]}…", "fontsize": size}


def magnified(change: "NDArray[Any]", magnify: float | None) -> "tuple[NDArray[Any], float]":
    """What was added, magnified, around grey; and the factor."""
    import numpy as np

    most = float(np.abs(change).max())
    factor = next((f for f in FACTORS if f * most <= 0.5 + 1e-6), 1.0) if magnify is None else magnify
    return np.clip(0.5 + factor * change, 0, 1), factor


def picture(axis: "Axes", image: "NDArray[Any]") -> None:
    """Draws an image (C, H, W) in [0, 1], C 1 or 3, into axes without ticks."""
    grey: dict[str, Any] = {"cmap": "gray"} if image.shape[0] == 1 else {}
    axis.imshow(image.transpose(1, 2, 0).squeeze(-1) if grey else image.transpose(1, 2, 0), vmin=0, vmax=1, **grey)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color("#b8c1cb")


def answer(axis: "Axes", said: str, label: str, count: int) -> None:
    """The answer below its image; a wrong one has a cross and a red frame, so that colour is not all there is."""
    right = said == label
    how: dict[str, Any] = {"color": INK if right else WRONG, "weight": "normal" if right else "bold", "labelpad": 3}
    axis.set_xlabel(**_fit(f"{'✓' if right else '✕'} {said}", count, "xlabel"), **how)
    if not right:
        for spine in axis.spines.values():
            spine.set_color(WRONG)
            spine.set_linewidth(1.8)


def name_of(label: int, names: Sequence[str]) -> str:
    """The class of a label: its name, its number if it has none, "no answer" below 0."""
    return "no answer" if label < 0 else str(names[label]) if label < len(names) else str(label)


def _say(data: "DataFrame", magnify: float) -> str:
    told = [f"{row['label']} is called {row['before']}, then {row['after']}" for row in data.to_dict("records")]
    return (
        f"{len(data)} images, clean and adversarial, and the perturbation times {magnify:g}. "
        f"Before and after the attack: {'; '.join(told)}."
    )
