"""What the explorer does: what is chosen on its board is looked up, or computed once, and shown."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robustlib.data import Dataset, dataset_of, load_dataset
from robustlib.errors import InputError, Whole, check_known, typed
from robustlib.methods import make_method
from robustlib.representation import layers
from robustlib.representation.measures import check_neighbours
from robustlib.representation.runs import check_runs
from robustlib.runs import Run, find_runs
from robustlib.training import fit
from robustlib.workbook.explorer.board import ALL, Board, Grid, Projection, make_grid, pca_projection, umap_projection
from robustlib.workbook.explorer.snapshot import show_snapshot, show_widget

COMPILING = 30.0  # seconds that UMAP usually takes; the bar creeps towards them
PATIENCE = f"the first of a session takes about {COMPILING:.0f} s, most of it to compile; it is kept beside the run."
PATIENCE += " Until then the map shows PCA."
SMALL = {"standard": 4, "pgd_at": 8}  # epochs of the two baselines: enough to tell them apart
DATASET = "digits"  # embedded, so that there is always something to look at

Key = tuple[str, str, str]  # run's path, attack, layer


def explore(
    runs: Path | str = "runs",
    *,
    dataset: str = "",
    layer: str = "features",
    examples: int = 200,
    neighbours: int = 10,
    seed: int = 0,
    train_missing: bool = True,
    data_root: Path | str | None = None,
) -> "Explorer":
    """Shows the explorer of all finished runs below `runs` of one data set, in a notebook, and returns it.

    The data set is `dataset`, "" = the only one that there is, looked for in `data_root` if not embedded; `layer` is looked at first,
    see `robustlib.representation.features`. `examples` are test images, stratified, the same for all runs; 0 for all. `neighbours`
    clean images are shown as nearest to an adversarial one. If there are no runs, `train_missing` trains two small baselines on digits.
    """
    found = finished_runs(runs, dataset)
    if not found and train_missing and dataset in ("", DATASET):
        found = small_baselines(runs)
    if not found:
        which = f" of {dataset}" if dataset else ""
        remedy = "give another directory, or let the explorer train two small ones on digits (train_missing)"
        raise InputError(f"There are no finished runs{which} in {runs}: train some with `robustlib run`, {remedy}.")
    data = dataset_of(found[0].params(), data_root)
    explorer = Explorer(data, found, layer=layer, examples=examples, neighbours=neighbours, seed=seed)
    show_widget(explorer.widget)  # before anything is computed, so that its progress is seen
    explorer.load()
    explorer.save()
    return explorer


def finished_runs(root: Path | str, dataset: str = "") -> list[Run]:
    """The finished runs below `root` of one data set, of the only one if `dataset` is ""."""
    found = find_runs(root, dataset=dataset or None)
    names = sorted({str(run.params()["dataset"]) for run in found})
    if len(names) > 1:
        said = f"{root} holds runs of {' and '.join(names)}, which have no images in common"
        raise InputError(f"{said}: choose one, e.g. dataset={names[0]!r}.")
    return found


def small_baselines(root: Path | str) -> list[Run]:
    """Standard training and PGD-AT on digits with few epochs, kept as ordinary runs below `root`."""
    print(
        f"There are no finished runs in {root}. Two small baselines are trained first, standard training and PGD adversarial "
        "training on digits: about half a minute on two cores. They are kept there as ordinary runs; their names say that "
        "they had fewer epochs than usual."
    )
    data = load_dataset(DATASET)
    methods = [make_method(name, DATASET, epochs=epochs) for name, epochs in SMALL.items()]
    return [fit(method, data, root=root, threads=1) for method in methods]  # more threads only wait for each other


class Explorer:
    """One data set's finished runs on a `Board`, with the options of `explore`: display `widget`, then call `load`.

    Setting the value of a control, such as `board.eps.value = 3`, does what a hand would do.
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
        self.dataset, self.examples, self.k, self.seed = dataset, examples, neighbours, typed(seed, Whole, "seed")
        self.split = dataset.test.sample(examples)
        check_neighbours(len(self.split) - 1, neighbours)
        known = {name.removeprefix("encoder."): name for name in layers(runs[0].model())}
        short = check_known("layer", layer.removeprefix("encoder."), known)
        self._grid: Grid | None = None
        self._grids: dict[tuple[str, str], Grid] = {}
        self._maps: dict[tuple[str, Key], Projection] = {}  # "PCA" or "UMAP"
        self._making: set[Key] = set()
        self._failed: dict[Key, str] = {}  # why there is no UMAP: none is computed again by itself
        self._quiet = False
        self.board = board = Board(dataset, runs, self.split)
        self.widget = board.widget
        self._offer_layers(list(known.values()), known[short])
        self._offer_images()
        actions: dict[Any, tuple[Callable[[], object], ...]] = {
            **dict.fromkeys((board.run, board.attack), (self.load,)),
            **dict.fromkeys((board.layer, board.eps, board.image), (self.draw,)),
            board.label: (self._offer_images, self.draw),
            board.view: (self._failed.clear, self.draw),
        }
        for control, todo in actions.items():
            control.observe(lambda _, todo=todo: self._act(*todo), "value")
        board.map.observe(lambda change: self._choose(change["new"][0]), "clicked")
        board.back.on_click(lambda _: self._walk(-1))
        board.forth.on_click(lambda _: self._walk(1))
        board.fooled.on_click(lambda _: self._act(self._next_fooled))

    @property
    def grid(self) -> Grid:
        """What is shown."""
        if self._grid is None:
            raise InputError("Nothing is loaded: choose another run or attack.")
        return self._grid

    def _act(self, *actions: Callable[[], object]) -> None:
        """Does what a control asks for, unless it was changed by us."""
        if self._quiet:
            return
        try:
            for action in actions:
                action()
        except Exception as error:  # a traceback of a callback would be seen by nobody
            self.board.status.said = _in_words(error)

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
        return (y == label) | (label == ALL)

    def _choose(self, image: int) -> None:
        """Shows an image of any class, as a click on the map does."""
        if not bool(self._kept()[image]):
            self.board.label.value = ALL
        self.board.image.value = image

    def _walk(self, by: int) -> None:
        places = [place for _, place in self.board.image.options]
        self.board.image.value = places[(places.index(self.board.image.value) + by) % len(places)]

    def _next_fooled(self) -> None:
        board, step = self.board, self.board.eps.value
        places = (self.grid.is_adversarial(step) & self._kept()).nonzero().flatten().tolist()
        if places:
            board.image.value = next((place for place in places if place > board.image.value), places[0])
        else:
            which, eps = board.of_class or " of any class", self.grid.radii[step]
            board.status.said = f"No image{which} is fooled at eps {eps:.3g}: take a larger eps."

    def load(self) -> None:
        """Looks up or computes the grid of the chosen run and attack, and shows it; where that fails, what was shown before stays."""
        board, run, attack = self.board, self.board.run.value, self.board.attack.value
        key = (str(run.path), attack)

        def report(done: int, total: int, eps: float) -> None:
            place = f"{attack} at eps {eps:.3g}, {done + 1} of {total}"
            board.status.share = done / total
            board.status.doing = f"{place}: computed once, then kept beside the run."

        try:
            if key not in self._grids:
                options: dict[str, Any] = {"n": self.examples, "seed": self.seed, "report": report}
                self._grids[key] = make_grid(run, self.dataset, attack, **options)
            grid = self._grid = self._grids[key]
        finally:
            board.status.doing = ""
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
        step, image, layer, key = board.eps.value, board.image.value, board.layer.value, self._key()
        wanted, maps = board.view.value == "UMAP", self._maps
        if ("PCA", key) not in maps:
            maps["PCA", key] = pca_projection(grid, layer)
        projection = maps.get((board.view.value, key), maps["PCA", key])
        board.map.draw(projection, grid, step, image, keep.numpy())
        failure = [self._failed[key]] if wanted and key in self._failed else []
        board.fill(grid, keep, self.k, [projection.note, *failure])
        label, prediction = (names[int(y[image])] for y in (self.split.labels, grid.steps[step].predictions))
        board.status.said = f"Image {image}, class {label}, is called {prediction} at eps {grid.radii[step]:.3g}."
        if wanted and not (("UMAP", key) in maps or key in self._making or key in self._failed):
            self._making.add(key)
            making = self._make_umap(key, grid)
            try:
                self._task = asyncio.get_running_loop().create_task(making)
            except RuntimeError:  # no loop, as in a script
                asyncio.run(making)

    def save(self) -> None:
        """Leaves a picture of what is shown in the notebook, for whoever opens it without a kernel."""
        points, step = self._maps["PCA", self._key()].points, self.board.eps.value
        shown = f"{self.grid.run.name}: clean images (dots) and the same under {self.grid.attack} at eps {self.grid.radii[step]:.3g}."
        show_snapshot(
            points[[0, step]], self.split.labels, self.dataset.class_names, f"{shown} {self.board.status.said}"
        )

    def _key(self) -> Key:
        return str(self.grid.run.path), self.grid.attack, self.board.layer.value

    async def _make_umap(self, key: Key, grid: Grid) -> None:
        """Computes a UMAP in a thread while the explorer stays usable, then shows it if it is still wanted."""
        began, status = time.monotonic(), self.board.status
        future = asyncio.get_running_loop().run_in_executor(None, umap_projection, grid, key[2], self.seed)
        try:
            while not future.done():
                spent = time.monotonic() - began
                status.share, status.doing = min(0.95, spent / COMPILING), f"UMAP, {spent:.0f} s: {PATIENCE}"
                await asyncio.wait({future}, timeout=0.5)
            self._maps["UMAP", key] = future.result()
        except Exception as error:  # nobody awaits the task
            self._failed[key] = f"UMAP failed; choose PCA and UMAP again to try once more. {_in_words(error)}"
        finally:
            self._making.discard(key)
            status.doing = ""
        if self._key() == key and self.board.view.value == "UMAP":
            self._act(self.draw)
            status.said = self._failed.get(key, status.said)


def _in_words(error: Exception) -> str:
    """What went wrong: an InputError is a sentence, others need their type."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
