"""What a study's YAML file and the option --seeds ask for.

What a comparison of finished runs asks: which are set side by side, under which names, and what claims they answer.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robustlib
from robustlib.errors import InputError, unknown
from robustlib.methods import preset_dataset
from robustlib.runs import Run, changes_text, find_runs
from robustlib.workbook.claims import Finding, evaluate_claims, variant_of
from robustlib.workbook.experiments.plan import Variant, preset_methods

if TYPE_CHECKING:
    import pandas as pd

    from robustlib.workbook.claims import Claim


STUDY = ("preset", "methods", "parameters", "seeds", "examples", "claims")
BUILT_IN = Path(robustlib.__file__).parent / "methods" / "presets" / "studies"


@dataclass(frozen=True)
class Study:
    """What a study asks for.

    Attributes:
        preset: of all its runs.
        variants: methods with what is changed from the preset.
        seeds: of every variant.
        examples: test images of the evaluation; 0 for the preset's number.
        claims: what its runs shall decide; see `robustlib.workbook.claims.evaluate_claims`.
        name: of its file.
    """

    preset: str
    variants: "Sequence[Variant]"
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


def study_names() -> list[str]:
    """The studies that come with robustlib."""
    return sorted(file.stem for file in BUILT_IN.glob("*.yaml"))


def read_study(file: Path | str) -> Study:
    """What a study's YAML file asks for, or the study of that name that comes with robustlib.

    A list of values of a hyper-parameter is an axis of a grid. `methods` is a list, or a mapping of methods to
    hyper-parameters of their own, or to a list of such mappings where its variants are no grid.

    Raises:
        InputError: no such file, no YAML mapping, an unknown key, a value of the wrong kind, or a claim about a variant
            that the study does not train.
    """
    file = BUILT_IN / f"{file}.yaml" if str(file) in study_names() and not Path(file).is_file() else Path(file)
    content = _yaml(file)
    for key in content:
        if key not in STUDY:
            raise unknown(f"key of {file}", key, STUDY)
    preset = str(content.get("preset", "digits"))
    variants = _variants(content, preset, file)
    seeds, examples = content.get("seeds", 0), content.get("examples", 0)
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < 0:
        raise InputError(f"{file}: examples={examples!r}: give a number of test images, or 0 for the preset's.")
    return Study(
        preset,
        variants,
        parse_seeds(",".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)),
        examples,
        _claims(content.get("claims", []), preset, variants, file),
        file.stem,
    )


def _variants(content: Mapping[str, Any], preset: str, file: Path) -> list[Variant]:
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


def _claims(rows: object, preset: str, variants: Sequence[Variant], file: Path) -> "list[Claim]":
    """The claims of a study, each about variants that it trains, by the names that their runs will have."""
    from robustlib.workbook.claims import read_claims

    claims = read_claims(rows, str(file))
    trained = {variant_name(variant, preset) for variant in variants} if claims else set()
    for claim in claims:
        for variant in claim.variants:
            if variant not in trained:
                raise unknown(f"variant of the claim {claim.name!r} in {file}", variant, trained)
    return claims


def variant_name(variant: Variant, preset: str) -> str:
    """What `robustlib.workbook.claims.variant_of` will call the runs of a variant."""
    from robustlib.methods import make_method

    name, changes = variant
    method = make_method(name, preset, **changes)
    return f"{name} {changes_text(method.changes(method.arch))}".strip()


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(
            f"Cannot read the study {file} ({error.strerror}): give the path of a YAML file, or {' or '.join(study_names())}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} should hold keys such as {', '.join(STUDY)}; see the README for an example.")
    return content


def _grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in parameters.values()]
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*axes)]


PANELS = 9  # maps beside each other that a reader can still compare
REFERENCE = Path(robustlib.__file__).parent.parent / "reports" / "reference"


@dataclass(frozen=True)
class Comparison:
    """The runs of a preset that can be set side by side: of one data set, judged under one threat.

    Attributes:
        dataset, threat: of all that is compared; threat as in "Linf 0.2", "" where nothing was judged yet.
        every: all runs of the preset on the data set, also those that are not finished.
        shown: those that are finished and evaluated under the threat.
        summary: a sentence for the reader: how many there are, and which are left out.
    """

    dataset: str
    threat: str
    every: Sequence[Run]
    shown: Sequence[Run]
    summary: str

    @property
    def usable(self) -> list[Run]:
        """The shown runs whose weights are there, so that one can look into their feature spaces."""
        return [run for run in self.shown if _has_weights(run)]


def compare_runs(root: Path | str, preset: str, dataset: str = "", threat: str = "") -> Comparison:
    """Chooses the runs below `root` that can be compared.

    Args:
        root: directory of all runs.
        preset: whose runs.
        dataset: of the runs; "" = the preset's own.
        threat: under which they were judged; "" = that of most of them.
    """
    name, runs = dataset or preset_dataset(preset), find_runs(root, preset=preset, finished=False)
    every = [run for run in runs if run.params()["dataset"] == name]
    judged = {run.path: run.results()["threat"] for run in every if readable(run)}
    threat = threat or next((usual for usual, _ in Counter(judged.values()).most_common(1)), "")
    shown = [run for run in every if judged.get(run.path) == threat]
    words = f"{len(shown)} runs on {name}, judged under {threat}."
    if not shown:
        words = f"No finished runs of preset **{preset}** on {name} in `{root}` yet. Make them with `robustlib run --preset {preset}`."
    other_data = sorted({run.params()["dataset"] for run in runs} - {name})
    other_threats = sorted(set(judged.values()) - {threat})
    for which, others in (("dataset", other_data), ("threat", other_threats)):
        if others:
            words += f" Runs {'on' if which == 'dataset' else 'judged under'} {', '.join(others)} are left out: set `{which}`."
    return Comparison(name, threat, every, shown, words)


def readable(run: Run) -> bool:
    """Whether a run is finished and evaluated, and none of the files that a comparison reads is damaged."""
    try:
        return run.finished and bool(run.results()) and run.audit() is not None and run.metrics() is not None
    except (InputError, ValueError):
        return False


def _has_weights(run: Run) -> bool:
    try:
        run.model()
    except InputError:
        return False
    return True


def curves(runs: Sequence[Run], which: str = "curve") -> "pd.DataFrame":
    """The robustness curves of evaluated runs in one table, for `robustlib.figures.robustness_over_seeds`.

    Args:
        runs: evaluated ones.
        which: "curve" (over eps) or "steps_curve".

    Returns:
        Columns method, title, changed (from the preset), seed and those of the curve; a row a run and point.
    """
    import pandas as pd

    tables = []
    for run in runs:
        facts = {name: run.params()[name] for name in ("method", "title", "seed")}
        tables.append(pd.DataFrame(run.results()[which]).assign(**facts, changed=run.changed))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def first_seed(runs: Iterable[Run], most: int = PANELS) -> dict[str, Run]:
    """By title, the run of the lowest seed of each variant (method, its changes, architecture).

    Of more than `most` variants those without changes come first, and the others are left out.
    """
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.params()["seed"]):
        chosen.setdefault((variant_of(run), run.params()["arch"]), run)
    several = len({arch for _, arch in chosen}) > 1
    named = {}
    for (_, arch), run in sorted(chosen.items()):
        named[title_of(run, arch if several else "")] = run
    ordered = sorted(named, key=lambda title: bool(named[title].changed))
    return {title: named[title] for title in ordered[:most]}


def title_of(run: Run, arch: str = "") -> str:
    """What people call a variant: the method's title, its changes from the preset and, where it matters, the architecture."""
    return " · ".join(filter(None, (run.params()["title"], run.changed, arch)))


def preset_study(preset: str) -> Study | None:
    """The study of claims that comes with robustlib for this preset, the first of several; None if there is none."""
    return next(iter(claim_studies(preset)), None)


def claim_studies(preset: str) -> list[Study]:
    """The studies of a preset that come with robustlib and have claims, by name."""
    return [study for study in map(read_study, study_names()) if study.preset == preset and study.claims]


def claim_findings(study: Study, runs: Sequence[Run]) -> list[Finding]:
    """What runs say of a study's claims, counting only runs that the study asks for."""
    return evaluate_claims(
        study.claims, [run for run in runs if run.params().get("preset") == study.preset], study.seeds
    )


def reference_findings(study: Study) -> list[Finding]:
    """What the committed reference results of this checkout say of a study's claims; [] without any."""
    runs = find_runs(REFERENCE, dataset=study.preset)  # exported to reports/reference/<preset>/<method>/
    return claim_findings(study, runs) if runs else []
