"""A data set: three fixed splits and what a model and an attack must know about their images."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustlib.data.split import Split
from robustlib.errors import InputError
from robustlib.threat import Threat

SPLIT_SEED = 0  # every split and subset is drawn with this seed, once and for all

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,), positions int64 (N,)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three splits.

    Args:
        name: as in DATASETS.
        train, val, test: the splits; val is taken from the published training data, test is the published one.
        class_names: one name per label.
        mean, std: per channel over the training images in [0, 1]; the model normalises with them.
        threat: the threat model its robust accuracy is usually reported for.

    Raises:
        InputError: a label outside the class names, splits of different image shapes.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat: Threat

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
        """The same data set with `n` stratified, seeded training examples; everything else stays as it is.

        Raises:
            InputError: fewer than one example per class.
        """
        if n < self.num_classes:
            raise InputError(f"A subset of {n!r} examples cannot hold all {self.num_classes} classes of {self.name}.")
        if n >= len(self.train):
            return self
        return replace(self, train=self.train.sample(n))

    def only(self, classes: Iterable[int], *, relabel: bool = False) -> "Dataset":
        """The examples of some classes, in all splits; statistics and threat stay those of the whole.

        Args:
            classes: their labels.
            relabel: number them 0, 1, 2 ... in rising order and forget the other classes; else labels and names stay.

        Raises:
            InputError: none of the training images shows any of them, or one that is no class of this data set.
        """
        chosen = torch.tensor(sorted(set(classes)), dtype=torch.int64)
        said = f"classes {tuple(chosen.tolist())}"
        if len(chosen) and not 0 <= int(chosen[0]) <= int(chosen[-1]) < self.num_classes:
            raise InputError(f"{self.name} has no {said}: give labels of 0 to {self.num_classes - 1}.")
        if not bool(torch.isin(self.train.labels.cpu(), chosen).any()):
            raise InputError(f"No training image of {self.name} shows any of the {said}: give labels that occur in it.")

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


def stratified(labels: Tensor | np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rest and of `held_out` examples, each ascending and with the classes' shares kept."""
    from sklearn.model_selection import train_test_split

    positions = np.arange(len(labels))
    try:
        rest, held = train_test_split(
            positions, test_size=held_out, stratify=np.asarray(labels), random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(
            f"Cannot hold out {held_out} of {len(labels)} examples with every class in both: {error}"
        ) from error
    return np.sort(rest), np.sort(held)


def hold_out(images: np.ndarray, labels: np.ndarray, held_out: int) -> tuple[Triple, Triple]:
    """Splits (images, labels) into the rest and `held_out` stratified examples: two triples images, labels, positions.

    The rest's images are moved up *inside* `images`, so that no second copy of a large data set is ever held.
    """
    rest, held = stratified(labels, held_out)
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
