"""Commands that make runs and pages: run, study, report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustlib.errors import InputError
from robustlib.workbook.cli import console
from robustlib.workbook.cli.app import (
    Changes,
    DataRoot,
    DatasetName,
    Device,
    Download,
    DryRun,
    Engine,
    Examples,
    Jobs,
    Precision,
    Reports,
    Rerun,
    Runs,
    Seeds,
    Timeout,
    app,
    out,
    say,
    warn,
)

if TYPE_CHECKING:
    from robustlib.workbook.claims import Claim
    from robustlib.workbook.experiments import Job, Options


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
    changed = parse_overrides(changes or [])
    variants = [(name, changed) for name in methods or preset_methods(preset)]
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
    from robustlib.workbook.experiments import Options, plan, read_study

    asked = read_study(file)
    examples = examples or asked.examples
    options = Options(asked.preset, dataset, data_root, download, device, precision, runs, reports, examples, rerun)
    planned = plan(asked.variants, asked.seeds, options)
    try:
        _run(planned, options, dry_run, jobs, timeout, engine, asked.claims)
    finally:  # what was decided stands, whatever else failed
        if asked.claims and not dry_run:
            out.print(console.verdicts(asked.claims, [job.run for job in planned], asked.seeds))


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
    from robustlib.workbook.engines import run_all
    from robustlib.workbook.experiments import measure_claimed, publish

    for text in dict.fromkeys(f"{job.run.path.parent.name}: {said}" for job in jobs for said in job.advice):
        warn(text)
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
        say("Interrupted. The same command goes on from the last epoch.")
        raise typer.Exit(130) from None
    failed = [(job, status) for job, status in zip(todo, statuses, strict=True) if status["state"] != "done"]
    with out.status("unseen attacks"):
        lacking = measure_claimed(claims, [job.run for job in jobs], options)
    index, problems = publish(options, [options.preset])
    out.print(console.headline([job.run for job in jobs]))
    for job, status in failed:
        reason = status["reason"].removeprefix("InputError: ")
        say(f"{job.name} {status['state']}: {reason}", f"The notebook: {job.task.output}")
    problems = [*lacking, *problems]
    for problem in problems:
        say(problem)
    out.print(f"Report: {index}", soft_wrap=True)
    if failed or problems:
        refused = {status.get("exception") for _, status in failed} == {"InputError"} and not problems
        raise typer.Exit(2 if refused else 1)


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
    index, problems = publish(Options(runs=runs, reports=reports, data_root=data_root), presets, force=True)
    for problem in problems:
        say(problem)
    out.print(f"Report: {index}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
