"""Self-supervised encoders with the spectral penalty, read out by logistic regression (Yang et al. 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustlib.data import VIEWS, Batch, Dataset
from robustlib.errors import InputError, check_counts, unknown
from robustlib.losses import barlow_twins_loss, nt_xent
from robustlib.methods.contrastive import body, check_classes, projected
from robustlib.methods.heads import fit_readout
from robustlib.methods.rep_spectral import RepSpectral
from robustlib.models import SelfSupervised
from robustlib.training import Loss, Stage


@dataclass(frozen=True, kw_only=True)
class SelfSupervisedSpectral(RepSpectral):
    """min E l(p(x1), p(x2)) + strength sum_l sigma_max(W_l)^2 over the encoder, x1 and x2 two views of an image; then a readout.

    Burn-in, cadence and norms are rep-spectral's; the projector p is not penalised. The last stage, "readout", takes no step:
    scikit-learn fits multinomial logistic regression on the frozen features of the plain training images, and its weights
    become the model's head. Before that the model does not predict, so the epochs of pre-training are not validated, and the
    last of them is what counts. As released, except that a last, smaller batch is trained on, that one normalisation serves
    training, readout and attack, and that the readout sees no augmented images.
    """

    pretext: ClassVar[str]  # the name of the loss l in the metrics

    batch_size: int = 1024
    epochs: int = 1000  # of pre-training, the burn-in included
    burn_in: float = 0.9  # share of the epochs that is trained without the penalty; the paper's 900 of 1000
    augment: str = "none"  # not used: the images of the loss are `views`, those of the readout are plain
    views: str = "simclr"  # view of the images in the loss
    projection: tuple[int, ...] = (256,)  # widths of the projector's linear maps
    readout_c: float = 1.0  # C of the logistic regression, its inverse L2 penalty
    readout_iterations: int = 1000  # of its lbfgs, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "readout_iterations")
        if self.views not in VIEWS:
            raise unknown("view", self.views, VIEWS)
        if not self.projection or min(self.projection) < 1:
            raise InputError(f"{self.name}: projection={self.projection!r}: give positive widths, e.g. (256,).")
        if not 0 < self.readout_c < float("inf"):
            raise InputError(f"{self.name}: readout_c={self.readout_c!r}: give a positive number, e.g. 1.0.")

    @property
    def all_epochs(self) -> int:
        """Epochs of pre-training, and the one of the readout, which goes through the images once."""
        return self.epochs + 1

    def model_options(self) -> dict[str, Any]:
        """Circular convolutions, a projector, and no readout yet."""
        return {**super().model_options(), "projection": list(self.projection), "self_supervised": True}

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        """Encoder and projector."""
        return body(model)

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """The burn-in, the regularised rest, and the readout.

        Raises:
            InputError: a model of another kind, a class without training images, a layer whose norm is asked for and not known.
        """
        if not isinstance(model, SelfSupervised):
            raise InputError(
                f"{self.name} trains a SelfSupervised, not a {type(model).__name__}: build it with the method's model_options()."
            )
        check_classes(self.name, dataset)

        def begin() -> None:
            fit_readout(model, dataset.train, self.readout_c, self.readout_iterations)

        *before, last = super().stages(dataset, model)  # its probes go on: claims are about the last stage
        readout = Stage("readout", 1, {}, (), begin=begin, modules=last.modules, probes=last.probes)
        return [*before, last, readout]

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """The loss of two views, whose projections are one forward pass, and these projections (2 B, P)."""
        z = projected(model, (batch.view(self.views), batch.view(self.views))).float()
        loss = self.compare(z[0], z[1])
        return Loss(loss, {self.pretext: loss}), z.flatten(0, 1)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of the projections (B, P) of two views, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BarlowSpectral(SelfSupervisedSpectral):
    """Barlow Twins' loss; see `barlow_twins_loss`."""

    name = "barlow_spectral"
    title = "Barlow Twins, spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Zbontar et al. 2021, Barlow Twins, ICML"
    summary = "Barlow Twins with rep-spectral's penalty on the encoder; then logistic regression on its features."
    pretext = "barlow"

    off_diagonal: float = 0.005  # lambda of Barlow Twins, of the redundancy between features

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.off_diagonal < float("inf"):
            raise InputError(
                f"{self.name}: off_diagonal={self.off_diagonal!r}: give a number of at least 0, e.g. 0.005."
            )

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """Barlow Twins' loss."""
        return barlow_twins_loss(a, b, self.off_diagonal)


@dataclass(frozen=True, kw_only=True)
class SimCLRSpectral(SelfSupervisedSpectral):
    """SimCLR's loss (see `nt_xent`); the row `simclr` has the same loss with SupContrast's recipe and a head trained by Adam."""

    name = "simclr_spectral"
    title = "SimCLR, spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Chen et al. 2020, SimCLR, ICML"
    summary = "SimCLR with rep-spectral's penalty on the encoder; then logistic regression on its features."
    pretext = "nt_xent"

    batch_size: int = 512
    weight_decay: float = 5e-4  # the paper trains with 0 and with 5e-4
    projection: tuple[int, ...] = (512, 10)  # widths of the projector's maps; the second is the backbone's own fc there
    temperature: float = 0.07  # t of NT-Xent

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"{self.name}: temperature={self.temperature!r}: give a positive number, e.g. 0.07.")

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """NT-Xent."""
        return nt_xent(a, b, self.temperature)
