"""The run directory: what a training leaves behind, and where its numbers come from.

A run is stale when what made its numbers gives others today, and not when a file moved or a comment changed.
"""

import ast
import io
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from robustlib.errors import InputError, explained
from robustlib.runs import files
from robustlib.runs.known import recall
from robustlib.runs.lock import held, take
from robustlib.runs.numerics import outdated
from robustlib.runs.shapes import check_shape

if TYPE_CHECKING:
    from torch import nn

    from robustlib.data import Dataset
    from robustlib.models import Classifier

# facts of a run that change no number
UNHASHED = ("preset", "title", "changes", "changed", "images", "about", "protocol", "attack_passes")
LATER = {"validate_every": 1}  # hyper-parameters that came after runs were trained, and what these had


def parameter_hash(params: Mapping[str, Any]) -> str:
    """Eight characters that name a set of parameters; presets and places do not enter."""
    kept = {k: v for k, v in params.items() if k not in UNHASHED}
    if "code" in kept:  # a file may move
        kept["code"] = {k: v for k, v in kept["code"].items() if k != "place"}
    hashed = (item for item in params.get("hyperparameters", {}).items() if item not in LATER.items())
    kept["hyperparameters"] = {k: v for k, v in hashed if k not in UNHASHED}
    return files.digest(json.dumps(kept, sort_keys=True, default=str), length=8)


TRAINED = ("metrics.jsonl", "model.safetensors", "last.safetensors")  # what a finished training names in status.json
FILES = (  # in the order of `clear`: whoever comes after a kill finds a training to resume or none, and nothing measured on another
    *("status.json", "results.json", "audit.json", "representation.json", "distances.json", "unseen.json"),
    *("randomness.json", "sanity.json", "records.parquet", "checkpoint.pt", *TRAINED, "provenance.json", "factory.py"),
    *("method.py", "params.json"),
)
PATIENCE = 10.0  # seconds for which a run waits for its lock: what a killed process started may end a little later
UNSAID = {"precision": "32-true"}  # facts of measurements that version 0.1 did not store
_sound: set[tuple[str, int]] = set()  # contents of files by name that have their shape: most are read many times
FOLDERS = ("evaluation", "randomness", "features", "embeddings", "tensorboard")


