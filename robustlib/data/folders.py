"""Readers of data sets published as folders of JPEG files."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from robustlib.data.sources import Arrays, Pair, fetched, missing
from robustlib.errors import InputError

IMAGENETTE_SIZE, TINY_SIZE = 160, 64
IMAGENETTE_FOLDERS = ("imagenette2-160", "imagenette2-320", "imagenette2")  # in this order, then any other version
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
TINY_FOLDER = "tiny-imagenet-200"
TINY_URL, TINY_MD5 = f"http://cs231n.stanford.edu/{TINY_FOLDER}.zip", "90528d7ca1a48142e341f4ef8d21d0de"
SUFFIXES = (".jpeg", ".jpg", ".png")


def imagenette(root: Path, download: bool) -> Arrays:
    """Imagenette 2 (fast.ai), ten classes of ImageNet at 160 x 160: `imagenette2*/{train,val}/<wnid>/*.JPEG`."""
    if download and _imagenette_folder(root) is None:
        from torchvision.datasets import Imagenette

        fetched("imagenette", root, Imagenette, split="train", size="160px")
    folder = _imagenette_folder(root)
    if folder is None:
        raise missing("imagenette", root, "imagenette2-160/train/<wnid>/*.JPEG and imagenette2-160/val")
    wnids = _class_folders(folder / "train")
    train, test = (_read_classes(folder / part, wnids) for part in ("train", "val"))
    return Arrays(train, test, tuple(IMAGENETTE_CLASSES.get(wnid, wnid) for wnid in wnids))


def tiny_imagenet(root: Path, download: bool) -> Arrays:
    """Tiny ImageNet (Stanford CS231n), 200 classes, 64 x 64; its labelled validation images are the test split."""
    folder = root / TINY_FOLDER
    if download and not (folder / "train").is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        fetched("tiny-imagenet", root, lambda to, download: download_and_extract_archive(TINY_URL, to, md5=TINY_MD5))
    if not (folder / "train").is_dir() or not (folder / "val" / "val_annotations.txt").is_file():
        raise missing("tiny-imagenet", root, f"{TINY_FOLDER}/train and {TINY_FOLDER}/val/val_annotations.txt")
    wnids = _class_folders(folder / "train")
    files = [_images(folder / "train" / wnid / "images") for wnid in wnids]
    train = _read(files, TINY_SIZE)
    return Arrays(train, _tiny_test(folder / "val", wnids), _tiny_names(folder / "words.txt", wnids))


def decode(path: Path, size: int) -> np.ndarray:
    """One image file as uint8 (3, size, size): shorter side scaled to `size`, centre cropped; grey becomes RGB.

    Raises:
        InputError: the file holds no readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))  # lets the JPEG decoder skip detail that scaling would throw away
            fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken file in any of these ways
        raise InputError(
            f"The image file {str(path)!r} is corrupted ({error}): delete its data set's folder and call again with "
            "--download, or restore the file."
        ) from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _imagenette_folder(root: Path) -> Path | None:
    others = sorted(path for path in root.glob("imagenette2*") if path.name not in IMAGENETTE_FOLDERS)
    candidates = [*(root / name for name in IMAGENETTE_FOLDERS), *others, root]
    return next((c for c in candidates if _holds_classes(c / "train") and _holds_classes(c / "val")), None)


def _holds_classes(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() and path.name.startswith("n") for path in folder.iterdir())


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("n"))


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise InputError(f"The folder {str(folder)!r} holds no images: restore it, or fetch it anew with --download.")
    return files


def _read_classes(folder: Path, wnids: Sequence[str]) -> Pair:
    return _read([_images(folder / wnid) for wnid in wnids], IMAGENETTE_SIZE)


def _read(files: Sequence[Sequence[Path]], size: int) -> Pair:
    """All images of a list of classes, each a list of files; decoding releases the interpreter lock, so in threads."""
    paths = [path for of_class in files for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files]).astype(np.int64)
    images = np.empty((len(paths), 3, size, size), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for at, image in enumerate(pool.map(lambda path: decode(path, size), paths)):
            images[at] = image
    return images, labels


def _tiny_test(folder: Path, wnids: Sequence[str]) -> Pair:
    """The images that val_annotations.txt names, by class and then by name."""
    annotations = folder / "val_annotations.txt"
    by_class: dict[str, list[Path]] = {wnid: [] for wnid in wnids}
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in by_class:
            raise InputError(f"Line {number} of {str(annotations)!r} names the class {wnid!r}, which train/ lacks.")
        by_class[wnid].append(folder / "images" / file)
    return _read([sorted(by_class[wnid]) for wnid in wnids], TINY_SIZE)


def _tiny_names(words: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first English word of each class; its WordNet number where words.txt is silent."""
    lines = words.read_text().splitlines() if words.is_file() else []
    names = {wnid: text.split(",")[0] for wnid, _, text in (line.partition("\t") for line in lines)}
    return tuple(names.get(wnid, wnid) for wnid in wnids)
