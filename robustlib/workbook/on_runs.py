"""The commands on runs that there are: evaluate, audit, compare, list."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from robustlib.errors import InputError, check_known
from robustlib.workbook.options import (
    Attacks,
    DataRoot,
    Device,
    Devices,
    Reports,
    RunDirectory,
    Runs,
    Search,
    Trust,
    announce,
    out,
    say,
)

if TYPE_CHECKING:
    from robustlib.data import Dataset
    from robustlib.runs import Run

LISTED = 200  # runs; to draw a table of thousands takes seconds


def evaluate(
    path: RunDirectory,
    examples: Annotated[int, Option(min=0, help="Test images; 0 for those evaluated before, else all.")] = 0,
    suite: Annotated[str, Option(help="standard, or reference: the authors' AutoAttack too.")] = "standard",
    plateau: Annotated[
        bool, Option("--plateau", help="Of a stochastic model: PGD+EOT at full strength, and over samples and steps.")
    ] = False,
    unseen: Annotated[bool, Option("--unseen", help="L2 perturbations and StAdv, which no training has seen.")] = False,
    attack: Attacks = None,
    data_root: DataRoot = "",
    device: Device = "auto",
    devices: Devices = 1,
    precision: Search = "auto",
    trust_code: Trust = False,
) -> None:
    """Attack a finished run with the standard attacks.

    Prints the accuracies with their intervals. A stored evaluation is shown, not repeated; an interrupted one goes on.
    """
    from robustlib.evaluation import check_plateau, compare_with_reference, evaluate_run, measure_unseen
    from robustlib.workbook import console

    check_known("suite", suite, ("standard", "reference"))
    run, dataset = _run_and_data(path, data_root, trust_code)
    try:
        with out.status("attacking") as status:
            show = console.progress_line(out, status)
            where: Any = {"device": device, "precision": precision, "extra": attack or (), "devices": devices}
            results = evaluate_run(run, dataset, n=examples or run.results().get("n"), **where, progress=show)
            results = check_plateau(run, dataset, device=device, progress=show) if plateau else results
            table = measure_unseen({run.name: run}, dataset, device=device) if unseen else None
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from the last finished batch.")
        raise Exit(130) from None
    for part in console.evaluation_tables(run, results, table):
        out.print(part, highlight=False)
    if suite == "reference":
        with out.status("the authors' AutoAttack"):
            comparison = compare_with_reference(run, dataset, n=results["n"], device=device)
        out.print(console.reference_table(comparison))


def audit(
    path: RunDirectory,
    examples: Annotated[int, Option(min=0, help="Images; 0 for 256. Stochastic models: at most as for curves.")] = 0,
    data_root: DataRoot = "",
    device: Device = "auto",
    precision: Search = "auto",
    trust_code: Trust = False,
) -> None:
    """Ask whether the robust accuracy of an evaluated run can be believed.

    Prints fifteen checks and two badges: of the worst case over all attacks, and of the attack that the method's paper uses.
    """
    from robustlib.audit import audit_run
    from robustlib.workbook import console

    run, dataset = _run_and_data(path, data_root, trust_code)
    with out.status("auditing") as status:
        where: Any = {"device": device, "precision": precision}
        report = audit_run(run, dataset, n=examples or None, **where, progress=status.update)
    out.print(console.audit_table(report, f"{run.name} · {report['threat']} · {report['seconds']:.0f} s"))


def _run_and_data(path: Path, data_root: str, trust_code: bool) -> "tuple[Run, Dataset]":
    """The run in a directory, and the data set it was trained on."""
    from robustlib.data import dataset_of
    from robustlib.runs import Run

    params = Run(path).params()
    if not params:
        raise InputError(f"{path} holds no run (no params.json): give a directory that `robustlib list` shows.")
    if trust_code:
        Run(path).trust()
    return Run(path), dataset_of(params, data_root or None)


def compare(
    paths: Annotated[
        list[Path], Argument(help="Run directories, as `robustlib list` shows them: trained here or elsewhere.")
    ],
    data_root: DataRoot = "",
    reports: Reports = Path("reports"),
    trust_code: Trust = False,
) -> None:
    """Set evaluated runs side by side: paired differences, who fails where, curves, feature spaces.

    They share a data set and a threat. The page is written beside the others; differences on the same images are printed.
    """
    from robustlib.evaluation import paired_differences
    from robustlib.runs import Run
    from robustlib.workbook import console, tables
    from robustlib.workbook.experiments import Options, compare_paths, named_runs, on_same_images

    if len(paths) < 2:
        raise InputError(f"{len(paths)} run cannot be compared: give at least two run directories.")
    for path in paths if trust_code else ():
        Run(path).trust()
    with out.status("comparing"):
        page, problems = compare_paths(paths, Options(reports=reports, data_root=data_root))
    stands = on_same_images(named_runs([Run(path) for path in paths]))
    if len(stands.columns) > 1:
        out.print(
            console.table(tables.paired(paired_differences(stands)), "Worst case on the same images (points, 95 %)")
        )
    announce(page, problems)


def list_(
    runs: Runs = Path("runs"),
    every: Annotated[bool, Option("--all", help=f"Also where there are more than {LISTED}.")] = False,
) -> None:
    """List all runs, what they reached and which are stale.

    A run is stale if its method, an attack or a measure gives other numbers today; run --rerun renews it.
    """
    from robustlib.runs import find_runs
    from robustlib.workbook import console, tables

    found = find_runs(runs, finished=False)
    shown = found if every else found[:LISTED]
    missing = f"There are no runs in {runs} yet: robustlib run makes some."
    out.print(console.table(tables.inventory(shown)) if found else missing)
    if len(shown) < len(found):
        out.print(f"The first {LISTED} of {len(found)} runs, by path; robustlib list --all shows the others.")
