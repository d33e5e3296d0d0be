"""A training step of each adversarial method on ResNet-18 (batch 128, 32x32): time, memory, and what they should be.

    python benchmarks/training_speed.py                 # about 20 minutes on two idle CPU cores; writes training_speed.md
    python benchmarks/training_speed.py --device cuda   # seconds; writes training_speed_cuda.md
    python benchmarks/training_speed.py --methods afd ancra --batch 8 --rounds 1    # a quick look

Time has two references. At each precision a step is counted in forward-backward passes of the bare model in train mode, weight
gradients included and in the same memory format; a forward pass alone counts half. And the papers' plain float32 loops
(plain_loops.py). Memory is compared with that of a PGD-AT step at the same precision.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from plain_loops import LOOPS, STEPS
from side_by_side import alternate, markdown, timed_options, write_report
from training_steps import PASSES, PRECISIONS, bare_passes, made_up_dataset, our_step, peak_mb

from robustlib.methods import METHODS, AdversarialMethod

# method: how its step is counted in forward-backward passes
COUNTS: dict[str, tuple[float, str]] = {
    "pgd_at": (STEPS + 1, "10 of the attack, 1 on x'"),
    "trades": (
        STEPS + 3,
        "10 of the attack, the clean forward that its KL needs, 2 on x and x', the forward on x again",
    ),
    "mart": (STEPS + 2, "10 of the attack (cross-entropy: no clean forward), 2 on x and x'"),
    "fgsm_rs": (2, "1 of the attack, 1 on x'"),
    "n_fgsm": (2, "1 of the attack, 1 on x'"),
    "vaft": (STEPS + 1, "as PGD-AT"),
    "afkd": (STEPS + 1.5, "as PGD-AT, and the teacher's forward"),
    "arrest": (STEPS + 2, "as AFKD, and the student's clean forward that decides on noisy replay"),
    "afd": (STEPS + 1.5, "as PGD-AT, and the teacher's forward"),
    "supcon": (2, "2 on the views; what counts of this family is a step of the stage before the head"),
    "simclr": (2, "as SupCon"),
    "rocl": (STEPS + 5.5, "10 of the attack, the forward of the view it leaves, 2 on the pair, 3 on the views"),
    "acl": (2 * STEPS + 4, "2 x 10 of the attack on both views, 2 on the clean views, 2 on the attacked ones"),
    "claf": (STEPS + 3, "10 of the attack, 3 on the views; a pass of the refresh is not counted"),
    "ancra": (2 * STEPS + 3, "2 x 10 of the attacks on x and x_o, 3 on x, x' and x_o"),
}
SHARE, MEMORY, GAIN = 0.7, 1.5, 2.5  # at most, of the count and of PGD-AT's peak; at least, of the plain loop's speed
AT_ONCE = 6  # processes that are weighed on a GPU: most of their time is importing
OWN = {"ancra": (0.8, 2.5)}  # its share and memory


@dataclass(frozen=True)
class Measured:
    """Seconds by competitor ("afd bf16", "bare bf16", "afd plain") and MiB by "afd bf16"."""

    seconds: Mapping[str, float]
    memory: Mapping[str, float]

    def share(self, name: str, precision: str) -> float:
        """Of the bare passes that the step is counted as."""
        return self.seconds[f"{name} {precision}"] / (self.seconds[f"bare {precision}"] / PASSES * COUNTS[name][0])

    def heavier(self, name: str, precision: str) -> float:
        """Peak memory in multiples of PGD-AT's."""
        return self.memory[f"{name} {precision}"] / self.memory[f"pgd_at {precision}"]

    def gain(self, name: str) -> float:
        """How many times as fast as the plain loop in bf16."""
        return self.seconds[f"{name} plain"] / self.seconds[f"{name} bf16"]


