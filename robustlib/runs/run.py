"""The run directory: what a training leaves behind, and where its numbers come from.

A run is stale when what made its numbers gives others today, and not when a file moved or a comment changed.
"""

import ast
import fcntl
import importlib.metadata
import json
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas as pd
import torch

from robustlib.errors import InputError
from robustlib.models import Classifier, build_model
from robustlib.runs import files
from robustlib.runs.files import read_json

# What makes numbers -> its version. tests/test_numerics.py makes a tiny fixed run of each and compares it with stored numbers: where
# they move, the version must too, and whatever was made with another one is stale.
AT_ONE = {
    "methods": "standard pgd_at mart fgsm_rs n_fgsm vaft afkd arrest afd ancra supcon simclr rocl acl claf awp rep_spectral"
    " ll_spectral cross_lipschitz simclr_spectral transfer l2_sp bss",
    "attacks": "pgd apgd fab square autoattack tangent stadv ascent",
    "measures": "evaluation audit distances randomness representation",
}
NUMERICS: dict[str, int] = {f"{kind}/{name}": 1 for kind, names in AT_ONE.items() for name in names.split()} | {
    "methods/trades": 2,  # x forwarded again, for BatchNorm
    "methods/atop": 2,  # weights in units of an L1 on [-1, 1]
    "methods/aff": 2,  # fine-tuning as a last stage: as TRADES
    "methods/barlow_spectral": 2,  # its loss is not divided by the batch
    "measures/embedding": 2,  # neighbours by the angle at the origin
}


def versions(*names: str) -> dict[str, int]:
    """Today's version of each name that has one; what is not of this package has none."""
    return {name: NUMERICS[name] for name in sorted(names) if name in NUMERICS}


def attack_names(attacks: Iterable[object]) -> set[str]:
    """The names of attacks and of what they are made of, such as AutoAttack's parts."""
    names = set()
    for attack in attacks:
        parts = attack.components(10) if hasattr(attack, "components") else {}
        names |= {f"attacks/{type(one).__name__.lower()}" for one in (attack, *parts.values())}
    return names


def outdated(made: Mapping[str, Any]) -> list[str]:
    """Which of the versions that numbers were made with are others today, in words."""
    changed = [name for name in sorted(made) if NUMERICS.get(name) != made[name]]
    return [f"{name} {made[name]} (now {NUMERICS.get(name, 'gone')})" for name in changed]


UNHASHED = ("preset", "title", "changes", "changed")  # facts of a run that change no number


def parameter_hash(params: Mapping[str, Any]) -> str:
    """Eight characters that name a set of parameters; presets and places do not enter."""
    kept = {k: v for k, v in params.items() if k not in UNHASHED}
    kept["hyperparameters"] = {k: v for k, v in params.get("hyperparameters", {}).items() if k not in UNHASHED}
    return files.digest(json.dumps(kept, sort_keys=True, default=str), length=8)


FILES = (
    *("params.json", "status.json", "provenance.json", "metrics.jsonl", "checkpoint.pt"),
    *("model.safetensors", "last.safetensors", "records.parquet", "results.json", "audit.json", "representation.json"),
    *("distances.json", "unseen.json", "randomness.json"),
)
FOLDERS = ("evaluation", "features", "embeddings")


