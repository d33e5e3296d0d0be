"""Many trainings as notebooks: what the commands `run`, `study` and `report` do."""

from robustlib.workbook.experiments.plan import Job, Options, notebook, page, plan, preset_methods
from robustlib.workbook.experiments.publish import measure_claimed, publish
from robustlib.workbook.experiments.spectral import (
    arm_distances,
    belongs,
    spectral_family,
    strength_grid,
    whole_training,
)
from robustlib.workbook.experiments.studies import (
    REFERENCE,
    Comparison,
    Study,
    claim_studies,
    compare_runs,
    curves,
    one_each,
    parse_seeds,
    preset_study,
    read_study,
    reference_verdicts,
    study_names,
    verdicts,
)
from robustlib.workbook.experiments.variants import (
    StudyRuns,
    alike,
    beside,
    draws_apart,
    metrics_of,
    purifier_grid,
    study_runs,
    sweep_table,
    weak_and_strong,
    with_passes,
)
