"""Models: normalise -> encoder -> linear head, by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from robustlib.errors import InputError, unknown
from robustlib.models.build_purified import build_purified, build_purifier
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.disentangled import Branches, Disentangled
from robustlib.models.masked_autoencoder import MaskedAutoencoder
from robustlib.models.mlp import MLP
from robustlib.models.projected import Projected
from robustlib.models.purified import Purified
from robustlib.models.purifier import Generator, PatchDiscriminator, Purifier
from robustlib.models.random_transforms import Randomness, RandomTransform
from robustlib.models.reverse_attention import ReverseAttention
from robustlib.models.self_supervised import SelfSupervised
from robustlib.models.small_cnn import SmallCNN
from robustlib.models.wide_resnet import preact_resnet18, wrn28_10, wrn34_10

__all__ = [
    "ARCHITECTURES",
    "Branches",
    "Classifier",
    "Disentangled",
    "Generator",
    "ImageSpec",
    "MaskedAutoencoder",
    "PatchDiscriminator",
    "Projected",
    "Purified",
    "Purifier",
    "RandomTransform",
    "Randomness",
    "ReverseAttention",
    "SelfSupervised",
    "build_model",
    "build_purifier",
]

PADDING_MODES = ("zeros", "circular")

Builder = Callable[[tuple[int, int, int]], nn.Module]


def _resnet(name: str) -> Builder:
    """torchvision is imported only when one of its networks is built."""

    def build(image_shape: tuple[int, int, int]) -> nn.Module:
        from robustlib.models import resnet

        return getattr(resnet, name)(image_shape)

    return build


# name -> function of the image shape (C, H, W) that builds an encoder: x (B, C, H, W) -> features (B, out_features)
ARCHITECTURES: dict[str, Builder] = {
    "mlp": MLP,
    "mlp_512": partial(MLP, hidden=(512,)),
    "mlp_2000": partial(MLP, hidden=(2000,), scaled=True),  # rep-spectral's MNIST network
    "mlp_8": partial(MLP, hidden=(8,)),  # its toys: XOR
    "mlp_8_8_8": partial(MLP, hidden=(8, 8, 8)),  # and the sinusoid
    "small_cnn": SmallCNN,
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "preact_resnet18": preact_resnet18,
    "wrn28_10": wrn28_10,
    "wrn34_10": wrn34_10,
}


def build_model(
    arch: str,
    spec: ImageSpec,
    *,
    padding_mode: Literal["zeros", "circular"] = "zeros",
    disentangled: bool = False,
    classify: Literal["intrinsic", "latent"] = "intrinsic",
    reverse_attention: bool = False,
    projection: Sequence[int] = (),
    projection_batchnorm: bool = False,
    dual_batchnorm: bool = False,
    self_supervised: bool = False,
    purified: Mapping[str, Any] | None = None,
) -> Classifier:
    """A freshly initialised classifier for the images that `spec` describes.

    Args:
        arch: one of ARCHITECTURES.
        spec: a Dataset, or anything with num_classes, image_shape, mean and std.
        padding_mode: "zeros", or "circular" for every convolution wider than 1 (rep-spectral's exact operator norms).
        disentangled: with AFD's two linear maps before the head; the result is a `Disentangled`.
        classify: which of a `Disentangled`'s features its head answers on when deployed.
        reverse_attention: ANCRA's model, a ReverseAttention, around the same encoder and head.
        projection: widths of a projection head beside the head, for contrastive losses; the result is a `Projected`.
        projection_batchnorm, dual_batchnorm: of a `Projected`; see there.
        self_supervised: the `Projected` is a `SelfSupervised`, which has no readout yet.
        purified: AToP's options; the result is a `Purified`, a plain classifier until it is deployed.

    Raises:
        InputError: unknown architecture or padding mode, reverse attention around an encoder without stages, what does not go
            together.
    """
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    if padding_mode not in PADDING_MODES:
        raise InputError(f"Unknown padding mode {padding_mode!r}: choose 'zeros' or 'circular'.")
    channels, height, width = spec.image_shape
    if disentangled + reverse_attention + bool(projection) + (purified is not None) > 1:
        raise InputError(
            "A model is disentangled (AFD), has reverse attention (ANCRA), a projection head (CLAF) or a purifier (AToP): choose one."
        )
    if (projection_batchnorm or dual_batchnorm or self_supervised) and not projection:
        raise InputError(
            "projection_batchnorm, dual_batchnorm and self_supervised are of a model with a projection head: give projection."
        )
    if classify not in ("intrinsic", "latent") or (classify == "latent" and not disentangled):
        raise InputError(f"classify={classify!r}: give 'intrinsic', or 'latent' for a disentangled model (AFD).")
    encoder = ARCHITECTURES[arch]((channels, height, width))
    if disentangled:
        model: Classifier = Disentangled(encoder, spec, classify)
    elif projection:
        extra = {"projection_batchnorm": projection_batchnorm, "dual_batchnorm": dual_batchnorm}
        model = (SelfSupervised if self_supervised else Projected)(encoder, spec, projection, **extra)
    elif purified is not None:
        model = build_purified(encoder, spec, purified)
    else:
        model = (ReverseAttention if reverse_attention else Classifier)(encoder, spec)
    _pad(encoder, padding_mode)
    return model


def _pad(encoder: nn.Module, padding_mode: Literal["zeros", "circular"]) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.padding_mode = padding_mode  # read at every forward pass
