"""Whether two commits give the same numbers, bit for bit: the methods of `make report`, seed 0, on this machine, one thread each.

    python benchmarks/same_numbers.py COMMIT                  # COMMIT against the checkout; trains both, about 40 minutes of one core
    python benchmarks/same_numbers.py --compare BEFORE AFTER  # two directories of runs that are there already

Compared are the weights (best and last epoch), the per-example records and every number of the results; not what a run says about time,
software and machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parent.parent
COMMAND = "import sys; from {} import main; main(['run', '--preset', 'digits', '--runs', sys.argv[1], '--reports', sys.argv[1] + '-pages'])"
CLI = ("robustlib.cli", "robustlib.workbook.cli")  # the second since step 2 of the small package
TOLD = ("seconds", "numerics", "facts", "commit", "device", "wall")  # what is no number of the model


def train(checkout: Path, runs: Path) -> None:
    """The methods of the digits preset with the code of `checkout`, on one thread."""
    module = CLI[1] if (checkout / "robustlib" / "workbook").is_dir() else CLI[0]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", COMMAND.format(module), str(runs)], cwd=checkout, env=environment, check=True)


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, number) of everything in a JSON value but what is told of the machine."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not any(word in name for word in TOLD):
                yield from numbers(part, f"{place}/{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from numbers(part, f"{place}/{index}")
    elif isinstance(value, int | float):
        yield place, value


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two directories of the same run."""
    found = [
        f"{n} differs" for n in ("model.safetensors", "last.safetensors") if bytes_of(before / n) != bytes_of(after / n)
    ]
    old, new = (pd.read_parquet(run / "records.parquet") for run in (before, after))
    found += [] if old.equals(new) else ["records differ"]
    a, b = (dict(numbers(json.loads((run / "results.json").read_text()))) for run in (before, after))
    return found + [
        f"results{p}: {a.get(p)} is {b.get(p)}" for p in sorted(a.keys() | b.keys()) if repr(a.get(p)) != repr(b.get(p))
    ]


def bytes_of(path: Path) -> bytes:
    """The content of a file; nothing where it is missing in both."""
    return path.read_bytes() if path.exists() else b""


def compare(before: Path, after: Path) -> int:
    """Prints one line a run; 1 if a run is missing or differs."""
    runs = sorted(path.parent.relative_to(before) for path in before.glob("*/*/*/results.json"))
    bad = 0 if runs else 1
    for run in runs:
        there = (after / run / "results.json").exists()
        found = differences(before / run, after / run) if there else ["missing"]
        bad += bool(found)
        print(f"{run}: {'; '.join(found[:5]) or 'bit for bit the same'}")
    return int(bad > 0)


def main() -> int:
    """Trains what is asked for and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        return compare(*options.compare)
    if not options.commit:
        parser.error("give a commit, or --compare with two directories of runs")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(place / "code"), options.commit], cwd=ROOT, check=True
        )
        try:
            train(place / "code", place / "before")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place / "code")], cwd=ROOT, check=True)
        train(ROOT, place / "after")
        return compare(place / "before", place / "after")


if __name__ == "__main__":
    raise SystemExit(main())
