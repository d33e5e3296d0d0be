"""What a GPU would be asked to do, counted without one."""

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
