"""How long `robustlib report` takes on 30 finished runs once their notebooks are executed, and how large its pages are.

    python benchmarks/report_speed.py     # some minutes on two cores; writes report_speed.md

Each method's notebook trains one short run of it on digits; the other seeds are copies of these, with their pages.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from cifar_smoke import lengths
from side_by_side import markdown, write_report

from robustlib.runs import Run
from robustlib.workbook.engines import run_all
from robustlib.workbook.experiments import Options, page, plan, preset_methods
from robustlib.workbook.task import Task

RUNS, SECONDS, MB = 30, 60, 1_000_000
TINY = {"epochs": 2, "train_examples": 300}
INDEX, PAGE = 2, 3  # MB


def finished(options: Options, count: int) -> None:
    """`count` finished runs and their executed notebooks: the first seed of each method, and copies of it."""
    methods = preset_methods(options.preset)
    jobs = plan([(name, lengths(name, options.preset) | TINY) for name in methods], [0], options)
    for status in run_all([job.task for job in jobs], jobs=2):
        if status["state"] != "done":
            sys.exit(f"{status['notebook']}: {status['reason']}")
    report(options)  # leaves features and maps in the first runs, so that the copies have them
    for number in range(len(jobs), count):
        _copy(jobs[number % len(jobs)].run, number // len(jobs), options)


def _copy(run: Run, seed: int, options: Options) -> None:
    params = run.params() | {"seed": seed}
    other = Run.of(params, options.runs)
    shutil.copytree(run.path, other.path)
    (other.path / "params.json").write_text(json.dumps(params))
    first, copy = (page(one, options.reports, options.preset) for one in (run, other))
    for suffix in (".ipynb", ".status.json"):
        shutil.copy(first.with_suffix(suffix), copy.with_suffix(suffix))


def report(options: Options) -> tuple[float, float]:
    """Seconds of `robustlib report`, and how many of them executed the comparison."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "robustlib.workbook.cli", "report", "--runs", str(options.runs)]
    subprocess.run([*command, "--reports", str(options.reports)], check=True)
    seconds = time.perf_counter() - start
    executed = options.reports / options.preset / "compare.ipynb"
    return seconds, Task(executed, {}, executed).status()["seconds"]


def main() -> int:
    """Makes the runs, measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        options = Options(runs=Path(place) / "runs", reports=Path(place) / "reports", examples=100)
        finished(options, count)
        whole, executing = report(options)
        sizes = {html: html.stat().st_size / MB for html in options.reports.rglob("*.html")}
    kinds = {"index": [], "comparison": [], "map": [], "run": []}
    names = {"index": "index", "compare": "comparison", "atlas": "map"}
    for html, size in sizes.items():
        kinds[names.get(html.stem, "run")].append(size)
    rows = [{"page": kind, "pages": len(some), "largest (MB)": f"{max(some):.2f}"} for kind, some in kinds.items()]
    after = whole - executing
    times = f"{whole:.0f} s, of which {executing:.0f} s executed the comparison and {after:.0f} s did the rest.\n"
    claims = {
        f"{count} runs take at most {SECONDS} s after the notebooks are executed ({after:.0f} s)": after <= SECONDS,
        f"the index is below {INDEX} MB ({max(kinds['index']):.2f})": max(kinds["index"]) < INDEX,
        f"every run's page is below {PAGE} MB ({max(kinds['run']):.2f})": max(kinds["run"]) < PAGE,
        f"the map is below {PAGE} MB ({max(kinds['map']):.2f})": max(kinds["map"]) < PAGE,
        f"every run has a page ({len(kinds['run'])})": len(kinds["run"]) == count,
    }
    title, command = f"`robustlib report` on {count} runs of digits", "python benchmarks/report_speed.py"
    return write_report("report_speed.md", title, command, torch.device("cpu"), [markdown(rows), times], claims)


if __name__ == "__main__":
    sys.exit(main())
