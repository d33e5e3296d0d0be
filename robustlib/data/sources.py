"""Readers of published data sets, each split as its authors split it: files of arrays, folders of JPEG files, and toys."""

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustlib.errors import InputError, explained

if TYPE_CHECKING:
    from PIL import Image

DIGITS_TEST = 500  # examples held out for the test of digits, which is published without one

# The unpacked files of MNIST; torchvision knows the sums of the archives only, and no longer looks at those.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

# Shapes as published, of training and of test images; CIFAR's files have sums that say as much.
PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(("mnist", "fashion-mnist"), ((60_000, 28, 28), (10_000, 28, 28))),
    "imagenette": ((9_469,), (3_925,)),
    "tiny-imagenet": ((100_000,), (10_000,)),
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


def missing(name: str, root: Path, expected: str) -> InputError:
    """The error for a data root that lacks a data set."""
    remedy = "correct --data-root or ROBUSTLIB_DATA, or add --download to fetch it there"
    return InputError(f"No data set {name!r} in the data root {str(root)!r} (looked for {expected}): {remedy}.")


def corrupted(path: Path, reason: str) -> InputError:
    """The error for a file or folder that is there but not as published."""
    kind = "folder" if path.is_dir() else "file"
    return InputError(f"The {kind} {str(path)!r} is corrupted: {reason}. Delete it and call again with --download.")


def check_size(name: str, part: int, path: Path, found: Sequence[int], what: str = "images", hint: str = "") -> None:
    """Raises InputError where `path`, of the training (part 0) or test data (1), holds not as many as PUBLISHED says."""
    if tuple(found) != (published := PUBLISHED[name][part][: len(found)]):
        holds, should = (" x ".join(map(str, sizes)) for sizes in (found, published))
        raise corrupted(path, f"it holds {holds} {what}, the published one {should}{hint}")


def fetched(name: str, root: Path, make: Any, **options: Any) -> None:
    """Calls torchvision's `make(root, ..., download=True)`, whose own failures become one sentence."""
    said, kinds = f"Could not download {name!r} to {str(root)!r}", (OSError, RuntimeError, EOFError)  # URLError too
    remedy = (
        "Check the network and the free space, or copy the published files there yourself and leave --download out."
    )
    with explained(kinds, lambda error: f"{said}: {error}. {remedy}"):
        root.mkdir(parents=True, exist_ok=True)
        make(str(root), download=True, **options)


def check_files(name: str, root: Path, sums: Mapping[Path, str | None]) -> None:
    """Raises InputError for an absent file, and one whose MD5 sum (None: CRC-32, as beside it in a .gz) is not the published one."""
    absent = [str(path.relative_to(root)) for path in sums if not path.is_file()]
    if absent:
        raise missing(name, root, absent[0] if len(absent) == len(sums) else ", ".join(absent))
    for path, md5 in sums.items():
        archive, content = path.with_name(path.name + ".gz"), path.read_bytes()
        if md5 is not None and (actual := hashlib.md5(content).hexdigest()) != md5:
            raise corrupted(path, f"its MD5 sum is {actual}, the published one is {md5}")
        crc = int.from_bytes(archive.read_bytes()[-8:-4], "little") if archive.is_file() else None
        if md5 is None and crc not in (None, zlib.crc32(content)):
            raise corrupted(path, f"its CRC-32 is not the one in {archive.name}")


def cifar(name: str, root: Path, download: bool) -> Arrays:
    """CIFAR-10 or -100 (Krizhevsky 2009), 50 000 + 10 000 images, 32 x 32: root/cifar-10-batches-py or root/cifar-100-python."""
    from torchvision import datasets

    make: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    files = [*make.train_list, *make.test_list, (make.meta["filename"], make.meta["md5"])]
    if download:
        fetched(name, root, make)
    check_files(name, root, {root / make.base_folder / file: md5 for file, md5 in files})
    # torchvision's loader would read every file twice more for the sums just compared.
    unchecked: Any = type(make.__name__, (make,), {"_check_integrity": lambda self: True})
    with warnings.catch_warnings():  # old pickles of arrays make NumPy 2 complain about their dtype
        warnings.simplefilter("ignore")
        parts = [unchecked(str(root), train=train) for train in (True, False)]
    train, test = ((np.ascontiguousarray(p.data.transpose(0, 3, 1, 2)), np.array(p.targets, np.int64)) for p in parts)
    return Arrays(train, test, tuple(parts[0].classes))


