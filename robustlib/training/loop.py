"""The loop itself: stages, epochs, passes, steps. It knows no method and no paper."""

import io
import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustlib.attacks.precision import bf16_gain
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.rng import derive_seed
from robustlib.runs import Run, save_weights, write_atomic
from robustlib.runs.files import check_owner, not_finite
from robustlib.training.compilation import encoder_of, speed_up, tuned_convolutions
from robustlib.training.devices import Team, weighted
from robustlib.training.progress import Progress
from robustlib.training.stages import Pass, Probe, Stage, StepContext, Trainable
from robustlib.training.tracking import Tracker
from robustlib.training.validation import overfitting, probe_batch, validate

SLOW = 0.9  # gain of bf16 below which a reader must know
SAMPLE = 32  # images of the trial of what compiling gains
NO_SCORE = (-1.0, -1.0)  # below that of any epoch that is validated


@dataclass
class State:
    """The position of a training: everything that does not follow from its parameters and seed."""

    stage: int = 0
    epoch: int = 0  # epochs of this stage that are done
    begun: bool = False  # whether the stage's `begin` has run
    seconds: float = 0.0  # spent so far, over all sessions
    threads: int = 1
    speed_up: float | None = None  # by compiling, as measured at the start; None where it was not
    score: tuple[float, float] = NO_SCORE  # of the best epoch of this stage
    best: int = 0  # that epoch
    best_robust: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    rows: list[dict[str, Any]] = field(default_factory=list)  # the metrics so far


