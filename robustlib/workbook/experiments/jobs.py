"""Many trainings as notebooks: what would run and where, and how executed notebooks become pages, comparisons, maps and the index."""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import torch

import robustlib
from robustlib.audit import audit_has_new_sources
from robustlib.data import dataset_of, load_dataset, open_dataset, spelled
from robustlib.errors import Count, InputError, Whole, check_fields, check_path, typed
from robustlib.evaluation import has_new_sources, incomplete, leaderboard, measure_unseen
from robustlib.methods import load_preset, make_method, preset_dataset, preset_names
from robustlib.representation import probe_attack
from robustlib.runs import Run, UserCode, digest, find_runs, write_atomic
from robustlib.runs.files import tidy
from robustlib.threat import Threat
from robustlib.training.devices import check_devices
from robustlib.training.fit import count_devices, resolve_device, resolve_precision, run_params
from robustlib.training.tracking import check_logger
from robustlib.workbook.claims import variant_of
from robustlib.workbook.engines import execute
from robustlib.workbook.experiments.studies import Variant, check_number, compare_runs, findings_by_preset, first_seed
from robustlib.workbook.tables import claims_by_preset
from robustlib.workbook.task import Task, Training, check

PASSED_ON = ("preset", "dataset", "data_root", "runs", "device", "precision", "rerun")  # of the options, to notebooks
Waiting = Mapping[str, tuple[Run, str]]
NO_NUMBER = dict.fromkeys(
    ("rerun", "download", "data_root", "device", "logger", "runs")
)  # parameters that change no number


@dataclass(frozen=True)
class Options:
    """What all trainings of one call share; see `robustlib run --help`."""

    preset: str = "digits"
    dataset: str = ""
    data_root: str = ""
    download: bool = False
    device: str = "auto"
    devices: Count = 1
    logger: str = ""
    precision: str = "auto"
    runs: Path = Path("runs")
    reports: Path = Path("reports")
    examples: Whole = 0
    rerun: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Job(Training):
    """One training to be, and what to know before it starts."""

    advice: Sequence[str] = ()  # see Method.advice

    @property
    def current(self) -> bool:
        """Whether its page stands already and would come out the same; not where a file of the run or the page's status is damaged."""
        try:
            had = {} if self.run.damage else self.task.status().get("parameters")
        except InputError:
            return False
        same = isinstance(had, dict) and {**self.task.parameters, **NO_NUMBER} == {**had, **NO_NUMBER}
        shown = same and self.task.current and self.run.finished and "numerics" in self.run.results()
        return shown and not (self.run.stale or has_new_sources(self.run) or audit_has_new_sources(self.run))


def packaged() -> Path | None:
    """The notebooks that came with an installed robustlib; None in a clone of its repository."""
    folder = Path(robustlib.__file__).parent / "notebooks"
    return folder if folder.is_dir() else None


def notebook(name: str) -> Path:
    """The notebook `name` of this installation or clone."""
    path = (packaged() or Path(robustlib.__file__).parent.parent / "notebooks") / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(f"There is no {path}: install robustlib again, or restore the file from git.")
    return path


def lay_out(folder: Path) -> Path:
    """Copies the notebooks to a directory, and returns it; those that are there stay as they are."""
    for file in sorted(notebook("baselines").parent.glob("*.ipynb")):
        if not (target := check_path(folder) / file.name).exists():
            write_atomic(target, file.read_bytes())
    return folder


def page(run: Run, reports: Path, preset: str) -> Path:
    """Where the executed notebook of a run belongs: <reports>/<preset>/<method>-<run directory's name>.ipynb.

    A run names its preset itself: one that is none of ours, such as "../elsewhere", is "other".
    """
    return reports / (preset if preset in preset_names() else "other") / f"{run.path.parent.name}-{run.path.name}.ipynb"


