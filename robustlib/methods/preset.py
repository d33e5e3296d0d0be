"""Presets: one YAML a budget, with what is common and a section for each method."""

import ast
import types
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustlib.errors import InputError, unknown

PRESETS = Path(__file__).parent / "presets"
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


def preset_values(preset: str, method: str, arch: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a preset sets: its `common` values, and those of the method's section, which hold over them.

    Those that the section has for the architecture `arch` (None: the preset's own) come last.
    """
    content = load_preset(preset)
    section = dict(content.get(method) or {})
    chosen = section.pop(OTHER_ARCHITECTURES, {})
    return content["common"], section | chosen.get(arch or section.get("arch", content["common"]["arch"]), {})


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


def typed(method: str, name: str, value: Any, hint: Any) -> Any:
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
