"""Images before and after an attack."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.figures.canvas import INK, Figure, axes, same_length, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

MOST = 10  # images side by side that can still be seen
WRONG = "#b3261e"


def example_strips(
    clean: "ArrayLike",
    adversarial: "ArrayLike",
    labels: "ArrayLike",
    predictions: "tuple[ArrayLike, ArrayLike]",
    class_names: Sequence[str] = (),
    *,
    magnify: float = 10.0,
) -> Figure:
    """Clean images, what the attack added (magnified, grey is nothing), the adversarial images, and what the model says.

    Args:
        clean, adversarial: (N, C, H, W) in [0, 1], C 1 or 3; the first ten are shown.
        labels: (N,) true classes.
        predictions: for the clean and for the adversarial images, (N,) each.
        class_names: by label; numbers if not given.
        magnify: the factor on the perturbation.

    Raises:
        InputError: no images, not as many of each, or not of this shape.
    """
    import numpy as np

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
    count = min(len(y), MOST)
    noise = np.clip(0.5 + magnify * (after - before), 0, 1)
    words = ["clean, below\nits class", f"perturbation\n× {magnify:g}", "adversarial"]
    with style():
        fig, every = axes(count, rows=3, height=3 * 6.6 / count + 0.9 if count > 3 else 5.6)
        for row, images in enumerate((before, noise, after)):
            for column in range(count):
                axis = every[row * count + column]
                _picture(axis, images[column])
                if row == 0:
                    axis.set_title(_name(int(y[column]), class_names), loc="center", fontsize=10)
                if row != 1:
                    _answer(axis, int(said[row // 2][column]), int(y[column]), class_names)
            every[row * count].set_ylabel(words[row], rotation=0, ha="right", va="center", labelpad=8)
    return Figure(fig, _say(y, said, class_names, count, magnify))


def _picture(axis: "Axes", image: "NDArray[Any]") -> None:
    grey: dict[str, Any] = {"cmap": "gray"} if image.shape[0] == 1 else {}
    axis.imshow(image.transpose(1, 2, 0).squeeze(-1) if grey else image.transpose(1, 2, 0), vmin=0, vmax=1, **grey)
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)
        spine.set_color("#b8c1cb")


def _answer(axis: "Axes", prediction: int, label: int, names: Sequence[str]) -> None:
    """The answer below its image; a wrong one has a cross and a red frame, so that colour is not all there is."""
    right = prediction == label
    text = f"✓ {_name(prediction, names)}" if right else f"✕ {_name(prediction, names)}"
    axis.set_xlabel(text, color=INK if right else WRONG, weight="normal" if right else "bold", fontsize=9, labelpad=3)
    if not right:
        for spine in axis.spines.values():
            spine.set_color(WRONG)
            spine.set_linewidth(1.8)


def _name(label: int, names: Sequence[str]) -> str:
    return "no answer" if label < 0 else str(names[label]) if label < len(names) else str(label)


def _say(y: "NDArray[Any]", said: "list[NDArray[Any]]", names: Sequence[str], count: int, magnify: float) -> str:
    told = []
    for label, before, after in zip(y[:count], *(part[:count] for part in said), strict=True):
        answers = f"{_name(int(before), names)}, then {_name(int(after), names)}"
        told.append(f"{_name(int(label), names)} is called {answers}")
    return (
        f"{count} images, clean and adversarial, and the perturbation times {magnify:g}. "
        f"Before and after the attack: {'; '.join(told)}."
    )
