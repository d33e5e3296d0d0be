"""`fit`: trains a method once, and never twice; interrupted anywhere, the same call resumes it."""

import contextlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import torch

from robustlib.attacks.base import Precision
from robustlib.data import Dataset, check_dataset, spelled
from robustlib.errors import Count, InputError, Whole, check_known, check_path, shown, typed, unknown
from robustlib.models import ARCHITECTURES, build_model
from robustlib.rng import derive_seed, forked
from robustlib.runs import NOTEBOOK, Run, outdated, trained_with, versions, write_atomic, write_json
from robustlib.runs.provenance import peak_memory_mb, provenance
from robustlib.training.devices import BatchNormOver, Team, check_devices, launch
from robustlib.training.loop import Training
from robustlib.training.stages import Trainable
from robustlib.training.tracking import Tracker, check_logger

DEVICES = ["cpu", "cuda", "mps"]


def fit(
    method: Trainable,
    dataset: Dataset,
    *,
    arch: str | None = None,
    seed: int = 0,
    root: Path | str = "runs",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    compile: bool = False,
    devices: int = 1,
    batchnorm: BatchNormOver = "sync",
    logger: Any = None,
    rerun: bool = False,
    progress: bool = True,
) -> Run:
    """Trains `method` on `dataset` and returns the run; a finished run is returned at once, an interrupted one resumed.

    Same parameters, seed, device, software and thread count give the same numbers, on the CPU bit for bit, wherever a
    training was interrupted. At most one epoch is repeated.

    Args:
        method: a configured method, e.g. `make_method("trades", preset="digits")`.
        dataset: from `load_dataset`, `load_images` or `Dataset.of`.
        arch: a name of `robustlib.models.ARCHITECTURES`; None takes the method's.
        seed: of the weights, the order of the data, the augmentation and the attacks.
        root: directory of all runs.
        device: "cpu", "cuda", "cuda:1", "mps" (an Apple GPU) or "auto" (an NVIDIA GPU where there is one).
        precision: "32-true", "bf16-mixed" or "auto" (the preset's, if it names one; else bf16-mixed on GPUs).
        threads: CPU threads; None keeps torch's number, or that of the run that is resumed.
        compile: compile the encoder and the copies of it that attacks run on with torch.compile, on a CPU only where a trial at the
            start shows a gain (`compile_speed_up` in provenance.json); its numbers differ by rounding, so such a run is another.
        devices: how many share each batch, a process each: GPUs, or processes of a CPU. Such a run is another, since sums are rounded otherwise.
        batchnorm: of several devices: "sync", statistics of the whole batch as on one device, or "local", of each device's part.
        logger: an object of Lightning's `Logger` interface, or "tensorboard", whose events go beside the run (see `Tracker`).
        rerun: start anew, e.g. because the run is stale (its method gives other numbers today).
        progress: show each epoch: a line, in a notebook a table that grows.
    """
    seed, threads = typed(seed, Whole, "seed"), typed(threads, Count | None, "threads")
    rerun, compile = typed(rerun, bool, "rerun"), typed(compile, bool, "compile")
    devices, logger = typed(devices, Annotated[int, "[1, 1024]"], "devices"), check_logger(logger)
    arch = _check_trainable(method, arch, dataset)
    torch_device = resolve_device(device)
    precision = resolve_precision(precision, torch_device, method.precision)
    check_devices(devices, method.batch_size, compile, torch_device, count_devices(torch_device.type))
    _check_sendable(method, devices, batchnorm)
    params = run_params(method, dataset, arch, seed, precision, devices, batchnorm)
    params |= {"compile": True} if compile else {}
    run = Run.of(params, check_path(typed(root, Path | str, "root")))
    stored = {} if rerun else run.params()
    if not rerun and run.status()["state"] == "done":
        _renew_changes(run, params, stored)
        return run
    with run.lock(), forked(torch_device):
        _make_ready(run, params, rerun)
        train = partial(_train, run, method, dataset, arch, seed, precision, threads, compile, progress, logger)
        team = Team(0, devices, batchnorm)
        launch(torch_device.type, team, train) if devices > 1 else train(team, torch_device)
    return run


def _train(
    run: Run,
    method: Trainable,
    dataset: Dataset,
    arch: str,
    seed: int,
    precision: Precision,
    threads: int | None,
    compile: bool,
    progress: bool,
    logger: Any,
    team: Team,
    device: torch.device,
) -> None:
    torch.manual_seed(derive_seed(seed, "model"))
    model = build_model(arch, dataset, **method.model_options())
    dataset = dataset.subset(method.train_examples) if method.train_examples else dataset
    training = Training(run, method, dataset, model, seed, device, precision, threads, compile, progress, team)
    if team.writes:
        training.tracker = Tracker(logger, run)
        command = method.command(spelled(dataset), arch, seed, precision)
        _run(training, command and command + f" --devices {team.size}" * (team.size > 1))
    else:
        training.run_stages()


def _renew_changes(run: Run, params: dict[str, Any], stored: dict[str, Any]) -> None:
    """Lets a finished run say in what it differs from its preset today, whose own values may have moved since."""
    if not stored or run.changes() != params["changes"]:
        others = {name: value for name, value in {**params, **stored}.items() if name != "changed"}
        write_json(run.path / "params.json", {**others, "changes": params["changes"]})