def idx(name: str, root: Path, download: bool) -> Arrays:
    """MNIST (LeCun et al. 1998) or Fashion-MNIST (Xiao et al. 2017), 60 000 + 10 000 images, 28 x 28: root/{MNIST,FashionMNIST}/raw."""
    from torchvision import datasets

    make: Any = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    folder, sums = root / make.__name__ / "raw", MNIST_MD5 if name == "mnist" else {}
    if download:
        fetched(name, root, make)
    files = [Path(archive).stem for archive, _ in make.resources]
    check_files(name, root, {folder / file: sums.get(file) for file in files})
    try:
        parts = [make(str(root), train=train) for train in (True, False)]
    except (RuntimeError, ValueError, AssertionError, IndexError, KeyError) as error:
        raise corrupted(folder, f"it does not hold readable idx files ({error})") from error
    for part, p in enumerate(parts):
        check_size(name, part, folder / files[2 * part], p.data.shape, "pixels")
        check_size(name, part, folder / files[2 * part + 1], p.targets.shape, "labels")
    train, test = ((p.data.numpy()[:, None], p.targets.numpy().astype(np.int64)) for p in parts)
    return Arrays(train, test, tuple("0123456789") if name == "mnist" else tuple(make.classes))


IMAGENETTE_SIZE, TINY_SIZE = 160, 64
# In this order and whole, then any other folder imagenette2*, which may hold a choice.
IMAGENETTE_FOLDERS = ("imagenette2-160", "imagenette2-320", "imagenette2")
IMAGENETTE_CLASSES = {
    **{"n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw"},
    **{"n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump"},
    **{"n03445777": "golf ball", "n03888257": "parachute"},
}
TINY_FOLDER = "tiny-imagenet-200"
TINY_URL, TINY_MD5 = f"http://cs231n.stanford.edu/{TINY_FOLDER}.zip", "90528d7ca1a48142e341f4ef8d21d0de"
SUFFIXES = (".jpeg", ".jpg", ".png")
FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
)  # whatever the suffix says; for others Pillow may start programs


def imagenette(root: Path, download: bool) -> Arrays:
    """Imagenette 2 (fast.ai), ten classes of ImageNet at 160 x 160: `imagenette2*/{train,val}/<wnid>/*.JPEG`.

    Folders with a published name must hold all images; those with another, such as imagenette2-mine, any choice.
    """
    if download and _imagenette_folder(root) is None:
        from torchvision.datasets import Imagenette

        fetched("imagenette", root, Imagenette, split="train", size="160px")
    folder = _imagenette_folder(root)
    if folder is None:
        raise missing("imagenette", root, "imagenette2-160/train/<wnid>/*.JPEG and imagenette2-160/val")
    wnids = _class_folders(folder / "train")
    if strange := set(_class_folders(folder / "val")).difference(wnids):
        lonely = str(folder / "val" / min(strange))
        raise InputError(f"{lonely!r} is of a class that train/ lacks: add it, or remove this.")
    files = [[_images(folder / part / wnid) for wnid in wnids] for part in ("train", "val")]
    if folder.absolute().name in IMAGENETTE_FOLDERS:
        for part, place in enumerate(("train", "val")):
            hint = " (a choice of your own needs a folder of another name, such as imagenette2-mine)"
            check_size("imagenette", part, folder / place, [sum(map(len, files[part]))], hint=hint)
    train, test = (_read(of_part, IMAGENETTE_SIZE) for of_part in files)
    return Arrays(train, test, tuple(IMAGENETTE_CLASSES.get(wnid, wnid) for wnid in wnids))


