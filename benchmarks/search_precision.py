"""What a search in bf16 costs and misses: the whole evaluation of trained models in both precisions, image by image.

    robustlib run standard pgd_at trades --preset digits
    python benchmarks/search_precision.py --runs runs                 # writes search_precision.md; one thread
    python benchmarks/search_precision.py --runs runs --images 128 --methods pgd_at ancra atop

Both sides meet the same attacks, random draws and images; float32 judges every adversarial example.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from side_by_side import markdown, write_report

from robustlib.attacks.base import Precision
from robustlib.data import Dataset, load_dataset
from robustlib.evaluation import evaluate
from robustlib.evaluation.measurements import faster_precision, images_of, protocol_of, threat_of
from robustlib.evaluation.metrics import robust_correct
from robustlib.evaluation.protocols import Suite
from robustlib.runs import Run, find_runs

PRECISIONS: tuple[Precision, Precision] = ("32-true", "bf16-mixed")
ALLOWED = 1 / 128  # of the images may withstand a search in bf16 and not the one in float32


def withstood(run: Run, dataset: Dataset, n: int, precision: Precision) -> "tuple[pd.Series[bool], float]":
    """Which images of a run withstand everything, by index, and the CPU-seconds it took."""
    model, images = run.model().to(memory_format=torch.channels_last), images_of(run, dataset, n)
    suite, began = Suite(model, threat_of(run), protocol_of(run), {}, precision), time.process_time()
    records = evaluate(model, images, suite.attacks, adaptive=suite.adaptive)
    stood = robust_correct(records).groupby(records["index"]).min()
    return stood, time.process_time() - began


def compared(run: Run, dataset: Dataset, n: int) -> Mapping[str, object]:
    """One row of the table."""
    (exact, long), (quick, short) = (withstood(run, dataset, n, precision) for precision in PRECISIONS)
    return {
        "run": run.name,
        "images": len(exact),
        "withstand float32": int(exact.sum()),
        "withstand bf16": int(quick.sum()),
        "bf16 alone misses": int((quick & ~exact).sum()),
        "float32 alone misses": int((exact & ~quick).sum()),
        "CPU-seconds, float32": round(long, 1),
        "bf16 is cheaper by": f"{long / short:.2f}x",
        "auto takes": faster_precision(run, images_of(run, dataset, n), torch.device("cpu")),
    }


def main() -> int:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--methods", nargs="+", default=["standard", "pgd_at", "trades"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.dataset, root=options.data_root)
    runs = [run for run in find_runs(options.runs) if run.params()["dataset"] == options.dataset]
    runs = [run for name in options.methods for run in runs if run.params()["method"] == name and not run.changes()]
    if len(runs) < len(options.methods):
        sys.exit(f"{options.runs} holds finished runs of {[run.name for run in runs]} only: train the others first.")
    rows = [compared(run, dataset, options.images) for run in runs]
    worst = max(int(str(row["bf16 alone misses"])) / int(str(row["images"])) for row in rows)
    said = f"at most one image in 128 withstands a search in bf16 that float32 breaks ({worst:.2%} of a run's at most)"
    title = f"Searching in bf16: standard and adaptive attacks on {options.dataset}, {options.images} images"
    command = "python benchmarks/search_precision.py" + "".join(f" {word}" for word in sys.argv[1:])
    return write_report(
        "search_precision.md", title, command, torch.device("cpu"), [markdown(rows)], {said: worst <= ALLOWED}
    )


if __name__ == "__main__":
    sys.exit(main())
