"""Where an attack sends the images of each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.figures.canvas import MUTED, Figure, axes, looks, pc, same_length, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

GAP = 0.012  # white between two classes, a share of all images
LINE = 0.2  # inches from one label to the next, at least
STAYED = "#cdd4db"
MOST = 15  # classes whose bands can still be followed
OTHERS = 10**9  # stands after all classes
LETTERS = 20  # of a name


def confusion_flow(clean: "ArrayLike", adversarial: "ArrayLike", class_names: Sequence[str] = ()) -> Figure:
    """From what a model says of clean images to what it says of the adversarial ones: bands as wide as their share.

    Predictions that stay are grey; those that change have the colour of where they come from. Of more than 15 classes,
    those that change least are one band, "other classes".

    Args:
        clean, adversarial: predictions (N,) for the same images, whole numbers; adversarial ones below 0 are no answer.
        class_names: by label; numbers if not given.

    Raises:
        InputError: none, or not as many of both.
    """
    import numpy as np
    import pandas as pd

    before, after = np.asarray(clean), np.asarray(adversarial)
    same_length("confusion-flow", clean=before, adversarial=after)
    changed = float(np.mean(np.maximum(before, -1) != np.maximum(after, -1)))
    before, after = _few(before, after)
    classes = np.unique(np.concatenate([before, after]))
    share = np.array([[np.mean((before == a) & (after == b)) for b in classes] for a in classes])
    names = [_class_name(int(k), class_names) for k in classes]
    with style():
        fig, (axis,) = axes(height=_inches(len(classes)))
        _flows(axis, share, names)
        axis.set_axis_off()
        axis.set_title(f"What the attack makes of each class: {pc(changed)} of the answers change")
    moves = [(names[a], names[b], share[a, b]) for a, b in zip(*np.nonzero(share), strict=True)]
    data = pd.DataFrame(moves, columns=["clean answer", "adversarial answer", "share"])
    return Figure(fig, _say(share, names, changed), data)


def _inches(classes: int) -> float:
    """The height of the figure."""
    return max(3.6, 0.46 * classes + 0.8)


def _few(before: "NDArray[Any]", after: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any]]":
    """The answers; of too many classes, those that change most often by themselves and the rest as one."""
    import numpy as np

    before, after = (np.where(side < 0, -1, side) for side in (before, after))
    classes, places = np.unique(np.concatenate([before, after]), return_inverse=True)
    if len(classes) <= MOST:
        return before, after
    moved = np.bincount(places, np.tile(before != after, 2), len(classes))
    kept = classes[np.argsort(-moved, kind="stable")[: MOST - 1]]
    return np.where(np.isin(before, kept), before, OTHERS), np.where(np.isin(after, kept), after, OTHERS)


def _class_name(label: int, names: Sequence[str]) -> str:
    if label < 0 or label == OTHERS:
        return "no answer" if label < 0 else "other classes"
    return str(names[label]) if label < len(names) else str(label)


def _flows(axis: "Axes", share: "NDArray[Any]", names: Sequence[str]) -> None:
    """The bands, those that stay first, below the others."""
    import numpy as np

    left, right = (_starts(totals) for totals in (share.sum(1), share.sum(0)))
    offsets = [left[:, None] + np.cumsum(share, 1) - share, right[None, :] + np.cumsum(share, 0) - share]
    look = looks([str(k) for k in range(10)])
    moves = [(a, b) for a in range(len(names)) for b in range(len(names)) if share[a, b] > 0]
    for a, b in sorted(moves, key=lambda move: move[0] != move[1]):
        colour = STAYED if a == b else look[str(a % 10)]["color"]
        _band(axis, offsets[0][a, b], offsets[1][a, b], share[a, b], colour, 0.6 if a == b else 0.8)
    for x, starts, totals in ((0, left, share.sum(1)), (1, right, share.sum(0))):
        heights = _apart(starts + totals / 2, LINE / _inches(len(names)))
        for k, name in enumerate(names):
            name = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
            if totals[k] > 0:
                axis.add_patch(_bar(x, starts[k], totals[k], look[str(k % 10)]["color"]))
                text = f"{name}   {100 * totals[k]:.0f} %" if x else f"{100 * totals[k]:.0f} %   {name}"
                axis.text(
                    1.025 * x - 0.025 * (1 - x),
                    heights[k],
                    text,
                    ha="left" if x else "right",
                    va="center",
                    fontsize=9.5,
                )
        words = f"answer to the {'adversarial' if x else 'clean'} image"
        axis.text(x, -0.02, words, ha="right" if x else "left", va="bottom", color=MUTED, fontsize=9)
    side = max(0.22, 0.015 * (min(LETTERS, max(map(len, names))) + 5))
    axis.set_xlim(-side, 1 + side)
    axis.set_ylim(1 + GAP * len(names), -0.06)


def _starts(totals: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    return np.cumsum(totals) - totals + GAP * np.arange(len(totals))


def _apart(heights: "NDArray[Any]", least: float) -> "NDArray[Any]":
    """The heights of labels, moved so that neighbours are at least so far apart and the last stays where it was."""
    import numpy as np

    steps = least * np.arange(len(heights))
    down = np.maximum.accumulate(heights - steps) + steps
    low = np.minimum.accumulate((np.minimum(down, heights[-1]) - steps)[::-1])[::-1] + steps
    return low


def _bar(x: float, start: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.012, start), 0.024, height, color=colour, lw=0, zorder=4)


def _band(axis: "Axes", start: float, end: float, width: float, colour: str, alpha: float) -> None:
    """A band of equal width from the left bar to the right one, an S in between."""
    import numpy as np

    x = np.linspace(0, 1, 60)
    y = start + (end - start) * (3 * x**2 - 2 * x**3)
    axis.fill_between(0.012 + 0.976 * x, y, y + width, color=colour, alpha=alpha, lw=0)


def _say(share: "NDArray[Any]", names: Sequence[str], changed: float) -> str:
    moves = [(share[a, b], a, b) for a in range(len(names)) for b in range(len(names)) if a != b and share[a, b] > 0]
    largest = [f"{names[a]} to {names[b]} {pc(part)}" for part, a, b in sorted(moves, reverse=True)[:5]]
    text = f"Answers to clean and to adversarial images: {pc(changed)} change."
    return text + (f" The most frequent changes, of all images: {', '.join(largest)}." if largest else "")