def plan(variants: Sequence[Variant], seeds: Sequence[int], options: Options, found: str = "") -> list[Job]:
    """All trainings of `variants` x `seeds`; what can be known to fail later is an InputError now. Nothing is trained.

    `found` is the type of device that they find where that is not here (see `robustlib.workbook.engines.device_type`).
    """
    for folder in (options.runs, options.reports / options.preset):
        check_path(folder)
        place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not place.is_dir() or not os.access(place, os.W_OK):
            why = f"{place} is no directory that you may write to"
            raise InputError(f"Cannot write to {folder}: {why}. Choose another one.")
    check_number(len(variants) * len(seeds), "These methods, parameters and seeds ask")
    seeds = [typed(seed, Whole, "seed") for seed in seeds]
    check_logger(options.logger)
    methods = [make_method(name, options.preset, **changes) for name, changes in variants]
    device = torch.device(found) if found else resolve_device(options.device)
    asked = options.dataset or load_preset(options.preset)["dataset"]
    dataset = open_dataset(asked, root=options.data_root or None, download=options.download)
    jobs = {}  # by run directory: changes that restate the preset make no second run
    for (method, (name, changes)), seed in itertools.product(zip(methods, variants, strict=True), seeds):
        precision = resolve_precision(options.precision, device, method.precision)
        check_devices(options.devices, method.batch_size, False, device, count_devices(device.type))
        run = Run.of(run_params(method, dataset, method.arch, seed, precision, options.devices), options.runs)
        overrides = [f"{key}={value}" for key, value in changes.items()]
        spec = UserCode.named(name).spec if ":" in name else name  # as with data, kernels work in other directories
        parameters = {"method": spec, "seed": seed, "overrides": overrides, "test_examples": options.examples}
        parameters |= {option: getattr(options, option) for option in PASSED_ON}
        parameters |= {"dataset": spelled(dataset)} if options.dataset else {}
        if found:  # so that what is planned here is what is trained there
            parameters |= {"device": found if options.device == "auto" else options.device, "precision": precision}
        parameters |= {"devices": options.devices} if options.devices > 1 else {}  # else pages made before would be old
        parameters |= {"logger": options.logger} if options.logger else {}
        title = " · ".join([method.name, *overrides, f"seed {seed}"])
        about = {"name": title, "run": os.path.abspath(run.path), "epochs": method.all_epochs}
        task = Task(notebook(method.notebook), parameters, page(run, options.reports, options.preset), about)
        jobs[run.path] = Job(run, check(task), title, method.all_epochs, method.advice(method.arch))
    return list(jobs.values())


def meet_unseen(variants: Collection[str], runs: Iterable[Run], options: Options) -> list[str]:
    """Attacks evaluated runs of these variants as no training has; a sentence for each that it could not measure."""
    problems = []
    for run in runs:
        if not run.damage and run.finished and run.results() and variant_of(run) in variants:
            try:
                dataset = dataset_of(run.params(), options.data_root or None)
                measure_unseen({run.name: run}, dataset, device=options.device)
            except InputError as error:
                problems.append(f"{run.name} has not met unseen attacks: {error}")
    return problems


