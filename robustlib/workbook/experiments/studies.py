"""Studies: what their YAML files ask for, and which finished runs may be set side by side.

`study_runs` takes those that a study asks for, `compare_runs` those of a preset, `same_setting` and `comparable_runs` a SETTING's.
"""

import itertools
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import robustlib
from robustlib.errors import InputError, Whole, check_known, explained, shown, typed
from robustlib.figures.canvas import PANELS, precedence
from robustlib.methods import load_preset, make_method, preset_dataset, preset_names
from robustlib.methods.preset import parameter_name, parse_value, read_yaml
from robustlib.runs import Run, changes_text, find_runs
from robustlib.workbook.claims import Claim, Finding, by_variant, evaluate_claims, read_claims, variant_of
from robustlib.workbook.tables import as_markdown

Variant = tuple[str, Mapping[str, Any]]  # a method and the hyper-parameters changed from its preset
STUDY = ("preset", "methods", "parameters", "seeds", "examples", "unseen", "claims")
BUILT_IN = Path(robustlib.__file__).parent / "methods" / "presets" / "studies"
#: The committed reference results, where this is a clone of the repository.
REFERENCE = Path(robustlib.__file__).parent.parent / "reports" / "reference"
SETTING = ("preset", "dataset", "arch", "threat")  # what runs share that are set side by side
MOST = 5000  # trainings of one command


@dataclass(frozen=True)
class Study:
    """What a study asks for: all of `variants` (methods with what is changed from the preset) with all of `seeds`."""

    preset: str
    variants: Sequence[Variant]
    seeds: Sequence[int]
    examples: int = 0  # test images of the evaluation; 0 for the preset's number
    unseen: bool = False  # whether every run meets unseen attacks, or those alone of which a claim names them
    claims: Sequence[Claim] = ()  # what its runs shall decide
    name: str = ""  # of its file

    @property
    def meet_unseen(self) -> set[str]:
        """The variants whose runs meet unseen attacks."""
        if self.unseen:
            return {variant_name(variant, self.preset) for variant in self.variants}
        return {variant for claim in self.claims if claim.measure.startswith("unseen/") for variant in claim.variants}


def parse_seeds(text: str) -> list[int]:
    """ "0-2" -> [0, 1, 2]; "0,3,5" -> [0, 3, 5]; both may be mixed. Seeds are below 2**63, and at most MOST."""
    ranges: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) < 20 for end in ends) or not int(ends[0]) <= int(ends[1]) < 2**63:
            said = f"Seeds {shown(text)} are no whole numbers of at least 0 and below 2**63"
            raise InputError(f"{said}: write 0-2 or 0,3,5.")
        ranges.append(range(int(ends[0]), int(ends[1]) + 1))
    check_number(sum(part.stop - part.start for part in ranges), f"Seeds {shown(text)} ask")
    return list(dict.fromkeys(itertools.chain(*ranges)))


def check_number(asked: int, which: str) -> None:
    """Raises InputError for more than MOST trainings; `which` begins its sentence ("Seeds '0-9' ask")."""
    if asked > MOST:
        raise InputError(f"{which} for {shown(asked)} trainings: give at most {MOST} to one command.")


def study_names() -> list[str]:
    """The studies that come with robustlib."""
    return sorted(file.stem for file in BUILT_IN.glob("*.yaml"))


def preset_methods(preset: str) -> list[str]:
    """The methods that a preset trains unless told otherwise, in its order."""
    return list(load_preset(preset)["report"])


