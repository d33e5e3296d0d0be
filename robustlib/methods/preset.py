"""Presets: one YAML file a budget, with values common to all methods and a section for each; and values as users write them."""

import ast
import stat
import textwrap
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robustlib.errors import InputError, check_known, shown

PRESETS = Path(__file__).parent / "presets"
NODES, SIZE = 10_000, 10**6  # values and bytes that a YAML file may hold
WORDS = {"null": None, "none": None, "true": True, "false": False}


def preset_names() -> list[str]:
    """The presets that come with robustlib."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> Mapping[str, Any]:
    """{"title", "dataset", "test_examples", "precision", "report": [...], "randomised": {...}, "unseen": {...}, "common": {...}, <method>: {...}, ...}."""
    return _content(check_known("preset", name, preset_names()))


@lru_cache
def _content(name: str) -> Mapping[str, Any]:
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


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """["beta=3.0", "eps=8/255", "schedule=cosine"] -> {"beta": 3.0, "eps": 8 / 255, "schedule": "cosine"}."""
    if not isinstance(items, list | tuple):
        raise InputError(f"overrides={shown(items)}: give a list, such as ['beta=3.0'], or [] to change nothing.")
    values: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=") if isinstance(item, str) else ("", "", "")
        if not sign or not name.strip():
            raise InputError(f"{shown(item)} sets nothing: write name=value, e.g. beta=3.0.")
        name = parameter_name(name.strip())
        if name in values:
            raise InputError(f"{name!r} is set twice: set it once, or write a study whose grid has both values.")
        values[name] = parse_value(text.strip())
    return values


def parse_value(text: str) -> Any:
    """ "8/255" -> 8 / 255, "(3, 4)" -> (3, 4), "null" -> None; what is no such value is text."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError):
        return WORDS.get(text.lower(), text)


def parameter_name(name: object) -> str:
    """The name of a hyper-parameter; raises InputError for what is no name, and for what has an option of its own."""
    if not isinstance(name, str):
        remedy = "write one such as beta, if need be in quotes"
        raise InputError(f"{shown(name)} is no name of a hyper-parameter: {remedy}.")
    if name == "preset":
        raise InputError("A preset is no hyper-parameter: give it as --preset, or as `preset` of a study or notebook.")
    return name


class Loader(yaml.SafeLoader):
    """Safe, and refuses keys that are given twice and documents of more than NODES values, aliases written out."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.count, self.sizes = 0, dict[int, int]()  # values so far, and in each node

    def compose_node(self, parent: yaml.Node | None, index: int) -> Any:
        """The next node, counted."""
        before, alias = self.count, self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        # an alias inside of what it stands for has no size yet
        self.count += self.sizes.get(id(node), NODES) if alias else 1
        self.sizes.setdefault(id(node), self.count - before)
        pairs = node.value if isinstance(node, yaml.MappingNode) and not alias else ()
        keys = Counter((key.tag, key.value) for key, _ in pairs if isinstance(key, yaml.ScalarNode))
        problems = [f"{shown(value)} is given twice" for (_, value), times in keys.items() if times > 1]
        if problems or self.count > NODES:
            problem = (*problems, f"it holds more than {NODES} values")[0]
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def read_yaml(file: Path) -> Any:
    """What a user's YAML file holds; raises OSError where it cannot be read, InputError where it is none."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f"{file} is no regular file: give the path of a YAML file.")
        with file.open("rb") as opened:
            content = opened.read(SIZE + 1)
        if len(content) > SIZE:
            raise InputError(f"{file} holds more than {SIZE} bytes: give a YAML file of fewer.")
        return yaml.load(content, Loader)
    except (OSError, InputError):
        raise
    except Exception as error:  # of the parser, or of a value such as the 30th of February
        raise InputError(f"{file} is no YAML: {textwrap.shorten(str(error), 300)}.") from error
