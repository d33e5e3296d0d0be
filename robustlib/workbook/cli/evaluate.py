"""Commands that judge runs: evaluate, audit.

Commands that look at what is there: list, lab.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustlib.errors import InputError, unknown
from robustlib.workbook.cli import console
from robustlib.workbook.cli.app import DataRoot, Device, RunDirectory, Runs, app, out, say

if TYPE_CHECKING:
    from robustlib.data import Dataset
    from robustlib.runs import Run


SUITES = ("standard", "reference")


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
    from robustlib.runs import read_json
    from robustlib.workbook import tables

    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    run, dataset = _run_and_data(path, data_root)
    count = examples or run.results().get("n")
    try:
        with out.status("attacking") as status:
            follow = console.follow(out, status)
            results = evaluate_run(run, dataset, n=count, device=device, progress=follow)
            results = check_plateau(run, dataset, device=device, progress=follow) if plateau else results
            far = measure_unseen({run.name: run}, dataset, device=device) if unseen else None
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last finished batch.")
        raise typer.Exit(130) from None
    frame = tables.accuracies(results)
    title = f"{run.name} · {results['threat']} · {results['n']} test images{' · stale' if run.stale else ''}"
    out.print(console.table(frame.drop(columns=["images", "protocol"]), title))
    if said := tables.adaptive_summary(results):
        out.print(console.table(tables.adaptive(results), said))
    if randomness := read_json(run.path / "randomness.json"):
        out.print(console.table(tables.randomness(results, randomness), "What its randomness is worth"))
        if words := tables.plateau_summary(results):
            out.print(words, highlight=False)
    if far is not None:
        out.print(console.table(tables.unseen(far), "Known and unseen attacks"))
    if suite == "reference":
        with out.status("the authors' AutoAttack"):
            comparison = compare_with_reference(run, dataset, n=results["n"], device=device)
        out.print(console.compared(comparison))


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

    run, dataset = _run_and_data(path, data_root)
    with out.status("auditing") as status:
        found = audit_run(run, dataset, n=examples or None, device=device, progress=lambda what: status.update(what))
    out.print(console.audited(found, f"{run.name} · {found['threat']} · {found['seconds']:.0f} s"))


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
    from robustlib.workbook.experiments import notebook

    folder = str(notebook("baselines").parent)
    places = [f"--ServerApp.root_dir={folder}", f"--MappingKernelManager.root_dir={os.getcwd()}"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *places, *(arguments or [])])
