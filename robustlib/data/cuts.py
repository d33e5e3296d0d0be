"""Arrays of images cut into parts, stratified and always alike, and their statistics."""

from collections.abc import Sequence

import numpy as np

from robustlib.data import sources
from robustlib.errors import InputError, explained

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,), positions int64 (N,)


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


def apart(part: Triple, held_out: int) -> tuple[Triple, Triple]:
    """`hold_out` of a part whose positions are not 0 to N - 1."""
    images, labels, positions = part
    rest, held = hold_out(images, labels, held_out)
    return (*rest[:2], positions[rest[2]]), (*held[:2], positions[held[2]])


def share_apart(part: Triple, share: float, class_names: Sequence[str], least: int) -> tuple[Triple, Triple]:
    """`apart` with a share of the part, of as many images as it has classes or more; raises InputError for a class of too few."""
    labels, counts = np.unique(part[1], return_counts=True)
    if len(counts) and counts.min() < least:
        said = f"The class {class_names[labels[counts.argmin()]]!r} has {counts.min()} image(s) to be split"
        raise InputError(
            f"{said}: give at least {least}, or split folders; test=1.0 evaluates all images, without training."
        )
    return apart(part, max(len(labels), round(share * len(part[1]))))


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
