"""A split of a data set, whole on one device, and the batches it is served in."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Generator, Tensor

from robustlib.data.augmentation import VIEWS, Policy
from robustlib.errors import InputError, unknown

SAMPLE_SEED = 0  # every sample of a split is drawn with this seed, once and for all


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples of a split; each `view` draws from the batch's generator, so the order of views matters."""

    images: Tensor  # uint8 (B, C, H, W)
    y: Tensor  # labels int64 (B,)
    index: Tensor  # position of each example in the original files, int64 (B,)
    policy: Policy = field(default_factory=Policy)  # what the images may undergo
    augment: str = "none"  # the view that `x` shows
    generator: Generator | None = None  # source of every draw, on the images' device; None means PyTorch's global one

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def x(self) -> Tensor:
        """The view `augment`, float32 (B, C, H, W) in [0, 1]; drawn at the first use, then kept."""
        return self.view(self.augment)

    def view(self, name: str) -> Tensor:
        """A new view of the same images, float32 (B, C, H, W) in [0, 1]: "none", "weak", "simclr" or "simclr-weak"."""
        if name not in VIEWS:
            raise unknown("view", name, VIEWS)
        return VIEWS[name](self.images, self.policy, self.generator)


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of a data set on one device."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    indices: Tensor  # position of each example in the original files, int64 (N,)
    policy: Policy = field(default_factory=Policy)  # what the images may undergo

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise InputError(f"A split holds images as uint8 (N, C, H, W), not {found}: convert them first.")
        if self.labels.dtype != torch.int64 or self.indices.dtype != torch.int64:
            raise InputError(f"Labels and indices are int64, not {self.labels.dtype} and {self.indices.dtype}.")
        if not len(self.images) == len(self.labels) == len(self.indices):
            counts = f"{len(self.images)} images, {len(self.labels)} labels, {len(self.indices)} indices"
            raise InputError(f"A split needs one label and one index per image, not {counts}.")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.indices.to(device), self.policy)

    def select(self, idx: Tensor) -> "Split":
        """The examples at positions `idx` (int64 (M,) or bool (N,)) of this split."""
        idx = idx.to(self.labels.device)
        return Split(self.images[idx], self.labels[idx], self.indices[idx], self.policy)

    def sample(self, n: int) -> "Split":
        """`n` examples with the classes' shares kept, always the same ones, in order; all if there are no more (or n is 0)."""
        if not 0 < n < len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(SAMPLE_SEED))
        labels = self.labels.cpu()[order]
        is_class = torch.nn.functional.one_hot(labels)
        rank = is_class.cumsum(0).gather(1, labels[:, None])[:, 0]  # 1 for the first of its class, and so on
        place = (rank - 0.5) / is_class.sum(0)[labels]  # the classes advance side by side
        return self.select(order[place.argsort(stable=True)[:n]].sort().values)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: str | None = None,
        generator: Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """All examples once, `batch_size` at a time, on the split's device.

        Args:
            batch_size: examples in a batch; the last one may be smaller.
            shuffle: in a random order, drawn before the first batch.
            augment: the view that `batch.x` shows; None shows the plain images.
            generator: source of the order and of all views, on the split's device; None means PyTorch's global one.
            drop_last: leave out a last batch that is not full.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size!r} holds no example: give a whole number of at least 1.")
        if augment is not None and augment not in VIEWS:
            raise unknown("view", augment, VIEWS)
        return self._serve(batch_size, shuffle, augment or "none", generator, drop_last)

    def _serve(
        self, batch_size: int, shuffle: bool, augment: str, generator: Generator | None, drop_last: bool
    ) -> Iterator[Batch]:
        order = torch.randperm(len(self), generator=generator, device=self.labels.device) if shuffle else None
        stop = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, stop, batch_size):
            here: Tensor | slice = slice(start, start + batch_size)
            here = here if order is None else order[here]
            yield Batch(self.images[here], self.labels[here], self.indices[here], self.policy, augment, generator)
