"""Our Tangent attack against foolbox's HopSkipJump on digits, from the same starts and with no more queries of the model.

    python benchmarks/tangent.py                         # writes tangent.md
    python benchmarks/tangent.py --examples 4 --timed 4 --rounds 1 --archs mlp --trial   # a minute; writes nothing

Needs the extras `test` and `reference`. Models of standard training are taken from --runs, and trained there if they are missing.
HopSkipJump takes 40 steps, and each image's queries are counted: points that differ from the one it asked about just before, since
foolbox repeats those of images that wait for others. Ours may spend what the thriftiest image spent. The distances of FAB-L2,
which sees gradients, stand beside them, and those of our attack when four walks share the queries. Since both ask the same model as
often, its share of the time is the same for both; so it is also timed with the fewest queries (of a doubling row) by which
it comes as near on the mean as HopSkipJump does with all of its own.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from side_by_side import alternate, markdown, write_report
from torch import Tensor, nn

from robustlib.attacks import FAB, ExampleRNG, Tangent, Threat
from robustlib.attacks.active_set import MinNormResult
from robustlib.attacks.tangent import LEAST
from robustlib.data import Split, load_dataset
from robustlib.evaluation import bootstrap
from robustlib.methods import make_method
from robustlib.models import Classifier
from robustlib.training import fit

L2 = Threat("l2", 0.5)  # its radius has no part in the smallest perturbation
STEPS, SPREAD = 40, 0.5
FASTER, RATIO = 3.0, 1.10


class Counted(nn.Module):
    """A model that counts for each row of a fixed batch the points that differ from the one before."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.last, self.queries = model, torch.empty(0), torch.zeros(rows, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        new = torch.ones(len(x), dtype=torch.bool)
        if len(self.last):
            new = (x != self.last).flatten(1).any(1)
        self.queries += new
        self.last = x.clone()
        return self.model(x)


