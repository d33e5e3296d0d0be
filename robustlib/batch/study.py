"""What a study's YAML file and the option --seeds ask for."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustlib.batch.plan import Arm, preset_methods
from robustlib.errors import InputError, unknown

STUDY = ("preset", "methods", "parameters", "seeds")


def parse_seeds(text: str) -> list[int]:
    """ "0-2" -> [0, 1, 2]; "0,3,5" -> [0, 3, 5]; both may be mixed.

    Raises:
        InputError: anything else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
            raise InputError(f"Seeds {text!r} are no whole numbers of at least 0: write 0-2 or 0,3,5.")
        seeds += range(int(first), int(last) + 1)
    return list(dict.fromkeys(seeds))


def read_study(file: Path) -> tuple[str, list[Arm], list[int]]:
    """The preset, the arms and the seeds that a study's YAML file asks for.

    A list of values of a hyper-parameter is an axis of a grid. `methods` is a list, or a mapping of methods to
    hyper-parameters of their own.

    Raises:
        InputError: no such file, no YAML mapping, an unknown key, or a value of the wrong kind.
    """
    content = _yaml(file)
    for key in content:
        if key not in STUDY:
            raise unknown(f"key of {file}", key, STUDY)
    preset = str(content.get("preset", "digits"))
    methods = content.get("methods") or preset_methods(preset)
    if isinstance(methods, list):
        methods = dict.fromkeys(methods)
    common = content.get("parameters") or {}
    if not isinstance(methods, dict) or not all(isinstance(own, dict | None) for own in [common, *methods.values()]):
        raise InputError(f"{file}: write methods as a list or as name: {{parameter: values}}, and parameters likewise.")
    arms: list[Arm] = [
        (str(name), changes) for name, own in methods.items() for changes in _grid({**common, **(own or {})})
    ]
    seeds = content.get("seeds", 0)
    return preset, arms, parse_seeds(",".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds))


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"Cannot read the study {file} ({error.strerror}): give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} should hold keys such as {', '.join(STUDY)}; see the README for an example.")
    return content


def _grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in parameters.values()]
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*axes)]
