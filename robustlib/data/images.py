"""One's own image files as a data set: a folder for each class, a CSV file that lists them, or arrays in an .npz file."""

import csv
import io
import os
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from robustlib.data import arrays, sources
from robustlib.data.dataset import DATASETS, PLUGINS, USUAL, Dataset, assemble, load_dataset
from robustlib.data.plugins import registered
from robustlib.errors import InputError, check_path, explained, typed
from robustlib.threat import Threat

PARTS = ("train", "val", "test")
SUFFIXES = (*sources.SUFFIXES, ".bmp", ".gif", ".tif", ".tiff", ".webp")
COLUMNS = ("path", "label", "split")  # of a CSV file; the last may be missing
Pixels = Annotated[int, "[0, 4096]", "the shorter side in pixels, 0 where all images have one size"]
ASKED = ("size", "name", "val", "test", "flip")  # what params.json says of the call, besides path and threat


class File(NamedTuple):
    """An image file and what is said of it."""

    part: str  # one of PARTS, "" where nothing is said
    label: str  # a class name
    path: Path


def load_images(
    path: str | Path,
    *,
    size: int = 0,
    threat: Threat = USUAL,
    name: str = "",
    val: float = 0.2,
    test: float = 0.2,
    flip: bool = False,
) -> Dataset:
    """The images of a folder, a .csv or an .npz file as a data set, called <name>-<pixels>px-<digest>: other images, another name.

    A folder holds `train/`, `val/` and `test/`, or some of them, each with a folder for each class; or these class folders
    themselves, named as the classes are. A .csv file has the columns path (relative to it), label and, where wanted, split (train, val
    or test). Classes are numbered in the order of their names, as torchvision's ImageFolder does, those of a .csv file that are
    whole numbers by their value. An .npz file has arrays x and y, as `Dataset.of` takes them, and, where wanted, class_names.

    `test` is evaluated, where it is missing `val`, and where both are missing a share of all. A share of `train` stands in for a
    missing `val`. Without `train` nothing is held back from the evaluation, and nothing can be trained.

    Images become RGB, or stay grey where all are; transparency is ignored, EXIF orientation applied, of animations the first image
    is taken, and grey of 16 bits is v / 257, rounded. Hidden files and folders, and those that link to where they lie, are ignored.

    Args:
        path: of the folder or file.
        size: pixels, to which the shorter side is scaled before the centre is cropped; 0 where all images have one size already.
        threat: that robust accuracy is reported for.
        name: instead of that of the folder or file.
        val, test: shares that are cut off, stratified and always the same, as `Dataset.of` says; test=1.0 evaluates all images
            that are in no `train/`, `val/` or `test/`.
        flip: whether training may mirror images.
    """
    place = Path(os.path.expanduser(check_path(typed(path, Path | str, "images"))))
    size, kind = typed(size, Pixels, "size"), "" if os.path.isdir(place) else place.suffix.lower()
    if not (os.path.isdir(place) or (os.path.isfile(place) and kind in (".csv", ".npz"))):
        raise InputError(f"{str(place)!r} is neither a folder of images nor a .csv or .npz file: correct the path.")
    name = typed(name, str, "name") or os.path.basename(os.path.abspath(place)).removesuffix(kind)
    threat = typed(threat, Threat, "threat")
    asked: dict[str, Any] = {"threat": threat, "val": val, "test": test, "flip": flip}
    with explained(OSError, lambda error: f"The images of {str(place)!r} cannot be read ({error}): check permissions."):
        if kind == ".npz":
            (images, labels, names), sizes = _arrays(place, size), None
        else:
            images, labels, names, sizes = _files(_listed(place) if kind else _tree(place), size, bool(kind))
    kept = {"path": os.path.abspath(place), "size": size, "name": name, **asked}
    kept["threat"] = {"norm": threat.norm, "eps": threat.eps}
    return assemble(name, images, labels, names, sizes, origin=kept, **asked)


