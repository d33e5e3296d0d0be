"""An epoch of PGD-AT on ResNet-18 (50 000 images of 32x32, batch 128, ten attack steps), plain and compiled.

    python benchmarks/compiled_step.py --device cuda   # two minutes; writes compiled_step_cuda.md
    python benchmarks/compiled_step.py --batch 32      # ten minutes of a CPU core; writes compiled_step.md

Seconds of an epoch are those of a step times the number of steps: what comes before, compiling included, is said beside them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping

import torch
from side_by_side import alternate, markdown, timed_options, write_report
from training_steps import PRECISIONS, our_step

EXAMPLES, AIM = 50_000, 10.0  # images of an epoch; seconds that one may take on an H100
STEPS = 5  # in a measurement
WAYS = {"plain": False, "compiled": True}


def steps(precision: str, batch: int, device: torch.device, compiled: bool) -> tuple[Callable[[], None], float]:
    """STEPS steps of the real loop, and the seconds that the first one took."""
    step, started = our_step("pgd_at", precision, batch, device, compiled=compiled), time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    first = time.perf_counter() - started

    def work() -> None:
        for _ in range(STEPS):
            step()

    return work, first


def epoch(seconds: float, batch: int) -> float:
    """Seconds of an epoch, of those that STEPS steps take."""
    return seconds / STEPS * EXAMPLES / batch


def claims(seconds: Mapping[str, float], batch: int) -> dict[str, bool]:
    """What is promised on a GPU of the seconds of STEPS steps, with what was measured: a sentence -> whether it holds."""
    gains = {p: seconds[f"{p} plain"] / seconds[f"{p} compiled"] for p in PRECISIONS}
    said = {f"compiled steps are faster in {p} ({gain:.2f} times as fast)": gain > 1 for p, gain in gains.items()}
    best = epoch(seconds["bf16 compiled"], batch)
    return said | {f"a compiled epoch in bf16 takes at most {AIM:g} s, the aim for an H100 ({best:.1f} s)": best <= AIM}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = timed_options(parser, batch=128)
    device = options.device
    made = {
        f"{precision} {way}": steps(precision, options.batch, device, compiled)
        for precision in PRECISIONS
        for way, compiled in WAYS.items()
    }
    seconds = alternate({name: work for name, (work, _) in made.items()}, options.rounds, device)
    rows: list[Mapping[str, object]] = [
        {
            **{"precision": precision, "way": way, "first step, seconds": f"{made[f'{precision} {way}'][1]:.1f}"},
            **{"step, ms": f"{seconds[f'{precision} {way}'] / STEPS * 1000:.1f}"},
            "epoch, seconds": f"{epoch(seconds[f'{precision} {way}'], options.batch):.1f}",
        }
        for precision in PRECISIONS
        for way in WAYS
    ]
    said = claims(seconds, options.batch) if device.type == "cuda" else {}  # on a CPU a trial decides
    command = f"python benchmarks/compiled_step.py --device {device} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"A step of PGD-AT, plain and compiled: ResNet-18, batch {options.batch}, 32x32, ten attack steps"
    return write_report("compiled_step.md", title, command, device, [markdown(rows)], said)


if __name__ == "__main__":
    sys.exit(main())
