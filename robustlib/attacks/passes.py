"""What an attack costs, whatever the machine: passes of single images through the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Passes:
    """How many images went forward through a model, and for how many a gradient came back; each draw of a stochastic one counts."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward passes together: a gradient step is two."""
        return self.forward + self.backward


_counters: ContextVar[tuple[Passes, ...]] = ContextVar("counters", default=())


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Counts what the attacks of this package ask of models until the context ends, verification in float32 included. An attack
    that calls the model itself is not seen."""
    passes = Passes()
    token = _counters.set((*_counters.get(), passes))
    try:
        yield passes
    finally:
        _counters.reset(token)


def add_passes(images: int, backward: bool = False) -> None:
    """Tells every `count_passes` around that so many images went forward and, with `backward`, back."""
    for passes in _counters.get():
        passes.forward += images
        passes.backward += images * backward
