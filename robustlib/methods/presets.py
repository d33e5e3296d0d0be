"""Presets: one YAML a budget, with what is common and a section for each method; and methods made from them."""

import ast
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, unknown
from robustlib.methods.base import Method
from robustlib.methods.registry import METHODS

PRESETS = Path(__file__).parent.parent / "presets"
OTHER_ARCHITECTURES = "architectures"  # in a method's section: architecture -> values that were chosen for it


def preset_names() -> list[str]:
    """The presets that come with robustlib."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


@lru_cache
def load_preset(name: str) -> Mapping[str, Any]:
    """{"title", "dataset", "test_examples", "report": [...], "randomised": {...}, "unseen": {...}, "common": {...}, <method>: {...}, ...}.

    Raises:
        InputError: no such preset.
    """
    import yaml

    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    content: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    return types.MappingProxyType(content)


def preset_dataset(name: str) -> str:
    """The data set that a preset is made for."""
    return str(load_preset(name)["dataset"])


def make_method(name: str, preset: str | None = None, **overrides: Any) -> Method:
    """The method with a preset's hyper-parameters (None: the paper's own), overridden and validated.

    Of a preset these are its `common` values, those of the method's section, and those that the section has for the architecture.

    Raises:
        InputError: unknown method, preset or hyper-parameter (it names the nearest), or a value of the wrong type or range.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    kind = METHODS[name]
    values: dict[str, Any] = {}
    if preset is not None:
        values = _preset_values(name, preset, overrides.get("arch"))
    known = {f.name for f in fields(kind)}
    for key in [*values, *overrides]:
        if key not in known:
            raise unknown(f"hyper-parameter of {name}", key, known)
    hints = typing.get_type_hints(kind)
    return kind(**{k: _typed(name, k, v, hints[k]) for k, v in {**values, **overrides}.items()})


def _preset_values(name: str, preset: str, arch: str | None) -> dict[str, Any]:
    """What a preset sets of a method's fields, for an architecture (None: the preset's own)."""
    content = load_preset(preset)
    section = dict(content.get(name) or {})
    chosen = section.pop(OTHER_ARCHITECTURES, {})
    values = {**content["common"], **section, "preset": preset}
    values |= chosen.get(arch or values["arch"], {})
    known = {f.name for f in fields(METHODS[name])}
    return {k: v for k, v in values.items() if k in known or k not in _all_fields()}


def foreign_values(method: Method, arch: str) -> str:
    """A sentence that names the values a method has from its preset that were chosen for another architecture than `arch`; or "".

    Chosen are the values of the method's section, and of the common ones those that are not the paper's; where the preset has values of
    its own for `arch`, those that it has. What was overridden is not named.
    """
    if not method.preset or method.name not in METHODS:
        return ""
    usual, paper = make_method(method.name, method.preset), make_method(method.name)
    section = load_preset(method.preset).get(method.name) or {}
    if arch == usual.arch:
        return ""
    names = [name for name in _preset_values(method.name, method.preset, None) if name not in ("preset", "arch")]
    chosen = [name for name in names if name in section or getattr(usual, name) != getattr(paper, name)]
    if (own := section.get(OTHER_ARCHITECTURES, {}).get(arch)) is not None:
        chosen = [name for name in own if own[name] != getattr(usual, name)]
    same = [f"{name}={getattr(method, name)}" for name in chosen if getattr(method, name) == getattr(usual, name)]
    if not same:
        return ""
    return (
        f"{', '.join(same)}: chosen by the preset {method.preset} for {usual.arch}, not for {arch}. The outcome may be far from this "
        "architecture's best: choose values on validation images."
    )


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """["beta=3.0", "schedule=cosine"] -> {"beta": 3.0, "schedule": "cosine"}; fractions such as 8/255 are understood.

    Raises:
        InputError: an item without "=".
    """
    values = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name.strip():
            raise InputError(f"{item!r} sets nothing: write name=value, e.g. beta=3.0.")
        values[name.strip()] = _literal(text.strip())
    return values


def _literal(text: str) -> Any:
    if text.lower() in ("null", "none", "true", "false"):
        return {"null": None, "none": None, "true": True, "false": False}[text.lower()]
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else ast.literal_eval(text)
    except (ValueError, SyntaxError, ZeroDivisionError):
        return text


@lru_cache
def _all_fields() -> frozenset[str]:
    """Fields of any method: what `common` may set, since not every method has every field (attack_steps, say)."""
    return frozenset(f.name for kind in METHODS.values() for f in fields(kind))


def _typed(method: str, name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type wants it (8 for a float, lists for tuples), or an error that says what it wants."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if value is None and types.NoneType not in options:
        value = "none"  # as it was written: a choice such as augment=none
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Literal or (origin is types.NoneType and value is None):
            return value  # the method itself names the choices
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, (list, tuple)):
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if isinstance(origin, type) and isinstance(value, origin) and (origin is bool or not isinstance(value, bool)):
            return value
    wanted = " or ".join("null" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise InputError(f"{method}: {name}={value!r} should be of type {wanted}.")
