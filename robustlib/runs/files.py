"""Writing and reading the files of a run, so that every file is old or new, never half."""

import fcntl
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from robustlib.errors import InputError


def digest(*parts: str | bytes, length: int = 16) -> str:
    """The first `length` hexadecimal characters of the SHA-256 of the parts, one after another."""
    content = hashlib.sha256()
    for part in parts:
        content.update(part.encode() if isinstance(part, str) else part)
    return content.hexdigest()[:length]


def write_atomic(path: Path | str, data: bytes | memoryview | str | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a reader, a crash or a full disk meets the old content or the new one, never half of it."""
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


def merge_json(path: Path, key: str, value: object) -> None:
    """Sets one entry of a JSON object, the last in its order, and keeps the others as they stand in the file now.

    Processes and threads that merge into one directory take turns, each for the time of a read and a write, so a long measurement
    is to be merged when it is done: what others wrote meanwhile stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.parent / ".merge.lock", "a")  # noqa: SIM115  (the file itself is replaced, so it cannot be the lock)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}. Remedy: choose a writable directory.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or its process dies
        others = {name: entry for name, entry in read_json(path).items() if name != key}
        write_atomic(path, json.dumps({**others, key: value}) + "\n")


def read_archive(path: Path) -> Mapping[str, bytes]:
    """The files in an archive by `<run>/<file>`; empty where there is none."""
    try:
        return _unpacked(path, path.stat().st_mtime_ns) if path.is_file() else {}
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not readable ({error}): delete it or restore it.") from error


@lru_cache(maxsize=64)
def _unpacked(path: Path, changed: int) -> Mapping[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_bytes(path: Path) -> bytes | None:
    """The content of a run's file: of <method>/<run>/<file>, or else of <run>/<file> in <method>.zip; None where neither is."""
    if path.exists():
        return path.read_bytes()
    method = path.parent.parent
    return read_archive(method.parent / f"{method.name}.zip").get(f"{path.parent.name}/{path.name}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run's directory or archive; {} if there is none."""
    try:
        if (data := read_bytes(path)) is None:
            return {}
        content = json.loads(data)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): delete it or restore it.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{path} should hold a JSON object, it holds a {kind}: delete or restore it.")
    return content


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes all parameters and buffers as safetensors, atomically."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_atomic(path, save(state, dict(metadata or {})))


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills the model from a safetensors file of the same names and shapes."""
    if not path.exists():
        raise InputError(f"There are no weights at {path}: train the run first, or give another directory.")
    try:
        state = load_file(path)
    except SafetensorError as error:
        said = f"is truncated or not a safetensors file ({error}): train again with --rerun."
        raise InputError(f"{path} {said}") from error
    expected, stored = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (model.state_dict(), state))
    if stored != expected:
        name = next(k for k in {**expected, **stored} if expected.get(k) != stored.get(k))
        raise InputError(
            f"{path} holds weights of another model: {name} is {stored.get(name, 'missing')} there and "
            f"{expected.get(name, 'unknown')} here. Use the architecture, the model options (such as reverse_attention) and the "
            "data set it was trained with."
        )
    model.load_state_dict(state)
