"""Models and purifiers by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from robustlib.errors import InputError, Maps, Width, check_known, typed
from robustlib.models.backbones import MLP, PreActResNet, ResNet, ResNet8, SmallCNN
from robustlib.models.branches import Disentangled, Projected, SelfSupervised
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.purified import Purified, RandomTransform
from robustlib.models.purifier import SMALL, Generator, MaskedAutoencoder, Purifier
from robustlib.models.reverse_attention import ReverseAttention

USUAL = {"gan": (12, 24), "mae": (48, 96)}  # widths for images below 16 pixels, and for larger ones
WIDTHS = {"gan": Maps, "mae": Width}

#: Name -> function of the image shape (C, H, W) that builds an encoder: x (B, C, H, W) -> features (B, out_features)
ARCHITECTURES: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "mlp": MLP,
    "mlp_512": partial(MLP, hidden=(512,)),
    "mlp_2000": partial(MLP, hidden=(2000,), scaled=True),  # rep-spectral's MNIST network
    "mlp_8": partial(MLP, hidden=(8,)),  # its toys: XOR
    "mlp_8_8_8": partial(MLP, hidden=(8, 8, 8)),  # and the sinusoid
    "small_cnn": SmallCNN,
    "resnet8_w48": partial(ResNet8, width=48),
    **{name: partial(ResNet, name=name) for name in ("resnet18", "resnet34", "resnet50")},
    "preact_resnet18": partial(PreActResNet, widths=(64, 64, 128, 256, 512), blocks=2),  # as Rice et al. 2020 train it
    "wrn28_10": partial(PreActResNet, widths=(16, 160, 320, 640), blocks=4),
    "wrn34_10": partial(PreActResNet, widths=(16, 160, 320, 640), blocks=5),  # the large model of TRADES
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
    """A freshly initialised classifier, `arch` of ARCHITECTURES, for the images that `spec` describes, e.g. a Dataset.

    With `padding_mode` "circular" every convolution wider than 1 is (rep-spectral's exact operator norms). The result is

    - `disentangled`: a `Disentangled` (AFD), whose deployed head sees the features that `classify` says;
    - `reverse_attention`: ANCRA's `ReverseAttention` around the same encoder and head;
    - `projection` (widths of a head for contrastive losses): a `Projected`, with `projection_batchnorm` and `dual_batchnorm` for its
      `batchnorm` and `dual`; `self_supervised`: a `SelfSupervised`, which has no readout yet;
    - `purified` (AToP's options): a `Purified`, a plain classifier until it is deployed.
    """
    check_known("architecture", arch, ARCHITECTURES)
    check_known("padding mode", padding_mode, ("zeros", "circular"))
    if disentangled + reverse_attention + bool(projection) + (purified is not None) > 1:
        kinds = "is disentangled (AFD), has reverse attention (ANCRA), a projection head (CLAF) or a purifier (AToP)"
        raise InputError(f"A model {kinds}: choose one.")
    if (projection_batchnorm or dual_batchnorm or self_supervised) and not projection:
        options = "projection_batchnorm, dual_batchnorm and self_supervised"
        raise InputError(f"{options} are of a model with a projection head: give projection.")
    if classify not in ("intrinsic", "latent") or (classify == "latent" and not disentangled):
        raise InputError(f"classify={classify!r}: give 'intrinsic', or 'latent' for a disentangled model (AFD).")
    encoder = ARCHITECTURES[arch](spec.image_shape)
    if disentangled:
        model: Classifier = Disentangled(encoder, spec, classify)
    elif projection:
        kind = SelfSupervised if self_supervised else Projected
        model = kind(encoder, spec, projection, projection_batchnorm, dual_batchnorm)
    elif purified is not None:
        model = build_purified(encoder, spec, purified)
    else:
        model = (ReverseAttention if reverse_attention else Classifier)(encoder, spec)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.padding_mode = padding_mode  # read at every forward pass
    return model


def build_purified(encoder: nn.Module, spec: ImageSpec, options: Mapping[str, Any]) -> Purified:
    """A `Purified` from plain options: purifier ("gan"), transform ("rt2"), sigma, missing, grid and width."""
    fields = dict(options)
    kind, width = fields.pop("purifier", "gan"), fields.pop("width", None)
    known = ("transform", "sigma", "missing", "grid")
    for name in fields:
        check_known("option of a purified model", name, known)
    destroy = RandomTransform(fields.pop("transform", "rt2"), **fields)
    model = Purified(encoder, spec, Purifier(spec.image_shape), destroy)
    # after the head: every purifier meets the same classifier
    model.purifier = build_purifier(kind, spec.image_shape, width)
    return model


def build_purifier(
    kind: Literal["none", "gan", "mae"], image_shape: Sequence[int], width: int | None = None
) -> Purifier:
    """A purifier of images (C, H, W): a GAN's `Generator`, a `MaskedAutoencoder`, or "none"; `width` is `default_width` unless given."""
    if kind == "none":
        return Purifier(image_shape)
    check_known("purifier", kind, ("none", *WIDTHS))
    width = default_width(kind, image_shape) if width is None else width
    return (Generator if kind == "gan" else MaskedAutoencoder)(image_shape, typed(width, WIDTHS[kind], "width"))


def default_width(kind: Literal["gan", "mae"], image_shape: Sequence[int]) -> int:
    """Maps of a GAN's networks at full resolution (12 below 16 pixels, else 24), or numbers in a token of the autoencoder (48, 96)."""
    return USUAL[kind][min(image_shape[1:]) >= SMALL]
