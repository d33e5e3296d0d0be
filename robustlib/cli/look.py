"""Commands that look at what is there: list, lab."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustlib import console
from robustlib.cli.options import Runs
from robustlib.cli.shell import app, out


@app.command("list")
def list_(runs: Runs = Path("runs")) -> None:
    """List all runs, what they reached and which are stale.

    A run is stale if its method, an attack or a measure gives other numbers today; run --rerun renews it.
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