def starting_points(model: nn.Module, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Images, their labels and adversarial noise around them: those that the model has right and that such noise fools."""
    x, y = split.images.float() / 255, split.labels
    rng, starts = ExampleRNG.for_examples(0, split.indices), x.clone()
    found = torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad():
        right = model(x).argmax(1) == y
        for attempt in range(100):
            noise = (x + SPREAD * rng.fold_in(attempt).normal(*x.shape[1:])).clamp(0, 1)
            hit = (model(noise).argmax(1) != y) & ~found
            starts[hit], found = noise[hit], found | hit
    return x[right & found], y[right & found], starts[right & found]


def hop_skip_jump(model: nn.Module, x: Tensor, y: Tensor, starts: Tensor) -> Tensor:
    """foolbox's adversarial images."""
    import foolbox

    torch.manual_seed(0)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    with torch.no_grad():
        return foolbox.attacks.HopSkipJumpAttack(steps=STEPS).run(wrapped, x, y, starting_points=starts)


def length(x_adv: Tensor, x: Tensor) -> np.ndarray:
    """l2 distances (B,) in pixels."""
    return (x_adv - x).double().flatten(1).norm(dim=1).numpy()


def ratio_of_means(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(ours.mean() / theirs.mean())


def thrifty(attack: Tangent, search: Callable[[Tangent], MinNormResult], mean: float) -> Tangent:
    """The attack with the fewest queries of a doubling row by which every image has a perturbation and their mean is `mean` or less."""
    queries = LEAST
    while queries < attack.queries and not search(replace(attack, queries=queries)).distance.mean() <= mean:
        queries *= 2
    return replace(attack, queries=min(queries, attack.queries))


def duel(arch: str, model: Classifier, options: argparse.Namespace) -> tuple[dict[str, object], dict[str, bool]]:
    """A row of the table on one model, and what is claimed of it."""
    x, y, starts = starting_points(model, load_dataset("digits").test)
    x, y, starts = (part[: options.examples] for part in (x, y, starts))
    counted = Counted(model, len(x)).eval()
    found = hop_skip_jump(counted, x, y, starts)
    theirs, budget = length(found, x), int(counted.queries.min())
    attack, rng = Tangent(L2, queries=budget), ExampleRNG.for_examples(0, torch.arange(len(x)))

    def search(attack: Tangent, most: int = len(x)) -> MinNormResult:
        return attack.nearest(model, x[:most], y[:most], starts=starts[:most], rng=rng[:most])

    mine, four = search(attack), search(replace(attack, restarts=4))
    less = thrifty(attack, search, theirs.mean())
    white = FAB(L2).nearest(model, x, y, rng=rng)
    ours, often, seen = (each.distance.double().numpy() for each in (mine, four, white))
    images = {"HopSkipJump": found, "ours": mine.x_adv, "ours, 4 walks": four.x_adv, "FAB": white.x_adv}
    for name, x_adv in images.items():
        with torch.no_grad():
            failed = int((model(x_adv).argmax(1) == y).sum())
        if failed:
            raise SystemExit(f"{name} failed on {failed} images of {len(x)}: their distances mean nothing.")
    few = [part[: options.timed] for part in (x, y, starts)]
    competitors = {
        "ours": lambda: search(attack, options.timed),
        "less": lambda: search(less, options.timed),
        "foolbox": lambda: hop_skip_jump(model, *few),
    }
    seconds = alternate(competitors, options.rounds, torch.device("cpu"))
    faster, sooner = (seconds["foolbox"] / seconds[name] for name in ("ours", "less"))
    ratio = ratio_of_means(ours, theirs)
    low, high = bootstrap(ratio_of_means, ours, theirs)
    row = {
        "model": arch,
        "images": len(x),
        "queries ours (mean)": f"{mine.queries.double().mean():.0f}",
        "queries HopSkipJump": f"{budget} to {int(counted.queries.max())}",
        "mean distance ours": f"{ours.mean():.4f}",
        "HopSkipJump": f"{theirs.mean():.4f}",
        "ours, 4 walks": f"{often.mean():.4f}",
        "FAB-L2 (white box)": f"{seen.mean():.4f}",
        "ratio of means": f"{ratio:.3f} ({low:.3f} to {high:.3f})",
        f"seconds on {len(few[0])} images, ours": f"{seconds['ours']:.2f}",
        "foolbox's": f"{seconds['foolbox']:.2f}",
        "faster": f"{faster:.2f}x",
        "queries ours needs to come as near": less.queries,
        "faster so": f"{sooner:.1f}x",
    }
    claims = {
        f"{arch}: at least {FASTER:g} times as fast on {len(few[0])} images with as many queries ({faster:.2f}x)": faster
        >= FASTER,
        f"{arch}: as near on the mean at least {FASTER:g} times as fast ({sooner:.1f}x with {less.queries} queries)": sooner
        >= FASTER,
        f"{arch}: ratio of mean distances at most {RATIO} with 95 % confidence ({high:.3f})": high <= RATIO,
        f"{arch}: no image met more queries of ours": int(mine.queries.max()) <= budget,
    }
    return row, claims


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--archs", nargs="+", default=["mlp", "small_cnn"])
    parser.add_argument("--examples", type=int, default=200, help="test images")
    parser.add_argument("--timed", type=int, default=32, help="of them, for the comparison of speed")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side is timed")
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, claims = [], {}
    for arch in options.archs:
        run = fit(
            make_method("standard", "digits"),
            load_dataset("digits"),
            arch=arch,
            seed=0,
            root=options.runs,
            device="cpu",
            threads=1,
        )
        row, held = duel(arch, run.model().eval(), options)
        rows.append(row)
        claims |= held
    if options.trial:
        print(markdown(rows), *(f"{ok}: {claim}" for claim, ok in claims.items()), sep="\n")
        return 0
    command = f"python benchmarks/tangent.py --examples {options.examples} --timed {options.timed}"
    title = "Tangent attack on digits: ours against foolbox's HopSkipJump"
    return write_report("tangent.md", title, command, torch.device("cpu"), [markdown(rows)], claims)


if __name__ == "__main__":
    sys.exit(main())