def read_study(file: Path | str, within: Sequence[Path] = ()) -> Study:
    """What a study's YAML file asks for, or the study of that name that comes with robustlib.

    A list of values of a hyper-parameter is an axis of a grid. `methods` is a list, or a mapping of methods to
    hyper-parameters of their own, or to a list of such mappings where its variants are no grid. Paths in it, such as that of the
    method `my_defence.py:MixedAT`, start at the current directory. `within` are studies that take its claims.
    """
    file = BUILT_IN / f"{file}.yaml" if str(file) in study_names() and not Path(file).is_file() else Path(file)
    remedy = f"give the path of a YAML file, or {' or '.join(study_names())}"
    if file in within:
        raise InputError(f"{within[-1]} takes its claims from {file}, which leads back to it: write the claims out.")
    with explained(OSError, lambda error: f"Cannot read the study {file} ({error.strerror}): {remedy}."):
        content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} should hold keys such as {', '.join(STUDY)}: `robustlib study --help` shows one.")
    for key in content:
        check_known(f"key of {file}", key, STUDY)
    preset, seeds = typed(content.get("preset", "digits"), str, f"{file}: preset"), content.get("seeds", 0)
    examples = typed(content.get("examples", 0), Whole, f"{file}: examples")
    unseen = typed(content.get("unseen", False), bool, f"{file}: unseen")
    variants = _variants(content, preset, file)
    claims = read_claims(_same_claims(content.get("claims", []), (*within, file)), str(file))
    trained = {variant_name(variant, preset) for variant in variants} if claims else set()
    for claim in claims:
        for variant in claim.variants:
            check_known(f"variant of the claim {claim.name!r} in {file}", variant, trained)
    parts = seeds if isinstance(seeds, list) else [seeds]
    seeds = parse_seeds(",".join(part if isinstance(part, str) else shown(part) for part in parts))
    return Study(preset, variants, seeds, examples, unseen, claims, file.stem)


def _same_claims(rows: Any, within: Sequence[Path]) -> Any:
    """The rows of claims with those of another study in place of {study: its name, without: [claims], instead: {its variant: ours}}."""
    if not isinstance(rows, list):
        return rows
    each = [_claims_of(row, within) if isinstance(row, Mapping) and "study" in row else [row] for row in rows]
    return list(itertools.chain(*each))


def _claims_of(row: Mapping[str, Any], within: Sequence[Path]) -> list[dict[str, Any]]:
    file = within[-1]
    for key in row:
        check_known(f"entry of a study's claims in {file}", key, ("study", "without", "instead"))
    name, without, instead = row["study"], row.get("without") or [], row.get("instead") or {}
    if not isinstance(name, str) or not isinstance(without, list) or not isinstance(instead, Mapping):
        raise InputError(f"{file}: write study as a name, without as a list of claims, instead as variant: variant.")
    claims = read_study(name, within).claims
    for left_out in without:
        check_known(f"claim of {name} in {file}", left_out, [claim.name for claim in claims])
    for variant in instead:
        check_known(
            f"variant of {name} in {file}", variant, {variant for claim in claims for variant in claim.variants}
        )
    kept = [asdict(claim) for claim in claims if claim.name not in without]
    return [facts | {key: instead.get(facts[key], facts[key]) for key in ("variant", "than")} for facts in kept]


def _variants(content: Mapping[str, Any], preset: str, file: Path) -> list[Variant]:
    methods, common = content.get("methods"), content.get("parameters")
    methods = preset_methods(preset) if methods is None else methods
    if isinstance(methods, list) and all(isinstance(name, str) for name in methods):
        methods = dict.fromkeys(methods)
    pairs = methods.items() if isinstance(methods, dict) else ()
    every = [(name, own) for name, owns in pairs for own in (owns if isinstance(owns, list) and owns else [owns])]
    parts = [("", common), *every]
    if not every or not all(isinstance(name, str) and isinstance(own, dict | None) for name, own in parts):
        raise InputError(f"{file}: write methods as a list or as name: {{parameter: values}}, and parameters likewise.")
    grids = []
    for name, own in every:
        values = {**(common or {}), **(own or {})}.items()
        grids.append((name, {parameter_name(key): _axis(value, f"{file}: {key}") for key, value in values}))
    check_number(sum(math.prod(map(len, grid.values())) for _, grid in grids), f"{file} asks")
    combined = [(name, grid, values) for name, grid in grids for values in itertools.product(*grid.values())]
    return [(name, dict(zip(grid, values, strict=True))) for name, grid, values in combined]


