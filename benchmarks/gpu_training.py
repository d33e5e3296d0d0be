"""One method of `cifar10-short` on a GPU: trained, evaluated on the preset's test images and audited, without a notebook.

    python benchmarks/gpu_training.py pgd_at --data-root data
    python benchmarks/gpu_training.py pgd_at --rehearse    # a small network on few digits, on the CPU

Interrupted anywhere, the same call goes on.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from gpu_slices import PRESET, TRAININGS

from robustlib.audit import audit_run
from robustlib.data import load_dataset
from robustlib.evaluation import evaluate_run
from robustlib.methods import Method, load_preset, make_method
from robustlib.runs import Run, find_runs
from robustlib.training import fit
from robustlib.training.fit import resolve_precision


def train(name: str, data_root: str, runs: Path, rehearse: bool = False) -> None:
    """One method of the preset, below `runs`; a rehearsal takes few digits in place of the images below `data_root`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background would ignore
    method, device, n = make_method(name, PRESET), "cuda", load_preset(PRESET)["test_examples"]
    dataset = load_dataset("digits" if rehearse else load_preset(PRESET)["dataset"], root=data_root)
    if rehearse:
        method, dataset, device, n = tiny(name), replace(dataset, val=dataset.val.sample(60)), "cpu", 10
    with rehearsed() if rehearse else nullcontext():
        run = fit(method, dataset, root=runs, device=device)
        started = time.perf_counter()
        results = evaluate_run(run, dataset, n=n, device=device)
        for row in results["rows"]:
            print(f"{name} {row['attack']}: {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]")
        for kind, badge in audit_run(run, dataset, device=device)["badges"].items():
            print(f"{name} {kind}: {badge['verdict']}. {badge['text']}")
    seconds = run.metrics().seconds[1:]
    print(f"{name}: {seconds.median():.1f} s an epoch, evaluation and audit {time.perf_counter() - started:.0f} s")


def own_runs(name: str, runs: Path, rehearse: bool = False) -> list[Run]:
    """The run that `train` makes or goes on with, where it is below `runs` and undamaged: one or none."""
    dataset, device = ("digits", "cpu") if rehearse else (load_preset(PRESET)["dataset"], "cuda")
    precision = resolve_precision("auto", torch.device(device), make_method(name, PRESET).precision)
    own = {"preset": PRESET, "seed": 0, "precision": precision}
    found = [run for run in find_runs(runs, dataset=dataset, method=name, finished=False) if not run.damage]
    return [run for run in found if run.params().items() >= own.items() and (rehearse or not run.changed)]


def tiny(name: str) -> Method:
    """The preset's method with a small network on few images: six epochs, and one of each stage that prepares them."""
    from cifar_smoke import lengths

    known = make_method(name, PRESET).hyperparameters()
    small = {
        "epochs": 6,
        "attack_steps": 1,
        "batch_size": 32,
        "train_examples": 64,
        "arch": "small_cnn",
        "width": 4,
        "embed_dim": 8,
    }
    return make_method(name, PRESET, **lengths(name, PRESET) | {k: v for k, v in small.items() if k in known})


@contextmanager
def rehearsed() -> Iterator[None]:
    """Randomised models get a small budget, as in cifar_smoke.py, for as long as it lasts."""
    from cifar_smoke import brief

    with brief():
        yield


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=TRAININGS)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args()
    train(options.method, options.data_root, options.runs, options.rehearse)
    return 0


if __name__ == "__main__":
    sys.exit(main())
