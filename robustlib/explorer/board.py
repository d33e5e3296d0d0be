"""What is on the screen: controls, panels and how they are laid out; what they do is in `session`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.explorer import panels
from robustlib.explorer.cloud import Cloud
from robustlib.explorer.grid import explorer_attacks
from robustlib.runs import Run

if TYPE_CHECKING:
    import ipywidgets

ALL = -1  # the choice of every class


class Board:
    """The explorer's widgets, each an attribute; `widget` holds them all.

    Controls: run, attack, layer, label (class; -1 for all), eps (a step of the grid), image (a position among the examples),
    view ("PCA" or "UMAP"); buttons back, forth, fooled. Panels: cloud, pictures, bars, near, curve, note, status.

    Args:
        dataset: whose classes are listed, those that have images.
        runs: to choose from.
        split: the images on the map.
        choose: called with the position of an image that was clicked on the map.
    """

    def __init__(self, dataset: Dataset, runs: Sequence[Run], split: Split, choose: Callable[[int], object]) -> None:
        self._controls(dataset, runs, split)
        self.cloud = Cloud(split.labels.numpy(), dataset.class_names, choose)
        self._layout()

    @property
    def redrawn(self) -> "tuple[ipywidgets.Widget, ...]":
        """Controls that change what is looked at, not what is computed."""
        return self.layer, self.eps, self.image

    def say(self, words: str) -> None:
        """A sentence in the last line."""
        self.status.said = words

    def progress(self, share: float, words: str) -> None:
        """How much of a computation is done, in [0, 1], and what it is."""
        self.status.share, self.status.doing = share, words

    def ready(self) -> None:
        """Hides the progress."""
        self.status.doing = ""

    def _controls(self, dataset: Dataset, runs: Sequence[Run], split: Split) -> None:
        import ipywidgets as w

        from robustlib.explorer.widgets import Slider

        attacks, names = list(explorer_attacks(dataset.threat)), dataset.class_names
        self.run = w.Dropdown(options=_titles(runs), description="Run", layout={"width": "400px"})
        switch = {"orientation": "horizontal", "layout": {"width": "auto"}}
        self.attack = w.RadioButtons(
            options=attacks, value="PGD-20", description="Attack", tooltip="What makes the adversarial images", **switch
        )
        self.layer = w.Dropdown(options=["features"], description="Layer", layout={"width": "200px"})
        self.label = w.Dropdown(
            options=[("all", ALL), *((names[k], k) for k in split.labels.unique().tolist())],
            description="Class",
            layout={"width": "160px"},
        )
        self.eps = Slider(name="eps", layout={"flex": "1 1 320px", "width": "auto"})
        self.image = w.Dropdown(description="Image", layout={"width": "220px"})
        self.back = w.Button(description="‹ Previous", tooltip="The previous image", layout={"width": "auto"})
        self.forth = w.Button(description="Next ›", tooltip="The next image", layout={"width": "auto"})
        self.fooled = w.Button(
            description="Next fooled ›",
            tooltip="The next image that the attack fools at this eps",
            layout={"width": "auto"},
        )
        self.view = w.RadioButtons(
            options=["PCA", "UMAP"], description="Map", tooltip="How features become points", **switch
        )

    def _layout(self) -> None:
        import ipywidgets as w

        from robustlib.explorer.widgets import Status

        self.pictures, self.bars, self.near, self.curve, self.note = (w.HTML() for _ in range(5))
        self.status = Status()
        cards = [
            _card(
                _row(self.run, self.attack, self.layer, self.label),
                _row(self.eps, self.image, self.back, self.forth, self.fooled),
                kind="rl-whole",
            ),
            _card(_row(self.view), self.cloud.scatter, self.note, kind="rl-map"),
            _card(self.pictures),
            _card(self.bars, kind="rl-narrow"),
            _card(self.curve),
            _card(self.near, kind="rl-narrow"),
            _card(self.status, kind="rl-whole"),
        ]
        grid = w.Box(cards)
        grid.add_class("rl-panels")
        self.widget = w.VBox([w.HTML(panels.sheet()), grid])
        self.widget.add_class("rl-explorer")


def in_words(error: Exception) -> str:
    """What went wrong, as it is told: an InputError is a sentence, others need their type."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _titles(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Runs by what people call them, what they changed from their preset included."""
    found = []
    for run in runs:
        params = run.params()
        words = [
            params.get("title") or params["method"],
            params["arch"],
            f"seed {params['seed']}",
            params.get("changed"),
        ]
        found.append((" · ".join(filter(None, words)), run))
    names = [name for name, _ in found]
    return [(f"{name} · {run.path.name[-8:]}" if names.count(name) > 1 else name, run) for name, run in found]


def _row(*children: Any) -> Any:
    import ipywidgets as w

    row = w.Box(children)
    row.add_class("rl-controls")
    return row


def _card(*children: Any, kind: str = "") -> Any:
    import ipywidgets as w

    card = w.VBox(children)
    for name in filter(None, ("rl-card", kind)):
        card.add_class(name)
    return card
