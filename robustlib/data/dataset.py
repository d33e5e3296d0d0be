"""Data sets by name: where each comes from, how it is cut into train, validation and test, and the batches these are served in."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from robustlib.data import arrays, sources
from robustlib.data.augmentation import VIEWS, Policy
from robustlib.data.cuts import Triple, apart, channel_stats, hold_out, share_apart
from robustlib.data.plugins import load_registered, registered
from robustlib.data.sources import Arrays
from robustlib.errors import ANY, Count, InputError, Whole, check_known, check_path, explained, typed
from robustlib.threat import Threat

Held = Annotated[float, "(0, 1)", "the share of images that validate"]
Tested = Annotated[float, "(0, 1]", "the share of images that are evaluated, 1 for all"]
USUAL = Threat("linf", 4 / 255)  # of natural images of 64 pixels and more, as Imagenette's


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples of a split; each `view` draws from the batch's generator, so the order of views matters."""

    images: Tensor  # uint8 (B, C, H, W)
    y: Tensor  # labels int64 (B,)
    index: Tensor  # position of each example in the original files, int64 (B,)
    policy: Policy = field(default_factory=Policy)  # what the images may undergo
    augment: str = "none"  # the view that `x` shows
    generator: Generator | None = None  # source of every draw, on the images' device; None means PyTorch's global one
    whole: "Batch | None" = None  # of which these are the `rows`, where several processes share a batch
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def x(self) -> Tensor:
        """The view `augment`, float32 (B, C, H, W) in [0, 1]; drawn at the first use, then kept."""
        return self.view(self.augment) if self.whole is None else self.whole.x[self.rows]

    def view(self, name: str) -> Tensor:
        """A new view of the same images, float32 (B, C, H, W) in [0, 1]: "none", "flip", "weak", "simclr" or "simclr-weak"."""
        if self.whole is not None:
            return self.whole.view(name)[self.rows]
        return VIEWS[check_known("view", name, VIEWS)](self.images, self.policy, self.generator)

    def anew(self) -> "Batch":
        """The same examples, of which `x` is another draw."""
        return replace(self, whole=self.whole and replace(self.whole))

    def shard(self, rows: Tensor) -> "Batch":
        """Some of the examples (int64), whose views are those that they have in the whole batch."""
        return replace(self, images=self.images[rows], y=self.y[rows], index=self.index[rows], whole=self, rows=rows)


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of a data set, whole on one device."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    indices: Tensor  # position of each example in the original files, int64 (N,)
    policy: Policy = field(default_factory=Policy)  # what the images may undergo
    _elsewhere: dict[torch.device, "Split"] = field(default_factory=dict, init=False, repr=False)  # on other devices

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
        """The same examples on `device`, where they stay as long as this split lives: they travel once."""
        if (device := torch.device(device)) == self.labels.device:
            return self
        if device not in self._elsewhere:
            images, labels, indices = (tensor.to(device) for tensor in (self.images, self.labels, self.indices))
            self._elsewhere[device] = Split(images, labels, indices, self.policy)
        return self._elsewhere[device]

    def __reduce__(self) -> tuple[Any, ...]:
        """What travels to another process are the examples, without their copies elsewhere."""
        return Split, (self.images, self.labels, self.indices, self.policy)

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

    def batch(self, at: slice | Tensor, view: str = "none", generator: Generator | None = None) -> Batch:
        """The examples at positions `at`, whose views draw from `generator`."""
        check_known("view", view, VIEWS)
        return Batch(self.images[at], self.labels[at], self.indices[at], self.policy, view, generator)

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
                yield self.batch(at, augment or "none", generator)

        return serve()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three splits, and what a model and an attack must know about them."""

    name: str  # as in DATASETS, or of one's own images with their digest
    train: Split  # it and val are empty where all images are there to be evaluated
    val: Split  # taken from the published training data
    test: Split  # the published one
    class_names: tuple[str, ...]  # one per label
    mean: tuple[float, ...]  # per channel over the training images in [0, 1]; the model normalises with them
    std: tuple[float, ...]
    threat: Threat  # that its robust accuracy is usually reported for
    origin: Mapping[str, Any] | None = None  # what `load_images` was asked, for params.json; None of all others

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

    @classmethod
    def of(
        cls,
        x: Any,
        y: Any = None,
        *,
        name: str = "images",
        class_names: Sequence[str] | None = None,
        threat: Threat = USUAL,
        val: float = 0.2,
        test: float = 0.2,
        flip: bool = False,
    ) -> "Dataset":
        """A data set of one's own images, cut once and for all into stratified parts; it is called `name`-<pixels>px-<digest>.

        Args:
            x: a tensor or an array of images, (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W) of grey ones; uint8,
                or floats in [0, 1], which are rounded to 256 levels. Or, without `y`, an object as torchvision's data sets are:
                its length, and (image, label) at each index, the images PIL's or tensors (C, H, W).
            y: whole numbers (N,), 0 to K - 1.
            name: what the digest of images, labels, class names, shares and `flip` is added to.
            class_names: K names; without them each label names itself, and all of 0 to K - 1 must occur.
            threat: that robust accuracy is reported for.
            val, test: shares of all images; the rest is for training. With test=1.0 all images are evaluated, by a model that was
                trained elsewhere; mean and std are then those of these images.
            flip: whether training may mirror images.
        """
        images, labels, names = arrays.examples(x, y, class_names)
        return assemble(name, images, labels, names, threat=threat, val=val, test=test, flip=flip)

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


def check_split(split: object) -> Split:
    """The split; raises InputError for anything else, such as the data set that it is of."""
    return typed(split, Annotated[Split, ANY, "such as ds.test"], "split")


def check_dataset(dataset: object) -> Dataset:
    """The data set; raises InputError for anything else, such as its name or one of its splits."""
    return typed(dataset, Annotated[Dataset, ANY, "such as load_dataset('digits')"], "dataset")


def assemble(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    sizes: tuple[int, int, int] | None = None,
    *,
    threat: Threat,
    val: float,
    test: float,
    flip: bool,
    origin: Mapping[str, Any] | None = None,
) -> Dataset:
    """A data set of one's own images, uint8 (N, C, H, W), which the caller gives up, and labels int64 (N,), 0 to K - 1.

    `sizes` are those of the parts train, val and test in which they come, of which `val` stands in for a missing `test`, and a share
    `val` of `train` for a missing `val`. Without sizes, or with training images alone, the shares `val` and `test` are cut off.
    """
    val, test = typed(val, Held, "val"), typed(test, Tested, "test")
    typed(threat, Threat, "threat"), typed(flip, bool, "flip")
    train, given_val, given_test = sizes or (len(labels), 0, 0)
    if not given_test:
        given_val, given_test = 0, given_val
    undivided = not given_test
    if undivided and test == 1:
        train, given_test, undivided = 0, train, False
    shares = (val if train and not given_val else 0, test if undivided else 0)  # where they are used
    cut = (train, given_val, given_test, *shares, flip and train > 0)
    name = arrays.content_name(name, images, labels, class_names, cut)
    ends = np.cumsum([train, given_val])
    kept, held, tested = zip(*(np.split(a, ends) for a in (images, labels, np.arange(len(labels)))), strict=True)
    if undivided:
        if val + test >= 1:
            said = f"val={val:g} and test={test:g} leave no images for training"
            raise InputError(f"{said}: give shares that sum to less than 1, or test=1.0 for all.")
        kept, tested = share_apart(kept, test, class_names, 3)
    if train and not given_val:
        kept, held = share_apart(kept, val / (1 - test) if undivided else val, class_names, 2)
    policy = Policy(pad=min(images.shape[2:]) // 8, flip=flip)
    return _joined(name, (kept, held, tested), class_names, policy, threat, origin)


def _joined(
    name: str,
    cuts: Sequence[Triple],
    class_names: tuple[str, ...],
    policy: Policy,
    threat: Threat,
    origin: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set of three parts, with the statistics of the first one that has images."""
    mean, std = channel_stats(next(images for images, *_ in (cuts[0], *cuts[::-1]) if len(images)))
    train, val, test = (Split(*map(torch.from_numpy, cut), policy) for cut in cuts)  # type: ignore[call-arg, arg-type]
    return Dataset(name, train, val, test, class_names, mean, std, threat, origin)