def _axis(values: Any, what: str) -> list[Any]:
    """The values of a hyper-parameter in a grid; text is read as on the command line."""
    if values == []:
        raise InputError(f"{what}=[] makes no training: give a value, or leave it out.")
    return [parse_value(v) if isinstance(v, str) else v for v in (values if isinstance(values, list) else [values])]


def variant_name(variant: Variant, preset: str) -> str:
    """What `robustlib.workbook.claims.variant_of` will call the runs of a variant."""
    name, changes = variant
    method = make_method(name, preset, **changes)
    return f"{method.name} {changes_text(method.changes(method.arch))}".strip()


def claim_studies(preset: str) -> list[Study]:
    """The studies of a preset that come with robustlib and have claims, by name."""
    return [study for study in _built_in() if study.preset == preset and study.claims]


@cache
def _built_in() -> list[Study]:
    return [*map(read_study, study_names())]


def preset_study(preset: str) -> Study | None:
    """The first of the `claim_studies` of a preset; None if there is none."""
    return next(iter(claim_studies(preset)), None)


def claim_findings(study: Study, runs: Sequence[Run]) -> list[Finding]:
    """What runs say of a study's claims, counting only runs that the study asks for."""
    own = [run for run in runs if run.params().get("preset") == study.preset]
    return evaluate_claims(study.claims, own, study.seeds)


def findings_by_preset(runs: Sequence[Run]) -> dict[str, Sequence[Finding]]:
    """By preset what these runs say of the claims of its first study, and where they measure none the committed ones ("<preset>, reference");
    {} where these runs measure no claim."""
    found: dict[str, Sequence[Finding]] = {}
    own = {str(run.params().get("preset")) for run in runs}
    for study in filter(None, map(preset_study, preset_names() if own else ())):
        measured = claim_findings(study, runs) if study.preset in own else []
        if any(finding.evidence.differences for finding in measured):
            found[study.preset] = measured
        else:
            found[f"{study.preset}, reference"] = reference_findings(study)
    return found if own & set(found) else {}


def reference_findings(study: Study) -> list[Finding]:
    """What the committed reference results of this checkout say of a study's claims; [] without any."""
    runs = find_runs(REFERENCE, dataset=study.preset)  # exported to reports/reference/<preset>/<method>/
    return claim_findings(study, runs) if runs else []


@dataclass(frozen=True)
class StudyRuns:
    """A study's runs that were evaluated in one way, in the order of its variants and seeds, and a sentence on what is missing."""

    study: Study
    runs: Sequence[Run]
    summary: str