def publish(
    options: Options, presets: Sequence[str], *, force: bool = False, waiting: Waiting | None = None
) -> tuple[Path, list[str]]:
    """Renders pages, compares the runs of `presets`, maps their feature spaces, writes the index, and tidies after killed writers.

    Pages that would come out the same are rendered with `force` alone. `waiting` are jobs that have not ended, by name: their run and
    state, which the index says in place of what such a run lacks. Returns the index, and a sentence for each thing that failed.
    """
    from robustlib.workbook.report import is_current, render, write_index

    def render_done(executed: Path, title: str) -> str:
        """The address of the page of an executed notebook; "" where that did not end well, or cannot be shown."""
        html, words = executed.with_suffix(".html"), {"title": title, "index": "../index.html"}
        try:
            if not executed.exists() or Task(executed, {}, executed).status().get("state") != "done":
                return ""
            if force or not is_current(executed, html, **words):
                render(executed, html, **words)
        except Exception as error:  # whatever it is, the other pages are wanted
            why = str(error) if isinstance(error, InputError) else f"{executed}: {type(error).__name__}: {error}"
            problems.append(f"There is no page of {title}. {why}")
            return ""
        return quote(html.relative_to(options.reports).as_posix())

    for folder in (options.runs, options.reports):
        tidy(folder)
    runs, problems, comparisons, views = find_runs(options.runs), list[str](), [], {}
    places = {run: page(run, options.reports, run.params().get("preset", "")) for run in runs}
    pages = {str(run.path): render_done(executed, run.name) for run, executed in places.items()}
    for preset in preset_names():
        title, executed = load_preset(preset)["title"], options.reports / preset / "compare.ipynb"
        problems += _compare(preset, options) if preset in presets else []
        if address := render_done(executed, f"Comparison: {title}"):
            views[preset] = executed
            comparisons.append((f"Comparison: {title}", address))
        if (atlas := executed.with_name("atlas.html")).exists():
            comparisons.append((f"Map: {title}", atlas.relative_to(options.reports).as_posix()))
    lacking, board = incomplete(find_runs(options.runs, finished=False)), leaderboard(runs)
    if waiting:
        facts = {"preset": options.preset, "dataset": options.dataset or preset_dataset(options.preset)}
        rows = [{"run": name, **facts, "path": str(r.path), "missing": state} for name, (r, state) in waiting.items()]
        others = lacking[~lacking["path"].isin([row["path"] for row in rows])]
        lacking = pd.concat([pd.DataFrame(rows), others], ignore_index=True)
    claims = claims_by_preset({})
    try:  # a second or more, which the last index of a batch can spare
        claims = claims if waiting else claims_by_preset(findings_by_preset(runs))
    except Exception as error:  # whatever it is, the index is wanted
        problems.append(f"Claims of several presets are not compared. {type(error).__name__}: {error}")
    rest: Any = {"compare": comparisons, "incomplete": lacking, "views": views, "claims": claims}
    return write_index(options.reports, board, pages, **rest), problems


def compare_paths(paths: Sequence[Path], options: Options) -> tuple[Path, list[str]]:
    """Sets evaluated runs of any kind side by side on a page, <reports>/other/compare-<digest>.html; and a sentence on each thing that failed."""
    from robustlib.workbook.report import render

    compared = compare_runs(
        options.runs, options.preset, paths=paths
    )  # says what cannot be compared before a kernel starts
    places, problems = [os.path.abspath(path) for path in paths], list[str]()
    target = options.reports / "other" / f"compare-{digest(*places, length=8)}.ipynb"
    try:
        dataset_of(compared.shown[0].params(), options.data_root or None)
    except InputError as error:
        problems.append(f"The feature spaces are not shown. {error}")
    parameters = {
        "paths": places,
        "runs": str(options.runs),
        "data_root": options.data_root,
        "look_inside": not problems,
    }
    status = execute(Task(notebook("compare"), parameters, target))
    if status["state"] != "done":
        raise InputError(f"{target}: {status['reason']}")
    title = " and ".join(dict.fromkeys(run.name for run in compared.shown[:3])) + " …" * (len(paths) > 3)
    page_of = target.with_suffix(".html")
    render(target, page_of, title=title, index="../index.html")
    return page_of, problems


def _compare(preset: str, options: Options) -> list[str]:
    """Executes the comparison of a preset and draws its interactive map; a sentence for each that failed."""
    from robustlib.workbook.report import write_atlas

    target, problems = options.reports / preset / "compare.ipynb", []
    atlas, root = target.with_name("atlas.html"), options.data_root or None
    atlas.unlink(missing_ok=True)  # an old map beside a new comparison would be believed
    parameters = {"preset": preset, "runs": str(options.runs), "data_root": options.data_root}
    try:
        load_dataset(preset_dataset(preset), root=root)
    except InputError as error:  # accuracies are compared all the same
        problems.append(f"The feature spaces of {preset} are not shown. {error}")
    status = execute(Task(notebook("compare"), {**parameters, "look_inside": not problems}, target))
    if status["state"] != "done":
        return [*problems, f"compare.ipynb of {preset}: {status['reason']}"]
    try:
        compared = compare_runs(options.runs, preset)
        if not problems and (chosen := list(first_seed(compared.usable).values())):
            attack, title = probe_attack(Threat(**chosen[0].params()["threat"])), load_preset(preset)["title"]
            dataset = load_dataset(compared.dataset, root=root)
            write_atlas(atlas, chosen, dataset, attack, title=f"Map: {title}", index="../index.html")
    except Exception as error:  # whatever it is, the other pages are wanted
        problems.append(f"There is no map of {preset}. {type(error).__name__}: {error}")
    return problems
