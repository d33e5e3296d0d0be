"""The data sets by name: where each comes from and how it is cut into train, validation and test."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from robustlib.data import folders, sources, toy
from robustlib.data.augment import Policy
from robustlib.data.dataset import Dataset, Triple, channel_stats, hold_out
from robustlib.data.sources import Arrays
from robustlib.data.split import Split
from robustlib.errors import InputError, unknown
from robustlib.threat import Threat


@dataclass(frozen=True)
class Source:
    """How a data set is found and treated.

    Args:
        read: (data root, download?) -> its published arrays.
        threat: default threat model.
        policy: what its images may undergo.
        val: validation examples, taken from the training data (at most a fifth of them).
        embedded: comes with an installed package, so it needs no data root.
    """

    read: Callable[[Path, bool], Arrays]
    threat: Threat
    policy: Policy
    val: int = 1000
    embedded: bool = False


# Crops are padded by an eighth of the image, as 4 of 32 in the CIFAR papers; mirrored digits are no digits.
DATASETS: dict[str, Source] = {
    "digits": Source(sources.digits, Threat("linf", 0.2), Policy(pad=1), val=256, embedded=True),
    "mnist": Source(sources.mnist, Threat("linf", 0.3), Policy(pad=2)),
    "fashion-mnist": Source(sources.fashion_mnist, Threat("linf", 0.1), Policy(pad=2, flip=True)),
    "cifar10": Source(sources.cifar10, Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "cifar100": Source(sources.cifar100, Threat("linf", 8 / 255), Policy(pad=4, flip=True)),
    "imagenette": Source(folders.imagenette, Threat("linf", 4 / 255), Policy(pad=20, flip=True)),
    "tiny-imagenet": Source(folders.tiny_imagenet, Threat("linf", 4 / 255), Policy(pad=8, flip=True)),
    # Radii of 0.4 and 0.1 in the toys' own coordinates, whose classes lie 2 apart and touch.
    "xor": Source(toy.xor, Threat("l2", 0.1), Policy(), embedded=True),
    "sinusoid": Source(toy.sinusoid, Threat("l2", 0.05), Policy(), embedded=True),
}

LABEL_SET = re.compile(r"(.+)-(\d+)-(\d+)")  # of a data set, and its first and last label


def load_dataset(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """The data set `name` with its fixed, stratified splits, on the CPU.

    Args:
        name: one of DATASETS; or a label set of one, "digits-5-9": its classes 5 to 9 alone, as 0 to 4, in the same splits.
        root: directory with the published files; default: the environment variable ROBUSTLIB_DATA.
        download: fetch what is missing into `root`; without it nothing touches the network.

    Raises:
        InputError: unknown name or labels, no data there, corrupted files, labels out of range.
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
        (images, labels, positions), test = hold_out(images, labels, sources.DIGITS_TEST)
    else:
        test = (*arrays.test, np.arange(len(arrays.test[1])))
    kept, held = hold_out(images, labels, min(source.val, len(labels) // 5))
    train, val = (_split((x, y, positions[at]), source.policy) for x, y, at in (kept, held))
    mean, std = channel_stats(kept[0])
    test_split = _split(test, source.policy)
    return Dataset(name, train, val, test_split, arrays.class_names, mean, std, source.threat)


def _split(arrays: Triple, policy: Policy) -> Split:
    images, labels, positions = map(torch.from_numpy, arrays)
    return Split(images, labels, positions, policy)
