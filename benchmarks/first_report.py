"""What the first report costs (`make report` after installation): CPU-seconds by method and part, of this or of other commits.

    python benchmarks/first_report.py                        # a quarter of an hour on two idle cores; writes first_report.md
    python benchmarks/first_report.py --commits 79752a4 HEAD # each in a clone of its own

CPU-seconds (user + system, of all processes) hold on a busy machine, where seconds do not. Kernels count theirs cell by cell.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from side_by_side import markdown, write_report

ROOT = Path(__file__).parent.parent
MOST = 900  # CPU-seconds
PARTS = {
    "training": r"\bfit\(",
    "attacks and audit": r"\b(evaluate_run|audit_run|judge)\(",
}  # by what a cell calls; else:
COLUMNS = (*PARTS, "other cells", "start")
HOOK = """
def count():
    import json, os, resource
    shell, began = get_ipython(), [0.0]
    def cpu():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    def before(info):
        began[0] = cpu()
    def after(result):
        line = {"pid": os.getpid(), "cell": result.info.raw_cell, "begin": began[0], "cpu": cpu() - began[0]}
        with open(os.environ["CELLS"], "a") as file:
            file.write(json.dumps(line) + "\\n")
    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)
count()
"""


def measure(checkout: Path, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """The cells that the kernels of a report ran, and the CPU-seconds of the whole."""
    startup, cells = folder / "ipython" / "profile_default" / "startup", folder / "cells.jsonl"
    startup.mkdir(parents=True)
    (startup / "00-count.py").write_text(HOOK)
    places = {"PYTHONPATH": str(checkout), "IPYTHONDIR": str(folder / "ipython"), "CELLS": str(cells)}
    command = [sys.executable, "-m", "robustlib.workbook.cli", "run", "--preset", "digits", "--jobs", "2"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=os.environ | places, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [json.loads(line) for line in cells.read_text().splitlines()], whole


def by_part(cells: Iterable[Mapping[str, Any]], whole: float) -> list[dict[str, str]]:
    """A row a notebook, one for what is outside of kernels (watching, pages, map, index), and one for all: CPU-seconds."""
    kernels: dict[int, dict[str, Any]] = {}
    for cell in cells:
        row = kernels.setdefault(
            cell["pid"], {"notebook": "comparison", **dict.fromkeys(COLUMNS, 0.0), "start": cell["begin"]}
        )
        if named := re.search(r'^method = "(\w+)"', cell["cell"], re.MULTILINE):
            row["notebook"] = named[1]
        part = next((name for name, call in PARTS.items() if re.search(call, cell["cell"])), "other cells")
        row[part] += cell["cpu"]
    rows = [row | {"sum": sum(row[name] for name in COLUMNS)} for row in kernels.values()]
    outside = whole - sum(row["sum"] for row in rows)
    rows.append({"notebook": "outside of kernels", **dict.fromkeys(COLUMNS, 0.0), "sum": outside})
    rows.append({"notebook": "all", **{name: sum(row[name] for row in rows) for name in (*COLUMNS, "sum")}})
    return [{k: v if k == "notebook" else f"{v:.0f}" for k, v in row.items()} for row in rows]


def main() -> int:
    """Measures each commit and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", nargs="*", default=["HEAD"])
    commits, tables, whole = parser.parse_args().commits, list[str](), 0.0
    for commit in commits:
        with tempfile.TemporaryDirectory() as place:
            checkout, folder = Path(place) / "checkout", Path(place) / "report"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
            subprocess.run(["git", "checkout", "--quiet", commit], cwd=checkout, check=True)
            folder.mkdir()
            cells, whole = measure(checkout, folder)
        tables.append(f"CPU-seconds at {commit}:\n\n" + markdown(by_part(cells, whole)))
    claims = {f"the first report costs at most {MOST} CPU-seconds ({whole:.0f})": whole <= MOST}
    command = f"python benchmarks/first_report.py --commits {' '.join(commits)}"
    return write_report("first_report.md", "The first report", command, torch.device("cpu"), tables, claims)


if __name__ == "__main__":
    sys.exit(main())
