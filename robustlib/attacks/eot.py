"""Several draws of a randomised model in one batch: the images repeated as often as memory allows."""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustlib.errors import out_of_memory

Look = TypeVar("Look")


@dataclass
class EOTBatcher:
    """How many images a model looks at in one go; it shrinks when memory runs out, and says so the first time.

    Args:
        size: images, repetitions counted.
        repeats: whether images may be repeated at all; not where examples see each other, as in BatchNorm's train mode.
    """

    size: int = sys.maxsize
    repeats: bool = True
    shrunk: bool = False

    def chunks(self, model: nn.Module, images: int, draws: int, look: Callable[[int], Look]) -> Iterator[Look]:
        """look(n) for n draws of so many images at a time, as even as they come, until there are `draws` of them.

        One draw at a time of a model that does not say `draws_by_example`: in a repeated batch all its draws could be the same.

        Raises:
            RuntimeError, MemoryError: not even one draw fits, or another error of `look`.
        """
        together = self.repeats and bool(getattr(model, "draws_by_example", False))
        done = 0
        while done < draws:
            most = max(1, self.size // images) if together else 1
            rounds = -(-(draws - done) // most)
            n = -(-(draws - done) // rounds)
            found = _within_memory(look, n)
            if found is None:
                self._shrink(images, n)
            else:
                done += n
                yield found

    def _shrink(self, images: int, n: int) -> None:
        """Half as many draws from here on."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self.size = images * ((n + 1) // 2)
        if not self.shrunk:
            message = f"Out of memory with {n} draws of {images} images in one batch: going on with fewer at a time."
            warnings.warn(message, UserWarning, stacklevel=5)
        self.shrunk = True


def _within_memory(look: Callable[[int], Look], n: int) -> Look | None:
    """look(n); None if the memory does not suffice for it, but may for fewer draws."""
    try:
        return look(n)
    except (RuntimeError, MemoryError) as error:
        if n == 1 or not out_of_memory(error):
            raise
    return None  # outside of `except`, where the error would still hold the batch's tensors


def repeated(x: Tensor, n: int) -> Tensor:
    """x (B, ...) n times over, (n B, ...): all images, then all images again."""
    return x if n == 1 else x.repeat(n, *[1] * (x.ndim - 1))
