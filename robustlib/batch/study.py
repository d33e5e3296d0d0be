"""What a study's YAML file and the option --seeds ask for."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robustlib
from robustlib.batch.plan import Arm, preset_methods
from robustlib.errors import InputError, unknown

if TYPE_CHECKING:
    from robustlib.claims import Claim

STUDY = ("preset", "methods", "parameters", "seeds", "examples", "claims")
BUILT_IN = Path(robustlib.__file__).parent / "presets" / "studies"


@dataclass(frozen=True)
class Study:
    """What a study asks for.

    Attributes:
        preset: of all its runs.
        arms: methods with what is changed from the preset.
        seeds: of every arm.
        examples: test images of the evaluation; 0 for the preset's number.
        claims: what its runs shall decide; see `robustlib.claims.judge`.
        name: of its file.
    """

    preset: str
    arms: "Sequence[Arm]"
    seeds: Sequence[int]
    examples: int = 0
    claims: "Sequence[Claim]" = ()
    name: str = ""


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


def studies() -> list[str]:
    """The studies that come with robustlib."""
    return sorted(file.stem for file in BUILT_IN.glob("*.yaml"))


def read_study(file: Path | str) -> Study:
    """What a study's YAML file asks for, or the study of that name that comes with robustlib.

    A list of values of a hyper-parameter is an axis of a grid. `methods` is a list, or a mapping of methods to
    hyper-parameters of their own, or to a list of such mappings where its arms are no grid.

    Raises:
        InputError: no such file, no YAML mapping, an unknown key, a value of the wrong kind, or a claim about an arm
            that the study does not train.
    """
    file = BUILT_IN / f"{file}.yaml" if str(file) in studies() and not Path(file).is_file() else Path(file)
    content = _yaml(file)
    for key in content:
        if key not in STUDY:
            raise unknown(f"key of {file}", key, STUDY)
    preset = str(content.get("preset", "digits"))
    arms = _arms(content, preset, file)
    seeds, examples = content.get("seeds", 0), content.get("examples", 0)
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < 0:
        raise InputError(f"{file}: examples={examples!r}: give a number of test images, or 0 for the preset's.")
    return Study(
        preset,
        arms,
        parse_seeds(",".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)),
        examples,
        _claims(content.get("claims", []), preset, arms, file),
        file.stem,
    )


def _arms(content: Mapping[str, Any], preset: str, file: Path) -> list[Arm]:
    methods = content.get("methods") or preset_methods(preset)
    if isinstance(methods, list):
        methods = dict.fromkeys(methods)
    common = content.get("parameters") or {}
    sets = (
        {name: own if isinstance(own, list) else [own] for name, own in methods.items()}
        if isinstance(methods, dict)
        else {}
    )
    if not sets or not all(isinstance(own, dict | None) for own in [common, *itertools.chain(*sets.values())]):
        raise InputError(f"{file}: write methods as a list or as name: {{parameter: values}}, and parameters likewise.")
    every = [(str(name), {**common, **(own or {})}) for name, owns in sets.items() for own in owns]
    return [(name, changes) for name, grid in every for changes in _grid(grid)]


def _claims(rows: object, preset: str, arms: Sequence[Arm], file: Path) -> "list[Claim]":
    """The claims of a study, each about arms that it trains, by the names that their runs will have."""
    from robustlib.claims import read_claims

    claims = read_claims(rows, str(file))
    trained = {arm_name(arm, preset) for arm in arms} if claims else set()
    for claim in claims:
        for arm in claim.arms:
            if arm not in trained:
                raise unknown(f"arm of the claim {claim.name!r} in {file}", arm, trained)
    return claims


def arm_name(arm: Arm, preset: str) -> str:
    """What `robustlib.claims.arm_of` will call the runs of an arm."""
    from robustlib.methods import make_method

    name, changes = arm
    method = make_method(name, preset, **changes)
    changed = ", ".join(f"{key}={value}" for key, value in method.changes(method.arch).items())
    return f"{name} {changed}".strip()


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(
            f"Cannot read the study {file} ({error.strerror}): give the path of a YAML file, or {' or '.join(studies())}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} should hold keys such as {', '.join(STUDY)}; see the README for an example.")
    return content


def _grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in parameters.values()]
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*axes)]
