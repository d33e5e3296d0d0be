"""The one training loop: methods describe stages, `fit` runs them, resumes them and records them."""

from robustlib.training.fit import fit
from robustlib.training.schedules import SCHEDULES, Schedule, constant, cosine, one_cycle, piecewise, step
from robustlib.training.stage import At, Loss, Optim, Pass, Stage, Updates

__all__ = [
    "SCHEDULES",
    "At",
    "Loss",
    "Optim",
    "Pass",
    "Schedule",
    "Stage",
    "Updates",
    "constant",
    "cosine",
    "fit",
    "one_cycle",
    "piecewise",
    "step",
]
