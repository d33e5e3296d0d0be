"""Tries hostile things of a kind, many times; accepts that they work, or an InputError, and nothing else.

    python benchmarks/hostile.py inputs --trials 20000      # odd values in methods, commands, studies and functions
    python benchmarks/hostile.py damage --trials 20000      # files of a run that are cut, altered or another run's, before all readers
    python benchmarks/hostile.py attacks --trials 200 --seed 3

The first thing that ends otherwise is made small, printed with its traceback, and the exit code is 1.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hostile_attacks import attacks
from hostile_damage import damage
from hostile_inputs import inputs
from hypothesis import HealthCheck, given, seed, settings

from robustlib.errors import InputError

Kind = tuple[st.SearchStrategy[Any], Callable[[Any], object]]  # cases, and what must survive each of them
KINDS: dict[str, Callable[[Path], Kind]] = {"attacks": attacks, "damage": damage, "inputs": inputs}


def tried(kind: str, folder: Path, trials: int, first: int = 0) -> tuple[int, int]:
    """Tries so many cases of a kind in an empty folder; raises what the first bad one raises. The same `first` seed tries the same ones.

    Returns:
        How many were tried, and how many of these work.
    """
    cases, survive = KINDS[kind](folder)
    worked: list[bool] = []

    @seed(first)
    @settings(max_examples=trials, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def survives(case: Any) -> None:
        try:
            survive(case)
            worked.append(True)
        except InputError:
            worked.append(False)

    survives()
    return len(worked), sum(worked)


def main(words: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        made, worked = tried(options.kind, Path(folder), options.trials, options.seed)
    print(
        f"{options.kind}: {made} trials, seed {options.seed}: {worked / made:.0%} work, the others are an InputError."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
