"""What a comparison of finished runs asks: which are set side by side, under which names, and what claims they answer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import robustlib
from robustlib.batch.study import Study, read_study, studies
from robustlib.claims import Finding, arm_of, judge
from robustlib.errors import InputError
from robustlib.methods import preset_dataset
from robustlib.runs import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd

PANELS = 9  # maps beside each other that a reader can still compare
REFERENCE = Path(robustlib.__file__).parent.parent / "reports" / "reference"


@dataclass(frozen=True)
class Comparison:
    """The runs of a preset that can be set side by side: of one data set, judged under one threat.

    Attributes:
        dataset, threat: of all that is compared; threat as in "Linf 0.2", "" where nothing was judged yet.
        every: all runs of the preset on the data set, also those that are not finished.
        shown: those that are finished and evaluated under the threat.
        words: a sentence for the reader: how many there are, and which are left out.
    """

    dataset: str
    threat: str
    every: Sequence[Run]
    shown: Sequence[Run]
    words: str

    @property
    def usable(self) -> list[Run]:
        """The shown runs whose weights are there, so that one can look into their feature spaces."""
        return [run for run in self.shown if _has_weights(run)]


def compare_runs(root: Path | str, preset: str, dataset: str = "", threat: str = "") -> Comparison:
    """Chooses the runs below `root` that can be compared.

    Args:
        root: directory of all runs.
        preset: whose runs.
        dataset: of the runs; "" = the preset's own.
        threat: under which they were judged; "" = that of most of them.
    """
    name, runs = dataset or preset_dataset(preset), find_runs(root, preset=preset, finished=False)
    every = [run for run in runs if run.params()["dataset"] == name]
    judged = {run.path: run.results()["threat"] for run in every if readable(run)}
    threat = threat or next((usual for usual, _ in Counter(judged.values()).most_common(1)), "")
    shown = [run for run in every if judged.get(run.path) == threat]
    words = f"{len(shown)} runs on {name}, judged under {threat}."
    if not shown:
        words = f"No finished runs of preset **{preset}** on {name} in `{root}` yet. Make them with `robustlib run --preset {preset}`."
    other_data = sorted({run.params()["dataset"] for run in runs} - {name})
    other_threats = sorted(set(judged.values()) - {threat})
    for which, others in (("dataset", other_data), ("threat", other_threats)):
        if others:
            words += f" Runs {'on' if which == 'dataset' else 'judged under'} {', '.join(others)} are left out: set `{which}`."
    return Comparison(name, threat, every, shown, words)


def readable(run: Run) -> bool:
    """Whether a run is finished and evaluated, and none of the files that a comparison reads is damaged."""
    try:
        return run.finished and bool(run.results()) and run.audit() is not None and run.metrics() is not None
    except (InputError, ValueError):
        return False


def _has_weights(run: Run) -> bool:
    try:
        run.model()
    except InputError:
        return False
    return True


def curves(runs: Sequence[Run], which: str = "curve") -> "pd.DataFrame":
    """The robustness curves of evaluated runs in one table, for `robustlib.figures.robustness_over_seeds`.

    Args:
        runs: evaluated ones.
        which: "curve" (over eps) or "steps_curve".

    Returns:
        Columns method, title, changed (from the preset), seed and those of the curve; a row a run and point.
    """
    import pandas as pd

    tables = []
    for run in runs:
        facts = {name: run.params()[name] for name in ("method", "title", "changed", "seed")}
        tables.append(pd.DataFrame(run.results()[which]).assign(**facts))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def one_each(runs: Iterable[Run], most: int = PANELS) -> dict[str, Run]:
    """By title, the run of the lowest seed of each arm (method, its changes, architecture).

    Of more than `most` arms those without changes come first, and the others are left out.
    """
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.params()["seed"]):
        chosen.setdefault((arm_of(run), run.params()["arch"]), run)
    several = len({arch for _, arch in chosen}) > 1
    named = {}
    for (_, arch), run in sorted(chosen.items()):
        named[title_of(run, arch if several else "")] = run
    ordered = sorted(named, key=lambda title: bool(named[title].params().get("changed")))
    return {title: named[title] for title in ordered[:most]}


def title_of(run: Run, arch: str = "") -> str:
    """What people call an arm: the method's title, its changes from the preset and, where it matters, the architecture."""
    return " · ".join(filter(None, (run.params()["title"], run.params().get("changed"), arch)))


def preset_study(preset: str) -> Study | None:
    """The study of claims that comes with robustlib for this preset, the first of several; None if there is none."""
    return next(iter(claim_studies(preset)), None)


def claim_studies(preset: str) -> list[Study]:
    """The studies of a preset that come with robustlib and have claims, by name."""
    return [study for study in map(read_study, studies()) if study.preset == preset and study.claims]


def verdicts(study: Study, runs: Sequence[Run]) -> list[Finding]:
    """What runs say of a study's claims, counting only runs that the study asks for."""
    return judge(study.claims, [run for run in runs if run.params().get("preset") == study.preset], study.seeds)


def reference_verdicts(study: Study) -> list[Finding]:
    """What the committed reference results of this checkout say of a study's claims; [] without any."""
    runs = find_runs(REFERENCE, dataset=study.preset)  # exported to reports/reference/<preset>/<method>/
    return verdicts(study, runs) if runs else []
