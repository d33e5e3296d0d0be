"""Many trainings as notebooks: what the commands `run`, `study` and `report` do."""

from robustlib.batch.plan import Job, Options, notebook, page, plan, preset_methods
from robustlib.batch.publish import publish
from robustlib.batch.study import Study, parse_seeds, read_study, studies

__all__ = [
    "Job",
    "Options",
    "Study",
    "notebook",
    "page",
    "parse_seeds",
    "plan",
    "preset_methods",
    "publish",
    "read_study",
    "studies",
]
