"""What all engines are told: how many tasks at a time, how long, where, with which GPUs."""

from dataclasses import dataclass
from typing import Annotated

from robustlib.errors import InputError, NonNegative, typed
from robustlib.workbook.engines.process import check_timeout

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}  # of a task that shall see no GPU


@dataclass(frozen=True)
class Settings:
    """How a batch runs; see `robustlib run --help`."""

    jobs: int = 1
    timeout: float | None = None  # seconds
    gpus_per_task: float | None = None  # a share below 1, or a whole number; None leaves it to the engine
    address: str = ""  # of a Ray cluster
    slurm: tuple[str, ...] = ()  # options of sbatch, "name=value"

    def __post_init__(self) -> None:
        typed(self.jobs, Annotated[int, "[1, 1000]", "trainings side by side"], "jobs")
        check_timeout(self.timeout)
        gpus = typed(self.gpus_per_task, NonNegative | None, "gpus_per_task")
        if gpus and gpus > 1 and gpus != int(gpus):
            raise InputError(f"gpus_per_task={gpus:g}: give a share of at most 1, or a whole number.")