def _make_ready(run: Run, params: dict[str, Any], rerun: bool) -> None:
    """Leaves in a run's directory what a training may go on from."""
    if rerun or not (run.path / "checkpoint.pt").exists():  # what else is there would be of another training
        run.clear()
    elif other := outdated(trained_with(run)):  # epochs are never mixed
        said = f"was begun by another version of robustlib, whose numbers differ in {', '.join(other)}"
        raise InputError(f"{run.path} {said}: start anew with --rerun, or go back to that version.")
    write_json(run.path / "params.json", params)


def _check_sendable(method: Trainable, devices: int, batchnorm: str) -> None:
    if devices > 1 and method.code and method.code.place == NOTEBOOK:
        raise InputError(f"{method.name} stands in a notebook's cell, which other processes lack: write it in a file.")
    check_known("batchnorm", batchnorm, get_args(BatchNormOver))


def _check_trainable(method: Trainable, arch: str | None, dataset: Dataset) -> str:
    """The architecture; raises InputError for a method or a data set that is none, and for those that cannot be trained."""
    if isinstance(method, type) or not hasattr(method, "stages"):
        example = f"make_method({method!r}, preset='digits')" if isinstance(method, str) else "make_method('trades')"
        raise InputError(f"{shown(method)} is no method: give {example}, or an object of a class of your own.")
    if (arch := arch or method.arch) not in tuple(ARCHITECTURES):
        raise unknown("architecture", arch, ARCHITECTURES)
    if not len(check_dataset(dataset).train):
        said = f"{dataset.name} has no training images, only {len(dataset.test)} to evaluate"
        raise InputError(f"{said}: add a folder train/, or train elsewhere.")
    return arch


def resolve_device(name: str) -> torch.device:
    """The torch device of that name; "auto" prefers a GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(typed(name, str, "device"))
    except RuntimeError as error:
        raise InputError(f"Unknown device {shown(name)}: use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if (device.index or 0) >= count_devices(device.type):
        raise InputError(f"Device {shown(name)}: this machine has no such device, use --device cpu or auto.")
    return device


def count_devices(kind: str) -> int:
    """How many devices of a type, such as "cuda", this machine has for robustlib."""
    return torch.get_device_module(kind).device_count() if kind in DEVICES else 0


def resolve_precision(name: str, device: torch.device, usual: str = "auto") -> Precision:
    """ "32-true" or "bf16-mixed"; "auto" takes the `usual` one, a preset's, and where that is "auto" too bf16 on GPUs."""
    if (name := usual if name == "auto" else name) == "auto":
        return "bf16-mixed" if device.type == "cuda" else "32-true"
    if name not in ("32-true", "bf16-mixed"):
        raise InputError(f"Unknown precision {shown(name)}: use 'auto', '32-true' or 'bf16-mixed'.")
    return name  # type: ignore[return-value]


def run_params(
    method: Trainable,
    dataset: Dataset,
    arch: str,
    seed: int,
    precision: str,
    devices: int = 1,
    batchnorm: BatchNormOver = "sync",
) -> dict[str, Any]:
    """What names and reproduces a run: the content of its params.json.

    That of a user's method says what others could not know without the class: its code, protocol and attack passes.
    """
    spec = {name: getattr(dataset, name) for name in ("num_classes", "image_shape", "mean", "std")}
    threat, own = method.threat(dataset), dict[str, Any]()
    if method.code:
        own = {"code": method.code.facts(), "protocol": method.protocol, "attack_passes": method.attack_passes}
    return {
        "method": method.name,
        "dataset": dataset.name,
        "arch": arch,
        "seed": seed,
        "precision": precision,
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "hyperparameters": method.hyperparameters() | {"arch": arch},
        "model": method.model_options(),
        "spec": spec,
        "preset": method.preset,
        "title": method.title,
        "changes": method.changes(arch),
        **({"images": dict(dataset.origin)} if dataset.origin else {}),
        **({"devices": devices, "batchnorm": batchnorm} if devices > 1 else {}),
        **own,
    }


def _run(training: Training, command: str) -> None:
    """Runs the training and keeps status.json and provenance.json true, whatever happens; beside them a user's code."""
    run, method = training.run, training.method
    if method.code:
        write_atomic(run.path / "method.py", method.code.text)
    facts = provenance(training.device, training.state.threads, command, versions(*method.numerics))
    run.write("provenance.json", facts)
    run.write("status.json", {"state": "running", "pid": os.getpid(), "started": time.time()})
    tracker, at = training.tracker, training.state
    tracker.begin(run.params(), len(at.rows))
    try:
        training.run_stages()
    except BaseException as error:
        tracker.end(at.rows, 0, "failed")
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(InputError):  # where the disk is full, the reason is the error that is raised
            run.write("status.json", {"state": state, "reason": f"{type(error).__name__}: {error}"})
        raise
    facts |= {"wall_seconds": training.state.seconds, "peak_memory_mb": peak_memory_mb(training.device)}
    facts |= {"compile_speed_up": training.state.speed_up} if training.compile else {}
    run.write("provenance.json", facts)
    run.finish()
    tracker.end(at.rows, at.best)
