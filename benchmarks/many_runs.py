"""What a folder of thousands of runs costs: to find them, to list them, and to write their index, in CPU-seconds of one process each.

    python benchmarks/many_runs.py --runs 2000      # some minutes; writes many_runs.md

The runs are copies of a committed one with seeds of their own, evaluated, audited, and with weights that are large enough for a reader of
them to be seen. Each step is made twice: what was read is kept for the second time, on which the limits are. Growth is judged by half as many runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from side_by_side import markdown, write_report

from robustlib.runs import Run

SOURCE = Path(__file__).parent.parent / "reports" / "reference" / "digits" / "pgd_at.zip"
METHODS = ("pgd_at", "trades", "standard", "mart")  # among which the copies are shared out
WEIGHTS = 1_000_000  # bytes of a run's weights
STEPS = {  # what is imported first, and what is counted
    "find_runs": ("from robustlib.runs import find_runs", "find_runs(runs)"),
    "robustlib list": (
        "from robustlib.runs import find_runs; from robustlib.workbook import cli, console, tables",
        "cli.main(['list', '--runs', runs])",
    ),
    "index": (
        "from pathlib import Path; from robustlib.workbook import report; from robustlib.workbook.experiments import Options, publish",
        "publish(Options(runs=Path(runs), reports=Path(reports)), [])",
    ),
}
LIMITS = {"find_runs": 0.5, "robustlib list": 1.0, "index": 5.0}  # CPU-seconds for 2 000 runs, imports left out
MEMORY, INDEX = 400, 2_000_000  # MiB, bytes


def copies(n: int, root: Path) -> None:
    """Writes n runs below `root`."""
    with zipfile.ZipFile(SOURCE) as archive:
        first = archive.namelist()[0].partition("/")[0]
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist() if name.startswith(first)}
    weights = bytes(WEIGHTS)
    for k in range(n):
        method = METHODS[k % len(METHODS)]
        params = json.loads(files["params.json"]) | {"seed": k, "method": method}
        run = Run.of(params, root)
        run.path.mkdir(parents=True)
        for name, data in files.items():
            content = params if name == "params.json" else data
            if name.endswith(".json") and name != "params.json":
                content = owned(json.loads(data), run.place)
            (run.path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        for name in ("model.safetensors", "last.safetensors"):
            (run.path / name).write_bytes(weights)


def owned(content: dict[str, Any], place: str) -> dict[str, Any]:
    """The same as a file of the run at `place`."""
    return {
        name: place if name == "run" else owned(part, place) if isinstance(part, dict) else part
        for name, part in content.items()
    }


def spent(step: str, runs: Path, reports: Path) -> tuple[float, float, float]:
    """CPU-seconds of a step in a process of its own, imports left out; its peak memory in MiB, and that of the imports alone."""
    imports, work = STEPS[step]
    code = f"""
import resource, sys, time
{imports}
runs, reports = {str(runs)!r}, {str(reports)!r}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imported, before = peak(), time.process_time()
try:
    {work}
except SystemExit:
    pass
print(time.process_time() - before, peak(), imported, file=sys.stderr)
"""
    state = os.environ | {"XDG_STATE_HOME": str(runs.with_name(f"state of {step}"))}  # where what was read is kept
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=state)
    seconds, memory, imported = map(float, done.stderr.splitlines()[-1].split())
    return seconds, memory, imported


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    rows, size, first, found = [], 0, dict[str, float](), dict[tuple[str, int], tuple[float, ...]]()
    for n in (options.runs // 2, options.runs):
        with tempfile.TemporaryDirectory() as place:
            copies(n, Path(place) / "runs")
            for step in STEPS:
                folders = Path(place) / "runs", Path(place) / "reports"
                first[step], *_ = spent(step, *folders)
                found[step, n] = spent(step, *folders)
                print(step, n, first[step], found[step, n], flush=True)
            size = (Path(place) / "reports" / "index.html").stat().st_size
    claims = {}
    for step in STEPS:
        (half, *_), (whole, memory, imported) = found[step, options.runs // 2], found[step, options.runs]
        rows.append(
            {
                "step": step,
                f"{options.runs} runs, first time": f"{first[step]:.2f}",
                f"{options.runs // 2} runs": f"{half:.2f}",
                f"{options.runs} runs": f"{whole:.2f}",
                "peak memory (MiB)": f"{memory:.0f}",
                "of imports alone": f"{imported:.0f}",
            }
        )
        claims[f"{step}: at most {LIMITS[step]} CPU-seconds for 2 000 runs"] = (
            whole * 2000 / options.runs <= LIMITS[step]
        )
        claims[f"{step}: at most {MEMORY} MiB beside what importing torch takes"] = memory - imported <= MEMORY
        claims[f"{step}: twice as many runs cost at most 2.5 times as much"] = whole <= 2.5 * half + 0.1
    claims[f"the index stays below 2 MB ({size / 1e6:.2f})"] = size < INDEX
    if options.trial:
        print(*(f"{ok}: {claim}" for claim, ok in claims.items()), sep="\n")
        return 0
    command = f"python benchmarks/many_runs.py --runs {options.runs}"
    return write_report("many_runs.md", "Thousands of runs", command, torch.device("cpu"), [markdown(rows)], claims)


if __name__ == "__main__":
    sys.exit(main())
