"""What a GPU would be asked to do and to keep, counted without one."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}
FREE = {aten.detach, aten.empty_like, aten._unsafe_view}


class Launches(TorchDispatchMode):
    """Counts the kernels that a GPU would start for the operations within: one each, none for views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func._overloadpacket not in FREE:
            self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))

    def total(self) -> int:
        return self.names.total()


class Held(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd holds for backward passes of graphs made within; what is recomputed counts as never held."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        super().__init__(self._hold, lambda held: held[0])

    def __enter__(self) -> "Held":
        super().__enter__()
        return self

    def _hold(self, tensor: torch.Tensor) -> tuple[torch.Tensor, "Releases"]:
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        return tensor, Releases(self, size)


class Releases:
    """Tells when what autograd holds is let go."""

    def __init__(self, held: Held, size: int) -> None:
        self.held, self.size = held, size

    def __del__(self) -> None:
        self.held.now -= self.size


class PretendGraph(TorchDispatchMode):
    """Records operations as a CUDA graph does kernels, refuses those that wait for the device, and repeats them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [z for z in tree_leaves(args[1:]) if isinstance(z, torch.Tensor) and z.dtype == torch.bool]
        if func._overloadpacket in WAITS or (
            func._overloadpacket in {aten.index, aten.index_put, aten.index_put_} and masks
        ):
            raise RuntimeError(f"{func.name()} waits for the device, which a CUDA graph cannot")
        answer = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, answer))
        return answer

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad(), _disable_current_modes():
            for func, args, kwargs, answer in self.calls:
                for mine, new in zip(tree_leaves(answer), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(new, torch.Tensor) and new is not mine:
                        mine.detach().copy_(new)


def pretend_cuda(patch: pytest.MonkeyPatch) -> list[PretendGraph]:
    """CPU tensors are recorded as if on a GPU, and nothing that is compiled is; returns the graphs that will be made."""
    made: list[PretendGraph] = []

    def make() -> PretendGraph:
        made.append(PretendGraph())
        return made[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    pretended = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    for name, value in {**pretended, "CUDAGraph": make, "graph": lambda graph: graph}.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch, "compile", lambda call, **_: call)
    patch.setattr("robustlib.attacks.recording.DEVICES", ("cpu",))
    return made
