"""The error for input that robustlib cannot use, and the checks that raise it."""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin


class InputError(ValueError):
    """Bad input from a user: a sentence with the offending value and the remedy. The CLI prints it and exits with 2."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a `name` that is none of `known`; it suggests the nearest one."""
    names = {n.replace("_", "-"): n for n in sorted(known)}
    near = difflib.get_close_matches(str(name).lower().replace("_", "-"), names, 1, 0.4)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names.values())}.")


def check_counts(owner: object, *names: str, least: int = 1) -> None:
    """Raises InputError for a field of `owner` that is no whole number of at least `least`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{type(owner).__name__} {name}={value!r}: give a whole number of at least {least}.")


def check_fields(owner: Any, **least: int) -> None:
    """Raises InputError for an int field of a dataclass that is below 1 (or `least`), and a Literal that is none of its choices."""
    for field in fields(owner):
        value, choices = getattr(owner, field.name), get_args(field.type) if get_origin(field.type) is Literal else ()
        if field.type is int:
            check_counts(owner, field.name, least=least.get(field.name, 1))
        elif choices and value not in choices:
            raise unknown(field.name, value, choices)