@dataclass(frozen=True)
class Run:
    """One training and what was measured on it, as files in `path`."""

    path: Path

    @classmethod
    def of(cls, params: Mapping[str, Any], root: Path | str) -> "Run":
        """The run that has these parameters: root/<dataset>/<method>/<arch>-seed<k>-<hash>."""
        leaf = f"{params['arch']}-seed{params['seed']}-{parameter_hash(params)}"
        return cls(Path(root) / params["dataset"] / params["method"] / leaf)

    def params(self) -> dict[str, Any]:
        """What was asked for: method, hyperparameters, dataset, arch, seed, precision, image and class counts."""
        return read_json(self.path / "params.json")

    def changes(self) -> dict[str, Any]:
        """The hyper-parameters in which it differs from its preset, architecture included, by name."""
        params = self.params()
        if "changes" in params:
            return {name: _tuples(value) for name, value in params["changes"].items()}
        # Runs of version 0.1 hold text: "beta=3.0, milestones=(20, 30), compiled".
        parts = re.split(r", (?=\w+=|compiled$)", params.get("changed") or "")
        changes: dict[str, Any] = dict(part.split("=", 1) for part in parts if "=" in part)
        for name, text in changes.items():
            with suppress(ValueError, SyntaxError):  # what is no literal is text
                changes[name] = ast.literal_eval(text)
        return changes

    @property
    def changed(self) -> str:
        """For people: `changes`, and whether the model was compiled, as in "beta=3.0, compiled"."""
        return ", ".join(filter(None, (changes_text(self.changes()), self.params().get("compile") and "compiled")))

    def status(self) -> dict[str, Any]:
        """{"state": "new" | "running" | "done" | "failed" | "interrupted", ...}; interrupted too if its process is gone."""
        status = read_json(self.path / "status.json") or {"state": "new"}
        if status["state"] != "running":
            return status
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except OSError:  # a process is training it now
            return status
        return {**status, "state": "interrupted", "reason": "the process ended without a word"}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process, or raises InputError; the lock dies with its process, however it dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a")  # noqa: SIM115  (held for the time of the training)
        except OSError as error:
            raise InputError(f"Cannot write to {self.path} ({error.strerror}): choose a writable directory.") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                said = "is being trained by another process: wait for it, or stop it."
                raise InputError(f"{self.path} {said}") from error
            yield

    def clear(self) -> None:
        """Removes what a training wrote and what was measured on it, and nothing else."""
        for file in (*(self.path / name for name in FILES), *self.path.glob("snapshots/*.safetensors")):
            file.unlink(missing_ok=True)
        for folder in FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)

    @property
    def evaluation(self) -> Path:
        """Where an evaluation that is under way keeps its finished batches; gone when its results are written."""
        return self.path / "evaluation"

    def provenance(self) -> dict[str, Any]:
        """What made it: versions of numbers and packages, device, threads, wall time, peak memory, command (quoted for a shell)."""
        facts = read_json(self.path / "provenance.json")
        return facts | {"command": _quoted(str(facts["command"]))} if "command" in facts else facts

    def results(self) -> dict[str, Any]:
        """The evaluation's summary (see `robustlib.evaluation.evaluate_run`); {} before it."""
        return read_json(self.path / "results.json")

    def audit(self) -> dict[str, Any]:
        """The audit of the evaluation (see `robustlib.audit.audit_run`); {} before it."""
        return read_json(self.path / "audit.json")

    def metrics(self) -> pd.DataFrame:
        """One row for each finished epoch of each stage; row 0 is the model before training."""
        lines = (files.read_bytes(self.path / "metrics.jsonl") or b"").splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])

    def records(self, which: Literal["best", "last"] = "best") -> pd.DataFrame:
        """The evaluation's per-example records of the best or the last epoch's weights; empty before it."""
        file = self.path / "records.parquet"
        if not file.exists():
            return pd.DataFrame()
        records = pd.read_parquet(file)
        return records[records.checkpoint == which].drop(columns="checkpoint").reset_index(drop=True)

    def distances(self, split: str = "test", attack: str = "Tangent") -> dict[str, Any]:
        """What `robustlib.evaluation.measure_distances` stored last for a split and kind of attack: protocol, then columns; or {}."""
        stored = reversed(read_json(self.path / "distances.json").values())
        return next((s for s in stored if (s["split"], s["attack"].partition("(")[0]) == (split, attack)), {})

    def model(self, which: Literal["best", "last"] = "best") -> Classifier:
        """The trained model in eval mode on the CPU: that of the best epoch (see `Stage.keep`), or of the last one."""
        params = self.params()
        if not params:
            said = "holds no run (no params.json): give a directory that `robustlib list` shows."
            raise InputError(f"{self.path} {said}")
        model = build_model(params["arch"], SimpleNamespace(**params["spec"]), **params.get("model", {}))
        files.load_weights(model, self.path / ("model.safetensors" if which == "best" else "last.safetensors"))
        return model.eval()

    @property
    def name(self) -> str:
        """For people: "trades · small_cnn · seed 0"."""
        params = self.params()
        return f"{params.get('method', '?')} · {params.get('arch', '?')} · seed {params.get('seed', '?')}"

    @property
    def argument(self) -> str:
        """Its directory as a word of a command."""
        return shlex.quote(str(self.path))

    @property
    def place(self) -> str:
        """<dataset>/<method>/<directory>, the same wherever the runs are kept."""
        return "/".join(self.path.parts[-3:])

    @property
    def finished(self) -> bool:
        """Whether the training reached its last epoch."""
        return self.status()["state"] == "done"

    @property
    def outdated(self) -> list[str]:
        """What made its training or its evaluation and gives other numbers today, in words (see NUMERICS); mostly nothing."""
        return outdated({**trained_with(self), **self.results().get("numerics", {})})

    @property
    def stale(self) -> bool:
        """Whether some of its numbers would be others today; `--rerun` renews them."""
        return bool(self.outdated)

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Stores a data frame as parquet under `name`."""
        files.write_atomic(self.path / name, frame.to_parquet(index=False))


def _quoted(command: str) -> str:
    """One command of ours with each word quoted as a shell needs it, so that it can be copied; "" for anything else."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    return shlex.join(words) if words[:1] == ["robustlib"] else ""


