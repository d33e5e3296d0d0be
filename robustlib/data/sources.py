"""Readers of published data sets: each returns the arrays as their authors split them."""

import hashlib
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustlib.errors import InputError

DIGITS_TEST = 500  # examples held out for the test of digits, which is published without one

# The unpacked files of MNIST; torchvision knows the sums of the archives only, and no longer looks at those.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

Pair = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W) that the caller may overwrite, labels int64 (N,)


class Arrays(NamedTuple):
    """A published data set: training and test data (None if there is none) and a name for each label."""

    train: Pair
    test: Pair | None
    class_names: tuple[str, ...]


def digits(root: Path, download: bool) -> Arrays:
    """Scikit-learn's embedded 1797 handwritten digits (UCI, Alpaydin and Kaynak 1998), 8 x 8, 17 grey levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return Arrays((images, bunch.target.astype(np.int64)), None, tuple("0123456789"))


def mnist(root: Path, download: bool) -> Arrays:
    """MNIST (LeCun et al. 1998), 60 000 + 10 000 digits, 28 x 28: `root/MNIST/raw`."""
    from torchvision.datasets import MNIST

    return _idx("mnist", MNIST, tuple("0123456789"), MNIST_MD5, root, download)


def fashion_mnist(root: Path, download: bool) -> Arrays:
    """Fashion-MNIST (Xiao et al. 2017), 60 000 + 10 000 garments, 28 x 28: `root/FashionMNIST/raw`."""
    from torchvision.datasets import FashionMNIST

    return _idx("fashion-mnist", FashionMNIST, tuple(FashionMNIST.classes), {}, root, download)


def cifar10(root: Path, download: bool) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009), 50 000 + 10 000 photographs, 32 x 32: `root/cifar-10-batches-py`."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root, download)


def cifar100(root: Path, download: bool) -> Arrays:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels: `root/cifar-100-python`."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root, download)


def missing(name: str, root: Path, expected: str) -> InputError:
    """The error for a data root that lacks a data set."""
    return InputError(
        f"No data set {name!r} in the data root {str(root)!r} (looked for {expected}): "
        "correct --data-root or ROBUSTLIB_DATA, or add --download to fetch it there."
    )


def corrupted(path: Path, reason: str = "its checksum is not the published one") -> InputError:
    """The error for a file that is there but not as published."""
    return InputError(f"The data file {str(path)!r} is corrupted: {reason}. Delete it and call again with --download.")


def fetched(name: str, root: Path, make: Any, **options: Any) -> Any:
    """`make(root, ..., download=True)` of torchvision, whose own failures become one sentence."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return make(str(root), download=True, **options)
    except (OSError, RuntimeError, EOFError) as error:  # URLError is an OSError, a bad archive a RuntimeError
        raise InputError(
            f"Could not download {name!r} to {str(root)!r}: {error}. Check the network and the free space, "
            "or copy the published files there yourself and leave --download out."
        ) from error


def check_md5(path: Path, md5: str) -> None:
    """Raises InputError if the file's MD5 sum is another one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise corrupted(path, f"its MD5 sum is {found}, the published one is {md5}")


def _cifar(name: str, make: Any, root: Path, download: bool) -> Arrays:
    folder = root / make.base_folder
    sums = {folder / file: md5 for file, md5 in [*make.train_list, *make.test_list]}
    sums[folder / make.meta["filename"]] = make.meta["md5"]
    if download:
        fetched(name, root, make)
    _all_there(name, root, list(sums))
    for path, md5 in sums.items():
        check_md5(path, md5)

    class Checked(make):
        """torchvision's loader, which would read every file twice more for the sums just compared."""

        def _check_integrity(self) -> bool:
            return True

    with warnings.catch_warnings():  # old pickles of arrays make NumPy 2 complain about their dtype
        warnings.simplefilter("ignore")
        parts = [Checked(str(root), train=train) for train in (True, False)]
    train, test = ((np.ascontiguousarray(p.data.transpose(0, 3, 1, 2)), np.array(p.targets, np.int64)) for p in parts)
    return Arrays(train, test, tuple(parts[0].classes))


def _idx(
    name: str, make: Any, class_names: tuple[str, ...], sums: Mapping[str, str], root: Path, download: bool
) -> Arrays:
    folder = root / make.__name__ / "raw"
    paths = [folder / Path(archive).stem for archive, _ in make.resources]
    if download:
        fetched(name, root, make)
    _all_there(name, root, paths)
    for path in paths:
        _check_unpacked(path, sums.get(path.name))
    try:
        parts = [make(str(root), train=train) for train in (True, False)]
    except (RuntimeError, ValueError, AssertionError, IndexError, KeyError) as error:
        raise corrupted(folder, f"it does not hold readable idx files ({error})") from error
    train, test = ((p.data.numpy()[:, None], p.targets.numpy().astype(np.int64)) for p in parts)
    return Arrays(train, test, class_names)


def _all_there(name: str, root: Path, paths: list[Path]) -> None:
    absent = [path for path in paths if not path.is_file()]
    if len(absent) == len(paths):
        raise missing(name, root, f"{paths[0].parent.relative_to(root)}/{paths[0].name}")
    if absent:
        raise missing(name, root, ", ".join(str(path.relative_to(root)) for path in absent))


def _check_unpacked(path: Path, md5: str | None) -> None:
    """By the published sum if known, else by the CRC-32 at the end of the gzip archive that a download leaves."""
    archive = path.with_name(path.name + ".gz")
    if md5 is not None:
        check_md5(path, md5)
    elif archive.is_file():
        promised = int.from_bytes(archive.read_bytes()[-8:-4], "little")
        if zlib.crc32(path.read_bytes()) != promised:
            raise corrupted(path, f"its CRC-32 is not the one in {archive.name}")
