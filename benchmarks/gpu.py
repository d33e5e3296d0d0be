"""Everything that needs a GPU, in one command: checks, speed tables, then `cifar10-short` for every method of the preset.

    python benchmarks/gpu.py --data-root data                  # all of it; results below reports/reference/
    python benchmarks/gpu.py --data-root data --only trades    # the checks and one method

It needs no notebook packages. Each step is a command of its own, printed before it runs; a failing one does not stop the rest,
and the exit code says whether all passed. Trainings resume, so the call may be repeated until it is done.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

PRESET = "cifar10-short"
HERE = Path(__file__).parent


def checks(data_root: str) -> list[list[str]]:
    """The GPU tests and the speed benchmarks."""
    python = sys.executable
    full = "--device cuda --dataset cifar10 --training 2000 --images 1000 --steps 100 --targets 9 --queries 5000 --rounds 1"
    weights = ["--weights", "runs/autoattack_speed_cifar10.safetensors", "--data-root", data_root]
    return [
        [python, "-m", "pytest", "-q", str(HERE / "gpu_checks.py")],
        [python, str(HERE / "training_speed.py"), "--device", "cuda", "--rounds", "10"],
        [python, str(HERE / "compiled_step.py"), "--device", "cuda", "--rounds", "10"],
        [python, str(HERE / "attack_speed.py"), "--device", "cuda", "--rounds", "10"],
        [python, str(HERE / "autoattack_speed.py"), *full.split(), *weights],
    ]


def train(name: str, data_root: str, runs: str) -> None:
    """One method of the preset, trained and evaluated without a notebook."""
    from robustlib.audit import audit_run
    from robustlib.data import load_dataset
    from robustlib.evaluation import evaluate_run
    from robustlib.methods import load_preset, make_method
    from robustlib.training import fit

    dataset = load_dataset(load_preset(PRESET)["dataset"], root=data_root)
    run = fit(make_method(name, PRESET), dataset, root=runs, device="cuda")
    started = time.perf_counter()
    results = evaluate_run(run, dataset, n=load_preset(PRESET)["test_examples"])
    for row in results["rows"]:
        print(f"{name} {row['attack']}: {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]")
    for kind, badge in audit_run(run, dataset)["badges"].items():
        print(f"{name} {kind}: {badge['verdict']}. {badge['text']}")
    seconds = run.metrics().seconds[1:]
    print(f"{name}: {seconds.median():.1f} s an epoch, evaluation and audit {time.perf_counter() - started:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--only", nargs="*", help="methods; all of the preset if not given")
    parser.add_argument("--train", help=argparse.SUPPRESS)  # a step of this script's own
    options = parser.parse_args()
    if options.train:
        train(options.train, options.data_root, options.runs)
        return 0
    from robustlib.methods import METHODS

    this = [sys.executable, __file__, "--data-root", options.data_root, "--runs", options.runs]
    steps = checks(options.data_root) + [[*this, "--train", name] for name in options.only or METHODS]
    out = str(HERE.parent / "reports" / "reference" / PRESET)
    steps.append(
        [sys.executable, str(HERE / "export_reference.py"), "--runs", options.runs, "--preset", PRESET, "--out", out]
    )
    failed = []
    for step in steps:
        print("$", *step, flush=True)
        if subprocess.run(step).returncode:
            failed.append(step)
    for step in failed:
        print("failed:", *step)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
