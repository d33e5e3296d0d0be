"""The joint map of 10 000 points in seconds, and the memory that features and measures of 50 000 x 512 need.

    python benchmarks/embedding.py            # some minutes on two idle CPU cores; writes embedding.md

Memory is the peak of the process while a step runs (VmHWM of Linux), everything loaded before included: Python, torch, the
images as uint8 (150 MB) and both tables of features (100 MB each).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import CIFAR, markdown, write_report
from torch import Tensor, nn

from robustlib.attacks import FGSM, Threat
from robustlib.data import Split
from robustlib.models import Classifier
from robustlib.representation import (
    alignment,
    cka,
    class_alignment,
    effective_rank,
    embed,
    exclusion,
    feature_gap,
    features,
    knn_probe,
    linear_probe,
    neural_collapse,
    uniformity,
)

EXAMPLES, WIDTH, MAPPED = 50_000, 512, 5_000  # 5 000 pairs are 10 000 points
MAP = "embed, 5 000 pairs (compiles UMAP)"
LIMIT_MB, MAP_SECONDS, CACHE_SECONDS = 1500, 25, 1


class Wide(nn.Sequential):
    """An encoder as wide as ResNet-18's features that costs next to nothing: memory does not depend on its depth."""

    out_features = WIDTH

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, WIDTH), nn.ReLU())


def made_up(n: int) -> Split:
    """Images of ten classes, each noise around its own picture."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 10
    pictures = torch.randint(64, 192, (10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = torch.empty(n, 3, 32, 32, dtype=torch.uint8)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        noise = torch.randint(0, 64, images[part].shape, dtype=torch.uint8, generator=generator)
        images[part] = pictures[y[part]] + noise
    return Split(images, y, torch.arange(n))


def peak_mb() -> float:
    """The most memory held since the last call."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) / 1024


def steps(split: Split) -> dict[str, Callable[[], object]]:
    """What is done with a split, in an order in which each step finds what it needs."""
    torch.manual_seed(0)
    model, kept = Classifier(Wide(), CIFAR), {}

    def look() -> None:
        attack = FGSM(Threat("linf", 8 / 255))
        kept["clean"], kept["adversarial"] = (features(model, split, attack=a)["features"] for a in (None, attack))

    def both(measure: Callable[[Tensor, Tensor], object]) -> Callable[[], object]:
        return lambda: measure(kept["clean"], kept["adversarial"])

    y, n = split.labels, min(MAPPED, len(split))
    return {
        "features, clean and FGSM": look,
        "feature_gap": both(feature_gap),
        "feature_gap, cosine": both(lambda f, g: feature_gap(f, g, "cosine")),
        "alignment": both(alignment),
        "class_alignment": both(lambda f, g: class_alignment(f, y)),
        "cka": both(cka),
        "effective_rank": both(lambda f, g: effective_rank(f)),
        "neural_collapse": both(lambda f, g: neural_collapse(f, y, model.head)),
        "uniformity": both(lambda f, g: uniformity(f)),
        "exclusion": both(lambda f, g: exclusion(g, y, f)),
        "knn_probe on 5 000": both(lambda f, g: knn_probe(f, y).accuracy(g[:5000], y[:5000])),
        "linear_probe": both(lambda f, g: linear_probe(f, y).accuracy(g, y)),
        MAP: both(lambda f, g: embed(f[:n], g[:n])),
    }


def memory(n: int) -> tuple[list[dict[str, object]], float]:
    """A row for each step, and the highest peak in MB of all but the map."""
    split = made_up(n)
    rows: list[dict[str, object]] = [{"step": "images made", "peak MB": f"{peak_mb():.0f}", "seconds": ""}]
    highest = 0.0
    for name, work in steps(split).items():
        started = time.perf_counter()
        work()
        seconds, peak = time.perf_counter() - started, peak_mb()
        highest = max(highest, peak) if name != MAP else highest  # what numba's compiler takes is no table of ours
        rows.append({"step": name, "peak MB": f"{peak:.0f}", "seconds": f"{seconds:.1f}"})
        print(rows[-1], flush=True)
    return rows, highest


def timing() -> tuple[list[dict[str, object]], float, float]:
    """Seconds of the joint map after compilation, and from the cache."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, WIDTH, generator=generator)
    clean = (centres[torch.arange(MAPPED) % 10] + torch.randn(MAPPED, WIDTH, generator=generator)).relu()
    adversarial = (clean + 0.5 * torch.randn(MAPPED, WIDTH, generator=generator)).relu()
    rows, seconds = [], []
    with tempfile.TemporaryDirectory() as cache:
        jobs = {
            "400 points, where needed with compilation": (clean[:200], adversarial[:200], None),
            f"{2 * MAPPED} x {WIDTH}, with both trustworthinesses": (clean, adversarial, cache),
            "the same from the cache": (clean, adversarial, cache),
        }
        for name, (f, g, where) in jobs.items():
            started = time.perf_counter()
            made = embed(f, g, cache=where)
            seconds.append(time.perf_counter() - started)
            row = {"joint map": name, "seconds": f"{seconds[-1]:.2f}", "trustworthiness": f"{made.trustworthiness:.3f}"}
            rows.append(row | {"of the PCA view": f"{made.pca_trustworthiness:.3f}"})
            print(rows[-1], flush=True)
    return rows, seconds[1], seconds[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps_table, highest = memory(options.examples)  # first, since what timing loads would count as held
    maps_table, fresh, cached = timing()
    claims = {
        f"10 000 points are mapped in under {MAP_SECONDS} s after compilation ({fresh:.1f} s)": fresh < MAP_SECONDS,
        f"from the cache in under {CACHE_SECONDS} s ({cached:.2f} s)": cached < CACHE_SECONDS,
        f"features and measures of {options.examples} x {WIDTH} within {LIMIT_MB} MB (peak {highest:.0f} MB)": highest
        < LIMIT_MB,
    }
    command = f"python benchmarks/embedding.py --examples {options.examples} --threads {options.threads}"
    tables = [markdown(maps_table), markdown(steps_table)]
    return write_report("embedding.md", __doc__.splitlines()[0], command, torch.device("cpu"), tables, claims)


if __name__ == "__main__":
    sys.exit(main())