@dataclass(frozen=True)
class Run:
    """One training and what was measured on it, as files in `path`."""

    path: Path

    @classmethod
    def of(cls, params: Mapping[str, Any], root: Path | str) -> "Run":
        """The run that has these parameters: root/<dataset>/<method>/<arch>-seed<k>-<hash>."""
        leaf = f"{params['arch']}-seed{params['seed']}-{parameter_hash(params)}"
        return cls(Path(root) / params["dataset"] / params["method"] / leaf)

    @classmethod
    def from_model(cls, model: "str | nn.Module", dataset: "Dataset", **settings: Any) -> "Run":
        """A finished run of a network that was trained elsewhere; evaluation, audit, comparison and pages take it like any other.

        Args:
            model: images -> logits, or what builds it: "torchvision:resnet18", "timm:vit_tiny_patch16_224", "my_models.py:build" or
                "package.module:Net". A module itself is kept by this process alone; its weights and numbers stay.
            dataset: whose test images it is judged on.
            settings: name (for people; else that of the weights' file), threat (else the data set's), root ("runs"), weights (a file of
                them), arguments (of the factory), output (where the logits are in its answer), layer (whose answers are the
                features; else the input of the last linear layer), mean and std (with which it wants its images normalised),
                stochastic (else its own attribute).
        """
        from robustlib.runs.external import external_run

        return external_run(cls.of, model, dataset, **settings)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; {} if there is none. An InputError for one that is damaged, not as readers rely on it, or another run's.

        Files that version 0.1 wrote name no run.
        """
        file = self.path / name
        if (data := files.read_bytes(file)) is None:
            return {}
        content = files.parse_object(file, data)
        if not content and name != "params.json":
            return {}
        if (text := (name, hash(data))) not in _sound:
            check_shape(file, content)
            _sound.add(text)
        for part in (content, *content.values()):  # what is measured several times names its run in each entry
            if isinstance(part, dict) and name != "params.json":
                files.check_owner(file, part.pop("run", None), self.place)
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores a JSON file that names its run."""
        files.write_json(self.path / name, {"run": self.place, **content})

    def digests(self, *names: str) -> dict[str, str]:
        """The digest of the content of each of these files that is there."""
        return {name: files.digest(data) for name in names if (data := files.read_bytes(self.path / name)) is not None}

    @property
    def damage(self) -> str:
        """Which of its JSON files and metrics cannot be believed, why, and the remedy, as a sentence; "" if all can."""
        return str(self.brief()["damage"])

    def brief(self) -> dict[str, Any]:
        """What many runs are sorted by, read once: damage; of an undamaged run also name, preset, dataset, seed, variant (method and
        changes), and state, as its file says."""
        return recall(self.path, "brief", self._read_brief)

    def _read_brief(self) -> dict[str, Any]:
        try:
            params = self.params()
            self.audit(), self.metric_rows()  # and what these rest on
            for name in ("provenance.json", "representation.json", "distances.json", "unseen.json", "randomness.json"):
                self.read(name)
            state = self.read("status.json").get("state", "new")
        except InputError as error:
            return {"damage": str(error)}
        name = f"{params.get('method', '?')} · {params.get('arch', '?')} · seed {params.get('seed', '?')}"
        if "external" in params:
            name = f"{params.get('title')} · {params['arch']}"
        variant = f"{params.get('method', '?')} {changes_text(self.changes())}".strip()
        facts = {key: params.get(key) for key in ("preset", "dataset", "seed")}
        return {"damage": "", "name": name, "state": state, "variant": variant, **facts}

    def params(self) -> dict[str, Any]:
        """What was asked for: method, hyperparameters, dataset, arch, seed, precision, image and class counts; {} for no run.

        An InputError for those of another place: copies and links are no runs, since each would count twice.
        """
        params = self.read("params.json")
        own = Run.of(params, "").place if params else self.place
        if own != self.place and (self.path.is_dir() or files.tail(own) != files.tail(self.place)):
            said = f"holds the parameters of {own}: it was copied, renamed or altered"
            raise InputError(f"{self.path} {said}. Delete it, or give it its name and parameters back.")
        return params

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
        """For people: `changes`, whether the model was compiled, and which text of a user's method it is: "beta=3.0, code 1f0a93c2"."""
        params, text = self.params(), changes_text(self.changes())
        code = f"code {params['code']['digest'][:8]}" if "code" in params else ""
        several = f"{params['devices']} devices, batchnorm={params['batchnorm']}" if "devices" in params else ""
        return ", ".join(filter(None, (text, params.get("compile") and "compiled", several, code)))

    def status(self) -> dict[str, Any]:
        """{"state": "new" | "running" | "done" | "failed" | "interrupted", ...}; interrupted too if its process is gone."""
        status = self.read("status.json") or {"state": "new"}
        if status["state"] != "running":
            return status
        if held(self.path / ".lock") is not False:  # a process is training it now, or nobody can say
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
            with explained(OSError, lambda e: f"Cannot lock {self.path} ({e.strerror}): choose another file system."):
                free = take(file, PATIENCE)
            if not free:
                raise InputError(f"{self.path} is being trained by another process: wait for it, or stop it.")
            files.tidy(self.path, older=0)
            yield

    def finish(self) -> None:
        """Says that the training is done, and which files belong to it; the last that it writes."""
        self.write("status.json", {"state": "done", "finished": time.time(), "files": self.digests(*TRAINED)})

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
        """What made it: versions of numbers and packages, device, threads, wall time, peak memory, command (quoted for a shell; it
        evaluates on as many images as this run was)."""
        facts, images = self.read("provenance.json"), None
        with suppress(InputError):  # the training is known, whatever became of its evaluation
            images = self.read("results.json").get("n")
        return facts | {"command": _quoted(str(facts["command"]), images)} if "command" in facts else facts

    def results(self) -> dict[str, Any]:
        """The evaluation's summary (see `robustlib.evaluation.evaluate_run`); {} before it."""
        results = self.read("results.json")
        judged, trained = (named.get("files", {}).get("model.safetensors") for named in (results, self.status()))
        if judged and trained and judged != trained:
            raise InputError(f"{self.path}/results.json judges other weights: delete it and evaluate again.")
        return results

    def audit(self) -> dict[str, Any]:
        """The audit of the evaluation (see `robustlib.audit.audit_run`); {} before it."""
        audit = self.read("audit.json")
        judged, stored = (named.get("files") for named in (audit.get("results", {}), self.results()))
        if judged and stored and judged != stored:
            raise InputError(f"{self.path}/audit.json judges another evaluation: delete it and audit again.")
        return audit

    def metrics(self) -> pd.DataFrame:
        """One row for each finished epoch of each stage; row 0 is the model before training."""
        return pd.DataFrame(self.metric_rows())

    def metric_rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics`, each with the columns that it has."""
        file = self.path / "metrics.jsonl"
        data = files.read_bytes(file) or b""
        files.check_digest(file, data, self.status().get("files", {}).get(file.name, ""))
        rows = [files.parse_json(file, line) for line in data.splitlines()]
        check_shape(file, rows)
        return rows

    def records(self, which: Literal["best", "last"] = "best") -> pd.DataFrame:
        """The evaluation's per-example records of the best or the last epoch's weights; empty before it."""
        file = self.path / "records.parquet"
        if not file.exists():
            return pd.DataFrame()
        data = files.read_bytes(file) or b""
        files.check_digest(file, data, self.results().get("files", {}).get(file.name, ""))
        try:
            records = pd.read_parquet(io.BytesIO(data))
            return records[records.checkpoint == which].drop(columns="checkpoint").reset_index(drop=True)
        except Exception as error:  # whatever a damaged file makes its library raise
            said = f"is not readable ({error}): delete it and results.json, and evaluate again."
            raise InputError(f"{file} {said}") from error

    def distances(self, split: str = "test", attack: str = "Tangent") -> dict[str, Any]:
        """What `robustlib.evaluation.measure_distances` stored last for a split and kind of attack: protocol, then columns; or {}."""
        stored = reversed(self.read("distances.json").values())
        return next((s for s in stored if (s["split"], s["attack"].partition("(")[0]) == (split, attack)), {})

    def model(self, which: Literal["best", "last"] = "best") -> "Classifier":
        """The trained model in eval mode on the CPU: that of the best epoch (see `Stage.keep`), or of the last one."""
        from robustlib.models import build_model

        if not (params := self.params()):
            raise InputError(f"{self.path} holds no run: give a directory that `robustlib list` shows.")
        if self.external:
            from robustlib.runs.external import load_external

            model: Classifier = load_external(self)
        else:
            model = build_model(params["arch"], SimpleNamespace(**params["spec"]), **params.get("model", {}))
        file = self.path / ("model.safetensors" if which == "best" else "last.safetensors")
        files.load_weights(model, file, self.place, self.status().get("files", {}).get(file.name, ""))
        return model.eval()

    @property
    def name(self) -> str:
        """For people: "trades · small_cnn · seed 0" or "our WRN · wrn"; its place, where it is damaged."""
        return str(self.brief().get("name", self.place))

    @property
    def argument(self) -> str:
        """Its directory as a word of a command."""
        return shlex.quote(str(self.path))

    @property
    def place(self) -> str:
        """<dataset>/<method>/<directory>, the same wherever the runs are kept."""
        return "/".join(Path(os.path.abspath(self.path)).parts[-3:])

    def trust(self) -> None:
        """Lets the code that this run names be executed by this user from now on."""
        if self.external:
            from robustlib.runs.external import code_of

            if code := code_of(self):
                code.trust()

    @property
    def external(self) -> bool:
        """Whether it was trained elsewhere (see `from_model`)."""
        return "external" in self.params()

    @property
    def finished(self) -> bool:
        """Whether the training reached its last epoch."""
        return bool(self.params()) and self.status()["state"] == "done"

    @property
    def outdated(self) -> list[str]:
        """What made its training or its evaluation and gives other numbers today, in words (see NUMERICS); mostly nothing."""
        return outdated({**trained_with(self), **self.results().get("numerics", {})})

    @property
    def stale(self) -> bool:
        """Whether some of its numbers would be others today; `--rerun` renews them."""
        return bool(self.outdated)

    def write_frame(self, name: str, frame: pd.DataFrame, outdates: Sequence[str] = ()) -> None:
        """Stores a data frame as parquet under `name`; the files of the run that it `outdates` are removed before it is there."""
        files.write_atomic(self.path / name, frame.to_parquet(index=False), [self.path / old for old in outdates])


def _quoted(command: str, examples: int | None) -> str:
    """One command of ours, with that many examples, and each word quoted as a shell needs it; "" for anything else."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    words += ["--examples", str(examples)] if examples and "--examples" not in words else []
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


def holds(stored: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a stored measurement was made with these facts."""
    return bool(stored) and all(stored.get(fact, UNSAID.get(fact)) == value for fact, value in facts.items())


def measured(
    run: Run, name: str, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], *, key: str = ""
) -> dict[str, Any]:
    """What `name` in the run's directory holds if it has the same facts; else `measure()` is called and written with them.

    `facts` decide the numbers: protocol, seed, images, weights, versions; as JSON gives them back (lists, no tuples). `key` names
    this measurement in a file that holds several; "" for a file that holds one.
    """
    stored = run.read(name)
    known: dict[str, Any] = stored.get(key, {}) if key else stored
    if holds(known, facts):
        return known
    content = {**facts, **measure()}
    if key:
        files.merge_json(run.path / name, key, {"run": run.place, **content})
    else:
        run.write(name, content)
    return content
