"""Many trainings as notebooks: what would run, and where."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robustlib
from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import has_new_sources
from robustlib.methods import load_preset, make_method
from robustlib.runs import Run
from robustlib.training.fit import resolve_device, resolve_precision, run_params
from robustlib.workbook.task import Task, check

Variant = tuple[str, Mapping[str, Any]]  # a method and the hyper-parameters changed from its preset
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
    """One training to be: its run directory, the notebook that does it, its number of epochs, what to know before it starts."""

    run: Run
    task: Task
    name: str
    epochs: int
    advice: Sequence[str] = ()  # see Method.advice

    @property
    def current(self) -> bool:
        """Whether its page stands already and would come out the same."""
        status, page = self.task.status(), self.task.output
        asked, had = (_numbers(p) for p in (self.task.parameters, status.get("parameters", {})))
        return (
            (status.get("state"), asked) == ("done", had)
            and self.run.finished
            and "numerics" in self.run.results()
            and not self.run.stale
            and not has_new_sources(self.run)
            and page.exists()
            and page.stat().st_mtime > self.task.notebook.stat().st_mtime
        )


def _numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in WHERE}


def notebook(name: str) -> Path:
    """The notebook `name` of this checkout."""
    path = Path(robustlib.__file__).parent.parent / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(
            f"There is no {path}: install robustlib from a clone of its repository, which has the notebooks."
        )
    return path


def preset_methods(preset: str) -> list[str]:
    """The methods that a preset trains unless told otherwise, in its order."""
    return list(load_preset(preset)["report"])


def plan(variants: Sequence[Variant], seeds: Sequence[int], options: Options) -> list[Job]:
    """All trainings of `variants` x `seeds`; what can be known to fail later is an InputError now. Nothing is trained."""
    for folder in (options.runs, options.reports / options.preset):
        _check_writable(folder)
    methods = [make_method(name, options.preset, **changes) for name, changes in variants]
    precision = resolve_precision(options.precision, resolve_device(options.device))
    name = options.dataset or load_preset(options.preset)["dataset"]
    dataset = load_dataset(name, root=options.data_root or None, download=options.download)
    jobs = []
    for (method, (_, changes)), seed in itertools.product(zip(methods, variants, strict=True), seeds):
        run = Run.of(run_params(method, dataset, method.arch, seed, precision), options.runs)
        overrides = [f"{key}={value}" for key, value in changes.items()]
        parameters = {
            **{"method": method.name, "preset": options.preset, "seed": seed, "overrides": overrides},
            **{"dataset": options.dataset, "data_root": options.data_root, "runs": str(options.runs)},
            **{"device": options.device, "precision": options.precision},
            **{"test_examples": options.examples, "rerun": options.rerun},
        }
        task = Task(notebook(method.notebook), parameters, page(run, options.reports, options.preset))
        title = " · ".join([method.name, *overrides, f"seed {seed}"])
        jobs.append(Job(run, check(task), title, method.all_epochs, method.advice(method.arch)))
    return list({job.run.path: job for job in jobs}.values())  # changes that restate the preset make no second run


def _check_writable(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"Cannot write to {folder}: {there} is no directory that you may write to. Choose another one."
        )


def page(run: Run, reports: Path, preset: str) -> Path:
    """Where the executed notebook of a run belongs: <reports>/<preset>/<method>-<run directory's name>.ipynb."""
    return reports / (preset or "other") / f"{run.path.parent.name}-{run.path.name}.ipynb"
