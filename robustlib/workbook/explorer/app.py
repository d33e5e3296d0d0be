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
from robustlib.workbook.explorer.board import ALL, Board, Choice
from robustlib.workbook.explorer.grid import Grid, make_grid
from robustlib.workbook.explorer.projection import Place, Projection, pca_projection, umap_projection
from robustlib.workbook.explorer.snapshot import show_snapshot, show_widget

COMPILING = 30.0  # seconds that UMAP usually takes; the bar creeps towards them
PATIENCE = f"the first of a session takes about {COMPILING:.0f} s, most of it to compile; it is kept beside the run."
PATIENCE += " Until then the map shows PCA."
SMALL = {"standard": 4, "pgd_at": 8}  # epochs of the two baselines: enough to tell them apart
DATASET = "digits"  # embedded, so that there is always something to look at

Key = tuple[tuple[str, ...], str, str]  # runs' paths, attack, layer


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
    first: Path | str = "",
    beside: Path | str = "",
) -> "Explorer":
    """Shows the explorer of all finished runs below `runs` of one data set, in a notebook, and returns it.

    The data set is `dataset`, "" = the only one that there is, looked for in `data_root` if not embedded; `layer` is looked at first,
    see `robustlib.representation.features`. `examples` are test images, stratified, the same for all runs; 0 for all. `neighbours`
    clean images are shown as nearest to an adversarial one. If there are no runs, `train_missing` trains two small baselines on digits.
    `first` and `beside` are directories of runs: the one that is shown first, and one that is set beside it.
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
    explorer.open(first, beside)
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
        self._shown: tuple[Grid, ...] = ()  # of the run, and of the one beside it
        self._grids: dict[tuple[str, str], Grid] = {}
        self._maps: dict[tuple[str, Key], tuple[Projection, ...]] = {}  # "PCA" or "UMAP"
        self._making: set[Key] = set()
        self._failed: dict[Key, str] = {}  # why there is no UMAP: none is computed again by itself
        self._quiet = False
        self.board = board = Board(dataset, runs, self.split)
        self.widget = board.widget
        self._offer_layers(list(known.values()), known[short])
        self._offer_images()
        actions: dict[Any, tuple[Callable[[], object], ...]] = {
            **dict.fromkeys((board.run, board.second, board.attack), (self.load,)),
            **dict.fromkeys((board.layer, board.eps, board.image), (self.draw,)),
            board.label: (self._offer_images, self.draw),
            board.view: (self._failed.clear, self.draw),
        }
        for control, todo in actions.items():
            control.observe(lambda _, todo=todo: self._act(*todo), "value")
        for side in (board, board.beside):
            side.map.observe(lambda change: self._choose(change["new"][0]), "clicked")
        board.back.on_click(lambda _: self._walk(-1))
        board.forth.on_click(lambda _: self._walk(1))
        board.fooled.on_click(lambda _: self._act(self._next_fooled))

    @property
    def grid(self) -> Grid:
        """What is shown."""
        if not self._shown:
            raise InputError("Nothing is loaded: choose another run or attack.")
        return self._shown[0]

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

    def open(self, first: Path | str = "", beside: Path | str = "") -> None:
        """Loads the runs in these directories; "" for the one that is chosen already, and for none beside it."""
        known = {run.path.resolve(): run for _, run in self.board.run.options}
        for control, asked in ((self.board.run, first), (self.board.second, beside)):
            if asked:
                where = {str(path): path for path in known}
                self._offer(control, known[where[check_known("run", str(Path(asked).resolve()), where)]])
        self.load()

    def load(self) -> None:
        """Looks up or computes the grids of the chosen runs and attack, and shows them; where that fails, what was shown before stays."""
        board, attack = self.board, self.board.attack.value
        try:
            grids = tuple(self._load(run, attack) for run in (board.run.value, board.second.value) if run)
            if len({grid.radii for grid in grids}) > 1:
                said = f"{grids[1].run.name} was trained for another threat (eps {grids[1].eps:.3g}) than {grids[0].run.name}"
                raise InputError(f"{said} (eps {grids[0].eps:.3g}): one slider cannot move both.")
            self._shown = grids
        finally:
            board.status.doing = ""
            if self._shown:
                self._offer(board.run, self._shown[0].run)
                self._offer(board.second, self._shown[1].run if len(self._shown) > 1 else None)
                self._offer(board.attack, self._shown[0].attack)
        grid, titles = self.grid, {run: title for title, run in board.run.options}
        board.show_sides([titles[grid.run] for grid in self._shown])
        words = [f"{eps:.3g} (threat model)" if eps == grid.eps else f"{eps:.3g}" for eps in grid.radii]
        before = board.eps.value if len(board.eps.options) == len(words) else grid.radii.index(grid.eps)
        self._offer(board.eps, before, words)
        self._offer_layers(list(grid.clean.layers), board.layer.value)
        self.draw()

    def _load(self, run: Run, attack: str) -> Grid:
        def report(done: int, total: int, eps: float) -> None:
            place = f"{attack} at eps {eps:.3g}, {done + 1} of {total}"
            self.board.status.share = done / total
            self.board.status.doing = f"{place}: computed once, then kept beside the run."

        key = (str(run.path), attack)
        if key not in self._grids:
            options: dict[str, Any] = {"n": self.examples, "seed": self.seed, "report": report}
            self._grids[key] = make_grid(run, self.dataset, attack, **options)
        return self._grids[key]

    def _places(self) -> list[Place]:
        """What the maps show: the chosen layer, and in a network that has none of that name the last one before the logits."""
        layer = self.board.layer.value
        return [(grid, layer if layer in grid.clean.layers else "features") for grid in self._shown]

    def draw(self) -> None:
        """Shows what is chosen; asks no model. Only a map is computed, when it is wanted for the first time."""
        board, names, keep, places = self.board, self.dataset.class_names, self._kept(), self._places()
        step, image, key = board.eps.value, board.image.value, self._key()
        wanted, maps = board.view.value == "UMAP", self._maps
        if ("PCA", key) not in maps:
            maps["PCA", key] = pca_projection(places)
        shown = maps.get((board.view.value, key), maps["PCA", key])
        failure = [self._failed[key]] if wanted and key in self._failed else []
        at = Choice(image, step, self.k, board.of_class)
        for side, (grid, layer), projection in zip(board.sides, places, shown, strict=True):
            side.map.draw(projection, grid, step, image, keep.numpy())
            side.fill(at, grid, layer, keep, [projection.note, *failure])
        called = [names[int(grid.steps[step].predictions[image])] for grid, _ in places]
        label, eps = names[int(self.split.labels[image])], self.grid.radii[step]
        board.status.said = f"Image {image}, class {label}, is called {' and '.join(called)} at eps {eps:.3g}."
        if wanted and not (("UMAP", key) in maps or key in self._making or key in self._failed):
            self._making.add(key)
            making = self._make_umap(key, places)
            try:
                self._task = asyncio.get_running_loop().create_task(making)
            except RuntimeError:  # no loop, as in a script
                asyncio.run(making)

    def save(self) -> None:
        """Leaves a picture of what is shown in the notebook, for whoever opens it without a kernel."""
        points, step = self._maps["PCA", self._key()][0].points, self.board.eps.value
        shown = f"{self.grid.run.name}: clean images (dots) and the same under {self.grid.attack} at eps {self.grid.radii[step]:.3g}."
        show_snapshot(
            points[[0, step]], self.split.labels, self.dataset.class_names, f"{shown} {self.board.status.said}"
        )

    def _key(self) -> Key:
        return tuple(str(grid.run.path) for grid in self._shown), self.grid.attack, self.board.layer.value

    async def _make_umap(self, key: Key, places: Sequence[Place]) -> None:
        """Computes a UMAP in a thread while the explorer stays usable, then shows it if it is still wanted."""
        began, status = time.monotonic(), self.board.status
        future = asyncio.get_running_loop().run_in_executor(None, umap_projection, places, self.seed)
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