def study_runs(name: str, root: Path | str, dataset: str = "") -> StudyRuns:
    """The evaluated runs below `root` that a study asks for, of one data set, threat and number of images.

    The number is the study's if there are runs of it, else the most common one. Models that answer at random count too if
    their budget allowed no more images. Of several runs of a variant and seed a fresh one counts before a stale one. The data set
    is that of the page which shows them ("": the preset's); if there are no runs of the study on it, the summary says why.
    """
    study = read_study(name)
    variants = dict.fromkeys(variant_name(variant, study.preset) for variant in study.variants)
    wanted, usual = list(itertools.product(variants, study.seeds)), preset_dataset(study.preset)
    own = [run for run in find_runs(root, preset=study.preset, dataset=dataset or usual) if run.results()]
    own = [run for run in own if (variant_of(run), run.params()["seed"]) in wanted]
    if not own and dataset not in ("", usual):
        why = f"are of {usual}, not of this page's data set, {dataset}: none stand here."
        return StudyRuns(study, [], f"The runs of the study **{name}** {why}")
    judged = {run: (run.results()["threat"], run.results()["n"]) for run in own}
    capped = {run for run in own if run.results().get("budget", {}).get("images") == judged[run][1]}
    kinds = Counter(judged[run] for run in own if run not in capped) or Counter(judged.values())
    kind = max(kinds, key=lambda kind: (kind[1] == study.examples, kinds[kind]), default=("", 0))
    counted = [run for run in own if judged[run] == kind or (run in capped and judged[run][0] == kind[0])]
    first = by_variant(sorted(counted, key=lambda run: run.stale))
    chosen = [first[key] for key in wanted if key in first]
    fewer = {judged[run][1] for run in chosen if judged[run] != kind}
    summary = f"{len(chosen)} of the {len(wanted)} runs of the study **{name}** (preset {study.preset}) are here"
    summary += f", judged under {as_markdown(kind[0])} on {kind[1]} images" if own else ""
    summary += f" (those that answer at random on {min(fewer)})." if fewer else "."
    if len(chosen) < len(wanted):
        few = f"A row of fewer than {len(study.seeds)} seeds is an anecdote."
        summary += f" `robustlib study {shlex.quote(str(name))}` makes the others. {few}"
    if others := len(own) - len(counted):
        summary += f" Left out: {others} that were judged otherwise."
    return StudyRuns(study, chosen, summary)


@dataclass(frozen=True)
class Comparison:
    """The runs of a preset that can be set side by side."""

    dataset: str  # of all that is compared
    threat: str  # likewise, as in "Linf 0.2"; "" where nothing was judged yet
    every: Sequence[Run]  # of the preset on the data set, also those that are not finished, without the damaged
    shown: Sequence[Run]  # those that are finished and evaluated under the threat
    summary: str  # how many there are, and which are left out

    @property
    def usable(self) -> list[Run]:
        """The shown runs whose weights are there, so that one can look into their feature spaces."""
        runs = []
        for run in self.shown:
            with suppress(InputError):
                run.model()
                runs.append(run)
        return runs


def compare_runs(
    root: Path | str, preset: str, dataset: str = "", threat: str = "", paths: Sequence[Path | str] = ()
) -> Comparison:
    """The runs of a preset below `root` on `dataset` ("": the preset's own), judged under `threat` ("": that of most of them); or just
    those whose directories are `paths`, of any kind, which share a data set and a threat."""
    if paths:
        return _compare_paths([Run(Path(path)) for path in paths])
    name, found = dataset or preset_dataset(preset), find_runs(root, finished=False)
    damaged = [run for run in found if run.damage and run.place.split("/")[0] == name]
    whole = [run for run in found if not run.damage]
    runs = [run for run in whole if run.params().get("preset") == preset]
    runs += [run for run in whole if run.external and run.params()["dataset"] == name]  # from elsewhere, of no preset
    every = [run for run in runs if run.params()["dataset"] == name]
    judged = {run.path: run.results()["threat"] for run in every if run.finished and run.results()}
    threat = threat or next((usual for usual, _ in Counter(judged.values()).most_common(1)), "")
    shown = [run for run in every if judged.get(run.path) == threat]
    summary = f"{len(shown)} runs on {name}, judged under {as_markdown(threat)}."
    if not shown:
        summary = f"No finished runs of preset **{preset}** on {name} in `{root}` yet. Make them with `robustlib run --preset {preset}`."
    if others := sorted({run.params()["dataset"] for run in runs} - {name}):
        summary += f" Runs on {as_markdown(', '.join(others))} are left out: set `dataset`."
    if others := sorted(set(judged.values()) - {threat}):
        summary += f" Runs judged under {as_markdown(', '.join(others))} are left out: set `threat`."
    if damaged:
        summary += "\n\nLeft out because they are damaged:\n"
        summary += "".join(f"\n- {as_markdown(run.damage)}" for run in damaged)
    return Comparison(name, threat, every, shown, summary)


