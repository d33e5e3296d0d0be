"""What readers rely on in the JSON files of a run: keys and types, in a small table."""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from robustlib.errors import InputError

NUMBER = (int, float)
MAYBE = (*NUMBER, NoneType)
PART = "a number in [0, 1]"
SHARE = {"accuracy": PART, "low?": PART, "high?": PART, "n?": int, "protocol?": str, "single?": PART}
ROW = {**SHARE, "attack": str, "passes?": NUMBER}
STEP = {**ROW, "surrogate?": str, "component": str, "attacked": int, "broken": NUMBER}
POINT = {**SHARE, "steps": int, "samples": int, "n": int}
SERIES = {"points": [POINT], "last": {"lost": NUMBER, "low": NUMBER, "high": NUMBER, "verdict": str}}
PLATEAU = {"taken": bool, "full": ROW, "worst": ROW, "samples?": SERIES, "steps?": SERIES}
CHECK = {"number": int, "name": str, "verdict": str, "value": MAYBE, "threshold": MAYBE, "meaning": str, "unit?": str}
TEXTS = {str: str}
BADGE = {"verdict?": str, "text?": str}
ASKED = dict.fromkeys(("expected", "single", "worst"), SHARE)
LOOK = {"attack": str, "split": str, "n?": int, "index": [int], "correct": [bool], "distance": [MAYBE]}

# A shape is a type or several, PART, [the shape of each element, or of so many], or {key: shape}: "key?" may be missing, "key??" may
# be empty too, "key!" must hold something, and {str: shape} takes any other keys.
SHAPES: Mapping[str, Any] = {
    "params.json": {
        **{"method": str, "dataset": str, "arch": str, "seed": int, "hyperparameters?": {"preset?": (str, NoneType)}},
        **{"preset?": (str, NoneType), "title?": str, "changes?": dict, "changed?": (str, NoneType)},
        **{"code?": {"place": str, "name": str, "digest": str}, "protocol?": str, "attack_passes?": int},
        "external?": {"name": str, "code": str, "arguments": dict, "weights": str, "layer": str, "output": str}
        | {"last_linear": str, "mean": [NUMBER], "std": [NUMBER], "stochastic": bool},
        **{"about?": {"place": str, "file": str, "said": list, "layers?": [str]}, "images?": dict},
    },
    "status.json": {"state": str, "reason?": str, "files?": {str: str}},
    "provenance.json": {
        **{"numerics?": {str: int}, "packages?": {str: str}, "threads?": int},
        **{"wall_seconds?": NUMBER, "peak_memory_mb?": NUMBER},
    },
    "results.json": {
        **{"n": int, "threat": str, "checkpoint": str, "split?": str, "rows!": [ROW], "last??": {"rows!": [ROW]}},
        **{"curve?": [{"eps": NUMBER, "accuracy": PART}], "steps_curve?": [{"steps": int, "accuracy": PART}]},
        **{"cascade?": [STEP], "budget?": {"images": int}, "transfer?": {str: str}, "plateau?": PLATEAU},
        **{"numerics?": {str: int}, "files?": {str: str}, "extra?": [str]},
    },
    "audit.json": {
        "checks?": [CHECK],
        "badges?": {str: BADGE},
        "results?": {"files?": TEXTS},
        "transfer?": (list, dict),
    },
    "representation.json": {str: {"attack": str, "measures": {str: {str: MAYBE}}}},
    "distances.json": {str: LOOK},
    "unseen.json": {str: {"accuracies": {str: SHARE}, "bare??": SHARE}},
    "randomness.json": {
        **{"draws": int, "clean": ASKED, "attacked": ASKED, "budget": {"bpda": [int, int]}, "eot": [POINT]},
        "fixed": [{"seed": int, "clean": SHARE, "attacked": SHARE}],
        "vote??": {"draws": int, "clean": {**SHARE, "n": int}, "attacked": SHARE},
    },
    "sanity.json": {"n": int, "findings!": [{"name": str, "verdict": str, "text": str}]},
    "metrics.jsonl": [{"epoch_total": int, "warnings": [str], "epoch?": int, "stage?": str}],
}


def check_shape(file: Path, content: Any) -> None:
    """Raises InputError where the content of a run's file is not what readers rely on."""
    wrong = _misfit(content, SHAPES[file.name]) if file.name in SHAPES else ""
    for key, look in content.items() if file.name == "distances.json" and not wrong else ():
        odd = len({len(look[column]) for column in ("index", "correct", "distance")}) > 1
        wrong = f".{key} has columns of different lengths" if odd else wrong
    if wrong:
        raise InputError(f"{file} is not as robustlib writes it (it{wrong}): restore it, delete it, or use --rerun.")


def _misfit(value: Any, shape: Any) -> str:
    """Where a value departs from a shape, such as ".rows[0].accuracy is 'high'"; "" where it fits."""
    if isinstance(shape, list) and isinstance(value, list) and len(shape) in (1, len(value)):
        parts = [(f"[{k}]", item, shape[k % len(shape)]) for k, item in enumerate(value)]
    elif isinstance(shape, dict) and isinstance(value, dict):
        keys = {key.rstrip("?!"): key for key in shape if key is not str}
        needed = [name for name, key in keys.items() if key[-1] != "?"]
        if lacking := [name for name in needed if name not in value or (value[name] == [] and keys[name] != name)]:
            return f" has no {lacking[0]!r}"
        told = ((name, item, keys.get(name, str)) for name, item in value.items())
        parts = [(f".{n}", x, shape[k]) for n, x, k in told if k in shape and (x != {} or k is str or k[-2:] != "??")]
    elif shape == PART and type(value) in NUMBER:
        return "" if 0 <= value <= 1 else f" is {str(value)[:40]}, not {PART}"
    else:
        return "" if type(value) in (shape if isinstance(shape, tuple) else (shape,)) else f" is {str(value)[:40]!r}"
    odd = ((at, item, part) for at, item, part in parts if type(item) is not part)
    return next((at + wrong for at, item, part in odd if (wrong := _misfit(item, part))), "")