@dataclass
class Training:
    """One training on one device; construct it, then call `run_stages`."""

    run: Run
    method: Trainable
    dataset: Dataset
    model: nn.Module
    seed: int
    device: torch.device
    precision: Any
    threads: int | None
    compile: bool
    progress: bool
    team: Team = field(default_factory=Team)  # the processes that share its batches
    tracker: Tracker = field(default_factory=Tracker)

    def __post_init__(self) -> None:
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.average: AveragedModel | None = None
        self.batch_size, self.threat = self.method.batch_size, self.method.threat(self.dataset)
        self.advice = [*self.method.advice(self.run.params().get("arch", self.method.arch)), *self._slow_bf16()]
        self.saved = load_checkpoint(self.run.path / "checkpoint.pt", self.run.place)
        self.team.check(self.saved or {}, self.run.path)
        self.team.wait()  # before one of them writes another
        fresh = State(threads=self.threads or torch.get_num_threads())
        self.state: State = self.saved["state"] if self.saved else fresh
        if self.threads and self.threads != self.state.threads:
            raise InputError(
                f"{self.run.path} was begun with {self.state.threads} CPU threads and would give other numbers with "
                f"{self.threads}: resume with threads={self.state.threads}, or start anew with --rerun."
            )
        torch.set_num_threads(self.state.threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def run_stages(self) -> None:
        """Runs what is left of the method's stages and stores the last weights."""
        stages = self.method.stages(self.dataset, self.model)
        self.log = Progress(self.run.name, sum(stage.epochs for stage in stages))
        if self.compile:
            self._compile()
        with self._stance("force_eager"):  # validation would have each of its batch sizes compiled
            for stage in stages[self.state.stage :]:
                self._stage(stage, last=stage is stages[-1])
        if self.team.writes:
            save_weights(self.deployed, self.run.path / "last.safetensors", {"run": self.run.place})

    def _slow_bf16(self) -> list[str]:
        """What bf16 costs on a CPU that is faster without."""
        resumes = (self.run.path / "checkpoint.pt").exists()
        if self.device.type != "cpu" or self.precision != "bf16-mixed" or resumes:
            return []
        gain = bf16_gain(encoder_of(self.model), next(self.dataset.train.batches(SAMPLE)).x)
        said = f"on this CPU steps in bf16-mixed take {1 / gain:.1f} times as long as in float32"
        return [f"{said}, as where it is emulated: precision 32-true is faster here"] if gain < SLOW else []

    def _compile(self) -> None:
        """Compiles the encoder, and so the folded copies that attacks run on; on a CPU only where that is faster."""
        torch.compiler.reset()  # what other trainings compiled would count against its limit
        if self.state.speed_up is None and self.device.type == "cpu":
            x = next(self.dataset.train.batches(SAMPLE)).x
            self.state.speed_up = speed_up(self.model, x, self.threat, self.precision)
        gain = self.state.speed_up
        if used := gain is None or gain > 1:
            encoder_of(self.model).compile(dynamic=False)
        if self.progress:
            said = "" if gain is None else f", which here is {gain:.2f} times as fast"
            print(f"{self.run.name} · {'compiled' if used else 'not compiled'}{said}", flush=True)

    def _stance(self, stance: Literal["default", "force_eager"]) -> AbstractContextManager[None]:
        """How torch takes what is compiled, within."""
        return torch.compiler.set_stance(stance) if self.compile else nullcontext()

    def _stage(self, stage: Stage, last: bool) -> None:
        self._start(stage)
        for epoch in range(self.state.epoch, stage.epochs):
            self._epoch(epoch)
        if stage.end is not None:
            stage.end(self.deployed, probe_batch(self.val))
            self._check_finite("at the end")
        self.model.load_state_dict(self.deployed.state_dict())  # the next stage starts from the average
        if not last:
            self.state.stage, self.state.epoch, self.state.begun = self.state.stage + 1, 0, False
            self.optimisers, self.average = {}, None
            self.modules.pop("ema", None)  # the other modules may serve the next stage
            self._save()

    def _start(self, stage: Stage) -> None:
        """Begins a stage, or restores it from the checkpoint where a training resumes within it."""
        self.stage, data = stage, stage.dataset or self.dataset
        self.train, self.val = data.train.to(self.device), data.val.to(self.device)
        saved, self.saved, begun = self.saved, None, self.state.begun
        modules = {name: module.to(self.device) for name, module in stage.modules.items()}
        self.modules = {"model": self.model, **modules}
        self.team.prepare(self.modules.values())
        if saved:  # a stage that is about to begin has the modules of the one before it
            self._load(saved["modules"], {k: v for k, v in self.modules.items() if begun or k in saved["modules"]})
        if not begun and stage.begin is not None:
            self._seed("begin")
            stage.begin()
        self.average = moving_average(self.model, stage.ema) if stage.ema else None
        self.optimisers = {name: spec.build() for name, spec in stage.optimisers.items()}
        if self.average:
            self.modules["ema"] = self.average.module
        if saved and begun:
            self._load(saved["optimisers"], self.optimisers)
            if self.average:
                self._load(saved["modules"], {"ema": self.average.module})
                self.average.n_averaged.fill_(saved["updates"] + 1)
            self._write_rest()  # a kill may have come between the checkpoint and it
        if not begun:
            self.state.begun, self.state.score, self.state.best = True, NO_SCORE, 0
            self._measure({"epoch": 0}, 0.0)
            self._save()

    def _epoch(self, epoch: int) -> None:
        started = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch + 1}
        for part in self.stage.passes:
            means: dict[str, Tensor] = {}
            self._seed(epoch, part.name, "begin")
            if part.begin is not None:
                part.begin()
            row |= self._probe(part.probes)
            self.optimisers |= {name: self.stage.optimisers[name].build() for name in part.reset_optimizers}
            for repeat in range(part.repeats):
                means = self._pass(part, epoch, repeat)
            prefix = "" if part is self.stage.passes[-1] else f"{part.name}/"
            row |= {prefix + name: float(value) for name, value in means.items()}
        self._check_finite(f"in epoch {epoch + 1}", row)
        self.state.epoch = epoch + 1
        self._measure(row, started)
        self._save()

    def _check_finite(self, when: str, row: Mapping[str, float] | None = None) -> None:
        """Raises FloatingPointError for numbers or weights of a training that diverged, before any of them is kept."""
        numbers = (name for name, value in (row or {}).items() if not isfinite(value))
        weights = (not_finite(module.state_dict()) for module in self.modules.values())
        if what := next(filter(None, (*numbers, *weights)), ""):
            raise FloatingPointError(
                f"The {what} became NaN or infinite {when} of stage {self.stage.name!r}: lower the learning "
                "rate, or use precision 32-true. The checkpoint of the epoch before is kept."
            )

    @tuned_convolutions()
    def _pass(self, part: Pass, epoch: int, repeat: int) -> dict[str, Tensor]:
        """One pass over the training data; returns the means of the losses and their parts."""
        purpose = (epoch, part.name, repeat)
        self._seed(*purpose, "global")  # for dropout and whatever else draws globally
        order, draws = (
            torch.Generator(self.device).manual_seed(derive_seed(self.seed, self.stage.name, *purpose, name))
            for name in ("data", "updates")
        )
        self.model.train()
        means: dict[str, Tensor] = {}
        steps, rest = -(-len(self.train) // self.batch_size), len(self.train) % self.batch_size
        few = 0 < rest < 2 * self.team.size and steps > 1  # BatchNorm cannot train on a last batch of one
        batches = self.train.batches(
            self.batch_size, shuffle=True, augment=part.augment, generator=order, drop_last=few
        )
        for step, batch in enumerate(batches):
            now = epoch + (repeat + (step + 0.5) / steps) / part.repeats
            for name, optimiser in self.optimisers.items():
                spec = self.stage.optimisers[name]
                for group in optimiser.param_groups:
                    group["lr"] = spec.lr * spec.schedule(now)
            context = StepContext(epoch, step, now / self.stage.epochs, draws, self.precision)
            stance = self._stance("default" if len(batch) == self.batch_size else "force_eager")
            with stance, self.team.share(batch) as own:
                _accumulate(means, self._step(part, own, context), len(own.y) / len(self.train))
        return self.team.summed(means, self.device)

    def _step(self, part: Pass, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Runs a method's update generator on a batch: each loss that it yields is differentiated and stepped on at once."""
        sums: dict[str, Tensor] = {}
        updates, stepped, mixed = part.updates(batch, context), True, self.precision == "bf16-mixed"
        try:
            while True:
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=mixed
                ):  # what a method computes, and nothing between two yields
                    item = next(updates, None)
                if item is None:
                    break
                name, loss = item
                for optimiser in self.optimisers.values() if stepped else ():
                    optimiser.zero_grad()
                weighted(loss.total).backward()
                if stepped := loss.step:
                    self.team.average_gradients(self.optimisers[name])
                    self.optimisers[name].step()
                    prefix = "" if len(self.optimisers) == 1 else f"{name}/"
                    _accumulate(sums, {prefix + "loss": loss.total, **{prefix + k: v for k, v in loss.parts.items()}})
        finally:
            updates.close()  # a method may have weights to put back
        self.team.average_statistics(self.modules.values())
        if self.average:
            self.average.update_parameters(self.model)
        return sums

    def _measure(self, row: dict[str, Any], started: float) -> None:
        """Validates where it is time to, probes, warns, keeps the best weights, and adds the row to the metrics."""
        self._seed(row["epoch"], "measure")  # probes may draw
        numbers, withstood, same = dict[str, float](), torch.zeros(0, dtype=torch.bool), False
        if row["epoch"] % self.method.validate_every == 0 or row["epoch"] == self.stage.epochs:
            judged = (self.deployed, self.train, self.val, self.threat, self.seed, self.precision)
            numbers, withstood, same = validate(*judged)
        self._check_finite(f"in epoch {row['epoch']}", {"logits on validation images": sum(numbers.values())})
        before = {r["stage"]: r["epoch"] for r in self.state.rows if r["stage"] != self.stage.name}
        epochs = sum(before.values()) + self.state.epoch
        row = {"stage": self.stage.name, "epoch_total": epochs, **row, **numbers, **self._probe(self.stage.probes)}
        clean, robust = (numbers.get(name, -1.0) for name in ("clean_val", "robust_val"))
        score = (robust, clean) if self.stage.adversarial else (clean, robust)
        least = NO_SCORE if self.stage.keep == "last" else self.state.score
        if row["epoch"] and score > least:
            self.state.score, self.state.best_robust, self.state.best = score, withstood, row["epoch"]
        row["warnings"] = [] if self.state.rows else self.advice  # said once, before the first epoch
        if self.stage.adversarial and self.stage.monitored and row["epoch"] and numbers:
            own = (r for r in self.state.rows if r["stage"] == self.stage.name and r["epoch"])
            epochs_before = [r for r in own if "robust_val" in r]
            row["warnings"] = overfitting([*epochs_before, row], self.state.best_robust, withstood)
        if same and self.stage.monitored and row["epoch"]:
            row["warnings"] += ["constant predictions: the model calls every validation image the same class"]
        row["lr"] = next((o.param_groups[0]["lr"] for o in self.optimisers.values()), 0.0) if row["epoch"] else 0.0
        row["seconds"] = time.perf_counter() - started if started else 0.0
        self.state.seconds += row["seconds"]
        self.state.rows.append(row)
        self.tracker.epochs(self.state.rows)
        if self.progress and self.team.writes and (row["epoch"] or row["warnings"]):
            self.log.show(self.state.rows)

    def _probe(self, probes: Mapping[str, Probe]) -> dict[str, float]:
        """What `probes` say of the deployed weights, by "probe/<name>"."""
        row: dict[str, float] = {}
        for name, probe in probes.items():
            found = probe(self.deployed, probe_batch(self.val))
            numbers = found if isinstance(found, Mapping) else {name: found}
            row |= {f"probe/{key}": float(torch.as_tensor(value).detach()) for key, value in numbers.items()}
        return row

    @property
    def deployed(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.average.module if self.average else self.model

    def _seed(self, *purpose: object) -> None:
        """Seeds torch's global generator for a purpose within the stage."""
        torch.manual_seed(derive_seed(self.seed, self.stage.name, *purpose))

    def _load(self, saved: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        """Fills modules or optimisers with what a checkpoint holds of them."""
        try:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.run.path}/checkpoint.pt does not fit this run ({reason}): use --rerun.") from error

    def _save(self) -> None:
        """Writes checkpoint.pt, then what follows from it."""
        if not self.team.writes:
            return
        content = {
            "run": self.run.place,
            "state": {**vars(self.state), "rows": json.dumps(self.state.rows)},
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "devices": self.team.size,
            "updates": int(self.average.n_averaged) - 1 if self.average else 0,  # of the averaged weights
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(self.run.path / "checkpoint.pt", buffer.getbuffer())
        self._write_rest()

    def _write_rest(self) -> None:
        """Writes the weights, where those of the checkpoint are the best, and metrics.jsonl."""
        if not self.team.writes:
            return
        if self.state.best == self.state.epoch > 0:
            facts = {"run": self.run.place, "epoch": str(self.state.epoch)}
            save_weights(self.deployed, self.run.path / "model.safetensors", facts)
        write_atomic(self.run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.rows))


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """The content of a checkpoint of the run at the place `run`, None if there is none; never executes code from the file."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # load_state_dict moves what must move
        state = State(**{**content["state"], "rows": json.loads(content["state"]["rows"])})
        parts = {name: content[name] for name in ("modules", "optimisers", "updates")}
    except Exception as error:  # whatever a damaged file makes torch raise
        remedy = "delete it, or use --rerun to start anew"
        raise InputError(f"{path} is no checkpoint of robustlib, or a truncated one: {remedy}.") from error
    check_owner(path, content.get("run"), run)
    return {**parts, "state": state, "devices": content.get("devices", 1)}


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of parameters and buffers.

    Its decay at update t is min(decay, (1 + t) / (10 + t)), so that early updates count.
    """

    def average(shadows: Any, current: Any, _: Any) -> None:
        t = int(averaged.n_averaged) - 1  # on the CPU: the argument's copy on a GPU would have to be waited for
        if shadows[0].is_floating_point():  # torch groups by dtype
            torch._foreach_lerp_(shadows, current, 1 - min(decay, (1 + t) / (10 + t)))
        else:
            torch._foreach_copy_(shadows, current)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    averaged.n_averaged.fill_(1)  # the copy is the first of the averaged; at 0 the first update would replace it
    averaged.module.eval().requires_grad_(False)
    return averaged


def _accumulate(sums: dict[str, Tensor], parts: Mapping[str, Any], weight: float = 1.0) -> None:
    """Adds without waiting for the device."""
    for name, value in parts.items():
        value = torch.as_tensor(value).detach().float() * weight
        sums[name] = sums[name] + value if name in sums else value
