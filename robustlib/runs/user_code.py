"""Code of users, named as `file.py:name` or `package.module:name`: found, kept as text, and executed only where it is trusted.

Whoever names code, on a command line or in a notebook, trusts it, and this user's state directory remembers that by the digest of its
text. What came with a run from elsewhere was named by nobody here: it is not executed until `--trust-code` says so.
"""

import difflib
import importlib.util
import inspect
import linecache
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from robustlib.errors import InputError, check_path, shown
from robustlib.runs.files import digest, state_file

#: The place of what was written in a cell, which nobody can load.
NOTEBOOK = "notebook"
_TRUSTED: set[str] = set()  # by this process, also where no home directory can be written
_TEXTS: dict[str, str] = {}  # of the modules made of users' files, by their names: the files may have changed since


@dataclass(frozen=True)
class UserCode:
    """An object in a user's file or in an installed module."""

    place: str  # absolute path of a ".py" file, or a module's dotted name
    name: str  # of the object
    text: str = field(default="", repr=False)  # of the file; "" of a module

    @classmethod
    def named(cls, spec: str) -> "UserCode":
        """What a user calls `file.py:name` or `package.module:name`, trusted from now on; raises InputError where it is neither."""
        place, sign, name = spec.rpartition(":") if isinstance(spec, str) else ("", "", "")
        if not (sign and place and name.isidentifier()):
            raise InputError(f"{shown(spec)} names no code: write file.py:name or package.module:name.")
        code = cls(place, name)
        if place.endswith(".py") or "/" in place or os.sep in place:
            file = Path(os.path.expanduser(check_path(place)))
            if not file.is_file():
                raise InputError(f"There is no file {place}: give the path of the Python file that defines {name}.")
            try:
                code = cls(os.path.abspath(file), name, file.read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{place} cannot be read ({error}): give a Python file in UTF-8.") from error
        code.trust()
        return code

    @classmethod
    def kept(cls, facts: Mapping[str, Any], text: str = "") -> "UserCode":
        """The code that a run names in its `facts`, with the text that it kept."""
        code = cls(str(facts["place"]), str(facts["name"]), text)
        if code.facts()["digest"] != facts["digest"]:
            raise InputError(
                f"The code of {code.spec} that was kept is not the one that was used: restore the run's file."
            )
        return code

    @classmethod
    def of(cls, kind: type, *bases: type) -> "UserCode":
        """The code of a class, with the text of its file or notebook cell and of those of `bases` that are elsewhere; "" where it is lost.

        The place of a module in a package is its dotted name, since its file alone could not import its neighbours. What the text
        imports, and other cells, are no part of it.
        """
        module = sys.modules.get(kind.__module__)
        file = getattr(module, "__file__", None)
        inside = "." in kind.__module__ or not str(file).endswith(".py")
        place = (kind.__module__ if inside else os.path.abspath(file)) if file else NOTEBOOK
        texts = dict.fromkeys(filter(None, map(source_text, (kind, *bases))))
        return cls(place, kind.__name__, "\n".join(texts))

    @property
    def spec(self) -> str:
        """As a user names it."""
        return f"{self.place}:{self.name}"

    def facts(self) -> dict[str, str]:
        """What a run says of it: place, name and the digest of its text (of a module, of its name)."""
        return {"place": self.place, "name": self.name, "digest": digest(self.text or self.place)}

    def trust(self) -> None:
        """Remembers, for this user, that this text may be executed."""
        key = self.facts()["digest"]
        if key in _TRUSTED or key in _remembered():
            return
        _TRUSTED.add(key)
        with suppress(OSError):  # then this process alone knows
            file = state_file("trusted-code")
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write(f"{key}  {self.spec}\n")

    def load(self) -> Any:
        """The object itself. Raises InputError for code that nobody here has named, that fails, or that lacks the name."""
        key = self.facts()["digest"]
        if key not in _TRUSTED and key not in _remembered():
            said = f"This run names code, {self.spec}, that nobody has named on this machine"
            raise InputError(
                f"{said}: read it, then give --trust-code, or call run.trust(), to execute it. Stored numbers are shown without."
            )
        module = _module(self.place, self.text)
        if not hasattr(module, self.name):
            public = [name for name in vars(module) if not name.startswith("_")]
            near = difflib.get_close_matches(self.name, public, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{self.place} has no {self.name!r}.{hint} It defines {', '.join(public) or 'nothing'}.")
        return getattr(module, self.name)


def source_text(kind: type) -> str:
    """The whole text of the file, as it was executed, or of the notebook cell in which a class stands; "" where it is lost."""
    if kind.__module__ in _TEXTS:
        return _TEXTS[kind.__module__]
    module: Any = sys.modules.get(kind.__module__)
    with suppress(OSError, TypeError):
        if getattr(module, "__file__", None):
            return inspect.getsource(module)
    return _cell_text(kind, vars(module) if module else {})


def _cell_text(kind: type, names: Mapping[str, Any]) -> str:
    """The text of the cell that defined a class among the `names` of a notebook, which knows those of functions and all that ran."""
    functions = (inspect.unwrap(getattr(member, "fget", member)) for member in vars(kind).values())
    files = [each.__code__.co_filename for each in functions if getattr(each, "__globals__", None) is names]
    start = re.compile(rf"^\s*class {kind.__name__}\b", re.MULTILINE)
    cells = [
        cell for cell in reversed(names.get("In", [])) if start.search(cell)
    ]  # of a class without functions: the last
    return next(filter(None, (*("".join(linecache.getlines(file)) for file in files), *cells)), "")


def _remembered() -> set[str]:
    try:
        return {
            line.split()[0]
            for line in state_file("trusted-code").read_text("utf-8", "replace").splitlines()
            if line.strip()
        }
    except OSError:
        return set()


@cache
def _module(place: str, text: str) -> ModuleType:
    """The executed module: once a process, so that its classes stay the same; files find their neighbours as scripts do."""
    try:
        if not text:
            return importlib.import_module(place)
        name = f"robustlib_user_{digest(place, text)}"
        spec = importlib.util.spec_from_loader(name, None, origin=place)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = place
        folder = os.path.dirname(place)
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.insert(0, folder)
        sys.modules[name], _TEXTS[name] = module, text  # dataclasses and pickles look their module up
        try:
            exec(compile(text, place, "exec"), vars(module))
        except BaseException:
            del sys.modules[name], _TEXTS[name]
            raise
        return module
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it does, sys.exit() included
        said = f"{place} cannot be imported ({type(error).__name__}: {error})"
        raise InputError(f"{said}: correct it, and run it with python to see where it fails.") from error
