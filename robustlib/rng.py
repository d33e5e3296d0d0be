"""Random numbers that belong to an example, not to a batch (no split or interruption changes them), and derived seeds.

Each example has a 64-bit seed; number j of draw t is a hash of (seed, t, j), SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from robustlib.errors import InputError
from robustlib.threat import TINY, Threat, norms


def _signed(constant: int) -> int:
    """A 64-bit constant as int64 holds it: torch has no unsigned 64-bit arithmetic, but two's complement wraps alike."""
    return constant - (1 << 64) if constant >> 63 else constant


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
BITS = 23  # random bits in a float: k + 1/2 is still exact in float32


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # logical, while >> on int64 is arithmetic


def _mix(z: Tensor) -> Tensor:
    z = _shift_right(z, 30).bitwise_xor_(z).mul_(FIRST)
    z = _shift_right(z, 27).bitwise_xor_(z).mul_(SECOND)
    return _shift_right(z, 31).bitwise_xor_(z)


@dataclass(frozen=True)
class Shard:
    """The rows (b,) of a batch of `size` examples that this process has, where several train one model."""

    rows: Tensor
    size: int


_shard: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextmanager
def sharded(shard: Shard) -> Iterator[None]:
    """Within, `drawn` gives the numbers of these rows."""
    token = _shard.set(shard)
    try:
        yield
    finally:
        _shard.reset(token)


def drawn(draw: Callable[[int], Tensor], count: int, dim: int = 0) -> Tensor:
    """draw(count), random numbers of `count` examples along `dim`; where a batch is shared (see `sharded`) all processes draw those of
    the whole batch and keep their own, also of several copies of the batch one after another."""
    if (shard := _shard.get()) is None or count == 1:  # one image alone is tried by all of them; each has two at least
        return draw(count)
    copies, rest = divmod(count, len(shard.rows))
    if rest:
        said = f"Numbers for {count} of the {len(shard.rows)} images that a device has cannot be shared"
        raise InputError(f"{said}: draw for all images of a batch, or train on one device.")
    whole = draw(copies * shard.size)
    rows = torch.cat([shard.rows + copy * shard.size for copy in range(copies)])
    return whole.index_select(dim, rows.to(whole.device))


@dataclass(frozen=True)
class ExampleRNG:
    """One stream of random numbers for each example; indexing keeps some."""

    seeds: Tensor  # (B,) int64

    @classmethod
    def from_generator(cls, generator: torch.Generator | None, size: int, device: torch.device) -> "ExampleRNG":
        """Seeds for `size` examples, taken in order from `generator` (torch's global one if None)."""
        source = generator.device if generator is not None else torch.device("cpu")

        def draw(count: int) -> Tensor:
            return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=source)

        return cls(drawn(draw, size).to(device))

    @classmethod
    def for_examples(cls, seed: int, indices: Tensor) -> "ExampleRNG":
        """Seeds that depend only on `seed` and each example's own index (B,) in its data set."""
        return cls(_mix(_mix(indices + GOLDEN) + _signed(seed * GOLDEN % 2**64)))

    def __getitem__(self, chosen: Tensor | slice) -> "ExampleRNG":
        return ExampleRNG(self.seeds[chosen])

    def fold_in(self, tag: int) -> "ExampleRNG":
        """Independent streams for another purpose (a restart, a step), one for each non-negative `tag`."""
        return ExampleRNG(_mix(self.seeds + _signed((tag + 1) * FIRST % 2**64)))

    def _hashes(self, count: int) -> Tensor:
        return _mix(self.seeds[:, None] + torch.arange(1, count + 1, device=self.seeds.device) * GOLDEN)

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 from U[0, 1)."""
        return _shift_right(self._hashes(prod(shape)), 64 - BITS).view(-1, *shape).float() * 2.0**-BITS

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32 from N(0, 1), by inverting the distribution function (|value| < 5.4)."""
        return torch.special.ndtri(self.uniform(*shape) + 0.5 * 2.0**-BITS)

    def quick_normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32 from N(0, 1), others than `normal` gives and sooner: two of 23 bits from each hash (|value| < 5.2)."""
        size = prod(shape)
        halves = self._hashes((size + 1) // 2).view(torch.int32)[:, :size]
        uniform = (halves >> 32 - BITS).float().add_(0.5).mul_(2.0 ** (1 - BITS))  # exact, in (-1, 1)
        return uniform.erfinv_().mul_(sqrt(2)).view(-1, *shape)


def uniform_point(threat: Threat, x: Tensor, rng: ExampleRNG) -> Tensor:
    """A uniformly random point of the ball around each x (N, C, H, W), clipped to [0, 1]."""
    shape, uniform = x.shape[1:], rng.uniform(*x.shape[1:])
    if threat.norm == "linf":
        return (x + threat.eps * (2 * uniform - 1)).clamp(0, 1)
    normal = rng.fold_in(0).normal(*shape)
    radius = threat.eps * uniform.flatten(1)[:, 0].pow(1 / prod(shape)).view(-1, *[1] * len(shape))
    return (x + radius * normal / norms(normal, "l2").clamp_min(TINY)).clamp(0, 1)


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Within, torch's global generators, of the CPU and of `device`, may be seeded and drawn from; afterwards they are as before."""
    other = device.type != "cpu"
    with torch.random.fork_rng([device] if other else [], device_type=device.type if other else None):
        yield


def derive_seed(*parts: object) -> int:
    """A 63-bit seed for a purpose, e.g. derive_seed(0, "pgd_at", 3, "data"); other parts, unrelated numbers."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
