"""BatchNorm with statistics of its own for clean images beside those for attacked ones."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class DualBatchNorm(nn.Module):
    """Two BatchNorms, affine weights included (Xie et al. 2020, AdvProp; ACL(DS), Jiang et al. 2020, "normal" and "pgd").

    The attacked one is what a model deploys; the clean one serves within `clean_statistics`.

    Args:
        norm: the BatchNorm of which both are copies.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.attacked, self.clean, self.use_clean = norm, copy.deepcopy(norm), False

    def forward(self, x: Tensor) -> Tensor:
        """x of the shape that the BatchNorm takes, normalised."""
        return (self.clean if self.use_clean else self.attacked)(x)


def dual(model: nn.Module) -> None:
    """Puts a `DualBatchNorm` in the place of every BatchNorm of `model`."""
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
