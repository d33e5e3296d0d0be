"""Presets: one YAML file a budget, with values common to all methods and a section for each; and values as users write them."""

import ast
import types
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robustlib.errors import InputError, options, unknown

PRESETS = Path(__file__).parent / "presets"
WORDS = {"null": None, "none": None, "true": True, "false": False}


def preset_names() -> list[str]:
    """The presets that come with robustlib."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


@lru_cache
def load_preset(name: str) -> Mapping[str, Any]:
    """{"title", "dataset", "test_examples", "report": [...], "randomised": {...}, "unseen": {...}, "common": {...}, <method>: {...}, ...}."""
    if name not in preset_names():
        raise unknown("preset", name, preset_names())
    return types.MappingProxyType(yaml.safe_load((PRESETS / f"{name}.yaml").read_text()))


def preset_dataset(name: str) -> str:
    """The data set that a preset is made for."""
    return str(load_preset(name)["dataset"])


def preset_values(preset: str, method: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """A preset's common values; those of the method's section, which override them; and by architecture those that override both."""
    content = load_preset(preset)
    section = dict(content.get(method) or {})
    by_architecture = section.pop("architectures", {})
    return content["common"], section, by_architecture


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """["beta=3.0", "eps=8/255", "schedule=cosine"] -> {"beta": 3.0, "eps": 8 / 255, "schedule": "cosine"}."""
    values: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name.strip():
            raise InputError(f"{item!r} sets nothing: write name=value, e.g. beta=3.0.")
        above, slash, below = text.partition("/")
        try:
            value = float(above) / float(below) if slash else ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, ZeroDivisionError):
            value = WORDS.get(text.strip().lower(), text.strip())
        values[name.strip()] = value
    return values


def as_type(value: Any, hint: Any, what: str) -> Any:
    """`value` as a field of type `hint` takes it (8 for a float, a list for a tuple); `what` names it in the error."""
    if value is None and types.NoneType not in options(hint):
        value = "none"  # as it was written: a choice such as augment=none
    for option in options(hint):
        kind = typing.get_origin(option) or option
        if kind is typing.Literal or (kind is types.NoneType and value is None):
            return value  # the method itself checks its choices
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
    wanted = " or ".join("null" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options(hint))
    raise InputError(f"{what}={value!r} should be of type {wanted}.")
