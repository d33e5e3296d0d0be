"""Several processes that train one model, one on each device: each has its rows of every batch, and all take the same step.

The model is not wrapped. Every process draws the order, views and attack seeds of the whole batch and keeps its own; between a backward
pass and the step, gradients are averaged by one collective on one flat tensor. Lightning Fabric starts the processes and their group.
"""

import logging
import os
import pickle
import tempfile
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing import ProcessRaisedException

from robustlib.data import Batch
from robustlib.errors import InputError, explained
from robustlib.losses.spectral import PowerIteration
from robustlib.rng import Shard, sharded

BatchNormOver = Literal["sync", "local"]  # statistics of the whole batch, or of each device's rows
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process among those that train one model; alone by default, and then everything below does nothing."""

    rank: int = 0
    size: int = 1
    batchnorm: BatchNormOver = "sync"

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @contextmanager
    def share(self, batch: Batch) -> Iterator[Batch]:
        """This process's rows of a batch; within, draws are those of the whole one, and its losses are taken from it."""
        if self.size == 1:
            yield batch
            return
        rows = torch.arange(self.rank, len(batch), self.size, device=batch.y.device)
        token = _current.set((self, len(rows) / len(batch)))
        try:
            with sharded(Shard(rows, len(batch))):
                yield batch.shard(rows)
        finally:
            _current.reset(token)

    def check(self, saved: Mapping[str, Any], place: Path) -> None:
        """Raises InputError for a checkpoint of another number of devices."""
        if saved.get("devices", self.size) != self.size:
            begun = f"{place} was begun on {saved['devices']} devices and would give other numbers on {self.size}"
            raise InputError(f"{begun}: resume on as many, or start anew with --rerun.")

    def prepare(self, modules: Iterable[nn.Module]) -> None:
        """Lets BatchNorm take the statistics of whole batches, where it shall."""
        for norm in (
            m for module in modules for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ):
            if self.size > 1 and self.batchnorm == "sync":
                norm.__dict__["forward"] = types.MethodType(
                    _synchronised, norm
                )  # the class stays, by which it is folded

    @torch.no_grad()
    def average_gradients(self, optimiser: torch.optim.Optimizer) -> None:
        """Gives the weights of an optimiser their gradients over the whole batch."""
        if self.size > 1:
            weights = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            for weight, gradient in zip(weights, averaged_gradients([p.grad for p in weights]), strict=True):
                weight.grad.copy_(gradient)

    @torch.no_grad()
    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Gives all processes the same running statistics, where each had its own, and the same vectors of power iteration."""
        if self.size == 1:
            return
        every = [part for module in modules for part in module.modules()]
        norms = [m for m in every if isinstance(m, nn.modules.batchnorm._BatchNorm) and self.batchnorm == "local"]
        moving = [b for m in norms for b in m.buffers(False) if b.is_floating_point()]
        for buffer, mean in zip(moving, averaged(moving), strict=True):
            buffer.copy_(mean)
        for power in (m for m in every if isinstance(m, PowerIteration)):  # of a mean, signs would cancel
            dist.broadcast(power.vectors, 0)

    def summed(self, means: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Of numbers that each process has for its own rows those of all."""
        if self.size == 1 or not means:
            return means
        together = torch.stack([value.to(device) for value in means.values()])
        dist.all_reduce(together)
        return dict(zip(means, together.unbind(), strict=True))

    def exchanged(self, answer: T) -> list[T]:
        """The answers of all processes, in their order."""
        if self.size == 1:
            return [answer]
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, answer)
        return answers

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


# The team whose share of a batch this is, and the part of the batch that this process has.
_current: ContextVar[tuple[Team, float] | None] = ContextVar("current", default=None)


def weighted(loss: Tensor) -> Tensor:
    """A mean over this process's rows with the weight by which plain means over all processes are means over the whole batch. What
    synchronised BatchNorm sends back to the rows of other processes needs it before the backward pass."""
    current = _current.get()
    return loss if current is None else loss * (current[1] * current[0].size)


def averaged_gradients(parts: Sequence[Tensor | None]) -> list[Any]:
    """The gradients over the whole batch, of those of `weighted` losses."""
    current = _current.get()
    return averaged(parts, None if current is None else 1 / current[0].size)


@torch.no_grad()
def averaged(parts: Sequence[Tensor | None], weight: float | None = None) -> list[Any]:
    """Means over the whole batch of what this process has as means over its own rows, by one collective."""
    current, present = _current.get(), [part for part in parts if part is not None]
    if current is None or not present:
        return list(parts)
    flat = torch.cat([part.flatten() for part in present]) * (current[1] if weight is None else weight)
    dist.all_reduce(flat)
    means = iter(flat.split([part.numel() for part in present]))
    return [None if part is None else next(means).view_as(part) for part in parts]


