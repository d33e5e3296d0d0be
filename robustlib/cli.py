"""The command line: robustlib run | study | report | evaluate | list | lab. It parses and prints, nothing else."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from robustlib import console
from robustlib.errors import InputError

if TYPE_CHECKING:
    from robustlib.batch import Job, Options

app = typer.Typer(
    help="Train, attack and compare adversarially robust models. [bold]robustlib run[/bold] trains and reports all baselines on the embedded digits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out, err = console.console(), console.console(stderr=True)

WHERE, HOW, DATA = "Where results go", "How it runs", "Data"
Runs = Annotated[Path, typer.Option(help="Directory of all runs.", rich_help_panel=WHERE)]
Reports = Annotated[Path, typer.Option(help="Directory of the pages.", rich_help_panel=WHERE)]
Seeds = Annotated[str, typer.Option(help="0-2 or 0,3,5.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="A hyper-parameter, e.g. beta=3.0 or eps=8/255; repeatable.")
]
DatasetName = Annotated[str, typer.Option(help="Another data set than the preset's.", rich_help_panel=DATA)]
DataRoot = Annotated[str, typer.Option(help="Directory of the data; else $ROBUSTLIB_DATA.", rich_help_panel=DATA)]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data there.", rich_help_panel=DATA)]
Jobs = Annotated[int, typer.Option(help="Trainings side by side.", rich_help_panel=HOW)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel=HOW)]
Precision = Annotated[str, typer.Option(help="auto, 32-true or bf16-mixed.", rich_help_panel=HOW)]
Timeout = Annotated[float | None, typer.Option(help="Seconds for each notebook.", rich_help_panel=HOW)]
Engine = Annotated[str, typer.Option(help="local processes, or ray.", rich_help_panel=HOW)]
Examples = Annotated[int, typer.Option(min=0, help="Test images to attack; 0 for the preset's number.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Train anew what is finished or stale.")]


@app.command()
def run(
    methods: Annotated[list[str] | None, typer.Argument(help="E.g. trades pgd_at; none for all of the preset.")] = None,
    preset: Annotated[str, typer.Option(help="digits, cifar10-short or cifar10-paper.")] = "digits",
    seeds: Seeds = "0",
    changes: Changes = None,
    examples: Examples = 0,
    dry_run: DryRun = False,
    rerun: Rerun = False,
    dataset: DatasetName = "",
    data_root: DataRoot = "",
    download: Download = False,
    jobs: Jobs = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    timeout: Timeout = None,
    engine: Engine = "local",
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
) -> None:
    """Train and evaluate methods, and write the report.

    The same call again goes on where it stopped and repeats nothing that is finished. For example:

    robustlib run trades pgd_at --preset digits --seeds 0-2 --jobs 2
    """
    from robustlib.batch import Options, parse_seeds, plan, preset_methods
    from robustlib.methods import parse_overrides

    options = Options(preset, dataset, data_root, download, device, precision, runs, reports, examples, rerun)
    changed = parse_overrides(changes or [])
    arms = [(name, changed) for name in methods or preset_methods(preset)]
    _run(plan(arms, parse_seeds(seeds), options), options, dry_run, jobs, timeout, engine)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML with preset, methods, parameters (lists make a grid) and seeds.")],
    examples: Examples = 0,
    dry_run: DryRun = False,
    rerun: Rerun = False,
    dataset: DatasetName = "",
    data_root: DataRoot = "",
    download: Download = False,
    jobs: Jobs = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    timeout: Timeout = None,
    engine: Engine = "local",
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
) -> None:
    """Run all combinations that a YAML file asks for.

    The same call again goes on where it stopped. A file may hold, for example:

    {preset: digits, methods: [trades], parameters: {beta: [1.0, 3.0, 6.0]}, seeds: 0-2}
    """
    from robustlib.batch import Options, plan, read_study

    preset, arms, seeds = read_study(file)
    options = Options(preset, dataset, data_root, download, device, precision, runs, reports, examples, rerun)
    _run(plan(arms, seeds, options), options, dry_run, jobs, timeout, engine)


def _run(
    jobs: "Sequence[Job]", options: "Options", dry: bool, parallel: int, timeout: float | None, engine: str
) -> None:
    """Runs what is not done yet, then writes and announces the report."""
    from robustlib.batch import publish
    from robustlib.workbook import run_all

    if dry:
        out.print(console.planned(jobs, options.rerun))
        out.print(
            f"Preset {options.preset}, device {options.device}, pages in {options.reports / options.preset}.",
            soft_wrap=True,
        )
        return
    todo = [job for job in jobs if options.rerun or not job.current]
    try:
        with console.Board(out, todo) as board:
            statuses = run_all([job.task for job in todo], parallel, board, timeout=timeout, engine=engine)
    except KeyboardInterrupt:
        _say("Interrupted. The same command goes on from the last epoch.")
        raise typer.Exit(130) from None
    failed = [(job, status) for job, status in zip(todo, statuses, strict=True) if status["state"] != "done"]
    index, problems = publish(options, [options.preset])
    out.print(console.headline([job.run for job in jobs]))
    for job, status in failed:
        reason = status["reason"].removeprefix("InputError: ")
        _say(f"{job.name} {status['state']}: {reason}", f"The notebook: {job.task.output}")
    for problem in problems:
        _say(problem)
    out.print(f"Report: {index}", soft_wrap=True)
    if failed or problems:
        refused = {status.get("exception") for _, status in failed} == {"InputError"} and not problems
        raise typer.Exit(2 if refused else 1)


@app.command()
def report(runs: Runs = Path("runs"), reports: Reports = Path("reports")) -> None:
    """Render all pages and the index again; nothing is trained."""
    from robustlib.batch import Options, publish
    from robustlib.methods import preset_names
    from robustlib.runs import find_runs

    found = find_runs(runs)
    if not found:
        raise InputError(f"There are no finished runs in {runs}: make them with `robustlib run`, or give --runs.")
    presets = [name for name in preset_names() if any(run.params().get("preset") == name for run in found)]
    index, problems = publish(Options(runs=runs, reports=reports), presets, afresh=True)
    for problem in problems:
        _say(problem)
    out.print(f"Report: {index}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run directory, as `robustlib list` shows it.")],
    examples: Annotated[int, typer.Option(min=0, help="Test images; 0 for those evaluated before, else all.")] = 0,
    data_root: DataRoot = "",
    device: Device = "auto",
) -> None:
    """Attack a finished run with the standard attacks.

    Prints the accuracies with their intervals. An evaluation that is stored in the run is shown, not repeated.
    """
    from robustlib import tables
    from robustlib.data import load_dataset
    from robustlib.evaluation import evaluate_run
    from robustlib.runs import Run

    run, params = Run(path), Run(path).params()
    if not params:
        raise InputError(f"{path} holds no run (no params.json): give a directory that `robustlib list` shows.")
    dataset = load_dataset(params["dataset"], root=data_root or None)
    with out.status("attacking") as status:
        results = evaluate_run(
            run,
            dataset,
            n=examples or run.results().get("n"),
            device=device,
            progress=lambda name, done, total: status.update(f"{name}: {done} of {total} images"),
        )
    frame = tables.accuracies(results)
    title = f"{run.name} · {results['threat']} · {results['n']} test images{' · stale' if run.stale else ''}"
    out.print(console.table(frame.drop(columns=["images", "protocol"]), title))


@app.command("list")
def list_(runs: Runs = Path("runs")) -> None:
    """List all runs, what they reached and which are stale.

    A run is stale if other code than the installed one made it; run --rerun renews it.
    """
    from robustlib import tables
    from robustlib.runs import find_runs

    found = find_runs(runs, finished=False)
    if not found:
        out.print(f"There are no runs in {runs} yet: robustlib run makes some.")
        return
    out.print(console.table(tables.inventory(found)))


@app.command()
def lab(
    arguments: Annotated[list[str] | None, typer.Argument(help="For Jupyter, after --, e.g. -- --port 9999.")] = None,
) -> None:
    """Open JupyterLab on the notebooks.

    Kernels start in the current directory, so that notebooks and commands share runs/ and relative paths.
    """
    from robustlib.batch import notebook

    folder = str(notebook("baselines").parent)
    places = [f"--ServerApp.root_dir={folder}", f"--MappingKernelManager.root_dir={os.getcwd()}"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *places, *(arguments or [])])


def _say(sentence: str, more: str = "") -> None:
    """A problem, on stderr."""
    err.print(Text.assemble(("Error: ", "bold red"), sentence), soft_wrap=True)
    if more:
        err.print(Text(more, style="dim"), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 2 on bad input (a sentence on stderr), 1 if a notebook failed, 130 on Ctrl-C."""
    try:
        app(args=arguments, prog_name="robustlib", standalone_mode=True)
    except InputError as error:
        _say(str(error))
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
