"""What robustlib says when it is handed something it cannot use."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a user: a sentence with the offending value and the remedy. The CLI prints it and exits with 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a `name` that is none of `known`; it offers the nearest one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower().replace("_", "-"), [n.replace("_", "-") for n in names], 1, 0.4)
    hint = f" Did you mean {names[[n.replace('_', '-') for n in names].index(near[0])]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
