"""The error for input that robustlib cannot use, the types that say what a field takes, and the checks that raise it."""

import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from math import inf, isfinite
from typing import Annotated, Any, Literal, get_args, get_origin

# Types of numbers in an interval, of a tuple each of one or more; without one they are finite. What follows it is advice for the error.
Count = Annotated[int, "[1, 1000000]"]
Whole = Annotated[int, "[0, inf)"]
Width = Annotated[int, "[1, 16384]"]  # of a layer; no network of the field is wider
Widths = Annotated[tuple[int, ...], "[1, 16384]"]
Maps = Annotated[int, "[1, 256]"]  # of a U-Net at full resolution, which has four times as many below
NonNegative = Annotated[float, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
Share = Annotated[float, "[0, 1]"]
ShareBelowOne = Annotated[float, "[0, 1)"]
Length = Annotated[float, "[6e-8, 1000]"]  # of a step, in units of [0, 1] or in pixels: float32 sees it
ANY = "(-inf, inf)"
MOST = {int: 2**63 - 1, float: 3.4028234663852886e38}  # what int64 and float32 arithmetic hold
SHOWN = 80  # characters of an offending value


class InputError(ValueError):
    """Bad input from a user: a sentence with the offending value and the remedy. The CLI prints it and exits with 2."""


@contextmanager
def explained(kinds: type[Exception] | tuple[type[Exception], ...], sentence: Callable[[Any], str]) -> Iterator[None]:
    """Within, errors of these kinds become InputErrors, with a sentence about the error that was raised."""
    try:
        yield
    except kinds as error:
        raise InputError(sentence(error)) from error


def shown(value: object) -> str:
    """The repr of any value, on one line and cut where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except Exception:  # of whole numbers of over 4300 digits, and of broken objects
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a `name` that is none of `known`; it suggests the nearest one."""
    every = sorted(known)
    names = {n.lower().replace("_", "-"): n for n in every}
    text = name[:SHOWN] if isinstance(name, str) else shown(name)
    near = difflib.get_close_matches(text.lower().replace("_", "-"), names, 1, 0.4)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    return InputError(f"Unknown {kind} {shown(name)}.{hint} Known: {', '.join(every)}.")


def check_known(kind: str, name: Any, known: Collection[str]) -> Any:
    """The name; raises InputError for one that is none of `known`."""
    if not isinstance(name, str) or name not in known:
        raise unknown(kind, name, known)
    return name


def options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: (float, NoneType) of `float | None`."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def typed(value: Any, hint: Any, what: str, interval: str = ANY, *advice: str) -> Any:
    """`value` as a field of type `hint` takes it: NumPy's and torch's single numbers as Python's, 8 for a float, a list for a tuple.

    Whole numbers in a tuple stay whole. Raises InputError, in which `what` is its name, for a value of another type, outside the
    interval (e.g. "[0, 1)") of its Annotated type or of the arguments, or none of the choices of a Literal.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None and types.NoneType in options(hint):
        return None
    wanted: list[str] = []
    for kind in options(hint):
        within, said = interval, advice
        if get_origin(kind) is Annotated:
            (within, *said), kind = kind.__metadata__, kind.__origin__
        origin, parts = get_origin(kind) or kind, get_args(kind)
        if origin is Literal:
            return check_known(what, value, parts)
        if origin is tuple and isinstance(value, (tuple, list)) and (value or within == ANY):
            each = parts[:1] * len(value) if parts[-1] is ... else parts
            if len(each) == len(value):
                named = enumerate(zip(value, each, strict=True))
                fit = (typed(one, part, f"{what}[{k}]", within, *said) for k, (one, part) in named)
                return tuple(one if type(one) is int else new for one, new in zip(value, fit, strict=True))
        if origin in (int, float) and (number := _number(value, origin, within)) is not None:
            return number
        if origin not in (int, float, tuple) and isinstance(value, origin):
            return value
        if origin is not types.NoneType:  # advice says what it means
            wanted.append(", ".join(filter(None, [_wanted(origin, parts, within, value), *said])))
    raise InputError(f"{what}={shown(value)}: {' or '.join(wanted)}.")


def check_path(path: Any) -> Any:
    """The path; raises InputError for one that file systems refuse, or would with what is added to its names."""
    text = str(path)
    if "\0" in text or len(os.fsencode(text)) > 3000 or any(len(os.fsencode(name)) > 200 for name in text.split("/")):
        raise InputError(f"{shown(text)} is no path: give one of at most 3000 bytes, with at most 200 in each name.")
    return path


def check_fields(owner: Any) -> None:
    """Gives each field of a dataclass its value as its type takes it (see `typed`); raises InputError where it cannot."""
    for name, hint in _hints(owner.__class__).items():
        object.__setattr__(owner, name, typed(getattr(owner, name), hint, f"{type(owner).__name__} {name}"))


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _number(value: Any, kind: type, interval: str) -> Any:
    """The value as an int or a float in the interval; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return None
    try:
        number = kind(value)
    except OverflowError:  # a whole number that no float holds
        return None
    low, high = map(float, interval[1:-1].split(","))
    closed = (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")
    return number if closed or (low < number < high and abs(number) <= MOST[kind]) else None


def _wanted(kind: Any, parts: tuple[Any, ...], interval: str, value: Any) -> str:
    """What to give, in words; nothing where one value alone is allowed, of which advice says all."""
    if kind in (int, float):
        low, high = map(float, interval[1:-1].split(","))
        ends = [f"{'of at least' if interval[0] == '[' else 'above'} {low:.10g}"] * isfinite(low)
        ends += [f"{'at most' if interval[-1] == ']' else 'below'} {high:.10g}"] * isfinite(high)
        if isinstance(value, int | float) and MOST[kind] < abs(value) < inf == high:
            ends.append(f"at most {MOST[kind]:.2g}")
        finite = "finite " * (isinstance(value, float) and not isfinite(value))
        return f"give a {finite}{'whole ' * (kind is int)}number {' and '.join(ends)}".strip() * (low < high)
    if kind is tuple:
        return f"give a list of {'numbers' if parts[-1] is ... else len(parts)}"
    named = f"a{'n' * (kind.__name__[0] in 'AEIOU')} {kind.__name__}"
    return f"give {({bool: 'true or false', str: 'a text'}).get(kind, named)}"


def printable(text: object) -> str:
    """Text without what would steer a terminal: control characters, and marks that turn the direction of writing."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", str(text))
