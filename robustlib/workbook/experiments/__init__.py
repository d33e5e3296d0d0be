"""Many trainings as notebooks: what the commands `run`, `study` and `report` do."""

from robustlib.workbook.experiments.benchmarks import Benchmark
from robustlib.workbook.experiments.jobs import (
    Job,
    Options,
    compare_paths,
    measure_claimed,
    notebook,
    page,
    plan,
    publish,
)
from robustlib.workbook.experiments.results import (
    attack_table,
    checkpoints,
    concat_stages,
    curves,
    metrics_of,
    on_same_images,
    purifier_grid,
    randomness_table,
    spectral_family,
    strength_grid,
    sweep_table,
    variant_distances,
    with_passes,
)
from robustlib.workbook.experiments.studies import (
    REFERENCE,
    Study,
    claim_findings,
    claim_studies,
    comparable_runs,
    compare_runs,
    findings_by_preset,
    first_seed,
    in_grid,
    named_runs,
    parse_seeds,
    preset_methods,
    preset_study,
    read_study,
    reference_findings,
    same_setting,
    study_names,
    study_runs,
    variant_name,
)
