"""What is computed for many images: half of them at a time where memory runs out."""

import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

import torch

from robustlib.errors import InputError

T = TypeVar("T")
OUT_OF_MEMORY = (  # in messages of CUDA, of CPUs, of oneDNN and of C++
    *("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED"),
    *("could not create a primitive", "bad_alloc"),
)


class MemoryGuard:
    """Swallows an out-of-memory error of `divisible` work; where it has `failed`, go on with half of it."""

    def __init__(self, divisible: bool = True) -> None:
        self.divisible, self.failed = divisible, False

    def __enter__(self) -> "MemoryGuard":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        error = error.__cause__ if isinstance(error, InputError) else error  # as `logits_of` words it
        known = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
        self.failed = self.divisible and (known or isinstance(error, (MemoryError, torch.OutOfMemoryError)))
        if self.failed:
            traceback.clear_frames(trace)  # else the error would still hold the batch's tensors
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return self.failed


def halving(compute: Callable[[slice], T], count: int, size: int) -> Iterator[T]:
    """The results of `compute` for slices of range(count), in order: `size` rows each, and half of that from where memory runs out.

    For a single row the error is raised.
    """
    start = 0
    while start < count:
        rows = slice(start, min(start + size, count))
        with MemoryGuard(divisible=rows.stop - start > 1) as guard:
            result = compute(rows)
        if guard.failed:
            size = (rows.stop - start + 1) // 2
            continue
        yield result
        start = rows.stop