def _compare_paths(runs: Sequence[Run]) -> Comparison:
    for run in runs:
        if not run.params() or not run.results():
            lacks = "has no evaluation" if run.params() else "holds no run"
            raise InputError(f"{run.path} {lacks}: give evaluated runs, as `robustlib list` shows them.")
    first = runs[0]
    for run in runs[1:]:
        for what, own, other in (
            ("data set", first.params()["dataset"], run.params()["dataset"]),
            ("threat", first.results()["threat"], run.results()["threat"]),
        ):
            if own != other:
                raise InputError(
                    f"{run.path} was judged by another {what} ({other}) than {first.path} ({own}): compare like with like."
                )
    name, threat = first.params()["dataset"], first.results()["threat"]
    return Comparison(
        name, threat, runs, runs, f"{len(runs)} runs on {as_markdown(name)}, judged under {as_markdown(threat)}."
    )


def same_setting(run: Run, root: Path | str, methods: Sequence[str], vary: Sequence[str] = ()) -> list[Run]:
    """The run, and the finished ones of `methods` in its SETTING, unchanged from the preset but for the hyper-parameters in `vary`."""
    around = find_runs(root, dataset=run.params()["dataset"])
    others = [other for method in methods for other in around if other.params()["method"] == method]
    fit = [other for other in _in_setting(run, others) if set(other.changes()) <= set(vary)]
    return [run, *(other for other in fit if other.path.resolve() != run.path.resolve())]


def comparable_runs(run: Run, others: Iterable[Run]) -> dict[str, Run]:
    """By title the run itself, then one run of each other variant in its setting; the same seed first."""
    fit = [other for other in _in_setting(run, others) if variant_of(other) != variant_of(run)]
    same = {variant_of(other) for other in fit if other.params()["seed"] == run.params()["seed"]}
    chosen = [o for o in fit if o.params()["seed"] == run.params()["seed"] or variant_of(o) not in same]
    return {**first_seed([run]), **first_seed(chosen, PANELS - 1)}


def _in_setting(run: Run, others: Iterable[Run]) -> list[Run]:
    own = run.params()
    return [other for other in others if all(other.params().get(name) == own.get(name) for name in SETTING)]


def in_grid(run: Run, study: Study) -> bool:
    """Whether a run may stand among those of a grid of strengths: of its preset and methods, and changed in nothing but the strength."""
    params, methods = run.params(), {method for method, _ in study.variants}
    return params.get("preset") == study.preset and params["method"] in methods and set(run.changes()) <= {"strength"}


def first_seed(runs: Iterable[Run], most: int = PANELS) -> dict[str, Run]:
    """By title, the run of the lowest seed of each variant and architecture; at most `most`, those that `precedence` puts first."""
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.params()["seed"]):
        chosen.setdefault((variant_of(run), run.params()["arch"]), run)
    several = len({arch for _, arch in chosen}) > 1
    named = {title_of(run, arch if several else ""): run for (_, arch), run in sorted(chosen.items())}
    order = sorted(named, key=lambda title: precedence(named[title].params()["method"], named[title].changed))
    return {title: named[title] for title in order[:most]}


def named_runs(runs: Sequence[Run], most: int = 12) -> dict[str, Run]:
    """By title, with the seed and where need be the directory that tell them apart, the first `most` runs, in their order."""
    titles = [title_of(run) if run.external else f"{title_of(run)} · seed {run.params()['seed']}" for run in runs]
    names = [t if titles.count(t) == 1 else f"{t} · {run.path.name}" for t, run in zip(titles, runs, strict=True)]
    return dict(list(zip(names, runs, strict=True))[:most])


def title_of(run: Run, arch: str = "") -> str:
    """What people call a variant: the method's title, its changes from the preset and, where it matters, the architecture."""
    return " · ".join(filter(None, (run.params()["title"], run.changed, arch)))
