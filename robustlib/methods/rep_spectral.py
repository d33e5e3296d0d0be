"""Rep-spectral: spectral regularisation up to the representation, supervised and self-supervised (Yang, Zavatone-Veth and Pehlevan 2024).

With the penalties it is compared with: on all layers (ll-spectral) and on input gradients (cross-Lipschitz).
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import Count, NonNegative, Positive, ShareBelowOne, Whole, Widths
from robustlib.losses import barlow_twins_loss, cross_lipschitz, nt_xent
from robustlib.methods.base import Method
from robustlib.methods.baselines import cross_entropy
from robustlib.methods.contrastive import check_projected, contrasted, project_views
from robustlib.methods.layer_norms import LayerNorms, Operator
from robustlib.models import SelfSupervised
from robustlib.models.classifier import full_float32
from robustlib.training import Loss, Pass, Stage, StepContext, Updates


@dataclass(frozen=True, kw_only=True)
class Regularised(Method):
    """A task's loss, CE(f(x), y) on clean images; after the burn-in, that + strength * penalty in every `cadence`-th step of an epoch.

    Burn-in and what follows are two stages of the same names in every such method, and the second starts with fresh momentum
    (the released code starts from a stored base model), so methods of one recipe share the burn-in bit for bit. `strength=0` is
    the unregularised variant. The learning rate goes on where it stood. Convolutions are circular in all of them. The released loop
    also takes, by a slip, a step on the penalty alone after each epoch, and repeats the first epoch after the burn-in; here
    it does neither. The last epoch counts, as there: the best on clean validation images would mostly be one at which the penalty has
    hardly begun. The singular values of all layers, the readout included, are monitored ("probe/sigma/...").
    """

    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv"
    notebook = "rep_spectral"
    protocol = ""  # its papers report adversarial distances, or clean accuracy alone

    epochs: int = 200  # the burn-in included
    batch_size: int = 1024
    lr: float = 0.01
    schedule: str = "constant"
    weight_decay: float = 1e-4  # the paper trains with 0 and with 1e-4
    burn_in: ShareBelowOne = 0.8  # share of the epochs that is trained without the penalty; the paper's 160 of 200
    strength: NonNegative = 0.01  # lambda, of the penalty; 0 for none
    cadence: Count = 24  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all

    def model_options(self) -> dict[str, Any]:
        """Circular convolutions: of them the exact norms are known."""
        return {"padding_mode": "circular"}

    def penalty_state(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        """What the penalty keeps from step to step, checkpointed beside the model, e.g. a `LayerNorms`; None for nothing."""
        return None

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        """The weights that are trained."""
        return model.parameters()

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """The loss without the penalty, on the batch's images x, and the outputs (B, K) in float32 that the penalty may use."""
        logits = model(x).float()
        ce = cross_entropy(logits, batch.y)
        return Loss(ce, {"ce": ce}), logits

    def penalty(self, state: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        """What is added to the loss with weight `strength`, a scalar; x (B, C, H, W) requires gradients, outputs are `task`'s."""
        raise NotImplementedError

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        state, monitor = self.penalty_state(dataset, model), LayerNorms(model, dataset.image_shape)
        modules = {"watch": monitor} | ({} if state is None else {"kept": state})  # names that checkpoints have
        burn_in, usual = int(round(self.burn_in * self.epochs, 6)), self.lr_schedule()

        def singular_values(deployed: nn.Module, batch: Batch) -> dict[str, float]:
            norms = monitor.converge(deployed).items()
            return {f"sigma/{name.removeprefix('encoder.')}": float(value.sqrt()) for name, value in norms}

        def begin() -> None:
            if isinstance(state, LayerNorms) and self.strength:
                state.converge(model)

        def stage(name: str, start: int, end: int, **rest: Any) -> Stage:
            def updates(batch: Batch, context: StepContext) -> Updates:
                penalised = name == "regularised" and self.strength > 0 and context.step % self.cadence == 0
                x = batch.x.detach().requires_grad_(penalised)
                loss, outputs = self.task(model, x, batch)
                added = loss.total.new_zeros(())  # also where there is none: its mean over an epoch counts all steps
                if penalised:
                    added = self.strength * self.penalty(state, model, x, outputs, context)
                yield "model", Loss(loss.total + added, {**loss.parts, "penalty": added})

            spec = replace(self.optim(self.trained(model)), schedule=lambda epoch: usual(epoch + start))
            rest |= {"keep": "last", "modules": modules, "probes": {"sigma": singular_values}}
            return Stage(name, end - start, {"model": spec}, (Pass(updates, augment=self.augment),), **rest)

        last = stage("regularised", burn_in, self.epochs, ema=self.ema, begin=begin)
        return [stage("burn-in", 0, burn_in), last] if burn_in else [last]


@dataclass(frozen=True, kw_only=True)
class RepSpectral(Regularised):
    """min CE(f(x), y) + strength sum_{l<L} sigma_max(W_l)^2 over the layers of the representation, the readout left out (eq. 5).

    As the released code: no factor 1/2, convolutions as the circular operators they are, residual sums, biases and, unless
    folded, BatchNorm ignored. BatchNorm makes weights scale-free, so there the penalty bounds nothing by itself.
    """

    name, title = "rep_spectral", "Rep-spectral"
    summary = "Clean training that ends with a penalty on the largest singular values up to the representation."

    operator: Operator = "exact"  # a layer's norm: exact, power (block iteration), reshaped (kernel as a matrix)
    iterations: Count = 1  # of power iteration at each use
    fold_batchnorm: bool = False  # take the weights with the gains of the BatchNorm that follows them; not the paper's

    def penalised(self) -> tuple[str, ...]:
        """The penalised layers, by how their names begin."""
        return ("encoder.",)

    def penalty_state(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        options: Any = {name: getattr(self, name) for name in ("operator", "iterations", "fold_batchnorm")}
        return LayerNorms(model, dataset.image_shape, self.penalised(), **options)

    def penalty(self, state: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        return torch.stack(list(state(model).values())).sum()


@dataclass(frozen=True, kw_only=True)
class LLSpectral(RepSpectral):
    """min CE(f(x), y) + strength sum_{l<=L} sigma_max(W_l)^2, the readout included (Yoshida and Miyato 2017): the main baseline.

    Of networks with one hidden layer the released code penalises, by a slip, the readout alone: `readout_only`.
    """

    name, title = "ll_spectral", "LL-spectral"
    paper = f"{Regularised.paper}; after Yoshida and Miyato 2017"
    summary = "Rep-spectral's penalty on all layers, the readout included."

    readout_only: bool = False  # penalise the readout alone, as the released code does for one hidden layer

    def penalised(self) -> tuple[str, ...]:
        return ("head",) if self.readout_only else ("encoder.", "head")


@dataclass(frozen=True, kw_only=True)
class CrossLipschitz(Regularised):
    """min CE(f(x), y) + strength / (n K^2) sum_i sum_{l,m} |grad p_l(x_i) - grad p_m(x_i)|^2, p the softmax of the logits.

    Rep-spectral's release computes 1/K of this penalty, so its strengths are K times these. Gradients are in pixels of [0, 1].
    """

    name, title = "cross_lipschitz", "Cross-Lipschitz"
    paper = f"{Regularised.paper}; after Hein and Andriushchenko 2017"
    summary = "Clean training that ends with a penalty on how differently class probabilities change with the image."

    projections: Whole = 1  # random directions, a double backward pass each; 0 for the exact penalty

    def penalty(self, state: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        return cross_lipschitz(outputs.softmax(1), x, projections=self.projections, generator=context.generator)


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

    epochs: int = 1000  # of pre-training, the burn-in included
    burn_in: float = 0.9  # share of the epochs that is trained without the penalty; the paper's 900 of 1000
    augment: str = "none"  # not used: the images of the loss are `views`, those of the readout are plain
    views: str = "simclr"  # view of the images in the loss
    projection: Widths = (256,)  # widths of the projector's linear maps
    readout_c: Positive = 1.0  # C of the logistic regression, its inverse L2 penalty
    readout_iterations: Count = 1000  # of its lbfgs, at most

    @property
    def all_epochs(self) -> int:
        """Epochs of pre-training, and the one of the readout, which goes through the images once."""
        return self.epochs + 1

    def model_options(self) -> dict[str, Any]:
        return {**super().model_options(), "projection": list(self.projection), "self_supervised": True}

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        return contrasted(model)

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = check_projected(self, dataset, model, SelfSupervised)

        def begin() -> None:
            device, batches = next(model.parameters()).device, dataset.train.batches(500)
            with frozen_eval(model), torch.no_grad(), full_float32():
                features = torch.cat([model.features(batch.x.to(device)) for batch in batches])
            labels = dataset.train.labels
            model.set_readout(*logistic_regression(features, labels, self.readout_c, self.readout_iterations))

        *before, last = super().stages(dataset, model)  # its probes go on: claims are about the last stage
        readout = Stage("readout", 1, {}, (), begin=begin, modules=last.modules, probes=last.probes)
        return [*before, last, readout]

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """The loss of two views, whose projections are one forward pass, and these projections (2 B, P)."""
        z = project_views(model, (batch.view(self.views), batch.view(self.views))).float()
        loss = self.compare(z[0], z[1])
        return Loss(loss, {self.pretext: loss}), z.flatten(0, 1)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of the projections (B, P) of two views, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BarlowSpectral(SelfSupervisedSpectral):
    """Barlow Twins' loss; see `barlow_twins_loss`."""

    name, title = "barlow_spectral", "Barlow Twins, spectral"
    paper = f"{Regularised.paper}; after Zbontar et al. 2021, Barlow Twins, ICML"
    summary = "Barlow Twins with rep-spectral's penalty on the encoder; then logistic regression on its features."
    pretext = "barlow"

    off_diagonal: NonNegative = 0.005  # lambda of Barlow Twins, of the redundancy between features

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return barlow_twins_loss(a, b, self.off_diagonal)


@dataclass(frozen=True, kw_only=True)
class SimCLRSpectral(SelfSupervisedSpectral):
    """SimCLR's loss (see `nt_xent`); the row `simclr` has the same loss with SupContrast's recipe and a head trained by Adam."""

    name, title = "simclr_spectral", "SimCLR, spectral"
    paper = f"{Regularised.paper}; after Chen et al. 2020, SimCLR, ICML"
    summary = "SimCLR with rep-spectral's penalty on the encoder; then logistic regression on its features."
    pretext = "nt_xent"

    batch_size: int = 512
    weight_decay: float = 5e-4  # the paper trains with 0 and with 5e-4
    projection: tuple[int, ...] = (512, 10)  # widths of the projector's maps; the second is the backbone's own fc there
    temperature: Positive = 0.07  # t of NT-Xent

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return nt_xent(a, b, self.temperature)


def logistic_regression(
    features: Tensor, labels: Tensor, c: float = 1.0, iterations: int = 1000
) -> tuple[Tensor, Tensor]:
    """The weight (K, D) and bias (K,) that minimise c sum_n CE(W f_n + b, y_n) + |W|^2 / 2, by scikit-learn (lbfgs), in float64.

    Two classes have one direction w there: they get -w/2 and w/2, which predict the same. A RuntimeWarning says if it has not converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(C=c, solver="lbfgs", max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it names parameters of scikit-learn
        fitted.fit(features.cpu().double().numpy(), labels.cpu().numpy())
    if fitted.n_iter_.max() >= iterations:
        said = f"The readout's logistic regression has not converged after {iterations} iterations: raise readout_iterations."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    weight, bias = (torch.from_numpy(part).to(features) for part in (fitted.coef_, fitted.intercept_))
    return (torch.cat((-weight, weight)) / 2, torch.cat((-bias, bias)) / 2) if len(bias) == 1 else (weight, bias)
