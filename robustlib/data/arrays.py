"""One's own images in memory as uint8 (N, C, H, W), their labels as int64 (N,), and a name that says which images they are."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustlib.data.sources import eight_bits
from robustlib.errors import InputError, explained, shown, typed

if TYPE_CHECKING:
    from PIL import Image

Examples = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # images uint8 (N, C, H, W), labels int64 (N,), class names
CHANNELS = (1, 3)
NAMED = r".+-\d+px-[0-9a-f]{8}"  # what `content_name` gives
AT_ONCE = 256  # images of which floats are held besides the levels


def examples(x: Any, y: Any, class_names: Sequence[str] | None = None) -> Examples:
    """Images, labels and class names as `Dataset.of` takes them, in memory of their own."""
    if y is None:
        if not (hasattr(x, "__len__") and hasattr(x, "__getitem__")) or isinstance(x, torch.Tensor | np.ndarray):
            raise InputError(
                "These images have no labels: give y, or a data set of (image, label) as torchvision's are."
            )
        class_names, labels = class_names or getattr(x, "classes", None), list[Any]()
        images = stacked(_pairs(x, labels), len(x))
        y = np.array(labels)
    else:
        images = as_images(x)
    return images, *as_labels(y, len(images), class_names)


def as_images(x: Any) -> np.ndarray:
    """Images as uint8 (N, C, H, W), a copy; floats in [0, 1] are rounded to 256 levels.

    Raises InputError for values outside, and for shapes that are not (N, C, H, W), (N, H, W, C) or (N, H, W) with 1 or 3 channels.
    """
    array = _numpy(x, "images")
    shape = array.shape
    first, last = (len(shape) == 4 and shape[k] in CHANNELS for k in (1, 3))
    if not array.size or not (first ^ last or len(shape) == 3):
        which = (
            "both (N, C, H, W) and (N, H, W, C)"
            if first and last
            else "neither (N, C, H, W) nor (N, H, W, C) nor (N, H, W)"
        )
        raise InputError(f"Images of shape {shape} are {which} with 1 or 3 channels: transpose them, or add one.")
    array = array[:, None] if len(shape) == 3 else array.transpose(0, 3, 1, 2) if last else array
    if array.dtype == np.uint8:
        return np.array(array, order="C")
    if array.dtype.kind != "f":
        raise InputError(f"Images of {array.dtype} have no known range: give uint8, or floats in [0, 1].")
    levels = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), AT_ONCE):
        some = array[start : start + AT_ONCE]
        low, high = some.min(), some.max()
        if not (low >= 0 and high <= 1):  # nor with a NaN
            remedy = "divide 0-255 by 255 or give uint8, and leave out what normalises them: models do that inside"
            raise InputError(f"Images reach from {low:g} to {high:g}, not from 0 to 1: {remedy}.")
        levels[start : start + AT_ONCE] = np.rint(some.astype(np.float64) * 255)
    return levels


def as_labels(y: Any, count: int, class_names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of `count` images as int64 (N,), and the classes' names; raises InputError unless they are 0 to K - 1 with K > 1."""
    labels = _numpy(y, "labels")
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        given = f"{labels.dtype} of shape {labels.shape}"
        raise InputError(
            f"Labels are one whole number for each of {count} images, not {given}: give the classes' numbers."
        )
    occurring = np.unique(labels).tolist()
    if class_names is None:
        if occurring != list(range(len(occurring))):
            said = f"Labels from {occurring[0]} to {occurring[-1]} with {len(occurring)} values"
            raise InputError(f"{said} are not 0 to K - 1: number the classes so, or give class_names for all of them.")
        class_names = tuple(map(str, occurring))
    names = tuple(unicodedata.normalize("NFC", typed(one, str, "class_names")) for one in class_names)
    if occurring[0] < 0 or occurring[-1] >= len(names):
        said = f"Labels from {occurring[0]} to {occurring[-1]} do not fit {len(names)} class names"
        raise InputError(f"{said}: give labels from 0 to {len(names) - 1}.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"The class names {shown(names)} are not two or more different ones: a classifier needs two classes."
        )
    return labels.astype(np.int64), names


def stacked(images: Iterable[tuple[str, np.ndarray]], count: int) -> np.ndarray:
    """Images uint8 (1 or 3, H, W), each with what to call it, as one array (count, 3, H, W), or (count, 1, H, W) if all are grey.

    Raises InputError where their sizes differ.
    """
    whole, one, colour = np.empty((0, 3, 0, 0), np.uint8), "", False
    for at, (name, image) in enumerate(images):
        if at == 0:
            whole, one = np.empty((count, 3, *image.shape[1:]), np.uint8), name
        if image.shape[1:] != whole.shape[2:]:
            sizes = [" x ".join(map(str, shape)) for shape in (whole.shape[2:], image.shape[1:])]
            remedy = "bring them to one, with size=224 of load_images or torchvision's Resize and CenterCrop"
            raise InputError(f"{one} has {sizes[0]} pixels and {name} {sizes[1]}: {remedy}.")
        whole[at] = image
        colour |= len(image) == 3
    return whole if colour else np.ascontiguousarray(whole[:, :1])


def plain(image: "Image.Image") -> "Image.Image":
    """A PIL image of 8 bits as "L" if it is grey, else as "RGB"; transparency is ignored, as torchvision's ImageFolder does."""
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def pixels(image: "Image.Image") -> np.ndarray:
    """A PIL image as `plain` gives it as uint8 (1 or 3, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def content_name(
    name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], division: Sequence[float]
) -> str:
    """<name>-<pixels of the shorter side>px-<digest of all that is given>, of at most 60 characters of a-z, 0-9 and "-"."""
    content = hashlib.sha256(json.dumps([images.shape, list(class_names), list(division)]).encode())
    for array in (labels.astype("<i8"), images):
        content.update(np.ascontiguousarray(array).data)
    return f"{slug(typed(name, str, 'name')) or 'images'}-{min(images.shape[2:])}px-{content.hexdigest()[:8]}"


def slug(name: str) -> str:
    """A name as part of a path: at most 40 characters of a-z, 0-9 and "-"; "" where nothing of it is left."""
    text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", text).strip("-")[:40].strip("-")


def _numpy(values: Any, what: str) -> np.ndarray:
    """A tensor, or what NumPy takes for an array, as an array that may share its memory."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    with explained((ValueError, TypeError), lambda error: f"These {what} are no array ({error}): give a tensor."):
        return np.asarray(values)


def _pairs(dataset: Any, labels: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The images of a data set as torchvision's are, each with what to call it; their labels are added to a list."""
    from PIL import Image

    for at in range(len(dataset)):
        pair, name = dataset[at], f"Example {at}"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"{name} is {shown(pair)}: a data set without y gives (image, label) at each index.")
        image, label = pair
        labels.append(label.item() if getattr(label, "ndim", None) == 0 else label)
        if isinstance(image, Image.Image):
            try:
                yield name, pixels(plain(eight_bits(image)))
            except ValueError as error:
                raise InputError(f"{name} cannot be used: {error}.") from error
        else:
            yield name, as_images(_numpy(image, "images")[None])[0]