@dataclass(frozen=True)
class Source:
    """How a data set is found and treated."""

    read: Callable[[Path, bool], Arrays]  # (data root, download?) -> its published arrays
    threat: Threat  # default threat model
    policy: Policy  # what its images may undergo
    val: int = 1000  # validation examples, taken from the training data (at most a fifth of them)
    embedded: bool = False  # comes with an installed package, so it needs no data root


PLUGINS = "robustlib.datasets"  # entry points of installed packages: a name, and the Source that it stands for

# Crops are padded by an eighth of the image, as 4 of 32 in the CIFAR papers; mirrored digits are no digits.
#: The data sets by name, each with its reader, threat model and augmentation.
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
    """The data set `name`, one of DATASETS or of an installed package's (entry points "robustlib.datasets"), with its fixed, stratified splits, on the CPU; "digits-5-9" are its classes 5 to 9 alone,
    as 0 to 4, in the same splits.

    `root` is the directory of the published files, by default ROBUSTLIB_DATA; only with `download` is the network touched.
    """
    typed(name, str, "dataset"), typed(download, bool, "download")
    check_path(typed(root, Path | str | None, "data root"))
    known: Mapping[str, Any] = DATASETS if name in DATASETS else {**registered(PLUGINS), **DATASETS}
    if name not in known:
        label_set = re.fullmatch(r"(.+)-(\d{1,4})-(\d{1,4})", name)
        whole, first, last = label_set.groups() if label_set else (name, "", "")
        dataset = load_dataset(check_known("dataset", whole, known), root=root, download=download)
        return replace(dataset.only(range(int(first), int(last) + 1), relabel=True), name=name)
    source, given = (
        DATASETS.get(name) or load_registered(PLUGINS, name, Source),
        root or os.environ.get("ROBUSTLIB_DATA"),
    )
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
    kept, held_val = apart((images, labels, positions), min(source.val, len(labels) // 5))
    return _joined(name, (kept, held_val, held_test), class_names, source.policy, source.threat)
