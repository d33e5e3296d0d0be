"""Experiment trackers: an object of Lightning's `Logger` interface is told what a run's files hold, and can stop no training."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustlib.errors import InputError, check_known, shown
from robustlib.runs import Run

LOGGERS = ("tensorboard",)  # by name; others are objects
PLACES = ("epoch", "epoch_total")  # of a row of the metrics: where it stands
FINAL = ("clean_val", "robust_val")


def check_logger(logger: Any) -> Any:
    """The logger, a name of LOGGERS, or None for "" and None; raises InputError for anything else."""
    if logger is None or logger == "":
        return None
    if isinstance(logger, str):
        return check_known("logger", logger, LOGGERS)
    if not all(callable(getattr(logger, name, None)) for name in ("log_metrics", "log_hyperparams")):
        raise InputError(f"logger={shown(logger)} is no logger: give 'tensorboard' or one of Lightning's loggers.")
    return logger


@dataclass
class Tracker:
    """Tells a logger of one training; the first trouble with it is a warning, and the last word to it."""

    logger: Any = None  # as `check_logger` gives it
    run: Run | None = None
    rows: int = field(default=0, init=False)  # of the metrics that it knows

    def begin(self, params: Mapping[str, Any], known: int) -> None:
        """The parameters of a run, of which `known` rows were told in an earlier session."""
        self.rows = known
        if isinstance(self.logger, str) and self.run:
            try:
                from lightning_fabric.loggers import TensorBoardLogger

                self.logger = TensorBoardLogger(self.run.path, name="tensorboard", version="")
            except Exception as error:
                self._give_up(error)
        facts = {name: value for name, value in params.items() if name not in ("spec", "hyperparameters", "images")}
        self._tell("log_hyperparams", {**facts, **params.get("hyperparameters", {})})

    def epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows of metrics.jsonl that are new: their numbers, at the number of epochs done."""
        for row in rows[self.rows :]:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in PLACES}
            self._tell("log_metrics", numbers, row["epoch_total"])
        self.rows = len(rows)

    def end(self, rows: Sequence[Mapping[str, Any]], best: int, how: str = "success") -> None:
        """How it ended, and the validation accuracies of the epoch that is kept."""
        kept = [row for row in rows if row["stage"] == rows[-1]["stage"] and row["epoch"] == best]
        if final := {f"final/{name}": row[name] for row in kept for name in FINAL if best and name in row}:
            self._tell("log_metrics", final, rows[-1]["epoch_total"])
        self._tell("finalize", how)

    def _tell(self, name: str, *said: Any) -> None:
        if self.logger is None or (name == "finalize" and not hasattr(self.logger, name)):
            return
        try:
            getattr(self.logger, name)(*said)
        except Exception as error:  # a full disk, no network, whatever it is
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        kind, self.logger = type(self.logger).__name__ if not isinstance(self.logger, str) else self.logger, None
        said = f"The tracker ({kind}) failed and is told nothing more ({type(error).__name__}: {error})"
        warnings.warn(f"{said}. The training goes on; metrics.jsonl has everything.", UserWarning, stacklevel=4)
