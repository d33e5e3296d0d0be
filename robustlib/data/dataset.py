"""Data sets by name: where each comes from, how it is cut into train, validation and test, and the batches these are served in."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from robustlib.data import sources
from robustlib.data.augmentation import VIEWS, Policy
from robustlib.data.sources import Arrays
from robustlib.errors import Count, InputError, Whole, check_known, check_path, explained, typed
from robustlib.threat import Threat

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,), positions int64 (N,)


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
        """A new view of the same images, float32 (B, C, H, W) in [0, 1]: "none", "flip", "weak", "simclr" or "simclr-weak"."""
        return VIEWS[check_known("view", name, VIEWS)](self.images, self.policy, self.generator)


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of a data set, whole on one device."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    indices: Tensor  # position of each example in the original files, int64 (N,)
    policy: Policy = field(default_factory=Policy)  # what the images may undergo

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            given = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise InputError(f"A split holds images as uint8 (N, C, H, W), not {given}: convert them first.")
        if self.labels.dtype != torch.int64 or self.indices.dtype != torch.int64:
            raise InputError(f"Labels and indices are int64, not {self.labels.dtype} and {self.indices.dtype}.")
        if not len(self.images) == len(self.labels) == len(self.indices):
            counts = f"{len(self.images)} images, {len(self.labels)} labels, {len(self.indices)} indices"
            raise InputError(f"A split needs one label and one index per image, not {counts}.")
        indices, times = self.indices.unique(return_counts=True)
        if len(indices) < len(self.indices):
            said = f"Index {int(indices[times.argmax()])} occurs {int(times.max())} times in a split of {len(self)} examples"
            raise InputError(f"{said}: give each example once, with an index of its own.")

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
        if not 0 < typed(n, Whole, "n") < len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(sources.SEED))
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
        """All examples once, `batch_size` at a time, on the split's device; the last batch may be smaller, or is left out.

        With `shuffle` the order, drawn first, and all views come from `generator`, on the split's device; None: PyTorch's global one.
        """
        typed(batch_size, Count, "batch_size")
        check_known("view", augment or "none", VIEWS)

        def serve() -> Iterator[Batch]:
            order = torch.randperm(len(self), generator=generator, device=self.labels.device) if shuffle else None
            stop = len(self) - len(self) % batch_size if drop_last else len(self)
            for start in range(0, stop, batch_size):
                at: Tensor | slice = slice(start, start + batch_size)
                at = at if order is None else order[at]
                examples = self.images[at], self.labels[at], self.indices[at]
                yield Batch(*examples, self.policy, augment or "none", generator)

        return serve()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three splits, and what a model and an attack must know about them."""

    name: str  # as in DATASETS
    train: Split
    val: Split  # taken from the published training data
    test: Split  # the published one
    class_names: tuple[str, ...]  # one per label
    mean: tuple[float, ...]  # per channel over the training images in [0, 1]; the model normalises with them
    std: tuple[float, ...]
    threat: Threat  # that its robust accuracy is usually reported for

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            wrong = ((split.labels < 0) | (split.labels >= self.num_classes)).nonzero().flatten()
            if len(wrong):
                where = f"example {int(wrong[0])} in the {part} split of {self.name}"
                right = f"with {self.num_classes} classes labels are 0 to {self.num_classes - 1}"
                said = f"Label {int(split.labels[wrong[0]])} of {where} is out of range: {right}"
                raise InputError(f"{said}. {len(wrong)} label(s) are wrong; check the label file.")
            if split.images.shape[1:] != self.train.images.shape[1:]:
                shapes = f"{tuple(split.images.shape[1:])}, its training images {self.image_shape}"
                raise InputError(f"The {part} images of {self.name} have the shape {shapes}: make them equal.")
        shared = self.val.indices[torch.isin(self.val.indices, self.train.indices)].tolist()
        # A published test split has indices of its own files.
        twice = len(self.test) and any(torch.equal(self.test.images, split.images) for split in (self.train, self.val))
        if shared or twice:
            what = f"train and val share index {shared[0]}" if shared else "test has the images of another one"
            raise InputError(f"The splits of {self.name} overlap ({what}): give each image to one of them alone.")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image."""
        return tuple(self.train.images.shape[1:])

    def subset(self, n: int) -> "Dataset":
        """The same data set with `n` stratified, seeded training examples; everything else stays as it is."""
        if n < self.num_classes:
            raise InputError(f"A subset of {n!r} examples cannot hold all {self.num_classes} classes of {self.name}.")
        return self if n >= len(self.train) else replace(self, train=self.train.sample(n))

    def only(self, classes: Iterable[int], *, relabel: bool = False) -> "Dataset":
        """The examples of some classes (labels), in all splits; statistics and threat stay those of the whole.

        With `relabel` they are numbered 0, 1, 2 ... in rising order and the other classes' names are dropped.
        """
        labels = tuple(sorted(set(classes)))
        if labels and not 0 <= labels[0] <= labels[-1] < self.num_classes:
            raise InputError(f"{self.name} has no classes {labels}: give labels of 0 to {self.num_classes - 1}.")
        parts: dict[str, Any] = {}
        for part in ("train", "val", "test"):
            split: Split = getattr(self, part)
            chosen = torch.tensor(labels, dtype=torch.int64, device=split.labels.device)
            kept = split.select(torch.isin(split.labels, chosen))
            parts[part] = replace(kept, labels=torch.searchsorted(chosen, kept.labels)) if relabel else kept
        if not len(parts["train"]):
            said = f"No training image of {self.name} shows any of the classes {labels}"
            raise InputError(f"{said}: give labels that occur in it.")
        names = tuple(self.class_names[label] for label in labels) if relabel else self.class_names
        return replace(self, **parts, class_names=names)


def hold_out(images: np.ndarray, labels: np.ndarray, held_out: int) -> tuple[Triple, Triple]:
    """Splits (images, labels) into the rest and `held_out` stratified examples: two triples images, labels, positions (ascending).

    The rest's images are moved up *inside* `images`, so that no second copy of a large data set is ever held.
    """
    from sklearn.model_selection import train_test_split

    said = f"Cannot hold out {held_out} of {len(labels)} examples with every class in both"
    with explained(ValueError, lambda error: f"{said}: {error}"):
        parts = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=sources.SEED)
    rest, held = map(np.sort, parts)
    held_images = images[held]
    for start in range(0, len(rest), 1024):  # in order: a position is read before anything is written over it
        some = rest[start : start + 1024]
        images[start : start + len(some)] = images[some]
    return (images[: len(rest)], labels[rest], rest), (held_images, labels[held], held)


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W) seen as [0, 1], in little extra memory."""
    channels, height, width = images.shape[1:]
    total, squares = np.zeros(channels), np.zeros(channels)  # sums of integers below 2**53, so exact in any order
    at_once = max(1, 2**17 // (height * width))  # 1 MB a channel stays in the cache
    for start in range(0, len(images), at_once):
        wide = images[start : start + at_once].reshape(-1, channels, height * width).astype(np.float64)
        total += wide.sum((0, 2))
        squares += np.einsum("ncp,ncp->c", wide, wide)
    count = len(images) * height * width
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))  # a constant channel must not divide by zero
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


