"""What there is of a study, and what stands beside a run: finished runs by variant and seed, as ablations and sweeps read them.

What the runs of an AToP ablation say together, and what one of them says of its randomness, as tables for figures.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib.evaluation import leaderboard
from robustlib.methods import make_method, preset_dataset
from robustlib.runs import Run, changes_text, find_runs
from robustlib.workbook.claims import variant_of
from robustlib.workbook.experiments.studies import (
    PANELS,
    Study,
    first_seed,
    read_study,
    readable,
    title_of,
    variant_name,
)

if TYPE_CHECKING:
    import pandas as pd


PASSES = "attack passes"
ALIKE = ("preset", "dataset", "arch", "threat")  # what runs beside each other share


@dataclass(frozen=True)
class StudyRuns:
    """A study's runs that are evaluated alike, in the order of its variants and seeds, and a sentence on what is missing."""

    study: Study
    runs: Sequence[Run]
    summary: str


def study_runs(name: str, root: Path | str, dataset: str = "") -> StudyRuns:
    """The evaluated runs below `root` that a study asks for, of one data set, judged alike.

    Runs are judged alike that share threat and number of images: those of the study's number if there are any, else those of
    the most common one. Models that answer at random count with them if their budget allowed no more images. Of several of
    a variant and seed a fresh one counts before a stale one.

    Args:
        name: of a study that comes with robustlib, or its file.
        root: directory of all runs, or of committed reference results.
        dataset: that of the page which shows them, "" for that of the study's preset. If it is another one, and the study was
            not asked for it, there are no runs, and the words say why.

    Raises:
        InputError: no such study.
    """
    study = read_study(name)
    variants = list(dict.fromkeys(variant_name(variant, study.preset) for variant in study.variants))
    wanted = [(variant, seed) for variant in variants for seed in study.seeds]
    usual = preset_dataset(study.preset)
    mine = [run for run in find_runs(root, preset=study.preset, dataset=dataset or usual) if readable(run)]
    mine = [run for run in mine if (variant_of(run), run.params()["seed"]) in wanted]
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
        found.setdefault((variant_of(run), run.params()["seed"]), run)
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


def same_setting(run: Run, root: Path | str, methods: Sequence[str], vary: Sequence[str] = ()) -> list[Run]:
    """The run, and the finished ones of `methods` without changes from the same preset: one data set, architecture and threat.

    Args:
        run: trained.
        root: directory of all runs.
        methods: names.
        vary: hyper-parameters in which the others may differ from the preset.
    """
    others = [other for method in methods for other in find_runs(root, dataset=run.params()["dataset"], method=method)]
    fit = [other for other in _fitting(run, others) if set(other.changes()) <= set(vary)]
    return [run, *(other for other in fit if other.path.resolve() != run.path.resolve())]


def comparable_runs(run: Run, others: Iterable[Run]) -> dict[str, Run]:
    """By title the run itself, then one run of each other variant with its data set, architecture and threat; the same seed first."""
    fit = [other for other in _fitting(run, others) if variant_of(other) != variant_of(run)]
    same = [other for other in fit if other.params()["seed"] == run.params()["seed"]]
    seen = {variant_of(other) for other in same}
    chosen = [*same, *(other for other in fit if variant_of(other) not in seen)]
    return {**first_seed([run]), **first_seed(chosen, PANELS - 1)}


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
        found[method.name, run.changed] = method.attack_passes
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
        changed = list(run.changes())
        numbers = {"seed": facts["seed"], "clean": board["clean"], "robust": board["worst"]}
        if len(changed) <= 1 and set(changed) <= set(parameters):
            values = facts["hyperparameters"]
            rows += [
                {"method": facts["title"], "parameter": name, "value": float(values[name]), **numbers}
                for name in changed or parameters
            ]
    return pd.DataFrame(rows, columns=["method", "parameter", "value", "seed", "clean", "robust"])


PURIFIERS = {"none": "no purifier", "gan": "GAN", "mae": "autoencoder"}  # in the order of the table
TRANSFORMS = {"none": "no transform", "rt1": "RT1", "rt2": "RT2", "rt3": "RT3"}
OWN = ("purifier", "transform", "fine_tune")  # hyper-parameters that have a column of their own
WEAK = ("pgd20@classifier",)  # knows the bare classifier alone; its success is judged by the whole model
STRONG = ("pgd_eot", "pgd50x10")  # through the whole model; the second where nothing is random
ATTACKS = {"clean": ("clean",), "weak": WEAK, "strong": STRONG, "worst": ("worst",)}
WAYS = {"expected": "mean over fresh draws", "single": "a single draw"}


