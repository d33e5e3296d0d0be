"""What a GPU would be asked to do and to keep, counted without one."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FREE = {torch.ops.aten.detach, torch.ops.aten.empty_like, torch.ops.aten._unsafe_view}


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
