"""What was read of runs, for as long as their files and this code stand as they were: a folder of thousands is listed in a second.

Where there are many runs it is also kept in the user's state directory, which may be deleted at any time.
"""

import atexit
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from robustlib.errors import InputError
from robustlib.runs.files import digest, state_file, write_atomic

T = TypeVar("T")
MANY = 100  # runs from which on a file pays
_folders: dict[
    str, dict[str, Any]
] = {}  # by root of runs: path of a run -> {"mark": of its files, what was read: value}
_learnt: set[str] = set()  # the roots of which more is known than in their file


def recall(path: Path, what: str, read: Callable[[], T]) -> T:
    """What `read` returned, JSON, when it was called last on the run at `path`, whose files have not changed since; else it is called."""
    root, mark = os.path.abspath(path.parents[2]) if len(path.parents) > 2 else "", _mark(path)
    known = _folder(root)
    if (entry := known.get(str(path), {})).get("mark") != mark:
        entry = known[str(path)] = {"mark": mark}
    if what not in entry:
        value = read()
        if _mark(path) != mark:  # another process writes it now
            return value
        entry[what] = value
        _learnt.add(root)
    value = entry[what]
    return dict(value) if isinstance(value, dict) else value  # type: ignore[return-value]


def _mark(path: Path) -> str:
    """What changes whenever a file of the run, or the archive of its method, is written anew."""
    marks = []
    with suppress(OSError, ValueError):
        marks = [_stamp(file.name, file.stat()) for file in os.scandir(path) if file.name[0] != "." and file.is_file()]
    with suppress(OSError, ValueError):
        marks.append(_stamp("", os.stat(f"{path.parent}.zip")))
    return digest(repr(sorted(marks)))


def _stamp(name: str, about: os.stat_result) -> tuple[str, int, int, int]:
    return name, about.st_mtime_ns, about.st_size, about.st_ino


def _folder(root: str) -> dict[str, Any]:
    if root not in _folders:
        _folders[root] = {}
        with suppress(OSError, ValueError):  # a file that is damaged is none
            stored = json.loads(_file(root).read_text())
            _folders[root] = stored["runs"] if stored["code"] == _code() else {}
    return _folders[root]


@cache
def _code() -> str:
    """Changes with any file of this package."""
    package = Path(__file__).parent.parent
    return digest(repr([_stamp(str(file), file.stat()) for file in sorted(package.rglob("*.py"))]))


def _file(root: str) -> Path:
    return state_file(f"runs-{digest(root)}.json")


@atexit.register
def keep() -> None:
    """Writes what was learnt of folders with many runs; a folder where nobody may write costs the same the next time."""
    for root in [root for root in _learnt if len(_folders[root]) >= MANY]:
        with suppress(InputError):
            write_atomic(_file(root), json.dumps({"code": _code(), "runs": _folders[root]}))
    _learnt.clear()
