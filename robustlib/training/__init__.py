"""The one training loop: methods describe stages, `fit` runs them, resumes them and records them."""

from robustlib.training.fit import fit
from robustlib.training.stages import (
    SCHEDULES,
    Loss,
    OptimizerSpec,
    Pass,
    Schedule,
    Stage,
    StepContext,
    Updates,
    constant,
    cosine,
    one_cycle,
    piecewise,
    step,
    warm_up_cosine,
)