def open_dataset(name: str, *, root: str | Path | None = None, download: bool = False) -> Dataset:
    """The data set that a user names: what `load_dataset` knows, or images of one's own at a path, as in "photos", "photos@64" (scaled to
    64 pixels) or "list.csv@64"; see `load_images`."""
    path, at, pixels = typed(name, str, "dataset").rpartition("@")
    path, size = (path, int(pixels)) if at and re.fullmatch(r"\d{1,4}", pixels) else (name, 0)
    place = Path(os.path.expanduser(path))
    own = os.path.isdir(place) or place.suffix.lower() in (".csv", ".npz") or bool(at) or len(place.parts) > 1
    if name in DATASETS or name in registered(PLUGINS) or not own:
        return load_dataset(name, root=root, download=download)
    return load_images(place, size=size)


def spelled(dataset: Dataset) -> str:
    """How a user names this data set; that of arrays has only its own name."""
    asked = dataset.origin
    return f"{asked['path']}@{asked['size']}" if asked and asked["size"] else asked["path"] if asked else dataset.name


def dataset_of(params: Mapping[str, Any], root: str | Path | None = None) -> Dataset:
    """The data set of a run, from its params.json: `load_images` again where it names images, else `load_dataset`.

    Where its images are no longer at their path they are looked for in `root`, or at `root` itself. Raises InputError where they are
    not there, or not those that the run saw.
    """
    asked = params.get("images")
    if not asked and re.fullmatch(arrays.NAMED, params["dataset"]):
        said = f"{params['dataset']} was made of arrays, which no path leads back to"
        raise InputError(f"{said}: give the data set itself in Python, or save it and use load_images.")
    if not asked:
        return load_dataset(params["dataset"], root=root)
    said = f"The params.json of a run of {params['dataset']} does not say where its images are"
    with explained((TypeError, KeyError), lambda error: f"{said} ({error}): restore it."):
        path, threat = Path(check_path(asked["path"])), Threat(**asked["threat"])
        options = {key: asked[key] for key in ASKED if key in asked}
    given = Path(os.path.expanduser(root)) if root else path
    place = next((place for place in (path, given / path.name, given) if os.path.exists(place)), None)
    lost = f"The images of {params['dataset']} are not at {path}: say where they are with --data-root"
    if place is None:
        raise InputError(f"{lost}.")
    instead = "" if place == path else f"{lost}. {str(place)!r} does not hold them: "
    with explained(InputError, lambda error: f"{instead}{error}"):
        dataset = load_images(place, threat=threat, **options)
    if dataset.name != params["dataset"]:
        said = f"The images at {str(place)!r} are {dataset.name}, those of this run were {params['dataset']}"
        raise InputError(f"{said}: restore the files (and Pillow, if another version decoded them), or train anew.")
    return dataset


def _nfc(name: str) -> str:
    """A name as most systems write it: some file systems take letters and accents apart."""
    return unicodedata.normalize("NFC", name)


def _tree(root: Path) -> list[File]:
    """All images of a folder, in the order of their names."""
    parts = [part for part in PARTS if (root / part).is_dir() and _folders(root / part)]
    classes = [(part, folder) for part in parts or [""] for folder in _folders(root / part)]
    if not classes:
        said = f"{str(root)!r} has no folders of classes, nor train/, val/ or test/ with some"
        raise InputError(f"{said}: put the images of each class into a folder with its name.")
    files = []
    for part, folder in classes:
        found = [path for path in _walk(folder) if path.suffix.lower() in SUFFIXES]
        if not found:
            raise InputError(f"{str(folder)!r} holds no images ({', '.join(SUFFIXES)}): add some, or take it out.")
        files += [File(part, _nfc(folder.name), path) for path in found]
    return files


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and links to where they lie, in the order of their names."""
    here = folder.resolve()
    found = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted((path for path in found if not here.is_relative_to(path.resolve())), key=lambda path: _nfc(path.name))


def _walk(folder: Path) -> list[Path]:
    """The files below a folder, in the order of their names; hidden ones are ignored, and links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(found, key=lambda path: _nfc(str(path.relative_to(folder))))


