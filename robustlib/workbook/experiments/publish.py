"""From executed notebooks to pages, comparisons, maps and the index; and what only the claims of a study need measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import incomplete, leaderboard, measure_unseen
from robustlib.methods import load_preset, preset_dataset, preset_names
from robustlib.representation import probe_attack
from robustlib.runs import Run, find_runs
from robustlib.threat import Threat
from robustlib.workbook.claims import Claim, variant_of
from robustlib.workbook.engines import execute
from robustlib.workbook.experiments.plan import Options, notebook, page
from robustlib.workbook.experiments.studies import compare_runs, first_seed, readable
from robustlib.workbook.task import Status, Task


def measure_claimed(claims: Sequence[Claim], runs: Iterable[Run], options: Options) -> list[str]:
    """Attacks evaluated runs of variants of which a claim names an accuracy under unseen attacks; what is stored is kept.

    Returns:
        A sentence for each run that could not be measured.
    """
    variants = {variant for claim in claims if claim.measure.startswith("unseen/") for variant in claim.variants}
    problems = []
    for run in runs:
        if run.finished and run.results() and variant_of(run) in variants:
            try:
                dataset = load_dataset(run.params()["dataset"], root=options.data_root or None)
                measure_unseen({run.name: run}, dataset, device=options.device)
            except InputError as error:
                problems.append(f"{run.name} has not met unseen attacks: {error}")
    return problems


def publish(options: Options, presets: Sequence[str], *, force: bool = False) -> tuple[Path, list[str]]:
    """Renders pages, compares each preset's runs, maps their feature spaces and writes the index.

    Args:
        options: of which `runs`, `reports` and `data_root` are used.
        presets: whose comparisons and maps are made anew.
        force: render pages again that are newer than their notebook.

    Returns:
        The index, and a sentence for each comparison or map that failed.
    """
    from robustlib.workbook.report import write_index

    runs, pages = find_runs(options.runs), {}
    for run in runs:
        executed = page(run, options.reports, run.params().get("preset", ""))
        if _done(executed):
            pages[str(run.path)] = _address(_render(executed, run.name, force), options)
    comparisons, views, problems = [], {}, []
    for preset in preset_names():
        title, executed = load_preset(preset)["title"], options.reports / preset / "compare.ipynb"
        problems += _compare(preset, options) if preset in presets else []
        if _done(executed):
            views[preset] = executed
            shown = _render(executed, f"Comparison: {title}", force)
            comparisons.append((f"Comparison: {title}", _address(shown, options)))
        if (atlas := executed.with_name("atlas.html")).exists():
            comparisons.append((f"Map: {title}", _address(atlas, options)))
    lacking, board = incomplete(find_runs(options.runs, finished=False)), leaderboard(filter(readable, runs))
    return write_index(options.reports, board, pages, compare=comparisons, incomplete=lacking, views=views), problems


def _done(executed: Path) -> bool:
    return executed.exists() and Task(executed, {}, executed).status().get("state") == "done"


def _address(page: Path, options: Options) -> str:
    return page.relative_to(options.reports).as_posix()


def _render(executed: Path, title: str, force: bool) -> Path:
    from robustlib.workbook.report import render

    html = executed.with_suffix(".html")
    if force or not html.exists() or html.stat().st_mtime < executed.stat().st_mtime:
        render(executed, html, title=title, index="../index.html")
    return html


def _compare(preset: str, options: Options) -> list[str]:
    """Executes the comparison of a preset and draws its map; a sentence for each that failed."""
    target, problems = options.reports / preset / "compare.ipynb", []
    target.with_name("atlas.html").unlink(missing_ok=True)  # an old map beside a new comparison would be believed
    parameters = {"preset": preset, "runs": str(options.runs), "data_root": options.data_root}
    try:
        load_dataset(preset_dataset(preset), root=options.data_root or None)
    except InputError as error:  # accuracies are compared all the same
        problems.append(f"The feature spaces of {preset} are not shown. {error}")
    status: Status = execute(Task(notebook("compare"), {**parameters, "look_inside": not problems}, target))
    if status["state"] != "done":
        return [*problems, f"compare.ipynb of {preset}: {status['reason']}"]
    try:
        if not problems:
            _map(preset, options)
    except Exception as error:  # whatever it is, the other pages are wanted
        problems.append(f"There is no map of {preset}. {type(error).__name__}: {error}")
    return problems


def _map(preset: str, options: Options) -> None:
    """The interactive map of a preset; quick, since the comparison left features and coordinates in the runs."""
    from robustlib.workbook.report import write_atlas

    compared = compare_runs(options.runs, preset)
    chosen = list(first_seed(compared.usable).values())
    if chosen:
        dataset = load_dataset(compared.dataset, root=options.data_root or None)
        attack, title = probe_attack(Threat(**chosen[0].params()["threat"])), load_preset(preset)["title"]
        target = options.reports / preset / "atlas.html"
        write_atlas(target, chosen, dataset, attack, title=f"Map: {title}", index="../index.html")