@dataclass(frozen=True)
class Source:
    """How a data set is found and treated."""

    read: Callable[[Path, bool], Arrays]  # (data root, download?) -> its published arrays
    threat: Threat  # default threat model
    policy: Policy  # what its images may undergo
    val: int = 1000  # validation examples, taken from the training data (at most a fifth of them)
    embedded: bool = False  # comes with an installed package, so it needs no data root


# Crops are padded by an eighth of the image, as 4 of 32 in the CIFAR papers; mirrored digits are no digits.
DATASETS: dict[str, Source] = {
    "digits": Source(sources.digits, Threat("linf", 0.2), Policy(pad=1), val=256, embedded=True),
    "mnist": Source(partial(sources.idx, "mnist"), Threat("linf", 0.3), Policy(pad=2)),
    "fashion-mnist": Source(partial(sources.idx, "fashion-mnist"), Threat("linf", 0.1), Policy(pad=2, flip=True)),
    "cifar10": Source(partial(sources.cifar, "cifar10"), Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "cifar100": Source(partial(sources.cifar, "cifar100"), Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "imagenette": Source(sources.imagenette, Threat("linf", 4 / 255), Policy(pad=20, flip=True)),
    "tiny-imagenet": Source(sources.tiny_imagenet, Threat("linf", 4 / 255), Policy(pad=8, flip=True)),
    # Radii of 0.4 and 0.1 in the toys' own coordinates, whose classes lie 2 apart and touch.
    "xor": Source(sources.xor, Threat("l2", 0.1), Policy(), embedded=True),
    "sinusoid": Source(sources.sinusoid, Threat("l2", 0.05), Policy(), embedded=True),
}


def load_dataset(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """The data set `name`, one of DATASETS, with its fixed, stratified splits, on the CPU; "digits-5-9" are its classes 5 to 9 alone,
    as 0 to 4, in the same splits.

    `root` is the directory of the published files, by default ROBUSTLIB_DATA; only with `download` is the network touched.
    """
    typed(name, str, "dataset"), typed(download, bool, "download")
    check_path(typed(root, Path | str | None, "data root"))
    if name not in DATASETS:
        label_set = re.fullmatch(r"(.+)-(\d{1,4})-(\d{1,4})", name)
        whole, first, last = label_set.groups() if label_set else (name, "", "")
        dataset = load_dataset(check_known("dataset", whole, DATASETS), root=root, download=download)
        return replace(dataset.only(range(int(first), int(last) + 1), relabel=True), name=name)
    source, given = DATASETS[name], root or os.environ.get("ROBUSTLIB_DATA")
    if not given and not source.embedded:
        remedy = "say where its files are with --data-root DIR or the environment variable ROBUSTLIB_DATA"
        raise InputError(f"No data root for {name!r}: {remedy}, and add --download to fetch them there.")
    path = Path(os.path.expanduser(given or "."))  # as os.path.isdir, raises nothing
    if not (os.path.isdir(path) or download or source.embedded):
        said = f"The data root {str(path)!r} is not a directory: correct --data-root or ROBUSTLIB_DATA"
        raise InputError(f"{said}, or add --download to create it and fetch {name!r}.")
    which, remedy = f"{name!r} below {str(path)!r}", "check the permissions and the disk, or correct --data-root"
    with explained(OSError, lambda error: f"The data of {which} cannot be read ({error}): {remedy}."):
        (images, labels), published_test, class_names = source.read(path, download)
    for part, pair in {"training": (images, labels), "test": published_test}.items():
        if pair is not None and not len(pair[0]) == len(pair[1]) > 0:
            said = f"{name} has {len(pair[0])} {part} images and {len(pair[1])} labels for them"
            raise InputError(f"{said}: it needs one label per image, and at least one; check its reader.")
    positions = np.arange(len(labels))
    if published_test is None:
        (images, labels, positions), held_test = hold_out(images, labels, sources.DIGITS_TEST)
    else:
        held_test = (*published_test, np.arange(len(published_test[1])))
    kept, held_val = hold_out(images, labels, min(source.val, len(labels) // 5))
    mean, std = channel_stats(kept[0])
    cuts = (*((x, y, positions[k]) for x, y, k in (kept, held_val)), held_test)
    train, val, test = (Split(*map(torch.from_numpy, cut), source.policy) for cut in cuts)  # type: ignore[call-arg, arg-type]
    return Dataset(name, train, val, test, class_names, mean, std, source.threat)
