"""A study of thirty trainings in which something is killed every twenty seconds or so, beside the same one left in peace.

    python benchmarks/kills.py      # most of an hour on two cores; writes kills.md

kill -9 meets a kernel, the worker that executes a notebook, or the command itself, at random, until all trainings are evaluated and
audited; the page that compares them is then made in peace. TRADES trains on a Ray cluster of two nodes, if the extra `ray` is
installed: there all processes of a node may die, and another node comes. The command is called again until it ends well, as a user
would. Weights, records, results and audits of both studies must be the same.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from side_by_side import markdown, write_report

from robustlib.runs import Run, find_runs
from robustlib.workbook.experiments import parse_seeds

METHODS = ("standard", "pgd_at", "trades")
ON_RAY = ("trades",) if find_spec("ray") else ()  # when disturbed
SMALL = ("arch=mlp", "epochs=30", "train_examples=128", "attack_steps=2")  # attack_steps is dropped where there is none
EVERY, CALLS = 20.0, 60  # seconds between two kills, in the mean; calls of a command before it is given up
VARY = ("seconds", "started", "ended", "wall_seconds", "minutes")  # what may differ


def command(method: str, seeds: str, folder: Path, address: str) -> list[str]:
    """A command of the study, with its folders and, if there is one, its cluster."""
    settings = [word for one in SMALL if method != "standard" or "attack" not in one for word in ("--set", one)]
    places = ["--runs", folder / "runs", "--reports", folder / "reports"]
    engine = ["--engine", "ray", "--address", address] if address else []
    words = ["run", method, "--seeds", seeds, *settings, "--examples", "8", "--jobs", "2", *engine, *places]
    return [sys.executable, "-m", "robustlib.workbook.cli", *map(str, words)]


@contextmanager
def ray_cluster(wanted: bool) -> Iterator[Any]:
    """A head and another node on this machine, which take one task each; None if it is not wanted."""
    if not wanted:
        yield None
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        add_node(cluster)
        yield cluster
    finally:
        for node in (cluster.head_node, *cluster.worker_nodes):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def add_node(cluster: Any) -> None:
    """Another node; on a busy machine Ray may give one up before it has started."""
    for last in (False, False, True):
        with suppress(() if last else Exception):
            cluster.add_node(num_cpus=1)
            return


def call(
    words: list[str], folder: Path, runs: int, draws: random.Random | None, cluster: Any
) -> tuple[int, Counter[str]]:
    """The command's exit code, and who was killed while it made so many `runs`."""
    killed = Counter[str]()
    with open(folder / "log.txt", "a") as log:
        running = subprocess.Popen(words, stdout=log, stderr=log)
        following = _soon(draws)
        while running.poll() is None:
            time.sleep(0.2)
            if draws and time.monotonic() >= following and done(folder / "reports") < runs:
                following = _soon(draws)
                victims = {"command": [running.pid], **under_way(folder / "reports")}
                who = draws.choice([name for name, pids in victims.items() if pids] + ["node"] * bool(cluster))
                with suppress(ProcessLookupError):
                    if who == "node":
                        cluster.remove_node(*cluster.worker_nodes, allow_graceful=False)
                        add_node(cluster)
                    else:
                        os.kill(draws.choice(victims[who]), signal.SIGKILL)
                    killed[who] += 1
    return running.returncode, killed


def _soon(draws: random.Random | None) -> float:
    """When the next one is killed; at a regular beat what takes longer than it would never end."""
    return time.monotonic() + EVERY * (draws.uniform(0.25, 1.75) if draws else 1.0)


def done(reports: Path) -> int:
    """How many runs have a page."""
    statuses = [file for file in reports.rglob("*.status.json") if "compare" not in file.name]
    return sum('"state": "done"' in file.read_text() for file in statuses)


def under_way(reports: Path) -> dict[str, list[int]]:
    """The processes at work on notebooks, by what they are."""
    found: dict[str, list[int]] = {"kernel": [], "worker": []}
    for file in reports.rglob("*.status.json"):
        with suppress(OSError, ValueError):
            status = json.loads(file.read_text())
            for name, pids in found.items():
                if status.get("state") == "running" and status.get(name) and Path(f"/proc/{status[name]}").exists():
                    pids.append(status[name])
    return found


