"""Purifiers and purified models by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from robustlib.errors import InputError, unknown
from robustlib.models.classifier import ImageSpec
from robustlib.models.masked_autoencoder import MaskedAutoencoder
from robustlib.models.purified import Purified
from robustlib.models.purifier import SMALL, Generator, Purifier
from robustlib.models.random_transforms import RandomTransform

WIDTHS = {"gan": (12, 24), "mae": (48, 96)}  # of images below 16 pixels, and of larger ones


def default_width(kind: Literal["gan", "mae"], image_shape: Sequence[int]) -> int:
    """Maps of a GAN's networks at full resolution (12 below 16 pixels, else 24), or numbers in a token of the autoencoder (48, 96)."""
    return WIDTHS[kind][min(image_shape[1:]) >= SMALL]


def build_purifier(
    kind: Literal["none", "gan", "mae"], image_shape: Sequence[int], width: int | None = None
) -> Purifier:
    """A freshly initialised purifier: a GAN's `Generator`, a `MaskedAutoencoder`, or "none", which leaves holes grey.

    Args:
        kind: which.
        image_shape: (C, H, W).
        width: maps of the generator (default 12 below 16 pixels, else 24), numbers in a token of the autoencoder (48, 96).

    Raises:
        InputError: an unknown kind, or a width that it cannot have.
    """
    if kind == "none":
        return Purifier(image_shape)
    if kind not in WIDTHS:
        raise unknown("purifier", kind, ("none", *WIDTHS))
    width = default_width(kind, image_shape) if width is None else width
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InputError(f"width={width!r}: give a whole number of at least 1.")
    return (Generator if kind == "gan" else MaskedAutoencoder)(image_shape, width)


def build_purified(encoder: nn.Module, spec: ImageSpec, options: Mapping[str, Any]) -> Purified:
    """A `Purified` from plain options: purifier ("gan"), transform ("rt2"), sigma, missing, grid, width and votes.

    Raises:
        InputError: an unknown option, or one with a value that it cannot have.
    """
    known = {"purifier": "gan", "transform": "rt2", "width": None, "votes": 1}
    names = ("sigma", "missing", "grid")
    for name in options:
        if name not in (*known, *names):
            raise unknown("option of a purified model", name, (*known, *names))
    kind, transform, width, votes = ({**known, **options}[name] for name in known)
    settings = {name: options[name] for name in names if name in options}
    destroy = RandomTransform(transform, **settings)
    shape = tuple(spec.image_shape)
    model = Purified(encoder, spec, Purifier(shape), destroy, votes)
    model.purifier = build_purifier(kind, shape, width)  # after the head: every purifier meets the same classifier
    return model
