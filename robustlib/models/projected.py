"""A classifier with a projection head beside its linear one, for contrastive losses."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.dual_batchnorm import dual


class Projected(Classifier):
    """normalise -> encoder -> head, and beside it encoder -> projector, which contrastive pre-training needs and deployment does not.

    The projector is linear maps with ReLU between them, (512, 128) in SupCon and CLAF. With BatchNorm each map is followed by
    one and maps behind the first have no bias (ACL's release). A fresh model deploys what the plain `Classifier` of its seed does.

    Args:
        encoder: x -> features (B, D), with D in its attribute `out_features`.
        spec: shape, classes and statistics of the images.
        projection: widths of the projector's maps, e.g. (512, 128).
        projection_batchnorm: a BatchNorm behind each map.
        dual_batchnorm: all BatchNorms, the projector's included, have statistics for clean images beside those deployed.

    Raises:
        InputError: a projection without a positive width.
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
        """Projections (B, P) of images (B, C, H, W), not normalised: the losses do that.

        Raises:
            InputError: images of another shape than the model was built for.
        """
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
