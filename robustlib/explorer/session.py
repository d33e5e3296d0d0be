"""What the explorer does: what is chosen on its board is looked up, or computed once, and shown."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.explorer import panels
from robustlib.explorer.board import ALL, Board
from robustlib.explorer.cloud import View, pca_view, umap_view
from robustlib.explorer.grid import Grid, make_grid
from robustlib.representation import layers
from robustlib.representation.probes import check_neighbours
from robustlib.representation.stored import check_runs
from robustlib.runs import Run
from robustlib.tables import percent

if TYPE_CHECKING:
    import ipywidgets

COMPILING = 30.0  # seconds that UMAP usually takes; the bar creeps towards them
PATIENCE = (
    f"the first one of a session takes about {COMPILING:.0f} s, most of it to compile; it is kept beside the run. Until then "
    "the map shows PCA."
)
LEGEND = "● clean, × adversarial at this eps, in the colour of the class; the line is the path of the chosen image. Click a point."

Key = tuple[str, str, str]  # run's path, attack, layer


class Explorer:
    """One data set's finished runs on a `Board`: display `widget`, then call `load`.

    Setting the value of a control, such as `board.eps.value = 3`, does what a hand would do.

    Args:
        dataset: whose test images are shown.
        runs: finished, of this data set.
        layer: looked at first.
        examples: test images; 0 for all.
        neighbours: clean images shown as nearest.
        seed: of attacks and maps.

    Raises:
        InputError: no runs, an unfinished one or one of other data, no such layer, fewer images than neighbours.
    """

    grid: Grid

    def __init__(
        self,
        dataset: Dataset,
        runs: Sequence[Run],
        *,
        layer: str = "features",
        examples: int = 200,
        neighbours: int = 10,
        seed: int = 0,
    ) -> None:
        check_runs(runs, dataset)
        self.dataset, self.examples, self.k, self.seed = dataset, examples, neighbours, seed
        self.split = dataset.test.sample(examples)
        check_neighbours(len(self.split) - 1, neighbours)
        known = {name.removeprefix("encoder."): name for name in layers(runs[0].model())}
        if (short := layer.removeprefix("encoder.")) not in known:
            raise unknown("layer", layer, known)
        self._grids: dict[tuple[str, str], Grid] = {}
        self._views: dict[Key, dict[str, View]] = {}
        self._making: set[Key] = set()
        self._quiet = False
        self.board = Board(dataset, runs, self.split, self._choose)
        self.widget = self.board.widget
        self._offer_layers(known[short])
        self._offer_images()
        self._listen()

    # What is chosen

    def _listen(self) -> None:
        board = self.board
        for control in (board.run, board.attack):
            control.observe(lambda _: self._unless_quiet(self.load), "value")
        for control in board.redrawn:
            control.observe(lambda _: self._unless_quiet(self.draw), "value")
        board.label.observe(lambda _: self._unless_quiet(self._offer_images, self.draw), "value")
        board.back.on_click(lambda _: self._walk(-1))
        board.forth.on_click(lambda _: self._walk(1))
        board.fooled.on_click(lambda _: self._next_fooled())

    def _unless_quiet(self, *actions: Any) -> None:
        if self._quiet:
            return
        try:
            for action in actions:
                action()
        except InputError as error:
            self.board.say(str(error))

    def _offer(self, control: "ipywidgets.Selection", options: Any, value: Any) -> None:
        """Changes what can be chosen without acting on the choice."""
        self._quiet = True
        try:
            control.options = options
            control.value = value
        finally:
            self._quiet = False

    def _offer_layers(self, wanted: str) -> None:
        known = layers(self.board.run.value.model())
        options = [(name.removeprefix("encoder."), name) for name in known]
        self._offer(self.board.layer, options, wanted if wanted in known else known[-1])

    def _offer_images(self) -> None:
        """The images of the chosen class; the one that was chosen stays if it is among them."""
        names, chosen = self.dataset.class_names, self.board.image.value
        kept = self._kept().nonzero().flatten().tolist()
        if not kept:
            raise InputError(f"None of the {len(self.split)} images is of {self._who()}: take more examples.")
        options = [(f"{place}: {names[int(self.split.labels[place])]}", place) for place in kept]
        self._offer(self.board.image, options, chosen if chosen in kept else kept[0])

    def _kept(self) -> torch.Tensor:
        """Which images are of the chosen class, bool (N,)."""
        y, label = self.split.labels, self.board.label.value
        return torch.ones_like(y, dtype=torch.bool) if label == ALL else y == label

    def _choose(self, image: int) -> None:
        """Shows an image of any class, as a click on the map does."""
        if not bool(self._kept()[image]):
            self.board.label.value = ALL
        self.board.image.value = image

    def _walk(self, by: int) -> None:
        places = [place for _, place in self.board.image.options]
        self.board.image.value = places[(places.index(self.board.image.value) + by) % len(places)]

    def _next_fooled(self) -> None:
        places = (self.grid.fooled(self.board.eps.value) & self._kept()).nonzero().flatten().tolist()
        if places:
            self.board.image.value = next((place for place in places if place > self.board.image.value), places[0])
        else:
            self.board.say(f"No image of {self._who()} is fooled at eps {self._eps():.3g}: take a larger eps.")

    def _eps(self) -> float:
        return self.grid.radii[self.board.eps.value]

    def _who(self) -> str:
        label = self.board.label.value
        return "any class" if label == ALL else f"class {self.dataset.class_names[label]}"

    # What is shown

    def load(self) -> None:
        """Finds or computes the grid of the chosen run and attack, with progress, and shows it."""
        board, run = self.board, self.board.run.value
        key = (str(run.path), board.attack.value)
        if key not in self._grids:
            try:
                report = self._progress
                self._grids[key] = make_grid(run, self.dataset, key[1], n=self.examples, seed=self.seed, report=report)
            finally:
                board.ready()
        self.grid = self._grids[key]
        radii, trained = self.grid.radii, run.params()["threat"]["eps"]
        words = [f"{eps:.3g} (trained for)" if eps == trained else f"{eps:.3g}" for eps in radii]
        before = board.eps.value if len(board.eps.options) == len(words) else radii.index(trained)
        self._offer(board.eps, [(word, k) for k, word in enumerate(words)], before)
        self._offer_layers(board.layer.value)
        self.draw()

    def draw(self) -> None:
        """Shows what is chosen; looks everything up and asks no model."""
        board, grid, names, keep = self.board, self.grid, self.dataset.class_names, self._kept()
        step, image, layer = board.eps.value, board.image.value, board.layer.value
        view = self._view()
        board.cloud.draw(view, grid, step, image, keep.numpy())
        board.note.value = f"<p>{LEGEND}</p><p><small>{view.note}</small></p>"
        board.pictures.value = panels.pictures(grid, image, step, names, board.attack.value)
        board.bars.value = panels.probabilities(grid, image, step, names)
        board.near.value = panels.neighbours(grid, layer, image, step, names, self.k)
        board.curve.value = self._curve(keep)
        if not self._making:
            label, said = (int(part[image]) for part in (self.split.labels, grid.steps[step].predictions))
            board.say(f"Image {image}, class {names[label]}, is called {names[said]} at eps {self._eps():.3g}.")

    def _curve(self, keep: torch.Tensor) -> str:
        table, step = self.grid.curve(keep), self.board.eps.value
        here, n, attack = table.iloc[step], int(keep.sum()), self.board.attack.value
        of = "" if self.board.label.value == ALL else f" of {self._who()}"
        told = f"At eps {self._eps():.3g}: <b>{percent(here.accuracy, here.low, here.high)}</b>, 95 % interval."
        if not here.correct:
            told = f"<b>None of the {n} images{of} survives</b> {attack} at eps {self._eps():.3g}: take a smaller eps to see survivors."
        told += " One attack alone: an upper bound of robust accuracy."
        eps = self.board.run.value.params()["threat"]["eps"]
        return panels.curve(table, step, eps, f"Accuracy of {n} images{of} under {attack} alone", told)

    def _progress(self, done: int, total: int, eps: float) -> None:
        words = f"{self.board.attack.value} at eps {eps:.3g}, {done + 1} of {total}: computed once, then kept beside the run."
        self.board.progress(done / total, words)

    # The map

    def _key(self) -> Key:
        return str(self.board.run.value.path), self.board.attack.value, self.board.layer.value

    def _view(self) -> View:
        """The map that is wanted, or PCA's until it is there."""
        key = self._key()
        wanted, known = self.board.view.value, self._views.setdefault(key, {})
        if "PCA" not in known:
            known["PCA"] = pca_view(self.grid, key[2])
        if wanted == "UMAP" and "UMAP" not in known and key not in self._making:
            self._making.add(key)
            making = self._make_umap(key, self.grid, self.board.run.value)
            try:
                self._task = asyncio.get_running_loop().create_task(making)
            except RuntimeError:  # no loop, as in a script
                asyncio.run(making)
        return known.get(wanted, known["PCA"])

    async def _make_umap(self, key: Key, grid: Grid, run: Run) -> None:
        """Computes a UMAP in a thread while the explorer stays usable, then shows it if it is still wanted."""
        began = time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(None, umap_view, grid, key[2], run, self.seed)
        try:
            while not future.done():
                spent = time.monotonic() - began
                self.board.progress(min(0.95, spent / COMPILING), f"UMAP, {spent:.0f} s: {PATIENCE}")
                await asyncio.wait({future}, timeout=0.5)
            self._views[key]["UMAP"] = future.result()
        finally:
            self._making.discard(key)
            self.board.ready()
        if self._key() == key and self.board.view.value == "UMAP":
            self.draw()
