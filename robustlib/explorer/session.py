"""What the explorer does: what is chosen on its board is looked up, or computed once, and shown."""

import asyncio
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import torch

from robustlib.data import Dataset
from robustlib.errors import InputError, unknown
from robustlib.explorer import panels
from robustlib.explorer.board import ALL, Board, in_words
from robustlib.explorer.cloud import View, pca_view, umap_view
from robustlib.explorer.grid import Grid, make_grid
from robustlib.representation import layers
from robustlib.representation.probes import check_neighbours
from robustlib.representation.stored import check_runs
from robustlib.runs import Run

COMPILING = 30.0  # seconds that UMAP usually takes; the bar creeps towards them
PATIENCE = (
    f"the first one of a session takes about {COMPILING:.0f} s, most of it to compile; it is kept beside the run. Until then "
    "the map shows PCA."
)

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
        self._grid: Grid | None = None
        self._grids: dict[tuple[str, str], Grid] = {}
        self._views: dict[Key, dict[str, View]] = {}
        self._making: set[Key] = set()
        self._failed: dict[Key, str] = {}  # why there is no UMAP: none is tried again by itself
        self._quiet = False
        self.board = Board(dataset, runs, self.split, self._choose)
        self.widget = self.board.widget
        self._offer_layers(list(known.values()), known[short])
        self._offer_images()
        self._listen()

    @property
    def grid(self) -> Grid:
        """What is shown.

        Raises:
            InputError: nothing could be loaded yet.
        """
        if self._grid is None:
            raise InputError("Nothing is loaded: choose another run or attack.")
        return self._grid

    # What is chosen

    def _listen(self) -> None:
        board = self.board
        for control in (board.run, board.attack):
            control.observe(lambda _: self._unless_quiet(self.load), "value")
        for control in board.redrawn:
            control.observe(lambda _: self._unless_quiet(self.draw), "value")
        board.label.observe(lambda _: self._unless_quiet(self._offer_images, self.draw), "value")
        board.view.observe(lambda _: self._unless_quiet(self._failed.clear, self.draw), "value")
        board.back.on_click(lambda _: self._walk(-1))
        board.forth.on_click(lambda _: self._walk(1))
        board.fooled.on_click(lambda _: self._unless_quiet(self._next_fooled))

    def _unless_quiet(self, *actions: Callable[[], object]) -> None:
        if self._quiet:
            return
        try:
            for action in actions:
                action()
        except Exception as error:  # a traceback of a callback would be seen by nobody
            self.board.say(in_words(error))

    def _offer(self, control: Any, value: Any, options: Sequence[Any] | None = None) -> None:
        """Changes a choice, and what can be chosen, without acting on it."""
        self._quiet = True
        try:
            if options is not None:
                control.options = options
            control.value = value
        finally:
            self._quiet = False

    def _offer_layers(self, known: Sequence[str], wanted: str) -> None:
        options = [(name.removeprefix("encoder."), name) for name in known]
        self._offer(self.board.layer, wanted if wanted in known else known[-1], options)

    def _offer_images(self) -> None:
        """The images of the chosen class; the one that was chosen stays if it is among them."""
        names, chosen = self.dataset.class_names, self.board.image.value
        kept = self._kept().nonzero().flatten().tolist()
        options = [(f"{place}: {names[int(self.split.labels[place])]}", place) for place in kept]
        self._offer(self.board.image, chosen if chosen in kept else kept[0], options)

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
        step = self.board.eps.value
        places = (self.grid.fooled(step) & self._kept()).nonzero().flatten().tolist()
        if places:
            self.board.image.value = next((place for place in places if place > self.board.image.value), places[0])
        else:
            self.board.say(
                f"No image of {self._who()} is fooled at eps {self.grid.radii[step]:.3g}: take a larger eps."
            )

    def _who(self) -> str:
        label = self.board.label.value
        return "any class" if label == ALL else f"class {self.dataset.class_names[label]}"

    # What is shown

    def load(self) -> None:
        """Finds or computes the grid of the chosen run and attack, with progress, and shows it.

        Raises:
            InputError: as `make_grid`; what was shown before stays, then and after any other failure, and so do its run and attack.
        """
        board, run, attack = self.board, self.board.run.value, self.board.attack.value
        key = (str(run.path), attack)
        try:
            if key not in self._grids:
                n, seed, report = self.examples, self.seed, self._progress
                self._grids[key] = make_grid(run, self.dataset, attack, n=n, seed=seed, report=report)
            grid = self._grid = self._grids[key]
        finally:
            board.ready()
            if self._grid is not None:
                self._offer(board.run, self._grid.run)
                self._offer(board.attack, self._grid.attack)
        words = [f"{eps:.3g} (threat model)" if eps == grid.eps else f"{eps:.3g}" for eps in grid.radii]
        before = board.eps.value if len(board.eps.options) == len(words) else grid.radii.index(grid.eps)
        self._offer(board.eps, before, words)
        self._offer_layers(list(grid.clean.layers), board.layer.value)
        self.draw()

    def draw(self) -> None:
        """Shows what is chosen; asks no model. Only a map is computed, when it is wanted for the first time."""
        board, grid, names, keep = self.board, self.grid, self.dataset.class_names, self._kept()
        step, image, layer = board.eps.value, board.image.value, board.layer.value
        view, why = self._view(), self._failed.get(self._key())
        board.cloud.draw(view, grid, step, image, keep.numpy())
        told = [view.note, *([why] if why and board.view.value == "UMAP" else [])]
        board.note.value = f"<p>{board.cloud.legend}</p>" + "".join(f"<p><small>{escape(p)}</small></p>" for p in told)
        board.pictures.value = panels.pictures(grid, image, step, names)
        board.bars.value = panels.probabilities(grid, image, step, names)
        board.near.value = panels.neighbours(grid, layer, image, step, names, self.k)
        of = "" if board.label.value == ALL else f" of {self._who()}"
        board.curve.value = panels.curve(grid, keep, step, of)
        label, said = (int(part[image]) for part in (self.split.labels, grid.steps[step].predictions))
        board.say(f"Image {image}, class {names[label]}, is called {names[said]} at eps {grid.radii[step]:.3g}.")
        self._begin_umap()

    def _progress(self, done: int, total: int, eps: float) -> None:
        words = f"{self.board.attack.value} at eps {eps:.3g}, {done + 1} of {total}: computed once, then kept beside the run."
        self.board.progress(done / total, words)

    # The map

    def _key(self) -> Key:
        return str(self.grid.run.path), self.grid.attack, self.board.layer.value

    def _view(self) -> View:
        """The map that is wanted, or PCA's until it is there."""
        known = self._views.setdefault(self._key(), {})
        if "PCA" not in known:
            known["PCA"] = pca_view(self.grid, self.board.layer.value)
        return known.get(self.board.view.value, known["PCA"])

    def _begin_umap(self) -> None:
        """Makes a UMAP if it is wanted and was not tried before."""
        key = self._key()
        if self.board.view.value != "UMAP" or "UMAP" in self._views[key] or key in {*self._making, *self._failed}:
            return
        self._making.add(key)
        making = self._make_umap(key, self.grid)
        try:
            self._task = asyncio.get_running_loop().create_task(making)
        except RuntimeError:  # no loop, as in a script
            asyncio.run(making)

    async def _make_umap(self, key: Key, grid: Grid) -> None:
        """Computes a UMAP in a thread while the explorer stays usable, then shows it if it is still wanted."""
        began = time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(None, umap_view, grid, key[2], self.seed)
        try:
            while not future.done():
                spent = time.monotonic() - began
                self.board.progress(min(0.95, spent / COMPILING), f"UMAP, {spent:.0f} s: {PATIENCE}")
                await asyncio.wait({future}, timeout=0.5)
            self._views[key]["UMAP"] = future.result()
        except Exception as error:  # nobody awaits the task
            self._failed[key] = f"UMAP failed; choose PCA and UMAP again to try once more. {in_words(error)}"
        finally:
            self._making.discard(key)
            self.board.ready()
        if self._key() == key and self.board.view.value == "UMAP":
            self._unless_quiet(self.draw)
            self.board.say(self._failed.get(key, self.board.status.said))
