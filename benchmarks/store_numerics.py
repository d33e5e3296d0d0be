"""Stores the numbers that tests/numerics.py makes today beside the versions of today, for tests/test_numerics.py.

    PYTHONPATH=. python benchmarks/store_numerics.py methods/trades    # of some names; no name: of all
    PYTHONPATH=. python benchmarks/store_numerics.py --spread          # how far machines may differ, too; minutes

Tolerances follow from the spread: tests/numerics.py says how.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustlib.data import load_dataset
from robustlib.runs import NUMERICS
from tests.numerics import FILE, difference, makers, stored

ROOT = Path(__file__).parent.parent


def write(names: Sequence[str]) -> None:
    """Stores today's numbers of some names beside today's versions."""
    make, known = makers(load_dataset("digits")), stored() if FILE.is_file() else {}
    for name in names or make:
        torch.manual_seed(0)
        numbers = [float(f"{value:.7g}") for value in make[name]()]
        known[name] = {"spread": 0.0, **known.get(name, {}), "version": NUMERICS[name], "numbers": numbers}
    _save(known)


def _save(known: dict[str, dict[str, Any]]) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(set(known) & set(NUMERICS))]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def spread(names: Sequence[str]) -> None:
    """Stores, for each name, the largest difference from the stored numbers over ten ways of computing them."""
    units, isas = ("default", "avx2", "avx512"), ("SSE41", "AVX2", "AVX512_CORE")
    ways = [({"ATEN_CPU_CAPABILITY": a, "ONEDNN_MAX_CPU_ISA": b}, "1") for a in units for b in isas]
    code = "import json, torch, sys; torch.set_num_threads(int(sys.argv[1])); from tests import numerics as n\n"
    code += "d = n.load_dataset('digits')\nfor k in sys.argv[2:] or n.makers(d): torch.manual_seed(0); print(json.dumps([k, n.makers(d)[k]()]))"
    known, largest = stored(), {}
    for way, threads in [*ways, ({}, "2")]:
        command, env = [sys.executable, "-W", "ignore", "-c", code, threads, *names], {**os.environ, **way}
        out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        for name, numbers in map(json.loads, filter(lambda line: line.startswith("["), out.stdout.splitlines())):
            largest[name] = max(largest.get(name, 0.0), difference(numbers, known[name]["numbers"]))
    _save({**known, **{name: {**known[name], "spread": float(f"{value:.1e}")} for name, value in largest.items()}})


if __name__ == "__main__":
    torch.set_num_threads(1)
    spread(sys.argv[2:]) if sys.argv[1:2] == ["--spread"] else write(sys.argv[1:])
