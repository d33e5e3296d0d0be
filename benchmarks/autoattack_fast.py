"""AutoAttack's fast version against its standard one on digits: the accuracy that each leaves, and the passes that it takes.

    python benchmarks/autoattack_fast.py                           # all 500 test images of 9 models; writes autoattack_fast.md
    python benchmarks/autoattack_fast.py --part val --trial        # on validation images, by which the version's parts were chosen

Standard, PGD-AT and TRADES models of the digits preset are taken from --runs, and trained there if they are missing. What was
attacked is kept there too, in autoattack_fast/: after an interruption the same command goes on.
"""

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from side_by_side import markdown, write_report

from robustlib.attacks import AutoAttack
from robustlib.data import load_dataset
from robustlib.evaluation import evaluate, summarise
from robustlib.evaluation.metrics import robust_correct
from robustlib.methods import METHODS, make_method
from robustlib.training import fit
from robustlib.workbook.experiments import parse_seeds

METHOD_NAMES = ("standard", "pgd_at", "trades")
FLOOR = (
    "Where nothing was done against attacks, the standard version ends with its first steps; the least that any attack needs, two "
    "looks and a gradient, is 4 passes."
)
WEAKER, FEWER = 0.5, 5  # points that fast may leave more, and how many times fewer passes it must take


@dataclass(frozen=True)
class Pair:
    """Both versions on one model: what `summarise` says of them, by version, and whether each image withstood (N, 2)."""

    method: str
    seed: int
    rows: pd.DataFrame
    right: pd.DataFrame

    @property
    def difference(self) -> float:
        """Points of accuracy that fast leaves more than standard: above 0 it is the weaker one."""
        return 100 * float(self.rows.accuracy["fast"] - self.rows.accuracy["standard"])

    @property
    def fewer(self) -> float:
        """How many times fewer passes fast takes."""
        return float(self.rows.passes["standard"] / self.rows.passes["fast"])

    def row(self) -> dict[str, object]:
        """Of the table."""
        rows, right = self.rows, self.right
        return {
            "model": METHODS[self.method].title,
            "seed": self.seed,
            **{f"{name} (%)": f"{100 * rows.accuracy[name]:.1f}" for name in ("clean", "standard", "fast")},
            "difference": f"{self.difference:+.1f}",
            "images only standard broke": int((right.fast & ~right.standard).sum()),
            "images only fast broke": int((right.standard & ~right.fast).sum()),
            **{f"passes per image, {name}": f"{rows.passes[name]:.0f}" for name in ("standard", "fast")},
            "fewer by": f"{self.fewer:.1f}x",
        }


def pair(method: str, seed: int, options: argparse.Namespace) -> Pair:
    """Both versions on the model of that method and seed, each kept as soon as it is done."""
    digits = load_dataset("digits")
    model = fit(make_method(method, "digits"), digits, seed=seed, root=options.runs, device="cpu", threads=1).model()
    split, frames = getattr(digits, options.part), []
    for version in ("standard", "fast"):
        state = options.runs / "autoattack_fast" / f"{options.part}-{method}-{seed}-{version}"
        state.mkdir(parents=True, exist_ok=True)
        attacks = {version: AutoAttack(digits.threat, version=version)}
        frames.append(evaluate(model, split, attacks, seed=seed, batch_size=512, state=state))
    records = pd.concat([frames[0], frames[1][frames[1].attack != "clean"]], ignore_index=True)
    right = robust_correct(records).groupby([records["attack"], records["index"]]).min().unstack(0).astype(bool)
    found = Pair(method, seed, summarise(records).set_index("attack"), right)
    print(found.row(), flush=True)
    return found


def claims(pairs: list[Pair]) -> dict[str, bool]:
    """What is asked of the fast version, and whether it holds."""
    worst = max(p.difference for p in pairs)
    found = {f"on no model weaker by more than {WEAKER} point (at most {worst:+.1f})": worst <= WEAKER + 1e-9}
    for method in dict.fromkeys(p.method for p in pairs):
        least = min(p.fewer for p in pairs if p.method == method)
        found[f"{METHODS[method].title}: at least {FEWER}x fewer passes on each ({least:.1f}x)"] = least >= FEWER
    totals = [sum(p.rows.passes[name] for p in pairs) for name in ("standard", "fast")]
    found[f"all models together: at least {FEWER}x fewer passes ({totals[0] / totals[1]:.1f}x)"] = (
        totals[0] >= FEWER * totals[1]
    )
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--part", default="test", choices=("val", "test"))
    parser.add_argument("--seeds", default="0-2", help="of the trainings")
    parser.add_argument("--methods", nargs="+", default=METHOD_NAMES, choices=METHOD_NAMES)
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [pair(*case, options) for case in itertools.product(options.methods, parse_seeds(options.seeds))]
    table = markdown([p.row() for p in pairs])
    if options.trial:
        print(table, *(f"{ok}: {claim}" for claim, ok in claims(pairs).items()), sep="\n")
        return 0
    digits = load_dataset("digits")
    title = f"AutoAttack on digits, {digits.threat}, {len(digits.test)} test images: fast against standard"
    command = "python benchmarks/autoattack_fast.py"
    return write_report("autoattack_fast.md", title, command, torch.device("cpu"), [table, FLOOR + "\n"], claims(pairs))


if __name__ == "__main__":
    sys.exit(main())