def measure(methods: list[str], batch: int, rounds: int, device: torch.device, threads: int) -> Measured:
    """Memory first, one process a step (on a GPU several at a time, which count their own memory), then all times in turn."""
    weighed = [(name, p) for name in dict.fromkeys(["pgd_at", *methods]) for p in PRECISIONS]
    weigh = partial(peak_mb, our_step, device=device, threads=threads)
    with ThreadPoolExecutor(1 if device.type == "cpu" else AT_ONCE) as pool:
        peaks = pool.map(lambda step: weigh(*step, batch, device), weighed)
        memory = {f"{name} {p}": mb for (name, p), mb in zip(weighed, peaks, strict=True)}
    data = made_up_dataset(batch).train.to(device)
    x, y = data.images.float() / 255, data.labels
    competitors: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        competitors[f"bare {precision}"] = bare_passes(precision, x, y)
        competitors |= {f"{name} {precision}": our_step(name, precision, batch, device) for name in methods}
    competitors |= {f"{name} plain": LOOPS[name](x, y) for name in methods if name in LOOPS}
    return Measured(alternate(competitors, rounds, device), memory)


def table(methods: list[str], found: Measured) -> str:
    """A row a method."""
    rows: list[Mapping[str, object]] = []
    for name in methods:
        row: dict[str, object] = {"method": name, "counted passes": f"{COUNTS[name][0]:g}"}
        for p in PRECISIONS:
            row[f"{p}, seconds"] = f"{found.seconds[f'{name} {p}']:.3f}"
            row[f"{p}, share of the count"] = f"{found.share(name, p):.2f}"
        looped = name in LOOPS
        row["plain fp32 loop, seconds"] = f"{found.seconds[f'{name} plain']:.3f}" if looped else "–"
        row["bf16 faster than it"] = f"{found.gain(name):.2f}x" if looped else "–"
        for p in PRECISIONS:
            mb = found.memory[f"{name} {p}"]
            row[f"{p}, peak MiB (of PGD-AT's)"] = f"{mb:.0f} ({found.heavier(name, p):.2f}x)"
        rows.append(row)
    return markdown(rows)


def claims(methods: list[str], found: Measured) -> dict[str, bool]:
    """What is promised of each method, with what was measured: a sentence -> whether it holds."""
    said: dict[str, bool] = {}
    for name in methods:
        share, memory = OWN.get(name, (SHARE, MEMORY))
        shares, peaks = ([part(name, p) for p in PRECISIONS] for part in (found.share, found.heavier))
        cost = f"{name}: a step costs at most {share} of {COUNTS[name][0]:g} bare forward-backward passes"
        said[f"{cost} ({_each(shares)})"] = max(shares) <= share
        if name != "pgd_at":
            said[f"{name}: its peak memory is at most {memory}x that of PGD-AT ({_each(peaks)})"] = max(peaks) <= memory
        if name in LOOPS:
            gain = found.gain(name)
            said[f"{name}: bf16 is at least {GAIN}x as fast as the plain fp32 loop ({gain:.2f}x)"] = gain >= GAIN
    return said


def _each(values: list[float]) -> str:
    return ", ".join(f"{precision} {value:.2f}" for precision, value in zip(PRECISIONS, values, strict=True))


def main() -> int:
    """The command."""
    known = [name for name, kind in METHODS.items() if issubclass(kind, AdversarialMethod) and name in COUNTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    options = timed_options(parser, batch=128)
    device = options.device
    found = measure(options.methods, options.batch, options.rounds, device, options.threads)
    bare = ", ".join(f"{found.seconds[f'bare {p}'] / PASSES:.3f} s in {p}" for p in PRECISIONS)
    counts = "\n".join(f"- {name} {COUNTS[name][0]:g}: {COUNTS[name][1]}" for name in options.methods)
    memory = "peak of allocated GPU memory" if device.type == "cuda" else "resident memory beyond the imported packages"
    words = f"One bare pass: {bare}. A forward pass alone counts half. Memory: {memory}, in the first step of a fresh process.\n"
    chosen = "" if options.methods == known else f" --methods {' '.join(options.methods)}"
    command = f"python benchmarks/training_speed.py{chosen} --device {options.device} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"A training step of each method: ResNet-18, batch {options.batch}, 32x32, attacks of {STEPS} steps; median of {options.rounds} interleaved rounds"
    parts = [table(options.methods, found), words, f"{counts}\n"]
    return write_report("training_speed.md", title, command, device, parts, claims(options.methods, found))


if __name__ == "__main__":
    sys.exit(main())
