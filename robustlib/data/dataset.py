"""Data sets by name: where each comes from, and how it is cut into train, validation and test."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib.data import sources
from robustlib.data.augmentation import Policy
from robustlib.data.sources import Arrays
from robustlib.data.splits import Split
from robustlib.errors import InputError, unknown
from robustlib.threat import Threat

SPLIT_SEED = 0  # every split and subset is drawn with this seed, once and for all

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,), positions int64 (N,)


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
        for part in ("train", "val", "test"):
            split: Split = getattr(self, part)
            check_labels(split.labels, self.num_classes, f"the {part} split of {self.name}")
            if tuple(split.images.shape[1:]) != self.image_shape:
                shapes = f"{tuple(split.images.shape[1:])}, its training images {self.image_shape}"
                raise InputError(f"The {part} images of {self.name} have the shape {shapes}: make them equal.")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def subset(self, n: int) -> "Dataset":
        """The same data set with `n` stratified, seeded training examples; everything else stays as it is."""
        if n < self.num_classes:
            raise InputError(f"A subset of {n!r} examples cannot hold all {self.num_classes} classes of {self.name}.")
        if n >= len(self.train):
            return self
        return replace(self, train=self.train.sample(n))

    def only(self, classes: Iterable[int], *, relabel: bool = False) -> "Dataset":
        """The examples of some classes (labels), in all splits; statistics and threat stay those of the whole.

        With `relabel` they are numbered 0, 1, 2 ... in rising order and the other classes' names are dropped.
        """
        chosen = torch.tensor(sorted(set(classes)), dtype=torch.int64)
        named = f"classes {tuple(chosen.tolist())}"
        if len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.num_classes:
            raise InputError(f"{self.name} has no {named}: give labels of 0 to {self.num_classes - 1}.")
        if not bool(torch.isin(self.train.labels.cpu(), chosen).any()):
            raise InputError(
                f"No training image of {self.name} shows any of the {named}: give labels that occur in it."
            )

        def part(split: Split) -> Split:
            kept = split.select(torch.isin(split.labels, chosen.to(split.labels.device)))
            if not relabel:
                return kept
            return replace(kept, labels=torch.searchsorted(chosen.to(kept.labels.device), kept.labels))

        train, val, test = map(part, (self.train, self.val, self.test))
        names = tuple(self.class_names[label] for label in chosen.tolist()) if relabel else self.class_names
        return replace(self, train=train, val=val, test=test, class_names=names)


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raises InputError naming the first label outside 0 .. num_classes - 1."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"Label {int(labels[first])} of example {first} in {where} is out of range: with {num_classes} classes "
            f"labels are 0 to {num_classes - 1}. {len(wrong)} label(s) are wrong; check the label file."
        )


def hold_out(images: np.ndarray, labels: np.ndarray, held_out: int) -> tuple[Triple, Triple]:
    """Splits (images, labels) into the rest and `held_out` stratified examples: two triples images, labels, positions (ascending).

    The rest's images are moved up *inside* `images`, so that no second copy of a large data set is ever held.
    """
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=SPLIT_SEED)
    except ValueError as error:
        raise InputError(
            f"Cannot hold out {held_out} of {len(labels)} examples with every class in both: {error}"
        ) from error
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
    "mnist": Source(sources.mnist, Threat("linf", 0.3), Policy(pad=2)),
    "fashion-mnist": Source(sources.fashion_mnist, Threat("linf", 0.1), Policy(pad=2, flip=True)),
    "cifar10": Source(sources.cifar10, Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "cifar100": Source(sources.cifar100, Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "imagenette": Source(sources.imagenette, Threat("linf", 4 / 255), Policy(pad=20, flip=True)),
    "tiny-imagenet": Source(sources.tiny_imagenet, Threat("linf", 4 / 255), Policy(pad=8, flip=True)),
    # Radii of 0.4 and 0.1 in the toys' own coordinates, whose classes lie 2 apart and touch.
    "xor": Source(sources.xor, Threat("l2", 0.1), Policy(), embedded=True),
    "sinusoid": Source(sources.sinusoid, Threat("l2", 0.05), Policy(), embedded=True),
}

LABEL_SET = re.compile(r"(.+)-(\d+)-(\d+)")  # of a data set, and its first and last label


def load_dataset(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """The data set `name` with its fixed, stratified splits, on the CPU.

    Args:
        name: one of DATASETS; or a label set of one, "digits-5-9": its classes 5 to 9 alone, as 0 to 4, in the same splits.
        root: directory with the published files; default: the environment variable ROBUSTLIB_DATA.
        download: fetch what is missing into `root`; without it nothing touches the network.
    """
    if name not in DATASETS and (found := LABEL_SET.fullmatch(name)):
        whole, first, last = found[1], int(found[2]), int(found[3])
        dataset = load_dataset(whole, root=root, download=download)
        return replace(dataset.only(range(first, last + 1), relabel=True), name=name)
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    source = DATASETS[name]
    return _assemble(name, source, source.read(_root(name, source, root, download), download))


def _root(name: str, source: Source, root: str | Path | None, download: bool) -> Path:
    """The directory to look in; created when something is to be downloaded there."""
    given = root or os.environ.get("ROBUSTLIB_DATA")
    if source.embedded:
        return Path(given or ".")
    if not given:
        raise InputError(
            f"No data root for {name!r}: say where its files are with --data-root DIR or the environment variable "
            "ROBUSTLIB_DATA, and add --download to fetch them there."
        )
    path = Path(given).expanduser()
    if not path.is_dir() and not download:
        raise InputError(
            f"The data root {str(path)!r} is not a directory: correct --data-root or ROBUSTLIB_DATA, "
            f"or add --download to create it and fetch {name!r}."
        )
    return path


def _assemble(name: str, source: Source, arrays: Arrays) -> Dataset:
    """Cuts validation (and test, if none is published) from the training data."""
    (images, labels), positions = arrays.train, np.arange(len(arrays.train[1]))
    if arrays.test is None:
        (images, labels, positions), held_test = hold_out(images, labels, sources.DIGITS_TEST)
    else:
        held_test = (*arrays.test, np.arange(len(arrays.test[1])))
    kept, held_val = hold_out(images, labels, min(source.val, len(labels) // 5))
    mean, std = channel_stats(kept[0])
    cuts = (*((x, y, positions[k]) for x, y, k in (kept, held_val)), held_test)
    train, val, test = (Split(*map(torch.from_numpy, cut), source.policy) for cut in cuts)  # type: ignore[call-arg, arg-type]
    return Dataset(name, train, val, test, arrays.class_names, mean, std, source.threat)
