"""What there is of a study, and what stands beside a run: finished runs by arm and seed, as ablations and sweeps read them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustlib.batch.compare import PANELS, one_each, readable, title_of
from robustlib.batch.study import Study, arm_name, read_study
from robustlib.claims import arm_of
from robustlib.evaluation import leaderboard
from robustlib.methods import make_method, preset_dataset
from robustlib.runs import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd

PASSES = "attack passes"
ALIKE = ("preset", "dataset", "arch", "threat")  # what runs beside each other share


@dataclass(frozen=True)
class StudyRuns:
    """A study's runs that are evaluated alike, in the order of its arms and seeds, and a sentence on what is missing."""

    study: Study
    runs: Sequence[Run]
    words: str


def study_runs(name: str, root: Path | str, dataset: str = "") -> StudyRuns:
    """The evaluated runs below `root` that a study asks for, of one data set, judged alike.

    Runs are judged alike that share threat and number of images: those of the study's number if there are any, else those of
    the most common one. Models that answer at random count with them if their budget allowed no more images. Of several of
    an arm and seed a fresh one counts before a stale one.

    Args:
        name: of a study that comes with robustlib, or its file.
        root: directory of all runs, or of committed reference results.
        dataset: that of the page which shows them, "" for that of the study's preset. If it is another one, and the study was
            not asked for it, there are no runs, and the words say why.

    Raises:
        InputError: no such study.
    """
    study = read_study(name)
    arms = list(dict.fromkeys(arm_name(arm, study.preset) for arm in study.arms))
    wanted = [(arm, seed) for arm in arms for seed in study.seeds]
    usual = preset_dataset(study.preset)
    mine = [run for run in find_runs(root, preset=study.preset, dataset=dataset or usual) if readable(run)]
    mine = [run for run in mine if (arm_of(run), run.params()["seed"]) in wanted]
    if not mine and dataset not in ("", usual):
        words = (
            f"The runs of the study **{name}** are of {usual}, not of this page's data set, {dataset}: none stand here."
        )
        return StudyRuns(study, [], words)
    kinds = Counter(_judged(run) for run in mine if not _capped(run)) or Counter(map(_judged, mine))
    kind = max(kinds, key=lambda kind: (kind[1] == study.examples, kinds[kind]), default=("", 0))
    counted = [run for run in mine if _judged(run) == kind or (_capped(run) and run.results()["threat"] == kind[0])]
    found: dict[tuple[str, int], Run] = {}
    for run in sorted(counted, key=lambda run: run.stale):
        found.setdefault((arm_of(run), run.params()["seed"]), run)
    there = [found[key] for key in wanted if key in found]
    judged = f", judged under {kind[0]} on {kind[1]} images" if mine else ""
    if fewer := {run.results()["n"] for run in there if _judged(run) != kind}:
        judged += f" (those that answer at random on {min(fewer)})"
    words = f"{len(there)} of the {len(wanted)} runs of the study **{name}** (preset {study.preset}) are here{judged}."
    if len(there) < len(wanted):
        words += (
            f" `robustlib study {name}` makes the others. A row of fewer than {len(study.seeds)} seeds is an anecdote."
        )
    if others := len(mine) - len(counted):
        words += f" Left out: {others} that were judged otherwise."
    return StudyRuns(study, there, words)


def _judged(run: Run) -> tuple[str, int]:
    return run.results()["threat"], run.results()["n"]


def _capped(run: Run) -> bool:
    """Whether a model that answers at random met all the images that its budget allows."""
    results = run.results()
    return bool(results.get("budget", {}).get("images", 0) == results["n"])


def alike(run: Run, root: Path | str, methods: Sequence[str], vary: Sequence[str] = ()) -> list[Run]:
    """The run, and the finished ones of `methods` without changes from the same preset: one data set, architecture and threat.

    Args:
        run: trained.
        root: directory of all runs.
        methods: names.
        vary: hyper-parameters in which the others may differ from the preset.
    """
    others = [other for method in methods for other in find_runs(root, dataset=run.params()["dataset"], method=method)]
    fit = [other for other in _fitting(run, others) if set(changed_fields(other)) <= set(vary)]
    return [run, *(other for other in fit if other.path.resolve() != run.path.resolve())]


def changed_fields(run: Run) -> list[str]:
    """The hyper-parameters in which a run differs from its preset."""
    return [part.partition("=")[0] for part in str(run.params().get("changed") or "").split(", ") if part]


def beside(run: Run, others: Iterable[Run]) -> dict[str, Run]:
    """By title the run itself, then one run of each other arm with its data set, architecture and threat; the same seed first."""
    fit = [other for other in _fitting(run, others) if arm_of(other) != arm_of(run)]
    same = [other for other in fit if other.params()["seed"] == run.params()["seed"]]
    seen = {arm_of(other) for other in same}
    chosen = [*same, *(other for other in fit if arm_of(other) not in seen)]
    return {**one_each([run]), **one_each(chosen, PANELS - 1)}


def _fitting(run: Run, others: Iterable[Run]) -> list[Run]:
    mine = run.params()
    return [other for other in others if all(other.params().get(name) == mine.get(name) for name in ALIKE)]


def metrics_of(runs: Iterable[Run], stage: str = "") -> "dict[str, list[pd.DataFrame]]":
    """By method and what was changed from its preset, the metrics over epochs of each run (a seed each).

    Args:
        runs: trained, each counted once.
        stage: keep the epochs of this stage alone and leave out runs without it; "" keeps all.
    """
    found: dict[str, list[pd.DataFrame]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        rows = run.metrics()
        rows = rows[rows["stage"] == stage] if stage else rows
        if len(rows) or not stage:
            found.setdefault(title_of(run), []).append(rows)
    return found


def with_passes(table: "pd.DataFrame", runs: Iterable[Run]) -> "pd.DataFrame":
    """A leaderboard or its means over seeds with a column "attack passes": `Method.attack_passes` of the trainings.

    Args:
        table: of `leaderboard(runs)` or `aggregate` of that.
        runs: of one preset.
    """
    found = {}
    for run in runs:
        values = dict(run.params()["hyperparameters"])
        method = make_method(run.params()["method"], values.pop("preset") or None, **values)
        found[method.name, run.params().get("changed")] = method.attack_passes
    return table.assign(**{PASSES: [found[key] for key in zip(table["method"], table["changed"], strict=True)]})


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
        changed = changed_fields(run)
        numbers = {"seed": facts["seed"], "clean": board["clean"], "robust": board["worst"]}
        if len(changed) <= 1 and set(changed) <= set(parameters):
            values = facts["hyperparameters"]
            rows += [
                {"method": facts["title"], "parameter": name, "value": float(values[name]), **numbers}
                for name in changed or parameters
            ]
    return pd.DataFrame(rows, columns=["method", "parameter", "value", "seed", "clean", "robust"])
