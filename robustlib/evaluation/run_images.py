"""The images on which a finished run is judged."""

from robustlib.data import Dataset, Split
from robustlib.errors import InputError, unknown
from robustlib.runs import Run


def images_of(run: Run, dataset: Dataset, n: int | None, split: str = "test") -> Split:
    """The images on which a finished run is judged: all of the split "test" or "val", or a stratified choice of `n`.

    Raises:
        InputError: the run is not finished, or of another data set; an unknown split.
    """
    if split not in ("test", "val"):
        raise unknown("split", split, ("test", "val"))
    if not run.finished:
        raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first.")
    trained_on = run.params()["dataset"]
    if trained_on != dataset.name:
        raise InputError(f"{run.path} was trained on {trained_on!r}, not on {dataset.name!r}: load that data set.")
    chosen: Split = getattr(dataset, split)
    return chosen.sample(n or 0)
