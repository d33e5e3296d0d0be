"""Networks from elsewhere, as a command line or a notebook names them: which data, which runs, which page."""

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from robustlib.attacks.foreign import absolute_spec
from robustlib.data import Dataset, open_dataset
from robustlib.data.images import load_images
from robustlib.errors import InputError, Whole, check_fields, check_known, explained
from robustlib.evaluation import extra_attacks
from robustlib.methods.preset import parse_value
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.workbook.experiments.jobs import Job, notebook, page
from robustlib.workbook.task import Task, check, inspect

PHOTOGRAPHS = Threat("linf", 4 / 255)  # what images of the user's own are attacked by, unless told otherwise


@dataclass(frozen=True)
class Benchmark:
    """A network and the images it is judged on; each field is a parameter of benchmark.ipynb and an option of `robustlib benchmark`."""

    model: str  # "torchvision:resnet18", "timm:vit_tiny_patch16_224", "my_models.py:build" or "package.module:Net"
    weights: str = ""  # a file of them, or a pattern such as checkpoints/*.pt on the command line
    model_args: str = ""  # JSON, of the factory
    dataset: str = ""  # a name or path that `open_dataset` knows
    images: str = ""  # a folder, CSV or .npz of images, in its place
    size: Whole = 0  # to which those are scaled; 0 where all are of one size
    name: str = ""  # for people
    threat: str = ""  # linf:8/255 or l2:0.5; "" for the data set's
    output: str = ""  # where the logits are in the network's answer
    layer: str = ""  # whose answers are the features
    mean: str = ""  # numbers a channel, with which it wants its images normalised
    std: str = ""
    stochastic: bool = False
    attacks: tuple[str, ...] = ()  # that it meets besides, such as "torchattacks:PGD(steps=20)"
    threads: Whole = 0  # of the CPU; 0 for those that there are
    data_root: str = ""
    runs: str = "runs"

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.dataset or self.images):
            raise InputError("Say on which images to judge it: --dataset NAME, such as cifar10, or --images FOLDER.")

    @classmethod
    def asked(cls, options: Mapping[str, Any], **values: Any) -> "Benchmark":
        """One from the fields that a notebook names, and from its `options` for all others."""
        rest = [field.name for field in fields(cls) if field.name not in values]
        return cls(
            **values, **{check_known("option of a benchmark", name, rest): value for name, value in options.items()}
        )

    def load(self, *, download: bool = False) -> Dataset:
        """The images it is judged on."""
        if self.images:
            return load_images(self.images, size=self.size, threat=self.threat_of(PHOTOGRAPHS) or PHOTOGRAPHS, test=1.0)
        return open_dataset(self.dataset, root=self.data_root or None, download=download)

    def threat_of(self, usual: Threat | None) -> Threat | None:
        """The threat that was asked for, else the usual one."""
        if not self.threat:
            return usual
        norm, sign, radius = self.threat.partition(":")
        eps = parse_value(radius)
        if not sign or not isinstance(eps, int | float):
            raise InputError(f"threat={self.threat!r} is no threat: write linf:8/255 or l2:0.5.")
        return Threat(check_known("norm", norm, ("linf", "l2")), float(eps))

    def run(self, dataset: Dataset, *, rerun: bool = False) -> Run:
        """The network as a finished run, made at the first call, or anew: then nothing that was measured on it is left."""
        refused = f"""model_args={self.model_args!r} is no JSON object: write e.g. '{{"depth": 28}}'."""
        with explained(ValueError, lambda _: refused):
            arguments = json.loads(self.model_args or "{}")
        if not isinstance(arguments, dict):
            raise InputError(refused)
        extra_attacks(self.attacks, self.threat_of(dataset.threat) or dataset.threat)  # what is wrong fails now
        settings = {key: _numbers(key, getattr(self, key)) for key in ("mean", "std")}
        return Run.from_model(
            self.model,
            dataset,
            **{"weights": self.weights, "arguments": arguments, "name": self.name, "root": self.runs},
            **{"threat": self.threat_of(dataset.threat), "output": self.output, "layer": self.layer, **settings},
            stochastic=self.stochastic or None,
            rerun=rerun,
        )

    def each(self) -> list["Benchmark"]:
        """One for each file that the pattern in `weights` matches, in natural order, named after it."""
        if not glob.has_magic(self.weights):
            return [self]
        if not (found := sorted(glob.glob(os.path.expanduser(self.weights)), key=_natural)):
            raise InputError(f"No file matches {self.weights!r}: give weights that are there.")
        prefix = f"{self.name} · " if self.name else ""
        return [replace(self, weights=file, name=f"{prefix}{Path(file).stem}") for file in found]

    def job(self, run: Run, reports: Path, **others: Any) -> Job:
        """The page of its run, to be made by benchmark.ipynb with its fields and `others` as parameters."""
        values, named = asdict(self.absolute()), inspect(file := notebook("benchmark"))
        options = {field.name: values.pop(field.name) for field in fields(self) if field.name not in named}
        changed = {name: value for name, value in options.items() if value != getattr(type(self), name, None)}
        about = {"name": run.name, "run": os.path.abspath(run.path), "epochs": 0}
        task = Task(file, {**values, "options": changed, **others}, page(run, reports, ""), about)
        return Job(run, check(task), run.name, 0)

    def absolute(self) -> "Benchmark":
        """The same with absolute paths, for a process that works elsewhere."""
        place, sign, name = self.model.rpartition(":")
        model = f"{os.path.abspath(place)}{sign}{name}" if os.path.isfile(place) else self.model
        attacks = tuple(map(absolute_spec, self.attacks))
        paths = {key: os.path.abspath(value) for key in ("weights", "images", "runs") if (value := getattr(self, key))}
        return replace(self, model=model, attacks=attacks, **paths)


def _numbers(key: str, text: str) -> Sequence[float]:
    values = [parse_value(part.strip()) for part in text.split(",")] if text else []
    if not all(isinstance(value, int | float) for value in values):
        raise InputError(f"{key}={text!r}: write one number a channel, e.g. 0.485,0.456,0.406.")
    return [float(value) for value in values]


def _natural(file: str) -> list[tuple[int, int, str]]:
    """A key by which epoch-9 comes before epoch-10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", file) if part]
