"""Changes one constant, sign or comparison of the package at a time and asks whether the tests notice.

    taskset -c 1 python benchmarks/mutants.py                 # rewrites benchmarks/mutants.md
    python benchmarks/mutants.py --only apgd --out -          # those of one file or method, on the terminal

Each mutant is made in a copy of the checkout, where the named test files run until the first failure. A mutant that lives there is
tried on the whole suite before it is called alive. Before all, these files must pass without one.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from side_by_side import machine, markdown

ROOT = Path(__file__).parent.parent
COPIED = (
    "robustlib",
    "tests",
    "notebooks",
    "benchmarks",
    "reports",
    "docs",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "CONTRIBUTING.md",
)
MOST_ALIVE = 2
LIMIT = 1800  # seconds; tests that do not end have noticed


@dataclass(frozen=True)
class Mutant:
    """`old` stands once in robustlib/`file` and becomes `new`; `tests` are the files that should notice."""

    file: str
    old: str
    new: str
    what: str
    tests: str
    reason: str = ""  # why it may live


MUTANTS = (
    # attacks
    Mutant("attacks/apgd.py", "MOMENTUM = 0.75", "MOMENTUM = 1.0", "APGD without momentum", "attacks/trajectories"),
    Mutant(
        "attacks/apgd.py",
        "self.step / 2, self.step)",
        "self.step / 1, self.step)",
        "APGD never halves its step",
        "attacks/trajectories",
    ),
    Mutant(
        *("attacks/apgd.py", "_mix(halve, self.best, self.x), _mix", "_mix(halve, self.x, self.x), _mix"),
        *("APGD does not return to its best point", "attacks/trajectories"),
    ),
    Mutant(
        "attacks/apgd.py",
        "2 * self.threat.eps)",
        "1 * self.threat.eps)",
        "APGD starts with a step of eps",
        "attacks/trajectories",
    ),
    Mutant(
        "attacks/apgd.py",
        "& ~self.halved",
        "& self.halved",
        "APGD's second condition turned round",
        "attacks/trajectories",
    ),
    Mutant("attacks/apgd.py", "rho: Share = 0.75", "rho: Share = 0.5", "APGD's rho", "attacks/trajectories"),
    Mutant(
        "attacks/apgd.py",
        "0.22, 0.03",
        "0.22, 0.04",
        "APGD's checkpoints come sooner",
        "attacks/autoattack attacks/trajectories",
    ),
    Mutant(
        *("attacks/apgd.py", "classes[active_set.active, round_ // self.restarts]", "classes[active_set.active, 0]"),
        *("APGD-T always aims at one class", "attacks/trajectories"),
    ),
    Mutant(
        *("attacks/autoattack.py", "apgd, objective=dlr, targets=9)", "apgd, objective=dlr, targets=3)"),
        *("AutoAttack's APGD-T has 3 targets", "attacks/trajectories"),
    ),
    Mutant(
        "attacks/autoattack.py",
        '"apgd-dlr-t": 0.1',
        '"apgd-dlr-t": 0.4',
        "Fast AutoAttack gives up later",
        "attacks/fast",
    ),
    Mutant(
        *("attacks/apgd.py", '1 if threat.norm == "linf" else 2', '2 if threat.norm == "linf" else 1'),
        *("MALT measures in the threat's own norm", "attacks/targets"),
    ),
    Mutant(
        *("attacks/passes.py", '"backward": images * backward', '"backward": images'),
        *("Every pass goes backward", "attacks/passes"),
    ),
    Mutant(
        "attacks/autoattack.py",
        "steps: Count = 100",
        "steps: Count = 20",
        "AutoAttack of 20 steps",
        "attacks/trajectories",
    ),
    Mutant(
        "attacks/autoattack.py",
        "queries: Count = 5000",
        "queries: Count = 500",
        "Square of 500 queries",
        "attacks/trajectories",
    ),
    Mutant("attacks/fab.py", "] = 1.05", "] = 1.0", "FAB does not overshoot", "attacks/trajectories"),
    Mutant(
        "attacks/fab.py",
        "batch.x + self.beta * (x - batch.x)",
        "x",
        "FAB does not go back",
        "attacks/trajectories attacks/tangent attacks/autoattack",
    ),
    Mutant(
        "attacks/square.py",
        "best + 2 * eps",
        "best + 1 * eps",
        "Square's step is half as long",
        "attacks/trajectories",
    ),
    Mutant(
        "attacks/square.py",
        "budget + unused / x.shape[1]",
        "budget + 0 * unused",
        "Square in L2 forgets what is unused",
        "attacks/trajectories",
    ),
    Mutant(
        "attacks/objectives.py",
        "top[:, 2] + TINY)\n    gap",
        "top[:, 1] + TINY)\n    gap",
        "DLR divides by another gap",
        "attacks/pgd",
    ),
    Mutant(
        "attacks/pgd.py",
        "GAUSSIAN_SCALE = 0.001",
        "GAUSSIAN_SCALE = 0.01",
        "TRADES' start ten times as wide",
        "methods/baselines",
    ),
    Mutant("threat.py", "gradient.sign()", "gradient.sign().neg()", "PGD descends", "attacks/pgd"),
    # losses
    Mutant(
        "losses/contrastive.py",
        "one.T @ other / len(a)",
        "one.T @ other",
        "Barlow Twins' correlations are sums",
        "losses/contrastive",
    ),
    Mutant(
        "losses/robust.py",
        'reduction="batchmean"',
        'reduction="mean"',
        "TRADES' KL is a mean over classes",
        "methods/baselines",
    ),
    Mutant("losses/robust.py", "1 - log_w.gather", "0 - log_w.gather", "MART's weight is -p", "methods/baselines"),
    Mutant(
        "losses/contrastive.py",
        "positive.sum(1).clamp_min(1)",
        "len(u)",
        "SupCon divides by all rows",
        "losses/contrastive",
    ),
    Mutant(
        "losses/contrastive.py",
        "alpha * away",
        "(1 - alpha) * away",
        "ANCRA freezes the other side",
        "losses/contrastive",
    ),
    Mutant(
        "losses/spectral.py", "eigenvectors[:, -1]", "eigenvectors[:, 0]", "sigma_min for sigma_max", "losses/spectral"
    ),
    Mutant(
        "losses/spectral.py",
        "return 2 * total",
        "return 1 * total",
        "cross-Lipschitz by half",
        "losses/spectral methods/rep_spectral",
    ),
    Mutant(
        "losses/robust.py",
        "-torch.inf).argmax(1)",
        "torch.inf).argmax(1)",
        "AFD's c is the label",
        "models/branches methods/afd",
    ),
    # methods
    Mutant(
        "methods/baselines.py",
        "beta: NonNegative = 6.0",
        "beta: NonNegative = 5.0",
        "TRADES' beta",
        "methods/published",
    ),
    Mutant(
        *(
            "methods/baselines.py",
            "checkpoint(model, batch.x, use_reentrant=False)",
            "model(batch.x)",
        ),
        *("TRADES forwards x once", "methods/baselines"),
    ),
    Mutant(
        "methods/baselines.py", "(74, 89, 99)", "(75, 90, 100)", "MART's rate falls an epoch late", "methods/published"
    ),
    Mutant("methods/ancra.py", "] = 3.0  # its weight", "] = 2.0  # its weight", "ANCRA's zeta", "methods/published"),
    Mutant(
        "methods/claf.py",
        "refresh_passes: Count = 5",
        "refresh_passes: Count = 1",
        "CLAF refreshes once",
        "methods/published",
    ),
    Mutant(
        "methods/claf.py",
        "aug_epochs: Whole = 60",
        "aug_epochs: Whole = 50",
        "CLAF's first stage is shorter",
        "methods/published",
    ),
    Mutant(
        "methods/afd.py",
        'return 2 if self.mode == "repo"',
        'return 1 if self.mode == "repo"',
        "AFD's second update is lost",
        "methods/afd",
    ),
    Mutant(
        "methods/atop.py",
        "cls_weight: NonNegative = 0.05",
        "cls_weight: NonNegative = 0.1",
        "AToP's lambda",
        "methods/published",
    ),
    Mutant("methods/atop.py", "weight / 2 * loss", "weight * loss", "AToP's L1 on [0, 1]", "methods/atop"),
    Mutant(
        "methods/rep_spectral.py",
        "context.step % self.cadence == 0",
        "context.step % self.cadence == 1",
        "the penalty comes a step late",
        "methods/rep_spectral",
    ),
    Mutant(
        "methods/rep_spectral.py",
        'return ("encoder.",)',
        'return ("encoder.", "head")',
        "rep-spectral penalises the readout",
        "methods/rep_spectral",
    ),
    Mutant("methods/transfer.py", "(60, 0.2)", "(60, 0.1)", "transfer's rate falls to a tenth", "methods/transfer"),
    Mutant("methods/base.py", "g.norm() + TINY) * g", "g.norm() + TINY) * -g", "AWP descends", "methods/awp"),
    Mutant(
        "models/backbones.py",
        "narrow**-0.5",
        "narrow**-1.0",
        "rep-spectral's network scaled by 1/width",
        "models/models",
    ),
    Mutant(
        "models/reverse_attention.py",
        "AUXILIARY_WEIGHT = 2.0",
        "AUXILIARY_WEIGHT = 1.0",
        "ANCRA's auxiliary heads weigh 1",
        "methods/published",
    ),
    Mutant(
        "training/loop.py",
        "(1 + t) / (10 + t)))\n",
        "(1 + t) / (1 + t)))\n",
        "EMA starts at its long-run decay",
        "training/loop",
    ),
    # statistics and evaluation
    Mutant(
        "workbook/claims/claim.py",
        "sd = stdev(differences)",
        "sd = stdev([*differences, fmean(differences)])",
        "deviation by n",
        "workbook/claims",
    ),
    Mutant(
        "workbook/claims/claim.py",
        "t_interval(differences, 1 - LEVEL",
        "t_interval(differences, 1 - 2 * LEVEL",
        "a one-sided interval",
        "workbook/claims",
    ),
    Mutant(
        "workbook/claims/claim.py",
        "(m - rank) * p",
        "(m - rank - 1) * p",
        "Holm corrects for one claim fewer",
        "workbook/claims",
    ),
    Mutant(
        "evaluation/metrics.py", "z2 / 4 / n**2", "z2 / 2 / n**2", "Wilson's interval too wide", "evaluation/evaluate"
    ),
    Mutant(
        "evaluation/metrics.py",
        'table["draw"] % 2 == 1]',
        'table["draw"] % 2 == 0]',
        "chosen and scored on the same draws",
        "evaluation/stochastic evaluation/evaluate",
    ),
    Mutant(
        "representation/embedding.py",
        "(2 * n - 3 * k - 1)",
        "(2 * n - 3 * k + 1)",
        "trustworthiness's denominator",
        "representation/embedding",
    ),
    Mutant(
        "representation/embedding.py",
        "every = unit(",
        "every = (",
        "maps by distance, not by angle",
        "representation/embedding",
    ),
    Mutant(
        "representation/measures.py",
        "* (u * (sums[y] - u))",
        "* (u * sums[y])",
        "an example is its own pair",
        "representation/measures",
    ),
)


def applied(mutant: Mutant, root: Path) -> None:
    """Writes the mutant below `root`.

    Raises:
        ValueError: `old` does not stand there exactly once: the list is behind the code.
    """
    path = root / "robustlib" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}: mend the list of mutants.")
    path.write_text(text.replace(mutant.old, mutant.new))


def test_file(name: str) -> Path:
    """ "attacks/pgd" -> tests/attacks/test_pgd.py."""
    return Path("tests", name).with_name(f"test_{Path(name).name}.py")


def tested(root: Path, files: Sequence[str]) -> int:
    """pytest's exit code of these files (none: all) in the copy at `root`; 1 also where they did not end in time."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": ""}
    names = [str(test_file(name)) for name in files] or ["-n", "2", "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *names]
    try:
        return subprocess.run(
            command, cwd=root, env={**os.environ, **threads}, capture_output=True, timeout=LIMIT
        ).returncode
    except subprocess.TimeoutExpired:
        return 1


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the checkout, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        yield Path(folder)


def tried(mutant: Mutant) -> dict[str, object]:
    """A row of the table."""
    started = time.perf_counter()
    with copied() as root:
        applied(mutant, root)
        code = tested(root, mutant.tests.split())
        where = mutant.tests
        if code == 0:
            code, where = tested(root, ()), "the whole suite"
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code} on {mutant.what!r} ({where}): its tests did not run.")
    row: dict[str, object] = {"mutant": mutant.what, "file": mutant.file}
    row |= {"change": f"`{_line(mutant.old)}` → `{_line(mutant.new)}`"}
    row |= {"caught by": where if code else "**alive**" + (f": {mutant.reason}" if mutant.reason else "")}
    print(
        f"{mutant.what}: {'caught' if code else 'ALIVE'} ({time.perf_counter() - started:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
    return row


def _line(text: str) -> str:
    return text.strip().partition("\n")[0].replace("|", "\\|")


def report(rows: Sequence[dict[str, object]]) -> str:
    """The table with its claim, as Markdown."""
    alive = sum(str(row["caught by"]).startswith("**alive") for row in rows)
    holds = "holds" if alive <= MOST_ALIVE else "**does not hold**"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"""# Do the tests notice? {len(rows)} changes of one constant, sign or comparison each

`python benchmarks/mutants.py` on {today}, {machine(torch.device("cpu"))}

{markdown(list(rows))}
- {holds}: at most {MOST_ALIVE} of {len(rows)} mutants live ({alive})
"""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's name or of what a mutant does")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "mutants.md"), help="- for the terminal")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only.lower() in f"{m.file} {m.what}".lower()]
    with copied() as root:
        if code := tested(root, sorted({name for mutant in chosen for name in mutant.tests.split()})):
            print(f"Error: pytest ends with {code} without a mutant: mend the tests first.", file=sys.stderr)
            return 1
    text = report([tried(mutant) for mutant in chosen])
    if options.out == "-":
        print(text)
    else:
        Path(options.out).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
