"""Classifiers with a projection head for contrastive losses, supervised or without labels, and with dual BatchNorm."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.models.classifier import Classifier, ImageSpec


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


def dual(model: nn.Module) -> None:
    """Replaces every BatchNorm of `model` by a `DualBatchNorm`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(module, name, DualBatchNorm(child))


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

    A fresh model deploys what the plain `Classifier` of its seed does.

    Args:
        encoder, spec: see `Classifier`.
        projection: widths of the projector's linear maps with ReLU between them, e.g. (512, 128) in SupCon and CLAF.
        projection_batchnorm: a BatchNorm after each map; maps after the first have no bias (ACL's release).
        dual_batchnorm: all BatchNorms, the projector's included, have statistics for clean images beside those deployed.
    """

    def __init__(
        self,
        encoder: nn.Module,
        spec: ImageSpec,
        projection: Sequence[int],
        *,
        projection_batchnorm: bool = False,
        dual_batchnorm: bool = False,
    ) -> None:
        super().__init__(encoder, spec)
        if not projection or min(projection) < 1:
            raise InputError(f"projection={tuple(projection)!r}: give positive widths, e.g. (512, 128).")
        self.projector = nn.Sequential(*_maps([self.head.in_features, *projection], projection_batchnorm))
        if dual_batchnorm:
            dual(self)

    def project(self, x: Tensor) -> Tensor:
        """Projections (B, P) of images (B, C, H, W), not normalised: the losses do that."""
        return self.projector(self.features(x))


def _maps(widths: Sequence[int], batchnorm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        if layers:
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(wide, narrow, bias=not (batchnorm and layers)))
        if batchnorm:
            layers.append(nn.BatchNorm1d(narrow))
    return layers


class SelfSupervised(Projected):
    """A `Projected` whose head is no head before `set_readout`: until then it has features and projections, but no logits.

    Whether it has a readout is saved with its weights (as "_extra_state"), so a stored model knows it too.
    """

    def __init__(self, encoder: nn.Module, spec: ImageSpec, projection: Sequence[int], **options: bool) -> None:
        super().__init__(encoder, spec, projection, **options)
        self.predicts = False

    def set_readout(self, weight: Tensor, bias: Tensor) -> None:
        """The head becomes weight (K, D) and bias (K,); from now on the model is an ordinary classifier."""
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        self.predicts = True

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K); raises InputError before there is a readout."""
        if not self.predicts:
            raise InputError(
                "This self-supervised model has no readout yet and cannot predict: finish its training, whose last stage fits one, "
                "give it one by set_readout, or ask for its features(x)."
            )
        return super().forward(x)

    def get_extra_state(self) -> Tensor:
        """Whether there is a readout, as a tensor: weights are stored as tensors alone."""
        return torch.tensor(self.predicts)

    def set_extra_state(self, state: Any) -> None:
        """The inverse of `get_extra_state`."""
        self.predicts = bool(state)
