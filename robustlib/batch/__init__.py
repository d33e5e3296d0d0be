"""Many trainings as notebooks: what the commands `run`, `study` and `report` do."""

from robustlib.batch.arms import StudyRuns, alike, beside, metrics_of, study_runs, sweep_table, with_passes
from robustlib.batch.compare import (
    REFERENCE,
    Comparison,
    claim_studies,
    compare_runs,
    curves,
    one_each,
    preset_study,
    reference_verdicts,
    verdicts,
)
from robustlib.batch.plan import Job, Options, notebook, page, plan, preset_methods
from robustlib.batch.publish import publish
from robustlib.batch.purified import draws_apart, purifier_grid, weak_and_strong
from robustlib.batch.spectral import arm_distances, belongs, spectral_family, strength_grid, whole_training
from robustlib.batch.study import Study, parse_seeds, read_study, studies
from robustlib.batch.unseen import measure_claimed

__all__ = [
    "REFERENCE",
    "Comparison",
    "Job",
    "Options",
    "Study",
    "StudyRuns",
    "alike",
    "arm_distances",
    "belongs",
    "beside",
    "claim_studies",
    "compare_runs",
    "curves",
    "draws_apart",
    "measure_claimed",
    "metrics_of",
    "notebook",
    "one_each",
    "page",
    "parse_seeds",
    "plan",
    "preset_methods",
    "preset_study",
    "publish",
    "purifier_grid",
    "read_study",
    "reference_verdicts",
    "spectral_family",
    "strength_grid",
    "studies",
    "study_runs",
    "sweep_table",
    "verdicts",
    "weak_and_strong",
    "whole_training",
    "with_passes",
]
