"""The run directory: what a training leaves behind, written so that every file is old or new, never half."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from robustlib.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from robustlib.models import Classifier

UNHASHED = ("preset", "title", "changed")  # facts of a run that change no number


def write_atomic(path: Path | str, data: bytes | memoryview | str | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a reader, a crash or a full disk meets the old content or the new one.

    Raises:
        InputError: the directory cannot be written or the disk is full; the previous file is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            if callable(data):
                data(file)  # type: ignore[arg-type]
            else:
                file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private by default
        os.replace(temporary, path)
    except OSError as error:
        kept = "the previous version is untouched" if path.exists() else "nothing was written"
        remedy = "free some space" if error.errno == 28 else "choose a writable directory"
        raise InputError(f"Cannot write {path}: {error.strerror}; {kept}. Remedy: {remedy} and call again.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: Path, content: object) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none.

    Raises:
        InputError: the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): delete it or restore it.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} should hold a JSON object, it holds a {type(content).__name__}: delete or restore it."
        )
    return content


@lru_cache
def code_digest() -> str:
    """A digest of every file of the installed robustlib that can change a number."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0].removesuffix(".py") not in VIEWS:
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


# These show numbers or say where they are made, and make none.
VIEWS = ("batch", "cli", "console", "explorer", "figures", "report", "tables", "task", "templates", "workbook")


def parameter_hash(params: Mapping[str, Any]) -> str:
    """Eight characters that name a set of parameters; presets and places do not enter."""
    kept = {k: v for k, v in params.items() if k not in UNHASHED}
    kept["hyperparameters"] = {k: v for k, v in params.get("hyperparameters", {}).items() if k not in UNHASHED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


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

    def status(self) -> dict[str, Any]:
        """{"state": "new" | "running" | "done" | "failed", ...}."""
        return read_json(self.path / "status.json") or {"state": "new"}

    def provenance(self) -> dict[str, Any]:
        """What made it: code digest, package versions, device, threads, wall time, peak memory, command."""
        return read_json(self.path / "provenance.json")

    def results(self) -> dict[str, Any]:
        """The evaluation's summary (see `robustlib.evaluation.evaluate_run`); {} before it."""
        return read_json(self.path / "results.json")

    def metrics(self) -> "pd.DataFrame":
        """One row for each finished epoch of each stage; row 0 is the model before training."""
        import pandas as pd

        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return pd.DataFrame([json.loads(line) for line in lines])

    def records(self) -> "pd.DataFrame":
        """The evaluation's per-example records; empty before it."""
        import pandas as pd

        file = self.path / "records.parquet"
        return pd.read_parquet(file) if file.exists() else pd.DataFrame()

    def model(self, which: Literal["best", "last"] = "best") -> "Classifier":
        """The trained model in eval mode on the CPU: best on robust validation accuracy, or of the last epoch.

        Raises:
            InputError: there is no such file, or it is truncated or of another model.
        """
        from robustlib.models import build_model

        params = self.params()
        if not params:
            raise InputError(
                f"{self.path} holds no run (no params.json): give a directory that `robustlib list` shows."
            )
        spec = SimpleNamespace(**params["spec"])
        model = build_model(params["arch"], spec, **params.get("model", {}))
        load_weights(model, self.path / ("model.safetensors" if which == "best" else "last.safetensors"))
        return model.eval()

    @property
    def name(self) -> str:
        """For people: "trades · small_cnn · seed 0"."""
        params = self.params()
        return f"{params.get('method', '?')} · {params.get('arch', '?')} · seed {params.get('seed', '?')}"

    @property
    def finished(self) -> bool:
        """Whether the training reached its last epoch."""
        return self.status()["state"] == "done"

    @property
    def stale(self) -> bool:
        """Whether other code than the installed one made it; `--rerun` renews it."""
        return self.provenance().get("code") not in (None, code_digest())

    def write_frame(self, name: str, frame: "pd.DataFrame") -> None:
        """Stores a data frame as parquet under `name`."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomic(self.path / name, buffer.getvalue())


def save_weights(model: "nn.Module", path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes all parameters and buffers as safetensors, atomically."""
    from safetensors.torch import save

    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_atomic(path, save(state, dict(metadata or {})))


def load_weights(model: "nn.Module", path: Path) -> None:
    """Fills the model from a safetensors file.

    Raises:
        InputError: no such file, not a whole safetensors file, or weights of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise InputError(f"There are no weights at {path}: train the run first, or give another directory.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}): train again with --rerun."
        ) from error
    mine = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in state.items()}
    if mine != theirs:
        odd = next(k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k))
        raise InputError(
            f"{path} holds weights of another model: {odd} is {theirs.get(odd, 'missing')} there and "
            f"{mine.get(odd, 'unknown')} here. Use the architecture and the data set it was trained with."
        )
    model.load_state_dict(state)


def find_runs(
    root: Path | str = "runs",
    *,
    dataset: str | None = None,
    method: str | None = None,
    preset: str | None = None,
    finished: bool = True,
) -> list[Run]:
    """The runs below `root`, by path; only finished ones unless told otherwise."""
    found = []
    for file in sorted(Path(root).glob(f"{dataset or '*'}/{method or '*'}/*/params.json")):
        run = Run(file.parent)
        if (preset is None or run.params().get("preset") == preset) and (run.finished or not finished):
            found.append(run)
    return found