def gathered(z: Tensor, dim: int = 0) -> Tensor:
    """The rows of the whole batch along `dim`, in its order, of which this process has its own: for losses in which examples see each
    other. Its gradient is that of the own rows, times what `averaged` divides it by."""
    current = _current.get()
    return z if current is None else _Gather.apply(z, dim, *current)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, dim: int, team: Team, share: float) -> Tensor:
        own = z.detach().movedim(dim, 0)
        size = round(len(own) / share)
        whole = own.new_zeros(size, *own.shape[1:])
        whole[team.rank :: team.size] = own
        dist.all_reduce(whole)
        ctx.dim, ctx.team, ctx.share = dim, team, share
        return whole.movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        own = upstream.movedim(ctx.dim, 0)[ctx.team.rank :: ctx.team.size] / ctx.share
        return own.movedim(0, ctx.dim), None, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return _Sum.apply(upstream.contiguous())


def _synchronised(norm: Any, x: Tensor) -> Tensor:
    """BatchNorm's forward pass with the mean and variance of the rows of all processes."""
    if not norm.training:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)
    with torch.autocast(x.device.type, enabled=False):
        wide, axes = x.float(), [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
        *sums, count = _Sum.apply(torch.cat([wide.sum(axes), count])).split([x.shape[1], 1])
        mean = sums[0] / count
        off = wide - mean.view(shape)
        variance = _Sum.apply(off.square().sum(axes)) / count
        with torch.no_grad():
            if norm.track_running_stats:
                norm.num_batches_tracked.add_(1)
                pace = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                norm.running_mean.lerp_(mean, pace)
                norm.running_var.lerp_(variance * count / (count - 1), pace)
        answer = off * (variance.view(shape) + norm.eps).rsqrt()
        if norm.affine:
            answer = answer * norm.weight.view(shape) + norm.bias.view(shape)
    return answer.to(x.dtype)


def launch(kind: str, team: Team, work: Callable[[Team, torch.device], T]) -> T:
    """work(team, device) in a process on each device of that kind, which begins as by Python's "spawn"; the first one's answer.

    An InputError in one of them is raised here; Ctrl-C ends them all.
    """
    from lightning_fabric import Fabric, connector
    from lightning_fabric.plugins.environments import LightningEnvironment

    if kind != "cpu" and (present := torch.get_device_module(kind).device_count()) < team.size:
        raise InputError(f"devices={team.size}: this machine has {present} of {kind!r}. Give fewer.")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces what we asked for
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    # It refuses notebooks, whose functions a fresh process cannot import; ours are in files, and what is not is said below.
    connector._IS_INTERACTIVE = False
    environment = LightningEnvironment()  # also within a job of a scheduler, which has a number of tasks of its own
    fabric: Any = Fabric(accelerator=kind, devices=team.size, strategy="ddp_spawn", plugins=[environment])
    others = {*multiprocessing.active_children()}
    try:
        unsent = (AttributeError, TypeError, pickle.PicklingError)
        said = f"devices={team.size}: what is shared cannot be sent to other processes"
        remedy = "give classes and functions of files that Python can import"
        sendable = explained(unsent, lambda error: f"{said} ({error}): {remedy}.")
        # Fabric's own queue holds what a pipe does, and then waits for ever.
        with tempfile.TemporaryDirectory() as folder, explained(ProcessRaisedException, _last_words), sendable:
            file = Path(folder, "answer")
            fabric.launch(_begin, partial(work), file, torch.get_num_threads(), *astuple(team))
            answer: T = pickle.loads(file.read_bytes())  # this process's own
            return answer
    finally:
        for child in {*multiprocessing.active_children()} - others:
            child.terminate()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def relayed(tell: Callable[[Any], None] | None) -> Iterator[Callable[[Any], None] | None]:
    """What another process may be given in place of `tell`, which stays here."""
    if tell is None:
        yield None
        return
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    listener = threading.Thread(target=lambda: [tell(said) for said in iter(queue.get, None)])
    listener.start()
    try:
        yield queue.put
    finally:
        queue.put(None)
        listener.join()


def _begin(fabric: Any, work: Callable[[Team, torch.device], T], file: Path, threads: int, _: int, *rest: Any) -> None:
    torch.set_num_threads(threads)  # by which numbers on a CPU are rounded
    answer = work(Team(fabric.global_rank, *rest), fabric.device)
    if fabric.global_rank == 0:
        file.write_bytes(pickle.dumps(answer))


def _last_words(error: Exception) -> str:
    """Of an exception in another process what it said; others than InputError are raised as they are."""
    kind, _, said = str(error).strip().rpartition("\n")[2].partition(": ")
    if kind != "robustlib.errors.InputError":
        raise error
    return said


def check_devices(devices: int, batch_size: int, compile: bool, device: torch.device, present: int) -> None:
    """Raises InputError for more devices than there are, or than a batch has pairs of images."""
    if devices == 1:
        return
    where = f"devices={devices}"
    if device.type != "cpu" and (device.index is not None or devices > present):
        have = f"this machine has {present} of {device.type!r}, and they are taken from the first"
        raise InputError(f"{where} on {str(device)!r}: {have}. Give fewer, and {device.type!r} without a number.")
    if batch_size < 2 * devices:
        raise InputError(f"{where}: a batch of {batch_size} leaves less than two images for each; give fewer devices.")
    if compile:
        raise InputError(
            f"{where} with compile: what is compiled cannot wait for other processes; leave one of them out."
        )
