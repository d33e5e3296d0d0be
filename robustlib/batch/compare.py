"""What a comparison of finished runs asks: which are set side by side, under which names, and what claims they answer."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import robustlib
from robustlib.batch.study import Study, read_study, studies
from robustlib.claims import Finding, arm_of, judge
from robustlib.runs import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd

PANELS = 9  # maps beside each other that a reader can still compare
REFERENCE = Path(robustlib.__file__).parent.parent / "reports" / "reference"


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
    """By title, the run of the lowest seed of each arm (method, its changes, architecture); at most `most` arms."""
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.params()["seed"]):
        chosen.setdefault((arm_of(run), run.params()["arch"]), run)
    several = len({arch for _, arch in chosen}) > 1
    named = {}
    for (_, arch), run in chosen.items():
        parts = (run.params()["title"], run.params().get("changed"), arch if several else "")
        named[" · ".join(filter(None, parts))] = run
    return dict(sorted(named.items())[:most])


def preset_study(preset: str) -> Study | None:
    """The study of claims that comes with robustlib for this preset; None if there is none."""
    asked = (read_study(name) for name in studies())
    return next((study for study in asked if study.preset == preset and study.claims), None)


def verdicts(study: Study, runs: Sequence[Run]) -> list[Finding]:
    """What runs say of a study's claims, counting only runs that the study asks for."""
    return judge(study.claims, [run for run in runs if run.params().get("preset") == study.preset], study.seeds)


def reference_verdicts(study: Study) -> list[Finding]:
    """What the committed reference results of this checkout say of a study's claims; [] without any."""
    runs = find_runs(REFERENCE, dataset=study.preset)  # exported to reports/reference/<preset>/<method>/
    return verdicts(study, runs) if runs else []
