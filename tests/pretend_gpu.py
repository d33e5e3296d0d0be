"""A pretend accelerator, the device "pretend": tensors on it hold memory of the CPU, which computes what they say.

It raises as a GPU does where devices or generators are mixed and, as Apple's do, where float64 is asked for if `refuse_float64`. It counts
what makes the CPU wait for it: reading a number, boolean masks, `nonzero`, and copies of what a GPU computed to the host and back.
Speed, memory, cuDNN and TF32 it cannot show.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
WHERE = torch.device("privateuseone", 0)  # as it is called until it is registered
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
WAITS = {aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.repeat_interleave, aten.equal}
Generator, TENSOR, AS_TENSOR, NEW = torch.Generator, torch.tensor, torch.as_tensor, torch.Tensor.new_tensor


class Backend(backend_registration._DummyBackendModule):
    """What torch asks the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, _: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, *_: object) -> None: ...

    def synchronize(self, *_: object) -> None: ...


def registered() -> None:
    """Makes the name known to torch, once in a process; nothing else in it changes."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())


def is_pretend(device: Any) -> bool:
    return device is not None and torch.device(device).type == WHERE.type


class OnDevice(torch.Tensor):
    """A tensor on the device, whose memory is `raw`, a tensor of the CPU."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "OnDevice":
        like: dict[str, Any] = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.size(), layout=raw.layout, device=WHERE, **like)
        made.raw = raw
        return made

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "OnDevice") -> None:
        torch.Tensor.data.__set__(self, value)
        self.raw = value.raw

    def __reduce_ex__(self, protocol: Any) -> Any:  # a checkpoint is read on the CPU
        return self.raw.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made = OnDevice(self.raw.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        return memo[id(self)]

    def tolist(self) -> Any:
        Device.now.waits[f"tolist {line()}"] += 1
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Device.now.compute(func, args, kwargs or {})


class OnDeviceGenerator(Generator):
    """A generator of the device: its numbers are the CPU's, as long as the dispatcher asks for them."""

    def __new__(cls, *_: Any) -> "OnDeviceGenerator":
        return Generator.__new__(cls, "cpu")

    def __init__(self, *_: Any) -> None:
        Device.now.generators[self._cdata] = self  # alive: another would get its number

    @property
    def device(self) -> torch.device:
        return WHERE


class Generators(type):
    """Stands for torch.Generator, and makes one of the device where that is asked for."""

    def __instancecheck__(cls, given: Any) -> bool:
        return isinstance(given, Generator)

    def __call__(cls, device: Any = None) -> Any:
        return OnDeviceGenerator() if is_pretend(device) else Generator(*(() if device is None else (device,)))


class AnyGenerator(metaclass=Generators):
    """See Generators."""


def line() -> str:
    """Where in the package an operation was called."""
    frames = [f for f in traceback.extract_stack() if "/robustlib/" in f.filename]
    return f"{frames[-1].filename.split('/robustlib/')[-1]}:{frames[-1].lineno}" if frames else "a test"


class Device(TorchDispatchMode):
    """While entered, tensors can be made on the device, and its `waits` are counted by what they are and where."""

    now: "Device"

    def __init__(self, refuse_float64: bool = False) -> None:
        super().__init__()
        self.refuse_float64, self.waits, self.generators = refuse_float64, Counter[str](), dict[int, Any]()
        Device.now = self

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """What the CPU waits for within."""
        before, mine = self.waits, Counter[str]()
        self.waits = mine
        try:
            yield mine
        finally:
            self.waits = before + mine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation on the CPU, of which the answer is on the device where a tensor of it takes part."""
        leaves, device = tree_leaves((args, kwargs)), kwargs.get("device")
        there = [a for a in leaves if isinstance(a, OnDevice)]
        here = [a for a in leaves if isinstance(a, torch.Tensor) and not isinstance(a, OnDevice)]
        sent = is_pretend(device) if device is not None else bool(there)
        for generator in (a for a in leaves if isinstance(a, Generator)):
            if (generator._cdata in self.generators) != sent:
                raise RuntimeError(f"{func}: a generator of another device, at {line()}")
        if not there and not sent:
            return func(*args, **kwargs)
        self._check(func, args, there, here, sent)
        raw = tree_map(lambda a: a.raw if isinstance(a, OnDevice) else a, (args, kwargs))
        rest = raw[1] | ({"device": torch.device("cpu")} if "device" in kwargs else {})
        answer = func(*raw[0], **rest)
        own = {id(a.raw): a for a in there}
        if sent and self.refuse_float64 and any(getattr(o, "dtype", 0) == torch.float64 for o in tree_leaves(answer)):
            raise TypeError(f"{func}: this device has no float64, at {line()}")

        def home(made: Any) -> Any:
            if not isinstance(made, torch.Tensor) or any(made is a for a in here):
                return made
            return own.get(id(made)) if id(made) in own else OnDevice(made) if sent else made

        return args[0] if func is aten.copy_.default else tree_map(home, answer)

    def _check(self, func: Any, args: Any, there: list[Any], here: list[Any], sent: bool) -> None:
        """Refuses what a GPU would, and counts what it would wait for."""
        kind = func._overloadpacket
        if there and here and kind not in COPIES:
            first, whole = isinstance(args[0], OnDevice), [a for a in here if a.ndim]
            fine = first if kind in INDEXING or not whole else False
            if not (fine or (not whole and not func._schema.name.endswith("_"))):
                raise RuntimeError(f"{func}: tensors of two devices, {[tuple(a.shape) for a in here]}, at {line()}")
        masks = [i for i in tree_leaves(args[1:]) if getattr(i, "dtype", 0) == torch.bool] if kind in INDEXING else []
        if kind in COPIES:
            source, target = (args[1], isinstance(args[0], OnDevice)) if kind is aten.copy_ else (args[0], sent)
            if isinstance(source, OnDevice) != target:
                self.waits[f"copy {line()}"] += 1
        elif kind is aten._local_scalar_dense or kind in WAITS or masks or (kind in INDEXING and here):
            self.waits[f"{kind.__name__} {line()}"] += 1


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> torch.Tensor:
    if not is_pretend(device):
        return TENSOR(data, dtype=dtype, device=device, requires_grad=requires_grad)
    return TENSOR(data, dtype=dtype).to(device).requires_grad_(requires_grad)


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data.to(device=data.device if device is None else device, dtype=dtype or data.dtype)
    return _tensor(data, dtype=dtype, device=device)


def _new_tensor(self: torch.Tensor, data: Any, **rest: Any) -> torch.Tensor:
    return NEW(self, data, **rest) if not isinstance(self, OnDevice) else _tensor(data, device=WHERE, dtype=self.dtype)


@contextmanager
def pretend_gpu(**settings: bool) -> Iterator[Device]:
    """Within, this machine has the device; what is patched for it is put back."""
    registered()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, Device(**settings) as device:
        for owner, name, value in (
            *((torch, "Generator", AnyGenerator), (torch, "tensor", _tensor), (torch, "as_tensor", _as_tensor)),
            (torch.Tensor, "new_tensor", _new_tensor),
        ):
            patch.setattr(owner, name, value)
        torch.__future__.set_swap_module_params_on_conversion(True)  # else parameters would be others there
        try:
            yield device
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapped)