def changes_text(changes: Mapping[str, Any]) -> str:
    """Changed hyper-parameters for people: "beta=3.0, milestones=(20, 30)"."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def trained_with(run: Run) -> dict[str, int]:
    """The versions of what made the run's training; {} before it. Before versions were recorded they were 1."""
    facts = run.provenance()
    before: dict[str, int] = {f"methods/{run.params().get('method')}": 1} if "code" in facts else {}
    return dict(facts.get("numerics", before))


def find_runs(
    root: Path | str = "runs",
    *,
    dataset: str | None = None,
    method: str | None = None,
    preset: str | None = None,
    finished: bool = True,
) -> list[Run]:
    """The runs below `root`, in directories or archives, by path; only finished ones unless told otherwise."""
    folder, methods = Path(root), f"{dataset or '*'}/{method or '*'}"
    paths = {file.parent for file in folder.glob(f"{methods}/*/params.json")}
    for archive in folder.glob(f"{methods}.zip"):  # of committed results: <method>.zip holds <run>/params.json
        paths |= {archive.with_suffix("") / name.partition("/")[0] for name in files.read_archive(archive)}
    runs = [run for run in map(Run, sorted(paths)) if preset is None or run.params().get("preset") == preset]
    return [run for run in runs if run.finished or not finished]


def transfer_sources(run: Run, methods: Sequence[str]) -> dict[str, Run]:
    """Another finished run of each method, by method: same root, data set and threat; if possible with the same architecture,
    an unchanged preset, and the same seed."""
    path, params, sources = run.path.resolve(), run.params(), {}

    def unlike(other: Run) -> tuple[bool, ...]:  # the gravest difference first
        arch, preset, seed = (other.params().get(name) != params.get(name) for name in ("arch", "preset", "seed"))
        return arch, preset, bool(other.changed), seed

    for method in methods if len(path.parents) > 2 else ():
        others = find_runs(path.parents[2], dataset=params["dataset"], method=method)
        others = [r for r in others if r.path.resolve() != path and r.params()["threat"] == params["threat"]]
        others = [r for r in others if (r.path / "model.safetensors").exists()]
        if others:
            sources[method] = min(others, key=unlike)
    return sources


def measured(
    run: Run, name: str, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], *, key: str = ""
) -> dict[str, Any]:
    """What `name` in the run's directory holds if it has the same facts; else `measure()` is called and written with them.

    `facts` decide the numbers: protocol, seed, images, weights, versions; as JSON gives them back (lists, no tuples). `key` names
    this measurement in a file that holds several; "" for a file that holds one.
    """
    file = run.path / name
    known: dict[str, Any] = read_json(file).get(key, {}) if key else read_json(file)
    if known and all(known.get(fact) == value for fact, value in facts.items()):
        return known
    content = {**facts, **measure()}
    if key:
        files.merge_json(file, key, content)
    else:
        files.write_json(file, content)
    return content


def provenance(device: torch.device, threads: int, command: str, numerics: Mapping[str, int]) -> dict[str, Any]:
    """The facts of a run that starts now; wall time and memory are added at its end. `git` is "" outside a checkout."""
    packages, git = {}, ""
    for name in ("robustlib", "torch", "torchvision", "lightning-fabric", "numpy", "scikit-learn"):
        packages[name] = "not installed"
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        git = done.stdout
    return {
        "command": command,
        "numerics": dict(numerics),
        "git": git.strip(),
        "packages": packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": threads,
    }


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)", info.read_text() if info.exists() else "", re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: of the GPU if it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
