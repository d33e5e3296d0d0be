"""What `python benchmarks/gpu.py` does, in its order: each slice with the minutes that it is expected to take, and why.

The minutes are expectations, not measurements. They count forward-backward passes of ResNet-18 at 32x32, which is 0.56 GMAC forward an
image and thrice that forward and backward with the weights, and assume RATE of them a second: 100 TFLOP/s of the 800 or so that an H200
gives bf16, since at batch 128, uncompiled, its time goes into starting kernels.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

PRESET = "cifar10-short"
STOPPED = ".stopped"  # ending of the note that time was up for a check or a table
HERE = Path(__file__).parent
IMAGES, RATE = 50_000, 30_000  # of an epoch; forward-backward passes a second
EVALUATED = 4.0  # minutes

# method: passes for each training image in all epochs, what they are, and the minutes of its evaluation with the audit
TRAININGS: dict[str, tuple[float, str, float]] = {
    "pgd_at": (30 * 11, "30 epochs of 11 passes", EVALUATED),
    "trades": (30 * 13, "30 epochs of 13 passes", EVALUATED),
    "afd": (30 + 20 * 11.5, "30 epochs of 1 pass, 20 of 11.5", EVALUATED),
    "ancra": (30 * 23, "30 epochs of 23 passes", 3 * EVALUATED),  # three views of it are attacked
    "claf": (20 * 2 + 40 * 8.5 + 20 * 0.5, "20 epochs of 2 passes, 40 of 8.5, 20 of half a pass", EVALUATED),
    "atop": (30 + 25 * 10, "30 epochs of 1 pass, 25 of a purifier whose step is worth 10", 2 * EVALUATED),
    "rep_spectral": (30 * 1.1, "30 epochs of 1 pass and the penalty", EVALUATED / 2),  # little is left to attack
    "standard": (30, "30 epochs of 1 pass", EVALUATED / 2),
}
# Fewer images, steps and queries than the standard schedule, alike on all sides, in float32. The standard schedule takes 5 000 passes
# an image; this one 650. Each side is called four times.
CASCADE = "--dataset cifar10 --training 1000 --images 512 --steps 20 --targets 3 --queries 500 --rounds 1"
TABLES: dict[str, tuple[float, str, str]] = {  # script: minutes, why, options
    "training_speed": (3.0, "a process a step to weigh, six at a time; then 10 rounds", "--rounds 10"),
    "compiled_step": (2.0, "four compilations; then 10 rounds of 5 steps", "--rounds 10"),
    "attack_speed": (3.5, "a small training on one CPU core, 25 attacks, a process a library", "--rounds 10"),
    "autoattack_speed": (4.0, "650 passes an image, 4 calls, 512 images, two or three sides; a training", CASCADE),
}
TINY: dict[str, str] = {  # what a rehearsal on the CPU adds to the options, of which the last ones count
    "training_speed": "--device cpu --threads 1 --rounds 1 --batch 2 --methods pgd_at",
    "compiled_step": "--device cpu --threads 1 --rounds 1 --batch 2",
    "attack_speed": "--device cpu --threads 1 --rounds 1 --batch 2",
    "autoattack_speed": "--device cpu --threads 1 --dataset digits --training 1 --images 2 --steps 2 --targets 1 --queries 2",
}


@dataclass(frozen=True)
class Slice:
    """A part of the queue: its name, that of a method where it is a training; the expected minutes and why; and the command."""

    name: str
    minutes: float
    why: str
    command: list[str]
    training: bool = False

    def products(self, out: Path) -> list[Path]:
        """Of the files by which it is done, those that are there."""
        if self.training:
            return list(out.glob(f"{PRESET}/{self.name}.zip"))
        return sorted(file for file in out.glob(f"gpu/{self.name}*.*") if file.suffix != STOPPED)

    def note(self, out: Path) -> Path:
        """The file with a line for each time that it was stopped."""
        return out / "gpu" / f"{self.name}{STOPPED}"


def slices(data_root: str, runs: Path, rehearse: bool = False) -> list[Slice]:
    """All slices in order; a rehearsal has the same commands, with TINY options behind the real ones."""
    python, extra = sys.executable, TINY if rehearse else {}
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "gpu_checks.py")]
    found = [Slice("gpu_checks", 4.0, "18 tests, most with small trainings; compilations", tests)]
    for name, (minutes, why, options) in TABLES.items():
        given = f"--device cuda {options}".split()
        if name == "autoattack_speed":
            given += ["--data-root", data_root, "--weights", str(runs / "autoattack_speed_cifar10.safetensors")]
        command = [python, str(HERE / f"{name}.py"), *given, *extra.get(name, "").split()]
        found.append(Slice(name, minutes, why, command))
    places = ["--data-root", data_root, "--runs", str(runs), *(["--rehearse"] if rehearse else [])]
    for name, (passes, why, evaluated) in TRAININGS.items():
        minutes = passes * IMAGES / RATE / 60 + evaluated
        told = f"{why}, {IMAGES} images each; {evaluated:g} minutes of evaluation and audit"
        command = [python, str(HERE / "gpu_training.py"), name, *places]
        found.append(Slice(name, minutes, told, command, training=True))
    return found
