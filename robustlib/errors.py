"""The error for input that robustlib cannot use, and the checks that raise it."""

import difflib
from collections.abc import Collection, Iterable


class InputError(ValueError):
    """Bad input from a user: a sentence with the offending value and the remedy. The CLI prints it and exits with 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a `name` that is none of `known`; it suggests the nearest one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower().replace("_", "-"), [n.replace("_", "-") for n in names], 1, 0.4)
    hint = f" Did you mean {names[[n.replace('_', '-') for n in names].index(near[0])]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def check_counts(owner: object, *names: str, least: int = 1) -> None:
    """Raises InputError for a field of `owner` that is no whole number of at least `least`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{type(owner).__name__} {name}={value!r}: give a whole number of at least {least}.")


def check_choices(owner: object, **choices: Collection[str]) -> None:
    """Raises InputError for a field of `owner` that is none of its choices."""
    for name, known in choices.items():
        if getattr(owner, name) not in known:
            raise unknown(name, getattr(owner, name), known)
