"""Classifiers with more maps beside encoder and head: AFD's disentangler (Zhou et al. 2025), and projectors for contrastive losses."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustlib.errors import InputError, Widths, typed
from robustlib.models.classifier import Classifier, ImageSpec


class Branches(NamedTuple):
    """What a `Disentangled` model computes of a batch: features (B, D) and logits (B, K)."""

    latent: Tensor  # h, the encoder's output
    intrinsic: Tensor  # f1 = D1 h, which the deployed model classifies
    confused: Tensor  # f2 = D2 sg[h]; no gradient reaches the encoder
    logits: Tensor  # z1 = W f1 + b
    confused_logits: Tensor  # z2 = W f2 + b


class Disentangled(Classifier):
    """normalise -> encoder -> D1 -> head, and beside it encoder -> stop-gradient -> D2 -> the same head.

    D1 (`intrinsic`) and D2 (`confused`) are D x D matrices without bias that start as the identity, as in the released code
    (models/resnet.py): a fresh model is the plain `Classifier` of its seed. It deploys x -> z1; if `classify` is "latent", x -> W h + b.
    """

    def __init__(
        self, encoder: nn.Module, spec: ImageSpec, classify: Literal["intrinsic", "latent"] = "intrinsic"
    ) -> None:
        super().__init__(encoder, spec)
        self.classify = classify
        width = self.head.in_features
        self.intrinsic, self.confused = (nn.Linear(width, width, bias=False) for _ in range(2))
        for branch in (self.intrinsic, self.confused):
            nn.init.eye_(branch.weight)

    def latent(self, x: Tensor) -> Tensor:
        """The encoder's features h (B, D), before they are disentangled."""
        return super().features(x)

    def features(self, x: Tensor) -> Tensor:
        return self.latent(x) if self.classify == "latent" else self.intrinsic(self.latent(x))

    def branches(self, x: Tensor) -> Branches:
        """Features and logits of both branches from one pass through the encoder."""
        latent = self.latent(x)
        intrinsic, confused = self.intrinsic(latent), self.confused(latent.detach())
        return Branches(latent, intrinsic, confused, self.head(intrinsic), self.head(confused))

    def intrinsic_logits(self, x: Tensor) -> Tensor:
        """z1 (B, K), also where the latent features are deployed."""
        return self.head(self.intrinsic(self.latent(x)))


class DualBatchNorm(nn.Module):
    """Two BatchNorms, affine weights included (Xie et al. 2020, AdvProp; ACL(DS), Jiang et al. 2020, "normal" and "pgd").

    The one for attacked images is deployed; the one for clean images serves within `clean_statistics`. Both start as `norm`.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.attacked, self.clean, self.use_clean = norm, copy.deepcopy(norm), False

    def forward(self, x: Tensor) -> Tensor:
        """x of the shape that the BatchNorm takes, normalised."""
        return (self.clean if self.use_clean else self.attacked)(x)


@contextmanager
def clean_statistics(model: nn.Module) -> Iterator[None]:
    """Within, every `DualBatchNorm` of `model` uses, and in train mode moves, the statistics of clean images."""
    norms = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    try:
        for norm in norms:
            norm.use_clean = True
        yield
    finally:
        for norm in norms:
            norm.use_clean = False


class Projected(Classifier):
    """normalise -> encoder -> head, and beside it encoder -> projector, which contrastive pre-training needs and deployment does not.

    A fresh model deploys what the plain `Classifier` of its seed does. `widths` are those of linear maps with ReLU between them, e.g.
    (512, 128) in SupCon and CLAF; with `batchnorm` each has one, and maps after the first no bias (ACL's release); if `dual`, all
    BatchNorms, the projector's included, have statistics for clean images beside those deployed.
    """

    def __init__(
        self, encoder: nn.Module, spec: ImageSpec, widths: Sequence[int], batchnorm: bool = False, dual: bool = False
    ) -> None:
        super().__init__(encoder, spec)
        widths = typed(widths, Widths, "projection")
        layers: list[nn.Module] = []
        for wide, narrow in pairwise([self.head.in_features, *widths]):
            layers += [nn.ReLU(inplace=True)] if layers else []
            layers.append(nn.Linear(wide, narrow, bias=not (batchnorm and layers)))
            layers += [nn.BatchNorm1d(narrow)] if batchnorm else []
        self.projector = nn.Sequential(*layers)
        for name, module in list(self.named_modules()) if dual else ():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                self.set_submodule(name, DualBatchNorm(module))

    def project(self, x: Tensor) -> Tensor:
        """Projections (B, P) of images (B, C, H, W), not normalised: the losses do that."""
        return self.projector(self.features(x))


class SelfSupervised(Projected):
    """A `Projected` whose head is no head before `set_readout`: until then it has features and projections, and asked for logits
    it raises InputError.

    Whether it has a readout is saved with its weights (as "_extra_state"), so a stored model knows it too.
    """

    predicts = False

    def set_readout(self, weight: Tensor, bias: Tensor) -> None:
        """The head becomes weight (K, D) and bias (K,); from now on the model is an ordinary classifier."""
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        self.predicts = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.predicts:
            remedy = "finish its training, whose last stage fits one, give it one by set_readout"
            said = "This self-supervised model has no readout yet and cannot predict"
            raise InputError(f"{said}: {remedy}, or ask for its features(x).")
        return super().forward(x)

    def get_extra_state(self) -> Tensor:
        """Whether there is a readout, as a tensor: weights are stored as tensors alone."""
        return torch.tensor(self.predicts)

    def set_extra_state(self, state: Any) -> None:
        """The inverse of `get_extra_state`."""
        self.predicts = bool(state)
