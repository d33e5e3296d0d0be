"""Our AutoAttack against the authors' package (pyautoattack), on the same images of digits: the cascade and each part alone.

    python benchmarks/autoattack_agreement.py --jobs 2                            # writes autoattack_agreement.md
    python benchmarks/autoattack_agreement.py --examples 20 --seeds 0 --trial     # a few minutes; writes nothing

Needs the extras `test` and `reference`. Standard, PGD-AT and TRADES models of the digits preset are taken from --runs, and
trained there if they are missing. Both sides attack the images that the model has right, and the model itself, in float32, judges
the adversarial examples of both; one outside the ball or outside [0, 1] counts as an error of the model, on either side.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from side_by_side import markdown, write_report
from torch import Tensor, nn

from robustlib.attacks import APGD, Attack, AutoAttack, Threat
from robustlib.data import Split, load_dataset
from robustlib.evaluation import evaluate
from robustlib.evaluation.metrics import robust_correct
from robustlib.evaluation.reference import reference_correct
from robustlib.methods import METHODS, make_method
from robustlib.training import fit
from robustlib.workbook.experiments import parse_seeds

METHOD_NAMES = ("standard", "pgd_at", "trades")
WHOLE = "ensemble"
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")  # apgd-dlr belongs to the version for stochastic models
L2 = Threat("l2", 0.5)  # leaves each of these models some accuracy, and takes some from each
TOO_WEAK, WHOLE_MEAN, PART_MEAN = 1.0, 0.6, 1.0  # points


@dataclass(frozen=True)
class Duel:
    """One attack of both sides on one model: which images (N,) the model still has right, and the seconds it took."""

    norm: str
    method: str
    seed: int
    attack: str
    clean: Tensor
    ours: Tensor
    theirs: Tensor
    seconds: tuple[float, float]

    @property
    def difference(self) -> float:
        """Points of accuracy that our attack leaves more than theirs: above 0 it is the weaker one."""
        return points(self.ours) - points(self.theirs)


def points(right: Tensor) -> float:
    """The accuracy in points."""
    return 100 * float(right.float().mean())


def our_attack(name: str, threat: Threat) -> Attack:
    """The cascade, or one part of it with the settings it has there."""
    whole = AutoAttack(threat)
    parts = whole.components(10) | {"apgd-dlr": APGD(threat, objective="dlr")}
    return whole if name == WHOLE else parts[name]


def duel(name: str, threat: Threat, model: nn.Module, split: Split, method: str, seed: int) -> Duel:
    """Both sides' attack of that name on the same images; `seed` is the model's and both attacks'."""
    times = [time.perf_counter()]
    records = evaluate(model, split, {name: our_attack(name, threat)}, seed=seed)
    times.append(time.perf_counter())
    theirs = reference_correct(model, split, threat, seed=seed, attacks=() if name == WHOLE else (name,))
    times.append(time.perf_counter())
    right = robust_correct(records).groupby([records["attack"], records["index"]]).min()
    clean, ours = (torch.tensor(right[which].loc[split.indices.tolist()].to_list()) for which in ("clean", name))
    return Duel(threat.norm, method, seed, name, clean, ours, theirs, (times[1] - times[0], times[2] - times[1]))


def each_model(duels: Sequence[Duel]) -> str:
    """Table: a row a model, "ours / authors'" for each attack."""
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for d in duels:
        who: dict[str, object] = {"model": METHODS[d.method].title, "seed": d.seed, "clean": f"{points(d.clean):.1f}"}
        rows.setdefault((d.method, d.seed), who)[d.attack] = f"{points(d.ours):.1f} / {points(d.theirs):.1f}"
    return markdown(list(rows.values()))


def over_models(duels: Sequence[Duel]) -> str:
    """Table: a row an attack, means over models."""
    return markdown([_mean(name, [d for d in duels if d.attack == name]) for name in _names(duels)])


