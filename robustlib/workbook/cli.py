"""The command line: robustlib run | study | benchmark | compare | report | evaluate | audit | list | status | cancel | notebooks | lab. It parses and prints, nothing else.

Whatever takes time to import is imported inside the commands: `--help` answers at once.
"""

import importlib.util
import io
import os
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, Typer

from robustlib.errors import InputError, check_known
from robustlib.workbook import on_batches, on_runs
from robustlib.workbook.options import (
    Attacks,
    DataRoot,
    Judged,
    Network,
    Reports,
    Runs,
    Shared,
    announce,
    out,
    say,
    with_options,
)

if TYPE_CHECKING:
    from robustlib.workbook.experiments import Job, Options, Study

app = Typer(
    help="Train, attack and compare adversarially robust models. [bold]robustlib run[/bold] trains and reports all baselines on the embedded digits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 2 on bad input (a sentence on stderr), 1 if a notebook failed, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file that cannot show a sign shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="robustlib", standalone_mode=True)
    except InputError as error:
        say(str(error))
        raise SystemExit(2) from None


UNDER_WAY = ("queued", "running")  # states of jobs that have not ended
SELDOM = 9  # times as long as an index took to write pass before the next one


@app.command()
@with_options(Shared)
def run(
    shared: Shared,
    methods: Annotated[list[str] | None, Argument(help="E.g. trades or my.py:MyMethod; else the preset's.")] = None,
    preset: Annotated[str, Option(help="E.g. digits, cifar10-small, cifar10-short or cifar10-paper.")] = "digits",
    seeds: Annotated[str, Option(help="0-2 or 0,3,5.")] = "0",
    changes: Annotated[list[str] | None, Option("--set", help="A parameter: beta=3.0, eps=8/255; repeatable.")] = None,
) -> None:
    """Train and evaluate methods, and write the report.

    The same call again goes on where it stopped and repeats nothing that is finished. For example:

    robustlib run trades pgd_at --preset digits --seeds 0-2 --jobs 2
    """
    from robustlib.methods import parse_overrides
    from robustlib.workbook.experiments import Study, parse_seeds, preset_methods

    overrides = parse_overrides(changes or [])
    variants = [(name, overrides) for name in methods or preset_methods(preset)]
    _run(Study(preset, variants, parse_seeds(seeds)), shared)


@app.command()
@with_options(Shared)
def study(
    shared: Shared,
    file: Annotated[
        str,
        Argument(help="YAML with preset, methods, parameters (lists make a grid), seeds, examples, unseen, claims."),
    ],
    seeds: Annotated[str, Option(help="Only these of its seeds: 0-2 or 0,3,5.")] = "",
) -> None:
    r"""Run all combinations that a YAML file asks for, and judge its claims if it has any.

    The same call again goes on where it stopped. Methods may be my.py:MyMethod, seen from the current directory. E.g.:

    {preset: digits, methods: \[trades], parameters: {beta: [1.0, 3.0, 6.0]}, seeds: 0-2}

    robustlib study digits-claims runs a study that comes with robustlib: what papers claim, on eight seeds.
    """
    from robustlib.workbook.experiments import parse_seeds, read_study

    asked = read_study(file)
    chosen = parse_seeds(seeds) if seeds else asked.seeds
    for seed in chosen:
        check_known(f"seed of {file}", str(seed), [*map(str, asked.seeds)])
    _run(asked, shared, chosen)


@app.command()
@with_options(Judged, Network)
def benchmark(
    shared: Judged,
    network: Network,
    model: Annotated[str, Argument(help="torchvision:NAME, timm:NAME, my_models.py:build or package.module:Net.")],
    attack: Attacks = None,
) -> None:
    r"""Attack a network that was trained elsewhere, and set it beside all others.

    It maps images in \[0, 1] to logits; naming code executes it. For example:

    robustlib benchmark my_models.py:build --weights model.pt --dataset cifar10 --data-root data --name "our WRN"
    """
    import torch

    from robustlib.audit import check_run
    from robustlib.runs import find_runs
    from robustlib.workbook import console, tables
    from robustlib.workbook.engines import check_limits
    from robustlib.workbook.experiments import Benchmark, Options, compare_paths

    if network.images and shared.dataset:
        given = f"--dataset {shared.dataset} and --images {network.images} are both given"
        raise InputError(f"{given}: give one of them, and not both.")
    check_limits(shared.jobs, shared.timeout, shared.engine, **shared.settings)
    shared = shared if shared.engine == "local" else shared.absolute()
    named = {
        **vars(network),
        "attacks": tuple(attack or ()),
        "dataset": shared.dataset,
        "data_root": shared.data_root,
        "runs": str(shared.runs),
    }
    asked, jobs = Benchmark(model, **named), []
    data = asked.load(download=shared.download)
    found = _found(shared, [asked.weights, asked.images, model.rpartition(":")[0]])
    here = replace(shared, device="auto") if found else shared
    options = {"device": found or shared.device, "precision": shared.precision, "test_examples": shared.examples}
    networks = asked.each()
    threads = asked.threads or max(1, torch.get_num_threads() // min(shared.jobs, len(networks)))
    with tempfile.TemporaryDirectory() if shared.dry_run else nullcontext(str(shared.runs)) as kept:
        for one in (replace(one, threads=threads, runs=kept) for one in networks):
            made = one.run(data, rerun=shared.rerun)
            with out.status(f"{made.name}: clean images"):
                checks = check_run(made, data, device=here.device)
            out.print(console.table(tables.sanity(checks), made.name))
            jobs.append(one.job(made, shared.reports, **options))
    if shared.dry_run:
        return
    beside = {str(run.params().get("preset")) for run in find_runs(shared.runs, dataset=data.name)} - {""}
    where: Any = {"data_root": shared.data_root, "runs": shared.runs, "reports": shared.reports}
    _execute(jobs, (), Options(dataset=data.name, device=here.device, **where), shared, sorted(beside))
    if len(jobs) > 1:
        announce(*compare_paths([job.run.path for job in jobs], Options(**where)), said="Comparison")


def _found(shared: Shared, files: Sequence[str]) -> str:
    """The type of device that trainings find where they run; "" for what `shared.device` is here.

    Raises InputError where they would find none, or a worker does not see our folders, or those of the `files` that are there.
    """
    from robustlib.workbook.engines import device_type
    from robustlib.workbook.experiments import notebook

    places = [str(notebook("baselines")), shared.data_root, *files]
    needed = [] if shared.dry_run else [os.path.abspath(place) for place in places if place and os.path.exists(place)]
    made = [] if shared.dry_run else [shared.runs, shared.reports]
    own = shared.engine == "ray" and not (shared.address or os.environ.get("RAY_ADDRESS"))
    with out.status("looking for a Ray cluster here, or starting one" if own else f"asking {shared.engine}"):
        kind = device_type(shared.engine, shared.device, made, needed, jobs=shared.jobs, **shared.settings)
    return "" if shared.engine == "local" and shared.gpus_per_task != 0 else kind


def _run(study: "Study", shared: Shared, seeds: Sequence[int] = ()) -> None:
    """Plans the runs of a study, or those of some of its `seeds`; then makes them, or shows them and stops."""
    from robustlib.workbook import console
    from robustlib.workbook.engines import check_limits
    from robustlib.workbook.experiments import Options, plan

    check_limits(shared.jobs, shared.timeout, shared.engine, **shared.settings)
    shared = shared if shared.engine == "local" else shared.absolute()
    asked = {field.name: vars(shared)[field.name] for field in fields(Options) if field.name != "preset"}
    options = Options(study.preset, **asked | {"examples": shared.examples or study.examples})
    found = _found(shared, [name.rpartition(":")[0] for name, _ in study.variants])
    every = plan(study.variants, study.seeds, options, found)  # claims are judged by all seeds that are there
    jobs = [job for job in every if job.task.parameters["seed"] in (seeds or study.seeds)]
    for text in dict.fromkeys(f"{job.run.path.parent.name}: {advice}" for job in jobs for advice in job.advice):
        say(text, "Warning", "bold yellow")
    if shared.dry_run:
        out.print(console.plan_table(jobs, shared.rerun))
        pages = shared.reports / study.preset
        out.print(f"Preset {study.preset}, device {shared.device}, pages in {pages}.", soft_wrap=True)
        return
    try:
        here = replace(options, device="auto") if found else options  # what is measured after the last training
        _execute(jobs, study.meet_unseen, here, shared, [options.preset])
    finally:  # what was decided stands, whatever else failed
        if study.claims:
            out.print(console.claims_table(study.claims, [job.run for job in every], study.seeds))


def _execute(
    jobs: "Sequence[Job]", unseen: Collection[str], options: "Options", shared: Shared, presets: Sequence[str]
) -> None:
    """Runs what is not done yet, writes the index as each ends, lets variants meet unseen attacks, compares presets, announces the report."""
    from robustlib.workbook import console
    from robustlib.workbook.engines import run_all
    from robustlib.workbook.experiments import meet_unseen, publish

    runs, todo = [job.run for job in jobs], [job for job in jobs if shared.rerun or not job.current]
    tasks, listed = [job.task for job in todo], len(todo)  # how many the index last listed as waiting
    due = 0.0  # when the next index may be written: of thousands of runs it takes seconds, in which nothing is started

    def follow(statuses: list[dict[str, Any]]) -> None:
        nonlocal listed, due
        monitor(statuses)
        pairs = zip(todo, statuses, strict=True)
        waiting = {job.name: (job.run, status["state"]) for job, status in pairs if status["state"] in UNDER_WAY}
        if 0 < len(waiting) < listed and (began := time.monotonic()) >= due:
            listed = len(waiting)
            with suppress(Exception):  # no trouble with a page may end trainings; the report after the last one says it
                publish(options, [], waiting=waiting)
            due = time.monotonic() + SELDOM * (time.monotonic() - began)

    try:
        with console.job_monitor(out, todo) as monitor:
            statuses = run_all(
                tasks, shared.jobs, follow, timeout=shared.timeout, engine=shared.engine, **shared.settings
            )
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last epoch.")
        raise Exit(130) from None
    failed = [(job, status) for job, status in zip(todo, statuses, strict=True) if status["state"] != "done"]
    with out.status("unseen attacks"):
        problems = meet_unseen(unseen, runs, options)
    index, unpublished = publish(options, presets)
    problems += unpublished
    ended = zip(todo, statuses, strict=True)  # a notebook does not read all that is damaged
    problems += [job.run.damage for job, status in ended if status["state"] == "done" and job.run.damage]
    out.print(console.results_table(runs))
    refused = {status.get("exception") for _, status in failed} == {"InputError"} and not problems
    for job, status in failed:
        reason = status["reason"].removeprefix("InputError: ")
        problems.append(f"{job.name} {status['state']}: {reason}\nThe notebook: {job.task.output}")
    announce(index, problems, code=2 if refused else 1)


@app.command()
def report(runs: Runs = Path("runs"), reports: Reports = Path("reports"), data_root: DataRoot = "") -> None:
    """Render all pages and the index again; nothing is trained.

    The data are needed to compare feature spaces; without them the other numbers are compared.
    """
    from robustlib.methods import preset_names
    from robustlib.runs import find_runs
    from robustlib.workbook.experiments import Options, publish

    finished = find_runs(runs)
    if not finished:
        damaged = sum(bool(run.damage) for run in find_runs(runs, finished=False))
        others = f" {damaged} are damaged; `robustlib list` says why." if damaged else ""
        remedy = f"make them with `robustlib run`, or give --runs.{others}"
        raise InputError(f"There are no finished runs in {runs}: {remedy}")
    presets = [name for name in preset_names() if any(run.params().get("preset") == name for run in finished)]
    announce(*publish(Options(runs=runs, reports=reports, data_root=data_root), presets, force=True))


for command in (on_runs.evaluate, on_runs.audit, on_runs.compare):
    app.command()(command)
app.command("list")(on_runs.list_)
app.command()(on_batches.status)
app.command()(on_batches.cancel)


@app.command()
def lab(arguments: Annotated[list[str] | None, Argument(help="For Jupyter, e.g. -- --port 9999.")] = None) -> None:
    """Open JupyterLab on the notebooks, which an installed robustlib lays out in notebooks/ first.

    Kernels start in the current directory, so that notebooks and commands share runs/ and relative paths.
    """
    from robustlib.workbook.experiments import lay_out, notebook, packaged

    _open_lab(lay_out(Path("notebooks")) if packaged() else notebook("baselines").parent, arguments or [])


@app.command()
def explore(
    paths: Annotated[list[Path] | None, Argument(help="One run directory, or two to be set side by side.")] = None,
    runs: Runs = Path("runs"),
    data_root: DataRoot = "",
) -> None:
    """Open the explorer in JupyterLab: what an attack does to one image in one network, or in two side by side.

    Run its cells there. Without a run it begins with the first below --runs.
    """
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    from robustlib.runs import Run
    from robustlib.workbook.experiments import notebook

    chosen = [*map(Run, paths or ())]
    if len(chosen) > 2:
        raise InputError(f"{len(chosen)} runs are too many to see side by side: give one or two.")
    for run in chosen:
        if not run.finished:
            raise InputError(f"{run.path} holds no finished run: give directories that `robustlib list` shows.")
    names = dict(zip(("first", "beside"), [os.path.abspath(run.path) for run in chosen], strict=False))
    root = os.path.abspath(chosen[0].path.parents[2] if chosen else runs)
    dataset = chosen[0].params()["dataset"] if chosen else ""
    facts = {"runs": root, "dataset": dataset, "data_root": data_root, **names}
    made = parameterize_notebook(load_notebook_node(str(notebook("explore"))), facts)
    folder = Path(tempfile.mkdtemp(prefix="robustlib-"))
    write_ipynb(made, file := str(folder / "explore.ipynb"))
    _open_lab(folder, [file])


def _open_lab(folder: Path, arguments: Sequence[str]) -> None:
    """Becomes JupyterLab on a folder of notebooks, whose kernels start in the current directory."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError("JupyterLab is not installed: pip install 'robustlib[workbook]'.")
    places = [f"--ServerApp.root_dir={folder}", f"--MappingKernelManager.root_dir={os.getcwd()}"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *places, *arguments])


@app.command()
def notebooks(folder: Annotated[Path, Argument(help="A directory, made if need be.")] = Path("notebooks")) -> None:
    """Lay the notebooks out in a directory, for editing; those that are there stay as they are."""
    from robustlib.workbook.experiments import lay_out

    out.print(f"Notebooks: {lay_out(folder)}", soft_wrap=True)


if __name__ == "__main__":
    main()
