"""Many trainings as notebooks: what the commands `run`, `study` and `report` do."""

from robustlib.workbook.experiments.plan import Job, Options, notebook, page, plan, preset_methods
from robustlib.workbook.experiments.publish import measure_claimed, publish
from robustlib.workbook.experiments.spectral import (
    concat_stages,
    in_grid,
    spectral_family,
    strength_grid,
    variant_distances,
)
from robustlib.workbook.experiments.studies import (
    REFERENCE,
    Comparison,
    Study,
    claim_findings,
    claim_studies,
    compare_runs,
    curves,
    first_seed,
    parse_seeds,
    preset_study,
    read_study,
    reference_findings,
    study_names,
)
from robustlib.workbook.experiments.variants import (
    StudyRuns,
    attack_table,
    comparable_runs,
    metrics_of,
    purifier_grid,
    randomness_table,
    same_setting,
    study_runs,
    sweep_table,
    with_passes,
)