def study(folder: Path, seeds: str, draws: random.Random | None) -> tuple[dict[str, Any], Counter[str]]:
    """Calls the commands of all methods until each ends well; how many calls that took, in how many minutes, and who was killed."""
    folder.mkdir(parents=True)
    began, calls, killed = time.monotonic(), 0, Counter[str]()
    for number, method in enumerate(METHODS, 1):
        code, runs, most = 1, number * len(parse_seeds(seeds)), calls + CALLS
        with ray_cluster(draws is not None and method in ON_RAY) as cluster:
            words = command(method, seeds, folder, cluster.address if cluster else "")
            while code and calls < most:
                calls += 1
                code, more = call(words, folder, runs, draws, cluster)
                killed += more
        if code:
            raise SystemExit(f"{method} did not end well in {CALLS} calls; see {folder / 'log.txt'}")
    return {"calls": calls, "minutes": f"{(time.monotonic() - began) / 60:.1f}"}, killed


def timeless(content: Any) -> Any:
    """A JSON value without times and digests."""
    if isinstance(content, dict):
        kept = {name: part for name, part in content.items() if name not in VARY}
        return {name: sorted(part) if name == "transfer" else timeless(part) for name, part in kept.items()}
    return [timeless(part) for part in content] if isinstance(content, list) else content


def differences(one: Run, two: Run) -> list[str]:
    """The files in which two runs differ, times apart."""
    found = [name for name in ("results.json", "audit.json") if timeless(one.read(name)) != timeless(two.read(name))]
    found += [] if rows(one).equals(rows(two)) else ["metrics.jsonl"]
    found += [] if one.records().equals(two.records()) else ["records.parquet"]
    for name in ("model.safetensors", "last.safetensors"):
        mine, other = (load_file(run.path / name) for run in (one, two))
        same = mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)
        found += [] if same else [name]
    return found


def rows(run: Run) -> pd.DataFrame:
    """The metrics of a run without times."""
    return run.metrics().drop(columns=["seconds"])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--draw", type=int, default=0, help="Another one kills others at other moments.")
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": tempfile.mkdtemp()}
    with tempfile.TemporaryDirectory() as place:
        quiet, _ = study(Path(place) / "quiet", options.seeds, None)
        disturbed, killed = study(Path(place) / "disturbed", options.seeds, random.Random(options.draw))
        pairs = [find_runs(Path(place) / name / "runs") for name in ("quiet", "disturbed")]
        every = find_runs(Path(place) / "disturbed" / "runs", finished=False)
        different = {one.place: names for one, two in zip(*pairs, strict=True) if (names := differences(one, two))}
        broken = [run.damage for run in every if run.damage]
        stuck = [
            file.name for file in (Path(place) / "disturbed").rglob("*.status.json") if "running" in file.read_text()
        ]
    table = [
        {"study": "left in peace", "runs": len(pairs[0]), "killed": "–", **quiet},
        {
            "study": "disturbed",
            "runs": len(pairs[1]),
            "killed": ", ".join(f"{name} {n}" for name, n in sorted(killed.items())) or "–",
            **disturbed,
        },
    ]
    claims = {
        "something was killed at least ten times": killed.total() >= 10,
        "both made the same runs": [run.place for run in pairs[0]] == [run.place for run in pairs[1]],
        f"weights, metrics, records, results and audits are the same{f' (not {different})' * bool(different)}": not different,
        f"no run is damaged, none unfinished{f' ({broken})' * bool(broken)}": not broken
        and len(every) == len(pairs[1]),
        f"no status says that something runs{f' ({stuck})' * bool(stuck)}": not stuck,
    }
    if options.trial:
        print(markdown(table), *(f"{ok}: {claim}" for claim, ok in claims.items()), sep="\n")
        return 0
    said = f"python benchmarks/kills.py --seeds {options.seeds} --draw {options.draw}"
    return write_report("kills.md", "Killed at random", said, torch.device("cpu"), [markdown(table)], claims)


if __name__ == "__main__":
    sys.exit(main())
