"""From executed notebooks to pages, comparisons and the index."""

from collections.abc import Sequence
from pathlib import Path

from robustlib.batch.plan import Options, notebook, page
from robustlib.runs import find_runs
from robustlib.task import Status, Task


def publish(options: Options, presets: Sequence[str], *, afresh: bool = False) -> tuple[Path, list[str]]:
    """Renders pages, compares each preset's runs and writes the index.

    Args:
        options: of which `runs` and `reports` are used.
        presets: whose comparisons are made anew.
        afresh: render pages again that are newer than their notebook.

    Returns:
        The index, and a sentence for each comparison that failed.
    """
    from robustlib.evaluation import leaderboard
    from robustlib.methods import load_preset, preset_names
    from robustlib.report import write_index

    runs, pages = find_runs(options.runs), {}
    for run in runs:
        executed = page(run, options.reports, run.params().get("preset", ""))
        if _done(executed):
            pages[str(run.path)] = _render(executed, run.name, afresh).relative_to(options.reports).as_posix()
    comparisons, problems = [], []
    for preset in preset_names():
        title, executed = f"Comparison: {load_preset(preset)['title']}", options.reports / preset / "compare.ipynb"
        if preset in presets and (status := _compare(preset, options))["state"] != "done":
            problems.append(f"compare.ipynb of {preset}: {status['reason']}")
        if _done(executed):
            comparisons.append((title, _render(executed, title, afresh).relative_to(options.reports).as_posix()))
    return write_index(options.reports, leaderboard(runs), pages, compare=comparisons), problems


def _done(executed: Path) -> bool:
    return executed.exists() and Task(executed, {}, executed).status().get("state") == "done"


def _compare(preset: str, options: Options) -> Status:
    from robustlib.workbook import execute

    parameters = {"preset": preset, "runs": str(options.runs)}
    return execute(Task(notebook("compare"), parameters, options.reports / preset / "compare.ipynb"))


def _render(executed: Path, title: str, afresh: bool) -> Path:
    from robustlib.report import render

    html = executed.with_suffix(".html")
    if afresh or not html.exists() or html.stat().st_mtime < executed.stat().st_mtime:
        render(executed, html, title=title, index="../index.html")
    return html