def _listed(file: Path) -> list[File]:
    """All images that a CSV file lists, in its order."""
    said = f"{str(file)!r} is no CSV file in UTF-8"
    with explained((ValueError, csv.Error), lambda error: f"{said} ({error}): save it as one."):
        reader = csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline=""))
        header, *rows = [(reader.line_num, row) for row in reader if row] or [(1, [])]
    columns, files, lines = header[1], list[File](), dict[Path, int]()
    if unknown := [*sorted(set(columns) ^ set(COLUMNS[: max(2, len(columns))])), *columns[3:]]:
        raise InputError(
            f"Line 1 of {str(file)!r} does not fit ({unknown[0]!r}): its columns are path, label and, if you like, split."
        )
    for number, row in rows:
        cells = dict(zip(columns, row, strict=False))
        path, part = file.parent / cells.get("path", ""), cells.get("split", "")
        wrong = f"it has {len(row)} cells, not {len(columns)}" if len(row) != len(columns) else ""
        wrong = wrong or ("it has no label" if not cells["label"].strip() else "")
        wrong = wrong or (
            f"its split is {part!r}, none of {', '.join(PARTS)}" if "split" in columns and part not in PARTS else ""
        )
        wrong = wrong or (f"{cells['path']!r} is on line {lines[path]} already" if path in lines else "")
        wrong = wrong or ("" if path.is_file() else f"there is no file {str(path)!r}")
        if wrong:
            raise InputError(f"Line {number} of {str(file)!r} is of no use ({wrong}): correct it, or take it out.")
        lines[path] = number
        files.append(File(part, _nfc(cells["label"].strip()), path))
    if not files:
        raise InputError(f"{str(file)!r} lists no images: write a line with path and label for each.")
    return files


def _files(
    files: Sequence[File], size: int, numbered: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[int, int, int]]:
    """The images, labels, class names and sizes of the parts; with `numbered`, class names that are numbers come by their value."""
    labels = {file.label for file in files}
    if len(labels) < 2:
        raise InputError(
            f"All images are of the class {min(labels)!r}: a classifier needs two classes, so add another one."
        )
    numbered = numbered and all(label.isdecimal() and label.isascii() for label in labels)
    number = {label: k for k, label in enumerate(sorted(labels, key=lambda n: (int(n) if numbered else 0, n)))}
    train, val, test = ([file for file in files if (file.part or "train") == part] for part in PARTS)
    ordered = [*train, *val, *test]
    images = _read([file.path for file in ordered], size)
    return images, np.array([number[file.label] for file in ordered]), (*number,), (len(train), len(val), len(test))


def _arrays(file: Path, size: int) -> arrays.Examples:
    """The images, labels and class names of an .npz file."""
    said = f"{str(file)!r} has no images x and labels y that can be read"
    broken = (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)
    save = "save it with numpy.savez(file, x=x, y=y)"
    # without pickles, which execute what they hold; numpy leaves a broken file open
    with (
        explained(broken, lambda error: f"{said} ({error}): {save}."),
        file.open("rb") as stream,
        np.load(stream, allow_pickle=False) as content,
    ):
        x, y = content["x"], content["y"]
        names = content["class_names"].tolist() if "class_names" in content else None
    images, labels, class_names = arrays.examples(x, y, names)
    if size and images.shape[2:] != (size, size):
        shape = " x ".join(map(str, images.shape[2:]))
        raise InputError(f"size={size}: the arrays of {str(file)!r} have {shape} pixels and stay so; leave size out.")
    return images, labels, class_names


def _read(files: Sequence[Path], size: int) -> np.ndarray:
    """Images as uint8 (N, C, H, W); decoding releases the interpreter lock, so in threads."""
    from PIL import Image

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # closed, so that an error does not wait for all files
        with closing(pool.map(lambda path: (repr(str(path)), _decode(path, size)), files)) as decoded:  # type: ignore[type-var]
            return arrays.stacked(decoded, len(files))


def _decode(path: Path, size: int) -> np.ndarray:
    """One image file as uint8 (1 or 3, H, W)."""
    from PIL import Image, ImageOps

    with sources.opened(path, "restore it, or take it out") as image:
        if size:
            image.draft(
                None, (2 * size, 2 * size)
            )  # sooner than whole; at `size` itself edges would come out otherwise
        plain = arrays.plain(sources.eight_bits(image, upright=True))
        return arrays.pixels(ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR) if size else plain)
