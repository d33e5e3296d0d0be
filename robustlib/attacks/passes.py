"""What an attack costs, whatever the machine: passes of single images through the model."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_counters: ContextVar[tuple[Counter[str], ...]] = ContextVar("counters", default=())


@contextmanager
def count_passes() -> Iterator[Counter[str]]:
    """How many images go "forward" through models in attacks of this package, and for how many a gradient comes "backward", until
    the context ends: a gradient step is two passes, and each draw of a stochastic model counts. Verification in float32 counts
    too, an attack that calls the model itself does not."""
    passes: Counter[str] = Counter()
    token = _counters.set((*_counters.get(), passes))
    try:
        yield passes
    finally:
        _counters.reset(token)


def add_passes(images: int, backward: bool = False) -> None:
    """Tells every `count_passes` around that so many images went forward and, with `backward`, back."""
    for passes in _counters.get():
        passes.update({"forward": images, "backward": images * backward})