def purifier_grid(runs: Iterable[Run]) -> "pd.DataFrame":
    """Accuracies of purifiers by transform, with and without fine-tuning, under a weak attack and a strong one; means over seeds.

    Args:
        runs: of the method `atop`, evaluated alike; others are left out, and so are those without one of the attacks.

    Returns:
        Columns row (what people call the variant), purifier, transform, changed (all else that differs from the preset), fine_tuned,
        seeds, n, clean, weak (PGD-20 on the bare classifier), strong (PGD+EOT through the whole model; PGD-50 with 10 restarts
        where nothing is random), worst (the headline); with 95 % intervals as "weak_low", "weak_high", ...: of the images for one
        seed, over seeds (t) for more.
    """
    import pandas as pd

    every = [row for run in runs if (row := _row(run))]
    kinds = ["row", "purifier", "transform", "changed", "fine_tuned", "n"]
    if not every:
        return pd.DataFrame(columns=[*kinds, "seeds", *ATTACKS])
    groups = pd.DataFrame(every).groupby(kinds, sort=False)
    rows = [dict(zip(kinds, key, strict=True)) | _over_seeds(part) for key, part in groups]
    found = pd.DataFrame(rows)
    places = {name: place for names in (PURIFIERS, TRANSFORMS) for place, name in enumerate(names.values())}
    order = found[["purifier", "changed", "transform", "fine_tuned"]].replace(places)
    return found.loc[order.sort_values(order.columns.tolist()).index].reset_index(drop=True)


def _row(run: Run) -> dict[str, Any]:
    """One run's accuracies; {} for another method, or where an attack is missing."""
    facts = run.params()
    if facts["method"] != "atop":
        return {}
    found = {row["attack"]: row for row in run.results().get("rows", [])}
    picked = {kind: found[name] for kind, names in ATTACKS.items() for name in names if name in found}
    if len(picked) < len(ATTACKS):
        return {}
    values = facts["hyperparameters"]
    other = changes_text({name: value for name, value in run.changes().items() if name not in OWN})
    names = {"purifier": PURIFIERS[values["purifier"]], "transform": TRANSFORMS[values["transform"]]}
    tuned = bool(values["fine_tune"])
    called = ", ".join(filter(None, (*names.values(), "fine-tuned" if tuned else "", other)))
    row: dict[str, Any] = {"row": called, **names, "changed": other, "fine_tuned": tuned, "n": run.results()["n"]}
    for kind, attack in picked.items():
        row |= {kind: attack["accuracy"], **{f"{kind}_{end}": attack[end] for end in ("low", "high")}}
    return row


def _over_seeds(part: "pd.DataFrame") -> dict[str, Any]:
    """Means of the runs of one variant, with their intervals."""
    from scipy.stats import t

    count = len(part)
    row: dict[str, Any] = {"seeds": count}
    for kind in ATTACKS:
        row[kind], ends = part[kind].mean(), part[[f"{kind}_low", f"{kind}_high"]].iloc[0].tolist()
        if count > 1:
            half = t.ppf(0.975, count - 1) * part[kind].std() / count**0.5
            ends = [max(row[kind] - half, 0.0), min(row[kind] + half, 1.0)]
        row[f"{kind}_low"], row[f"{kind}_high"] = ends
    return row


def attack_table(grid: "pd.DataFrame") -> "pd.DataFrame":
    """The weak and the strong attack of a `purifier_grid`, a row each: row, series, accuracy, low, high; for
    `robustlib.figures.accuracy_dots`. Where rows differ in their images, those with more than the fewest say so."""
    import pandas as pd

    grid = grid.assign(
        row=grid["row"].where(grid["n"] == grid["n"].min(), grid["row"] + "\n(" + grid["n"].astype(str) + " images)")
    )
    series = {"weak": "weak: gradients of the bare classifier", "strong": "strong: gradients of the whole model"}
    rows = [
        {"row": row["row"], "series": words, "accuracy": row[kind]}
        | {end: row[f"{kind}_{end}"] for end in ("low", "high")}
        for row in grid.to_dict("records")
        for kind, words in series.items()
    ]
    return pd.DataFrame(rows, columns=["row", "series", "accuracy", "low", "high"])


def randomness_table(found: Mapping[str, Any]) -> "pd.DataFrame":
    """A randomised model asked in every way, clean and attacked: row, series, accuracy, low, high; for
    `robustlib.figures.accuracy_dots`.

    Args:
        found: of `robustlib.evaluation.measure_randomness`; not empty.
    """
    import pandas as pd

    ways = {**WAYS, "worst": f"worst of {found['draws']} draws"}
    asked = {name: (found["clean"][kind], found["attacked"][kind]) for kind, name in ways.items()}
    for fixed in found["fixed"]:
        asked[f"draw fixed by seed {fixed['seed']},\nknown to the attacker"] = (fixed["clean"], fixed["attacked"])
    rows = [
        {"row": row, "series": side, **{name: numbers[name] for name in ("accuracy", "low", "high")}}
        for row, pair in asked.items()
        for side, numbers in zip(("clean", "attacked"), pair, strict=True)
    ]
    return pd.DataFrame(rows)