def tiny_imagenet(root: Path, download: bool) -> Arrays:
    """Tiny ImageNet (Stanford CS231n), 200 classes, 64 x 64; its labelled validation images are the test split.

    A class is named by its first English word, by its WordNet number where words.txt is silent.
    """
    folder = root / TINY_FOLDER
    annotations = folder / "val" / "val_annotations.txt"
    if download and not (folder / "train").is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        fetched("tiny-imagenet", root, lambda to, download: download_and_extract_archive(TINY_URL, to, md5=TINY_MD5))
    if not (folder / "train").is_dir() or not annotations.is_file():
        raise missing("tiny-imagenet", root, f"{TINY_FOLDER}/train and {TINY_FOLDER}/val/val_annotations.txt")
    wnids = _class_folders(folder / "train")
    files = [_images(folder / "train" / wnid / "images") for wnid in wnids]
    named: dict[str, str] = {}  # the class of each test image
    for number, line in enumerate(annotations.read_text("utf-8", "replace").splitlines(), 1):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in wnids or Path(file).name != file or file in named:
            what = f"{file!r} again" if file in named else f"{file!r}, which is no name of a file"
            what = what if wnid in wnids else f"the class {wnid!r}, which train/ lacks"
            raise corrupted(folder, f"line {number} of {annotations.name} names {what}")
        named[file] = wnid
    check_size("tiny-imagenet", 0, folder / "train", [sum(map(len, files))])
    check_size("tiny-imagenet", 1, annotations, [len(named)])
    train, images = _read(files, TINY_SIZE), folder / "val" / "images"
    test = _read([[images / file for file in sorted(named) if named[file] == wnid] for wnid in wnids], TINY_SIZE)
    words = folder / "words.txt"
    lines = words.read_text("utf-8", "replace").splitlines() if words.is_file() else []
    first_words = {wnid: text.split(",")[0] for wnid, _, text in (line.partition("\t") for line in lines)}
    return Arrays(train, test, tuple(first_words.get(wnid, wnid) for wnid in wnids))


def decode(path: Path, size: int) -> np.ndarray:
    """One image file as uint8 (3, size, size): shorter side scaled to `size`, centre cropped.

    Grey becomes RGB, of 16 bits v grey v / 257, rounded; transparency is ignored.
    """
    from PIL import Image, ImageOps

    with opened(path, "delete its data set's folder and call again with --download, or restore the file") as image:
        image.draft("RGB", (size, size))  # lets the JPEG decoder skip detail that scaling would throw away
        fitted = ImageOps.fit(eight_bits(image).convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)


@contextmanager
def opened(path: Path, remedy: str) -> "Iterator[Image.Image]":
    """Within, an image file whose pixels are not read yet; whatever Pillow finds wrong with it becomes one sentence with the remedy."""
    from PIL import Image

    said = f"The image file {str(path)!r} is corrupted or unsafe"
    # Pillow reports a broken file, or one too large, in a dozen ways
    with explained(Exception, lambda error: f"{said} ({error}): {remedy}."), Image.open(path, formats=FORMATS) as image:
        image.info.pop("transparency", None)  # about which Pillow would warn
        yield image


def eight_bits(image: "Image.Image", upright: bool = False) -> "Image.Image":
    """An image of at most 8 bits a colour: grey of 16 bits v becomes v / 257, rounded; others of more raise ValueError.

    With `upright` it is turned as its EXIF orientation says.
    """
    from PIL import Image, ImageOps

    # 16 bits as its file has them, which a loaded image no longer tells but by its mode; BGR;16 are 16 bits a pixel
    layout = f"{image.mode} {[tile[3] for tile in getattr(image, 'tile', ())]}".replace("BGR;16", "")
    deep, grey = ";16" in layout and ";16S" not in layout, image.mode[0] == "I"
    if deep and not grey:
        raise ValueError("16 bits a colour, of which Pillow drops eight: save it with 8")
    if image.mode in ("F", "I") and not deep:
        raise ValueError("signs or 32 bits a pixel, whose range nobody knows: save it with 8 or 16")
    turned = ImageOps.exif_transpose(image) if upright else image
    return Image.fromarray(np.rint(np.asarray(turned) / 257).astype(np.uint8)) if deep else turned


