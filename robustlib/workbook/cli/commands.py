"""The commands and their options. Whatever takes time to import is imported inside them: `--help` answers at once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from robustlib.errors import InputError, unknown

if TYPE_CHECKING:
    from robustlib.data import Dataset
    from robustlib.runs import Run
    from robustlib.workbook.claims import Claim
    from robustlib.workbook.experiments import Job, Options

app = typer.Typer(
    help="Train, attack and compare adversarially robust models. [bold]robustlib run[/bold] trains and reports all baselines on the embedded digits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal; 110 columns where the output goes to a file."""
    made = Console(stderr=stderr)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=110)


out, err = _console(), _console(stderr=True)


def say(sentence: str, more: str = "") -> None:
    """A problem, on stderr."""
    err.print(Text.assemble(("Error: ", "bold red"), sentence), soft_wrap=True)
    if more:
        err.print(Text(more, style="dim"), soft_wrap=True)


WHERE, HOW, DATA = "Where results go", "How it runs", "Data"
SUITES = ("standard", "reference")

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
RunDirectory = Annotated[Path, typer.Argument(help="A run directory, as `robustlib list` shows it.")]


# ---- what is there: evaluate, audit, list, lab


@app.command()
def evaluate(
    path: RunDirectory,
    examples: Annotated[int, typer.Option(min=0, help="Test images; 0 for those evaluated before, else all.")] = 0,
    suite: Annotated[str, typer.Option(help="standard, or reference: the authors' AutoAttack too.")] = "standard",
    plateau: Annotated[
        bool,
        typer.Option("--plateau", help="Of a stochastic model: PGD+EOT at full strength, and over samples and steps."),
    ] = False,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="L2 perturbations and StAdv, which no training here has seen.")
    ] = False,
    data_root: DataRoot = "",
    device: Device = "auto",
) -> None:
    """Attack a finished run with the standard attacks.

    Prints the accuracies with their intervals. A stored evaluation is shown, not repeated; an interrupted one goes on.
    """
    from robustlib.evaluation import check_plateau, compare_with_reference, evaluate_run, measure_unseen
    from robustlib.workbook.cli import console

    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    run, dataset = _run_and_data(path, data_root)
    try:
        with out.status("attacking") as status:
            show = console.progress_line(out, status)
            results = evaluate_run(run, dataset, n=examples or run.results().get("n"), device=device, progress=show)
            results = check_plateau(run, dataset, device=device, progress=show) if plateau else results
            found = measure_unseen({run.name: run}, dataset, device=device) if unseen else None
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last finished batch.")
        raise typer.Exit(130) from None
    for part in console.evaluation_tables(run, results, found):
        out.print(part, highlight=False)
    if suite == "reference":
        with out.status("the authors' AutoAttack"):
            comparison = compare_with_reference(run, dataset, n=results["n"], device=device)
        out.print(console.reference_table(comparison))


@app.command()
def audit(
    path: RunDirectory,
    examples: Annotated[
        int, typer.Option(min=0, help="Test images; 0 for 256. Stochastic models: at most their preset's for curves.")
    ] = 0,
    data_root: DataRoot = "",
    device: Device = "auto",
) -> None:
    """Ask whether the robust accuracy of an evaluated run can be believed.

    Prints fifteen checks and two badges: of the worst case over all attacks, and of the attack that the method's paper uses.
    """
    from robustlib.audit import audit_run
    from robustlib.workbook.cli import console

    run, dataset = _run_and_data(path, data_root)
    with out.status("auditing") as status:
        found = audit_run(run, dataset, n=examples or None, device=device, progress=lambda what: status.update(what))
    out.print(console.audit_table(found, f"{run.name} · {found['threat']} · {found['seconds']:.0f} s"))


def _run_and_data(path: Path, data_root: str) -> "tuple[Run, Dataset]":
    """The run in a directory, and the data set it was trained on."""
    from robustlib.data import load_dataset
    from robustlib.runs import Run

    params = Run(path).params()
    if not params:
        raise InputError(f"{path} holds no run (no params.json): give a directory that `robustlib list` shows.")
    return Run(path), load_dataset(params["dataset"], root=data_root or None)


@app.command("list")
def list_(runs: Runs = Path("runs")) -> None:
    """List all runs, what they reached and which are stale.

    A run is stale if its method, an attack or a measure gives other numbers today; run --rerun renews it.
    """
    from robustlib.runs import find_runs
    from robustlib.workbook import tables
    from robustlib.workbook.cli import console

    found = find_runs(runs, finished=False)
    missing = f"There are no runs in {runs} yet: robustlib run makes some."
    out.print(console.table(tables.inventory(found)) if found else missing)


@app.command()
def lab(
    arguments: Annotated[list[str] | None, typer.Argument(help="For Jupyter, after --, e.g. -- --port 9999.")] = None,
) -> None:
    """Open JupyterLab on the notebooks.

    Kernels start in the current directory, so that notebooks and commands share runs/ and relative paths.
    """
    from robustlib.workbook.experiments import notebook

    folder = str(notebook("baselines").parent)
    places = [f"--ServerApp.root_dir={folder}", f"--MappingKernelManager.root_dir={os.getcwd()}"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *places, *(arguments or [])])


