"""The loop itself: stages, epochs, passes, steps. It knows no method and no paper.

What a training says while it runs: one line an epoch, the same on a terminal, in a notebook and in a log.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.data import Batch, Dataset
from robustlib.errors import InputError
from robustlib.rng import derive_seed
from robustlib.runs import Run, save_weights
from robustlib.training import checkpoint
from robustlib.training.stages import EMA, Loss, Pass, Probe, Stage, StepContext, Trainable, Updates
from robustlib.training.validation import overfitting, probe_batch, validate

ACCURACIES = {"clean_val": "clean", "robust_val": "PGD-10"}  # absent where a model does not predict yet


def epoch_line(name: str, rows: Sequence[Mapping[str, Any]], total: int) -> str:
    """ "trades · small_cnn · seed 0 · epoch 3/30 · loss 0.52 · clean 97.1 % · PGD-10 60.2 % · 0:41 left"."""
    row = rows[-1]
    times = [r["seconds"] for r in rows if r["epoch"]][-5:]
    left = sum(times) / max(len(times), 1) * (total - row["epoch_total"])
    losses = [f"{k.replace('/', ' ')} {v:.3f}" for k, v in row.items() if k.split("/")[-1] == "loss"]
    parts = [
        name,
        f"epoch {row['epoch_total']}/{total}",
        *losses,
        *(f"{said} {row[key] * 100:.1f} %" for key, said in ACCURACIES.items() if key in row),
        *([f"{clock(left)} left"] if times and row["epoch_total"] < total else []),
        *([] if row["epoch_total"] < total else [f"done in {clock(sum(r['seconds'] for r in rows))}"]),
    ]
    return " · ".join(parts) + "".join(f"\n  warning: {text}" for text in row["warnings"])


def clock(seconds: float) -> str:
    """0:41, 12:05 or 3:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Training:
    """One training on one device; construct it, then `run_stages`."""

    def __init__(
        self,
        run: Run,
        method: Trainable,
        dataset: Dataset,
        model: nn.Module,
        seed: int,
        device: torch.device,
        precision: Any,
        threads: int | None,
        compile: bool,
        progress: bool,
    ) -> None:
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces what we asked for
        self.run, self.seed, self.device, self.precision, self.progress = run, seed, device, precision, progress
        index = [device.index or 0] if device.type == "cuda" else 1
        self.fabric = Fabric(accelerator=device.type, devices=index, precision=precision)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.model.compile()
        self.dataset, self.batch_size, self.threat = dataset, method.batch_size, method.threat(dataset)
        self.advice = method.advice(run.params().get("arch", method.arch))
        self.saved = checkpoint.load(run.path / "checkpoint.pt")
        self.state = self.saved["state"] if self.saved else checkpoint.State(threads=threads or torch.get_num_threads())
        if threads and threads != self.state.threads:
            raise InputError(
                f"{run.path} was begun with {self.state.threads} CPU threads and would give other numbers with {threads}: "
                f"resume with threads={self.state.threads}, or start anew with --rerun."
            )
        torch.set_num_threads(self.state.threads)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def run_stages(self, method: Trainable) -> None:
        """Runs what is left of the method's stages and stores the last weights."""
        stages = method.stages(self.dataset, self.model)
        self.total = sum(stage.epochs for stage in stages)
        for number in range(self.state.stage, len(stages)):
            self._stage(stages[number], last=number == len(stages) - 1)
        save_weights(self._shown, self.run.path / "last.safetensors")

    # ---- a stage

    def _stage(self, stage: Stage, last: bool) -> None:
        self.stage, data = stage, stage.dataset or self.dataset
        self.train, self.val = data.train.to(self.device), data.val.to(self.device)
        saved, self.saved = self.saved, None
        shared = {name: module.to(self.device) for name, module in stage.modules.items()}
        self.modules = {"model": self.model, **shared}
        self._restore("modules", self.modules, saved, partly=not self.state.begun)
        if not self.state.begun and stage.begin is not None:
            torch.manual_seed(derive_seed(self.seed, stage.name, "begin"))
            stage.begin()
        self.ema = EMA(self.model, stage.ema) if stage.ema else None
        self.modules |= {"ema": self.ema.module} if self.ema else {}
        self.optimisers = {name: spec.build() for name, spec in stage.optimisers.items()}
        if self.state.begun:
            self._restore("modules", self.modules, saved)
            self._restore("optimisers", self.optimisers, saved)
            if self.ema and saved:
                self.ema.updates = saved["updates"]
        if not self.state.begun:
            self.state.begun, self.state.score = True, checkpoint.NO_SCORE
            self._measure({"epoch": 0}, 0.0)
            self._save()
        for epoch in range(self.state.epoch, stage.epochs):
            self._epoch(epoch)
        if stage.end is not None:
            stage.end(self._shown, probe_batch(self.val))
        self.model.load_state_dict(self._shown.state_dict())  # the next stage goes on from the average
        if not last:
            self.state.stage, self.state.epoch, self.state.begun = self.state.stage + 1, 0, False
            self.optimisers, self.ema = {}, None
            self.modules.pop("ema", None)  # what the stage trained beside the model may serve the next one
            self._save()

    def _restore(self, kind: str, mine: Mapping[str, Any], saved: dict[str, Any] | None, partly: bool = False) -> None:
        """Fills modules or optimisers with what the checkpoint holds of them; `partly`: it may not know them all."""
        if saved is None:
            return
        try:
            for name, part in mine.items():
                if not partly or name in saved[kind]:
                    part.load_state_dict(saved[kind][name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.run.path}/checkpoint.pt does not fit this run ({reason}): use --rerun.") from error

    @property
    def _shown(self) -> nn.Module:
        """The weights that are validated and kept: the average where there is one."""
        return self.ema.module if self.ema else self.model

    # ---- an epoch

    def _epoch(self, epoch: int) -> None:
        started = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch + 1}
        for part in self.stage.passes:
            sums: dict[str, Tensor] = {}
            torch.manual_seed(derive_seed(self.seed, self.stage.name, epoch, part.name, "begin"))
            if part.begin is not None:
                part.begin()
            row |= self._probed(part.probes)
            self.optimisers |= {name: self.stage.optimisers[name].build() for name in part.reset_optimizers}
            for repeat in range(part.repeats):
                sums = self._pass(part, epoch, repeat)
            means = {name: float(value) for name, value in sums.items()}
            prefix = "" if part is self.stage.passes[-1] else f"{part.name}/"
            row |= {prefix + name: value for name, value in means.items()}
        if any(value != value for value in row.values()):
            raise FloatingPointError(
                f"The loss became NaN in epoch {epoch + 1} of stage {self.stage.name!r}: lower the learning rate, or use "
                "precision 32-true. The checkpoint of the epoch before is kept."
            )
        self.state.epoch = epoch + 1
        self._measure(row, started)
        self._save()

    def _pass(self, part: Pass, epoch: int, repeat: int) -> dict[str, Tensor]:
        """One pass over the training data; returns the means of the losses and their parts."""
        names = (self.seed, self.stage.name, epoch, part.name, repeat)
        torch.manual_seed(derive_seed(*names, "global"))  # for dropout and whatever else draws globally
        data = torch.Generator(self.device).manual_seed(derive_seed(*names, "data"))
        draws = torch.Generator(self.device).manual_seed(derive_seed(*names, "updates"))
        self.model.train()
        sums: dict[str, Tensor] = {}
        steps = -(-len(self.train) // self.batch_size)
        rest = len(self.train) % self.batch_size
        batches = self.train.batches(
            self.batch_size, shuffle=True, augment=part.augment, generator=data, drop_last=rest == 1 and steps > 1
        )  # BatchNorm cannot train on a last batch of one
        for step, batch in enumerate(batches):
            now = epoch + (repeat + (step + 0.5) / steps) / part.repeats
            for name, optimiser in self.optimisers.items():
                spec = self.stage.optimisers[name]
                for group in optimiser.param_groups:
                    group["lr"] = spec.lr * spec.schedule(now)
            context = StepContext(epoch, step, now / self.stage.epochs, draws, self.precision)
            _accumulate(sums, self._step(part, batch, context), len(batch.y) / len(self.train))
        return sums

    def _step(self, part: Pass, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Drives one update generator: whatever it yields is differentiated and stepped before it goes on."""
        means: dict[str, Tensor] = {}
        updates = part.updates(batch, context)
        try:
            for name, loss in self._yields(updates):
                for optimiser in self.optimisers.values():
                    optimiser.zero_grad()
                self.fabric.backward(loss.total)
                self.optimisers[name].step()
                prefix = "" if len(self.optimisers) == 1 else f"{name}/"
                _accumulate(means, {prefix + "loss": loss.total, **{prefix + k: v for k, v in loss.parts.items()}})
        finally:
            updates.close()  # a method may have weights to put back
        if self.ema:
            self.ema.update(self.model)
        return means

    def _yields(self, updates: Updates) -> Iterator[tuple[str, Loss]]:
        while True:
            with self.fabric.autocast():
                item = next(updates, None)
            if item is None:
                return
            yield item

    # ---- after an epoch

    def _measure(self, row: dict[str, Any], started: float) -> None:
        """Validates, probes, warns, keeps the best weights, and adds the row to the metrics."""
        torch.manual_seed(derive_seed(self.seed, self.stage.name, row["epoch"], "measure"))  # probes may draw
        result = validate(self._shown, self.train, self.val, self.threat, self.seed, self.precision)
        row = {"stage": self.stage.name, "epoch_total": self._epochs_done(), **row, **result.numbers}
        row |= self._probed(self.stage.probes)
        clean, robust = (result.numbers.get(name, -1.0) for name in ("clean_val", "robust_val"))
        score = (robust, clean) if self.stage.adversarial else (clean, robust)
        least = checkpoint.NO_SCORE if self.stage.keep == "last" else self.state.score
        if row["epoch"] and score > least:
            self.state.score, self.state.best_robust = score, result.robust
            save_weights(self._shown, self.run.path / "model.safetensors", {"epoch": str(row["epoch"])})
        mine = [r for r in self.state.rows if r["stage"] == self.stage.name and r["epoch"]] + [row]
        row["warnings"] = [] if self.state.rows else self.advice  # said once, before the first epoch
        if self.stage.adversarial and self.stage.monitored and row["epoch"]:
            row["warnings"] = overfitting(mine, self.state.best_robust, result.robust)
        row["lr"] = next((o.param_groups[0]["lr"] for o in self.optimisers.values()), 0.0) if row["epoch"] else 0.0
        row["seconds"] = time.perf_counter() - started if started else 0.0
        self.state.seconds += row["seconds"]
        self.state.rows.append(row)
        if self.progress and (row["epoch"] or row["warnings"]):
            print(epoch_line(self.run.name, self.state.rows, self.total), flush=True)

    def _probed(self, probes: Mapping[str, Probe]) -> dict[str, float]:
        """What `probes` say of the weights that are shown."""
        row: dict[str, float] = {}
        for name, probe in probes.items():
            found = probe(self._shown, probe_batch(self.val))
            numbers = found if isinstance(found, Mapping) else {name: found}
            row |= {f"probe/{key}": float(torch.as_tensor(value).detach()) for key, value in numbers.items()}
        return row

    def _epochs_done(self) -> int:
        finished = {r["stage"]: r["epoch"] for r in self.state.rows if r["stage"] != self.stage.name}
        return sum(finished.values()) + self.state.epoch

    def _save(self) -> None:
        updates = self.ema.updates if self.ema else 0
        checkpoint.save(self.run, self.state, self.modules, self.optimisers, updates)


def _accumulate(sums: dict[str, Tensor], parts: dict[str, Any], weight: float = 1.0) -> None:
    """Adds without waiting for the device."""
    for name, value in parts.items():
        value = torch.as_tensor(value).detach().float() * weight
        sums[name] = sums[name] + value if name in sums else value