def _mean(name: str, duels: Sequence[Duel]) -> Mapping[str, object]:
    differences = [d.difference for d in duels]
    return {
        "attack": name,
        "ours (%)": f"{statistics.fmean(points(d.ours) for d in duels):.2f}",
        "authors' (%)": f"{statistics.fmean(points(d.theirs) for d in duels):.2f}",
        "mean difference": f"{statistics.fmean(differences):+.2f}",
        "from": f"{min(differences):+.1f}",
        "to": f"{max(differences):+.1f}",
        "images only ours broke": sum(int((~d.ours & d.theirs).sum()) for d in duels),
        "images only theirs broke": sum(int((d.ours & ~d.theirs).sum()) for d in duels),
    }


def _names(duels: Sequence[Duel]) -> list[str]:
    return list(dict.fromkeys(d.attack for d in duels))


def claims(duels: Sequence[Duel]) -> dict[str, bool]:
    """What is asked of the agreement, and whether it holds: of the parts only that they are as strong."""
    found = {}
    for norm in dict.fromkeys(d.norm for d in duels):
        for name in _names(duels):
            differences = [d.difference for d in duels if (d.norm, d.attack) == (norm, name)]
            mean, worst = statistics.fmean(differences), max(differences)
            if name == WHOLE:
                text = f"{norm}, {name}: mean difference at most {WHOLE_MEAN} point ({mean:+.2f})"
                found[text] = abs(mean) <= WHOLE_MEAN + 1e-9
                text = f"{norm}, {name}: on no model weaker by more than {TOO_WEAK} point (at most {worst:+.1f})"
                found[text] = worst <= TOO_WEAK + 1e-9
            else:
                text = f"{norm}, {name} alone: in the mean weaker by at most {PART_MEAN} point ({mean:+.2f})"
                found[text] = mean <= PART_MEAN + 1e-9
    return found


def report(duels: Sequence[Duel]) -> list[str]:
    """The tables of both norms."""
    parts = []
    for norm in dict.fromkeys(d.norm for d in duels):
        mine = [d for d in duels if d.norm == norm]
        threat = L2 if norm == "l2" else load_dataset("digits").threat
        parts.append(f"## {norm}, eps {threat.eps:g}\n\nMeans over {len({(d.method, d.seed) for d in mine})} models:\n")
        parts.append(over_models(mine))
        parts.append(f"Each model on {len(mine[0].clean)} images, accuracy ours / authors' (%):\n\n{each_model(mine)}")
    return parts


def model_duels(case: tuple[str, int], options: argparse.Namespace) -> list[Duel]:
    """All duels on one model, (method, seed), which is trained first if it is not in --runs."""
    torch.set_num_threads(1)
    (method, seed), digits, duels = case, load_dataset("digits"), []
    run = fit(make_method(method, "digits"), digits, seed=seed, root=options.runs, device="cpu", threads=1)
    split = digits.test.sample(options.examples)
    for threat in (digits.threat, L2):
        for name in (WHOLE, *options.components):
            d = duel(name, threat, run.model(), split, method, seed)
            numbers = f"ours {points(d.ours):.1f} in {d.seconds[0]:.0f} s, theirs {points(d.theirs):.1f} in {d.seconds[1]:.0f} s"
            print(f"{method} {seed} {d.norm} {name}: {numbers}", flush=True)
            duels.append(d)
    return duels


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--examples", type=int, default=500, help="test images of each model")
    parser.add_argument("--seeds", default="0-2", help="of the trainings")
    parser.add_argument("--methods", nargs="+", default=METHOD_NAMES, choices=METHOD_NAMES)
    parser.add_argument("--components", nargs="*", default=PARTS, choices=PARTS, help="parts that also run alone")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    cases = list(itertools.product(options.methods, parse_seeds(options.seeds)))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        duels = [d for found in pool.map(model_duels, cases, itertools.repeat(options)) for d in found]
    if options.trial:
        print(*report(duels), *(f"{ok}: {claim}" for claim, ok in claims(duels).items()), sep="\n")
        return 0
    chosen = f"--examples {options.examples} --seeds {options.seeds} --jobs {options.jobs}"
    command = f"python benchmarks/autoattack_agreement.py {chosen}"
    title = "AutoAttack on digits: ours against the authors' package"
    torch.set_num_threads(1)
    return write_report("autoattack_agreement.md", title, command, torch.device("cpu"), report(duels), claims(duels))


if __name__ == "__main__":
    sys.exit(main())
