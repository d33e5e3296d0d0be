"""False alarms of the audit on honest models: PGD-AT and TRADES of the digits preset, 5 seeds to calibrate on, 5 others to check.

    python benchmarks/audit_calibration.py                # about 25 minutes on two idle CPU cores; writes audit_calibration.md
    python benchmarks/audit_calibration.py --runs runs    # where the trained runs are, or go

Missing runs are trained first. No threshold was changed after a look at the second five seeds. Standard models are audited too,
without a claim: what they have is no robustness, and the audit need not doubt it.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from side_by_side import markdown, write_report

from robustlib.audit import Check, audit
from robustlib.audit.audit import headline_badge
from robustlib.data import load_dataset
from robustlib.methods import make_method
from robustlib.runs import Run
from robustlib.training import fit

METHODS, FIRST, OTHERS, UNDEFENDED = ("pgd_at", "trades"), range(5), range(5, 10), range(3)
LIMIT = 30  # seconds of one CPU core for an audit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of the trained runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset("digits")
    runs = {
        (method, seed): fit(make_method(method, "digits"), data, seed=seed, root=options.runs)
        for method, seeds in {**dict.fromkeys(METHODS, range(10)), "standard": UNDEFENDED}.items()
        for seed in seeds
    }
    checks, seconds = {}, {}
    for (method, seed), run in runs.items():
        beside = {name: neighbour(runs, name, method, seed).model() for name in ("standard", "pgd_at")}
        started = time.process_time()
        checks[method, seed] = audit(run.model(), data.test, data.threat, transfer=beside)
        seconds[method, seed] = time.process_time() - started
        print(
            method, seed, headline_badge(checks[method, seed])["verdict"], f"{seconds[method, seed]:.0f} s", flush=True
        )
    honest = {key: found for key, found in checks.items() if key[0] in METHODS}
    second = [check for (_, seed), found in honest.items() if seed in OTHERS for check in found]
    slowest = max(seconds.values())
    claims = {
        "no honest model of the first five seeds has a red check": not alarms(honest, FIRST, "red"),
        "no honest model of the other five seeds has a red check": not alarms(honest, OTHERS, "red"),
        "no honest model of the other five seeds has an amber check": not any(c.verdict == "amber" for c in second),
        f"an audit takes at most {LIMIT} s of one core (the slowest took {slowest:.0f} s)": slowest <= LIMIT,
    }
    tables = [f"## {method}\n\n{markdown(rows(checks, method))}" for method in (*METHODS, "standard")]
    command = "python benchmarks/audit_calibration.py"
    return write_report("audit_calibration.md", __doc__.split(":")[0], command, torch.device("cpu"), tables, claims)


def neighbour(runs: dict[tuple[str, int], Run], name: str, method: str, seed: int) -> Run:
    """A run of the method `name` other than (method, seed)."""
    return next(run for (m, s), run in runs.items() if m == name and (m, s) != (method, seed))


def alarms(checks: dict[tuple[str, int], list[Check]], seeds: range, verdict: str) -> list[str]:
    """What fired on these seeds."""
    return [
        f"{key}: {c.name}" for key, found in checks.items() for c in found if key[1] in seeds and c.verdict == verdict
    ]


def rows(checks: dict[tuple[str, int], list[Check]], method: str) -> list[dict[str, object]]:
    """One row for each check of a method: range of the measured value in either five seeds, threshold, alarms."""
    found = []
    for k, check in enumerate(next(iter(checks.values()))):
        row: dict[str, object] = {"check": f"{check.number}. {check.name}"}
        for title, seeds in (("seeds 0-4", FIRST), ("seeds 5-9", OTHERS)):
            some = [c[k] for (m, seed), c in checks.items() if m == method and seed in seeds]
            values = [c.value for c in some if c.value is not None]
            verdicts = [c.verdict for c in some if c.verdict in ("amber", "red")]
            row[title] = f"{min(values):g} to {max(values):g}" if values else "–"
            row[f"alarms {title[6:]}"] = ", ".join(verdicts) or ("none" if some else "–")
        row["threshold"] = "–" if check.threshold is None else f"{check.threshold:g} {check.unit}"
        found.append(row)
    return found


if __name__ == "__main__":
    sys.exit(main())
