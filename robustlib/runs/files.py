"""Writing and reading the files of a run, so that every file is old or new, never half."""

import hashlib
import json
import math
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from robustlib.errors import InputError, explained
from robustlib.runs.lock import take

if TYPE_CHECKING:  # whoever reads JSON alone, such as the process that watches a notebook, goes without torch
    from torch import Tensor, nn


def digest(*parts: str | bytes, length: int = 16) -> str:
    """The first `length` hexadecimal characters of the SHA-256 of the parts, one after another."""
    content = hashlib.sha256()
    for part in parts:
        content.update(part.encode() if isinstance(part, str) else part)
    return content.hexdigest()[:length]


def write_atomic(
    path: Path | str, data: bytes | memoryview | str | Callable[[BinaryIO], object], outdates: Sequence[Path] = ()
) -> None:
    """Writes a file so that a crash or a full disk leaves the old content or the new one, never half; what it `outdates` goes first."""
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
        for old in outdates:
            old.unlink(missing_ok=True)
        os.replace(temporary, path)
    except OSError as error:
        kept = "the previous version is untouched" if path.exists() else "nothing was written"
        remedy = "free some space" if error.errno == 28 else "choose a writable directory"
        raise InputError(f"Cannot write {path}: {error.strerror}; {kept}. Remedy: {remedy} and call again.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


# What `write_atomic` leaves where its process is killed: ".status.json.k3v_9x0a".
TEMPORARY = re.compile(r"\..+\.(json|jsonl|pt|safetensors|parquet|npz|html|csv|md|py|zip)\.[a-z0-9_]{8}")


def tidy(folder: Path, older: float = 3600.0) -> None:
    """Removes the temporary files of killed writers below `folder`, those that are `older` than so many seconds."""
    for file in folder.rglob(".*") if folder.is_dir() else ():
        with suppress(OSError):  # another process tidies too
            if TEMPORARY.fullmatch(file.name) and time.time() - file.stat().st_mtime > older:
                file.unlink()


def state_file(name: str) -> Path:
    """A file that robustlib keeps for this user, in $XDG_STATE_HOME/robustlib."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "robustlib" / name


def write_json(path: Path, content: object) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def merge_json(path: Path, key: str, value: object) -> None:
    """Sets one entry of a JSON object, the last in its order, and keeps the others as they stand in the file now.

    Processes and threads take turns, each for the time of a read and a write: what others wrote during a long measurement stays.
    """
    with explained(OSError, lambda e: f"Cannot write {path}: {e.strerror}. Remedy: choose a writable directory."):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.parent / ".merge.lock", "a")  # noqa: SIM115  (the file itself is replaced, so it cannot be the lock)
    with lock:
        take(lock, math.inf)
        others = {name: entry for name, entry in read_json(path).items() if name != key}
        write_atomic(path, json.dumps({**others, key: value}) + "\n")


def read_archive(path: Path) -> Mapping[str, bytes]:
    """The files in an archive by `<run>/<file>`; empty where there is none."""
    # zipfile and its decompressors have many words for damage
    with explained(Exception, lambda error: f"{path} is not readable ({error}): delete it or restore it."):
        return _unpacked(path, path.stat().st_mtime_ns) if path.is_file() else {}


def archived_runs(path: Path) -> set[str]:
    """The names of the runs in an archive; of a broken one its own, as that of a run which is nothing but damaged."""
    try:
        return {name.partition("/")[0] for name in read_archive(path)}
    except InputError:
        return {path.name}


@lru_cache(maxsize=64)
def _unpacked(path: Path, changed: int) -> Mapping[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_bytes(path: Path) -> bytes | None:
    """The content of a run's file: of <method>/<run>/<file>, or else of <run>/<file> in <method>.zip; None where neither is."""
    with explained(OSError, lambda e: f"{path} cannot be read ({e.strerror}): give a directory that you may read."):
        if path.exists():
            return path.read_bytes()
    method = path.parent.parent
    try:
        return read_archive(method.parent / f"{method.name}.zip").get(f"{path.parent.name}/{path.name}")
    except InputError:
        if (path.parent / "params.json").exists():  # a run that is a directory needs no archive
            return None
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run's directory or archive; {} if there is none."""
    return {} if (data := read_bytes(path)) is None else parse_object(path, data)


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """The object that JSON text from a file at `path` is."""
    content = parse_json(path, data)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{path} should hold a JSON object, it holds a {kind}: delete or restore it.")
    return content


def parse_json(path: Path, data: bytes) -> Any:
    """The value of JSON text from a file at `path`."""
    said = f"{path} is not readable JSON"
    with explained((ValueError, RecursionError), lambda error: f"{said} ({error}): delete it or restore it."):
        return json.loads(data)


def save_weights(model: "nn.Module", path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes all parameters and buffers as safetensors, atomically; the same content is the same bytes."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()})
    size = 8 + int.from_bytes(data[:8], "little")
    # The library writes metadata in any order, and what is judged by its digest would count as changed.
    described = {"__metadata__": dict(sorted((metadata or {}).items())), **json.loads(data[8:size])}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    write_atomic(path, len(header).to_bytes(8, "little") + header + data[size:])


def load_weights(model: "nn.Module", path: Path, run: str = "", known: str = "") -> None:
    """Fills the model from a safetensors file of the same names and shapes, with finite values.

    `run` is the place of the run that it must be of (files of version 0.1 do not say), `known` its digest; "" for any.
    """
    from safetensors.torch import load

    if (data := read_bytes(path)) is None:
        raise InputError(f"There are no weights at {path}: train the run first, or give another directory.")
    check_digest(path, data, known)
    said = f"{path} is truncated or not a safetensors file"
    with explained(Exception, lambda error: f"{said} ({error}): train again with --rerun."):
        state = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    check_owner(path, metadata.get("run"), run)
    expected, stored = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (model.state_dict(), state))
    if stored != expected:
        name = next(k for k in {**expected, **stored} if expected.get(k) != stored.get(k))
        shapes = f"{name} is {stored.get(name, 'missing')} there and {expected.get(name, 'unknown')} here"
        remedy = "Use the architecture, model options (such as reverse_attention) and data set it was trained with."
        raise InputError(f"{path} holds weights of another model: {shapes}. {remedy}")
    if broken := not_finite(state):
        said = f"{path} holds a training that diverged ({broken} is not finite)"
        raise InputError(f"{said}: train again with another setting.")
    model.load_state_dict(state)


NO_WEIGHTS = "no weights (model.safetensors)"  # what archives lack, which keep the numbers only


def check_weights(path: Path) -> None:
    """Raises InputError for a safetensors file that is missing or cut short; its header is read, its numbers are not."""
    from safetensors import safe_open

    said = f"{path} is truncated or not a safetensors file"
    with explained(Exception, lambda error: f"{said} ({error}): train again with --rerun."):
        if path.exists():
            with safe_open(path, "numpy"):
                return
    if read_bytes(path) is None:
        raise InputError(f"There are no weights at {path}: train the run first, or give another directory.")


def not_finite(state: "Mapping[str, Tensor]") -> str:
    """The name of the first floating-point tensor that holds NaN or infinity; "" if none does."""
    return next((k for k, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())), "")


def tail(place: str) -> list[str]:
    """The method and the directory in the place of a run, which name it; an archive may lie in any folder."""
    return place.split("/")[-2:]


def check_owner(path: Path, named: object, run: str) -> None:
    """Raises InputError for a file that names another run than the one at the place `run`."""
    if run and named is not None and tail(str(named)) != tail(run):
        raise InputError(f"{path} is of another run, {named}: delete it, or restore the one of this run.")


def check_digest(path: Path, data: bytes, known: str) -> None:
    """Raises InputError for content that is not what another file of its run was written beside."""
    if known and digest(data) != known:
        raise InputError(f"{path} is not the one that belongs to this run's other files: restore it, or use --rerun.")
