"""Seconds and memory that loading each data set takes, and images per second of each view. Prints a Markdown table.

    python benchmarks/data_loading.py --data-root DIR [NAME ...]

Each data set is loaded in a process of its own. Seconds exclude imports. `added` is how far the peak resident memory of
the process rises above its level after the imports, which alone is shown as `imports`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ["data set", "images", "pixels (MB)", "seconds", "added peak (MB)", "imports (MB)"]
COLUMNS += [f"{view} (images/s)" for view in ("none", "weak", "simclr", "simclr-weak")]
BUDGET = {"cifar10": (3.0, 600.0)}  # seconds, MB


def peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, root: str) -> dict[str, object]:
    """Loads one data set in this process, then draws 50 batches of 128 of each view with one thread."""
    import PIL.Image  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import torch
    import torchvision.datasets  # noqa: F401

    from robustlib.data import VIEWS, load_dataset

    torch.set_num_threads(1)
    imports, start = peak_mb(), time.perf_counter()
    ds = load_dataset(name, root=root)
    row: dict[str, object] = {"seconds": time.perf_counter() - start, "imports": imports, "added": peak_mb() - imports}
    row["images"] = len(ds.train) + len(ds.val) + len(ds.test)
    row["pixels"] = sum(split.images.numel() for split in (ds.train, ds.val, ds.test)) / 2**20
    for view in VIEWS:
        row[view] = rate(ds, view)
    return row


def rate(ds: object, view: str) -> float:
    """Images per second of a view."""
    import torch

    generator, seen, start = torch.Generator().manual_seed(0), 0, time.perf_counter()
    for number, batch in enumerate(ds.train.batches(128, shuffle=True, augment=view, generator=generator)):  # type: ignore[attr-defined]
        seen += len(batch.x)
        if number == 49:
            break
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measures every data set that is at hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["digits", "mnist", "cifar10"])
    parser.add_argument("--data-root", required=True, type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.names[0], str(given.data_root))))
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for name in given.names:
        command = [sys.executable, __file__, name, "--data-root", str(given.data_root), "--here"]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        before, after = ("images", "pixels"), ("added", "imports", "none", "weak", "simclr", "simclr-weak")
        cells = (
            [f"{row[key]:,.0f}" for key in before] + [f"{row['seconds']:.2f}"] + [f"{row[key]:,.0f}" for key in after]
        )
        print("|", " | ".join([name, *cells]), "|", flush=True)
        seconds, mb = BUDGET.get(name, (float("inf"), float("inf")))
        if row["seconds"] > seconds or row["added"] > mb:
            sys.exit(f"{name} misses its budget of {seconds} s and {mb} MB.")


if __name__ == "__main__":
    main()
