"""What the explorer opens on: finished runs of one data set, or two small baselines where there are none."""

from pathlib import Path

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.explorer.session import Explorer
from robustlib.methods import make_method
from robustlib.runs import Run, find_runs
from robustlib.training import fit

SMALL = {"standard": 4, "pgd_at": 8}  # epochs of the two baselines: enough to tell them apart
DATASET = "digits"  # embedded, so that there is always something to look at


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
) -> Explorer:
    """Shows the explorer of all finished runs of one data set, in a notebook, and returns it.

    Args:
        runs: directory of the runs; features and maps are kept inside them.
        dataset: whose runs; "" = those of the only data set that there is.
        layer: looked at first; see `robustlib.representation.layers`.
        examples: test images, stratified, the same for all runs; 0 for all.
        neighbours: clean images shown as nearest to an adversarial one.
        seed: of the attacks and maps.
        train_missing: train two small baselines on digits if there are no runs (about half a minute on two cores).
        data_root: directory of data sets that are not embedded.

    Raises:
        InputError: no runs and none to be trained, runs of several data sets, no such layer, fewer images than neighbours.
    """
    from IPython.display import display

    found = finished_runs(runs, dataset)
    if not found and train_missing and dataset in ("", DATASET):
        found = small_baselines(runs)
    if not found:
        which = f" of {dataset}" if dataset else ""
        raise InputError(
            f"There are no finished runs{which} in {runs}: train some with `robustlib run`, give another directory, or let the "
            "explorer train two small ones on digits (train_missing)."
        )
    data = load_dataset(found[0].params()["dataset"], root=data_root)
    explorer = Explorer(data, found, layer=layer, examples=examples, neighbours=neighbours, seed=seed)
    display(explorer.widget)  # before anything is computed, so that its progress is seen
    explorer.load()
    return explorer


def finished_runs(root: Path | str, dataset: str = "") -> list[Run]:
    """The finished runs below `root` of one data set; none if there are none.

    Raises:
        InputError: they are of several data sets and `dataset` is "".
    """
    found = find_runs(root, dataset=dataset or None)
    names = sorted({str(run.params()["dataset"]) for run in found})
    if len(names) > 1:
        raise InputError(
            f"{root} holds runs of {' and '.join(names)}, which have no images in common: choose one, e.g. "
            f"dataset={names[0]!r}."
        )
    return found


def small_baselines(root: Path | str) -> list[Run]:
    """Standard training and PGD-AT on digits with a reduced budget, kept as ordinary runs below `root`."""
    print(
        f"There are no finished runs in {root}. Two small baselines are trained first, standard training and PGD adversarial "
        "training on digits: about half a minute on two cores. They are kept there as ordinary runs; their names say that "
        "they had fewer epochs than usual."
    )
    data = load_dataset(DATASET)
    made = [make_method(name, DATASET, epochs=epochs) for name, epochs in SMALL.items()]
    return [fit(method, data, root=root, threads=1) for method in made]  # more threads only wait for each other