def _imagenette_folder(root: Path) -> Path | None:
    others = sorted(path for path in root.glob("imagenette2*") if path.name not in IMAGENETTE_FOLDERS)
    candidates = [*(root / name for name in IMAGENETTE_FOLDERS), *others, root]
    return next((c for c in candidates if _class_folders(c / "train") and _class_folders(c / "val")), None)


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("n*") if path.is_dir())


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise InputError(f"The folder {str(folder)!r} holds no images: restore it, or fetch it anew with --download.")
    return files


def _read(files: Sequence[Sequence[Path]], size: int) -> Pair:
    """All images of a list of classes, each a list of files; decoding releases the interpreter lock, so in threads."""
    from PIL import Image

    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files]).astype(np.int64)
    images = np.empty((len(labels), 3, size, size), np.uint8)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for at, image in enumerate(pool.map(lambda path: decode(path, size), chain.from_iterable(files))):
            images[at] = image
    return images, labels


# Points of a plane as images (1, 1, 2), the toys of rep-spectral, whose whole decision can be drawn. Grey levels are the coordinates,
# on a grid of 255 steps: 0.016 of XOR's coordinates where its noise is 0.2, 0.008 of the sinusoid's.
SEED = 0  # every toy, split and sample is drawn with this seed, once and for all
CORNERS = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
XOR_REACH, XOR_STD, XOR_EACH = 2.0, 0.2, 20  # half the width of the square, and points a corner
SINUSOID_EACH = 800  # of training and of test: half of the release's 40 x 40 points each


def xor(root: Path, download: bool) -> Arrays:
    """Four clouds N((+-1, +-1), 0.2^2 I) in [-2, 2]^2, labelled by whether the signs differ (Yang et al. 2024, noisy XOR).

    Twenty points a corner are left for training, more or less, after a fifth went to validation; ten times as many for the test.
    """
    rng, sizes = np.random.default_rng(SEED), (XOR_EACH * 5 // 4, XOR_EACH * 10)
    points = [np.tile(CORNERS, (each, 1)) + XOR_STD * rng.normal(size=(4 * each, 2)) for each in sizes]
    return _toy(points, XOR_REACH, lambda x: x[:, 0] * x[:, 1] < 0, ("equal signs", "opposite signs"))


def sinusoid(root: Path, download: bool) -> Arrays:
    """Uniform points of [-1, 1]^2, labelled by whether they lie above 0.6 sin(7 x_1 - 1) (Yang et al. 2024, the release's
    load_sin_random): 800 for training besides a fifth for validation, 800 for the test."""
    rng = np.random.default_rng(SEED)
    points = [rng.uniform(-1, 1, (count, 2)) for count in (SINUSOID_EACH * 5 // 4, SINUSOID_EACH)]
    return _toy(points, 1.0, lambda x: x[:, 1] > 0.6 * np.sin(7 * x[:, 0] - 1), ("below", "above"))


def _toy(
    points: Sequence[np.ndarray], reach: float, is_second: Callable[[np.ndarray], np.ndarray], names: tuple[str, str]
) -> Arrays:
    """Images of training and test points (N, 2) of [-reach, reach]^2, with the labels of what the images show."""
    levels = [np.rint((some / reach).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8) for some in points]
    labels = [is_second((some / 127.5 - 1) * reach).astype(np.int64) for some in levels]
    train, test = ((some[:, None, None, :], of_some) for some, of_some in zip(levels, labels, strict=True))
    return Arrays(train, test, names)
