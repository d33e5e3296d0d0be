"""What there is of a study: its runs by arm and seed, as one reads an ablation or a sweep."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustlib.batch.compare import readable
from robustlib.batch.study import Study, arm_name, read_study
from robustlib.claims import arm_of
from robustlib.evaluation import leaderboard
from robustlib.runs import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StudyRuns:
    """A study's runs that are evaluated, in the order of its arms and seeds, and a sentence on what is missing."""

    study: Study
    runs: Sequence[Run]
    words: str


def study_runs(name: str, root: Path | str) -> StudyRuns:
    """The evaluated runs below `root` that a study asks for; of several of an arm and seed, the first.

    Args:
        name: of a study that comes with robustlib, or its file.
        root: directory of all runs, or of committed reference results.

    Raises:
        InputError: no such study.
    """
    study = read_study(name)
    arms = list(dict.fromkeys(arm_name(arm, study.preset) for arm in study.arms))
    wanted = [(arm, seed) for arm in arms for seed in study.seeds]
    found: dict[tuple[str, int], Run] = {}
    for run in find_runs(root, preset=study.preset):
        if readable(run):
            found.setdefault((arm_of(run), run.params()["seed"]), run)
    there = [found[key] for key in wanted if key in found]
    words = f"{len(there)} of the {len(wanted)} runs of the study **{name}** are here."
    if len(there) < len(wanted):
        words += (
            f" `robustlib study {name}` makes the others. A row of fewer than {len(study.seeds)} seeds is an anecdote."
        )
    return StudyRuns(study, there, words)


def metrics_of(runs: Iterable[Run]) -> "dict[str, list[pd.DataFrame]]":
    """By method and what was changed from its preset, the metrics over epochs of each run (a seed each)."""
    found: dict[str, list[pd.DataFrame]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        facts = run.params()
        title = " · ".join(filter(None, (facts["title"], facts.get("changed"))))
        found.setdefault(title, []).append(run.metrics())
    return found


def sweep_table(runs: Iterable[Run], parameters: Sequence[str]) -> "pd.DataFrame":
    """Accuracies of runs against the hyper-parameters in which they differ, for `robustlib.figures.sweep`.

    Args:
        runs: evaluated; those that differ from their preset in more than one hyper-parameter are left out.
        parameters: the hyper-parameters that are swept; an unchanged run is a point of each.

    Returns:
        Columns method (its title), parameter, value, seed, clean, robust (worst case); accuracies in [0, 1].
    """
    import pandas as pd

    rows = []
    for run in runs:
        facts, (board,) = run.params(), leaderboard([run]).to_dict("records")
        changed = [part.partition("=")[0] for part in str(facts.get("changed") or "").split(", ") if part]
        numbers = {"seed": facts["seed"], "clean": board["clean"], "robust": board["worst"]}
        if len(changed) <= 1 and set(changed) <= set(parameters):
            values = facts["hyperparameters"]
            rows += [
                {"method": facts["title"], "parameter": name, "value": float(values[name]), **numbers}
                for name in changed or parameters
            ]
    return pd.DataFrame(rows, columns=["method", "parameter", "value", "seed", "clean", "robust"])