# ---- what makes runs and pages: run, study, report


@app.command()
def run(
    methods: Annotated[
        list[str] | None, typer.Argument(help="E.g. trades pgd_at; none for those that the preset names.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="E.g. digits, cifar10-short, cifar10-paper or cifar100-paper.")
    ] = "digits",
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
    from robustlib.methods import parse_overrides
    from robustlib.workbook.experiments import Options, parse_seeds, plan, preset_methods

    options = Options(preset, dataset, data_root, download, device, precision, runs, reports, examples, rerun)
    overrides = parse_overrides(changes or [])
    variants = [(name, overrides) for name in methods or preset_methods(preset)]
    _run(plan(variants, parse_seeds(seeds), options), options, dry_run, jobs, timeout, engine)


@app.command()
def study(
    file: Annotated[str, typer.Argument(help="YAML with preset, methods, parameters (lists make a grid), seeds.")],
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
    """Run all combinations that a YAML file asks for, and judge its claims if it has any.

    The same call again goes on where it stopped. A file may hold, for example:

    {preset: digits, methods: [trades], parameters: {beta: [1.0, 3.0, 6.0]}, seeds: 0-2}

    robustlib study digits-claims runs a study that comes with robustlib: what papers claim, on eight seeds.
    """
    from robustlib.workbook.cli import console
    from robustlib.workbook.experiments import Options, plan, read_study

    asked = read_study(file)
    examples = examples or asked.examples
    options = Options(asked.preset, dataset, data_root, download, device, precision, runs, reports, examples, rerun)
    planned = plan(asked.variants, asked.seeds, options)
    try:
        _run(planned, options, dry_run, jobs, timeout, engine, asked.claims)
    finally:  # what was decided stands, whatever else failed
        if asked.claims and not dry_run:
            out.print(console.claims_table(asked.claims, [job.run for job in planned], asked.seeds))


def _run(
    jobs: "Sequence[Job]",
    options: "Options",
    dry: bool,
    parallel: int,
    timeout: float | None,
    engine: str,
    claims: "Sequence[Claim]" = (),
) -> None:
    """Runs what is not done yet, measures what claims need besides, then writes and announces the report."""
    from robustlib.workbook.cli import console
    from robustlib.workbook.engines import run_all
    from robustlib.workbook.experiments import measure_claimed, publish

    for text in dict.fromkeys(f"{job.run.path.parent.name}: {said}" for job in jobs for said in job.advice):
        err.print(Text.assemble(("Warning: ", "bold yellow"), text), soft_wrap=True)
    if dry:
        out.print(console.plan_table(jobs, options.rerun))
        pages = options.reports / options.preset
        out.print(f"Preset {options.preset}, device {options.device}, pages in {pages}.", soft_wrap=True)
        return
    todo = [job for job in jobs if options.rerun or not job.current]
    try:
        with console.JobMonitor(out, todo) as monitor:
            statuses = run_all([job.task for job in todo], parallel, monitor, timeout=timeout, engine=engine)
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last epoch.")
        raise typer.Exit(130) from None
    failed = [(job, status) for job, status in zip(todo, statuses, strict=True) if status["state"] != "done"]
    with out.status("unseen attacks"):
        problems = measure_claimed(claims, [job.run for job in jobs], options)
    index, unpublished = publish(options, [options.preset])
    problems = [*problems, *unpublished]
    out.print(console.results_table([job.run for job in jobs]))
    for job, status in failed:
        reason = status["reason"].removeprefix("InputError: ")
        say(f"{job.name} {status['state']}: {reason}", f"The notebook: {job.task.output}")
    refused = {status.get("exception") for _, status in failed} == {"InputError"}
    _announce(index, problems, failed=bool(failed), code=2 if refused and not problems else 1)


def _announce(index: Path, problems: Sequence[str], *, failed: bool = False, code: int = 1) -> None:
    """Says what went wrong and where the report is; exits with `code` if anything did."""
    for problem in problems:
        say(problem)
    out.print(f"Report: {index}", soft_wrap=True)
    if failed or problems:
        raise typer.Exit(code)


@app.command()
def report(runs: Runs = Path("runs"), reports: Reports = Path("reports"), data_root: DataRoot = "") -> None:
    """Render all pages and the index again; nothing is trained.

    The data are needed to compare feature spaces; without them the other numbers are compared.
    """
    from robustlib.methods import preset_names
    from robustlib.runs import find_runs
    from robustlib.workbook.experiments import Options, publish

    found = find_runs(runs)
    if not found:
        raise InputError(f"There are no finished runs in {runs}: make them with `robustlib run`, or give --runs.")
    presets = [name for name in preset_names() if any(run.params().get("preset") == name for run in found)]
    _announce(*publish(Options(runs=runs, reports=reports, data_root=data_root), presets, force=True))
