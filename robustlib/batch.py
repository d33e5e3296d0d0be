"""Many trainings as notebooks: what would run, and the pages that come of it. The commands `run`, `study`, `report`."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robustlib
from robustlib.errors import InputError, unknown
from robustlib.runs import Run, code_digest, find_runs
from robustlib.task import Status, Task, check

Arm = tuple[str, Mapping[str, Any]]  # a method and the hyper-parameters changed from its preset
STUDY = ("preset", "methods", "parameters", "seeds")
WHERE = ("rerun", "download", "data_root", "device")  # parameters that change no number


@dataclass(frozen=True)
class Options:
    """What all trainings of one call share; see `robustlib run --help`."""

    preset: str = "digits"
    dataset: str = ""
    data_root: str = ""
    download: bool = False
    device: str = "auto"
    precision: str = "auto"
    runs: Path = Path("runs")
    reports: Path = Path("reports")
    examples: int = 0
    rerun: bool = False


@dataclass(frozen=True)
class Job:
    """One training to be: its run directory, the notebook that does it, and its number of epochs where known."""

    run: Run
    task: Task
    name: str
    epochs: int

    @property
    def current(self) -> bool:
        """Whether its page stands already and would come out the same."""
        status, page = self.task.status(), self.task.output
        asked, had = (_numbers(p) for p in (self.task.parameters, status.get("parameters", {})))
        return (
            (status.get("state"), asked) == ("done", had)
            and self.run.finished
            and self.run.results().get("code") == code_digest()
            and page.exists()
            and page.stat().st_mtime > self.task.notebook.stat().st_mtime
        )


def _numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in WHERE}


def notebook(name: str) -> Path:
    """The notebook `name` of this checkout.

    Raises:
        InputError: robustlib was installed without its notebooks.
    """
    path = Path(robustlib.__file__).parent.parent / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(
            f"There is no {path}: install robustlib from a clone of its repository, which has the notebooks."
        )
    return path


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


def preset_methods(preset: str) -> list[str]:
    """The methods that a preset has a section for, in its order."""
    from robustlib.methods import METHODS, load_preset

    return [name for name in load_preset(preset) if name in METHODS]


def plan(arms: Sequence[Arm], seeds: Sequence[int], options: Options) -> list[Job]:
    """All trainings of `arms` x `seeds`, validated: methods, hyper-parameters, device, data. Nothing is trained.

    Raises:
        InputError: whatever would fail later for a reason that can be known now.
    """
    from robustlib.data import load_dataset
    from robustlib.methods import load_preset, make_method
    from robustlib.training.fit import _params, resolve_device, resolve_precision

    for folder in (options.runs, options.reports / options.preset):
        _writable(folder)
    methods = [make_method(name, options.preset, **changes) for name, changes in arms]
    precision = resolve_precision(options.precision, resolve_device(options.device))
    name = options.dataset or load_preset(options.preset)["dataset"]
    dataset = load_dataset(name, root=options.data_root or None, download=options.download)
    jobs = []
    for (method, (_, changes)), seed in itertools.product(zip(methods, arms, strict=True), seeds):
        run = Run.of(_params(method, dataset, method.arch, seed, precision), options.runs)
        changed = [f"{key}={value}" for key, value in changes.items()]
        task = check(
            Task(
                notebook("baselines"),
                _parameters(method.name, seed, changed, options),
                page(run, options.reports, options.preset),
            )
        )
        title = " · ".join([method.name, *changed, f"seed {seed}"])
        jobs.append(Job(run, task, title, method.epochs))
    return list({job.run.path: job for job in jobs}.values())  # changes that restate the preset make no second run


def _writable(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"Cannot write to {folder}: {there} is no directory that you may write to. Choose another one."
        )


def _parameters(method: str, seed: int, changed: list[str], options: Options) -> dict[str, Any]:
    return {
        "method": method,
        "preset": options.preset,
        "seed": seed,
        "overrides": changed,
        "dataset": options.dataset,
        "data_root": options.data_root,
        "runs": str(options.runs),
        "device": options.device,
        "precision": options.precision,
        "test_examples": options.examples,
        "rerun": options.rerun,
    }


def page(run: Run, reports: Path, preset: str) -> Path:
    """Where the executed notebook of a run belongs: <reports>/<preset>/<method>-<run directory's name>.ipynb."""
    return reports / (preset or "other") / f"{run.path.parent.name}-{run.path.name}.ipynb"


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


def publish(options: Options, presets: Sequence[str], *, afresh: bool = False) -> tuple[Path, list[str]]:
    """Renders pages, compares each preset's runs and writes the index.

    Args:
        options: of which `runs` and `reports` are used.
        presets: whose comparisons are made anew.
        afresh: render pages again that are newer than their notebook.

    Returns:
        The index, and a sentence for each comparison that failed.
    """
    from robustlib.evaluation import leaderboard
    from robustlib.methods import load_preset, preset_names
    from robustlib.report import write_index

    runs, pages = find_runs(options.runs), {}
    for run in runs:
        executed = page(run, options.reports, run.params().get("preset", ""))
        if _done(executed):
            pages[str(run.path)] = _render(executed, run.name, afresh).relative_to(options.reports).as_posix()
    comparisons, problems = [], []
    for preset in preset_names():
        title, executed = f"Comparison: {load_preset(preset)['title']}", options.reports / preset / "compare.ipynb"
        if preset in presets and (status := _compare(preset, options))["state"] != "done":
            problems.append(f"compare.ipynb of {preset}: {status['reason']}")
        if _done(executed):
            comparisons.append((title, _render(executed, title, afresh).relative_to(options.reports).as_posix()))
    return write_index(options.reports, leaderboard(runs), pages, compare=comparisons), problems


def _done(executed: Path) -> bool:
    return executed.exists() and Task(executed, {}, executed).status().get("state") == "done"


def _compare(preset: str, options: Options) -> Status:
    from robustlib.workbook import execute

    parameters = {"preset": preset, "runs": str(options.runs)}
    return execute(Task(notebook("compare"), parameters, options.reports / preset / "compare.ipynb"))


def _render(executed: Path, title: str, afresh: bool) -> Path:
    from robustlib.report import render

    html = executed.with_suffix(".html")
    if afresh or not html.exists() or html.stat().st_mtime < executed.stat().st_mtime:
        render(executed, html, title=title)
    return html
