"""Spectral regularisation up to the representation (Yang, Zavatone-Veth and Pehlevan 2024), and with the readout.

The spectral norms of a model's layers: which layers there are, and what is taken for their norm.

Training without attacks whose last part carries a penalty: what rep-spectral and the rows it is compared with have in common.

The cross-Lipschitz penalty as rep-spectral's baseline (Hein and Andriushchenko 2017).
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.attacks.fold_batchnorm import batchnorm_after
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.losses import (
    PowerIteration,
    check_exact,
    cross_lipschitz,
    dense_squared_norm,
    exact_squared_norm,
    weight_of,
)
from robustlib.methods.base import Method
from robustlib.models import SelfSupervised
from robustlib.models.classifier import full_float32
from robustlib.training import Loss, Pass, Stage, StepContext, Updates

Operator = Literal["exact", "power", "reshaped"]
Size = tuple[int, int] | None  # (H, W) of what a convolution sees; None for a dense layer


class LayerNorms(nn.Module):
    """sigma_max^2 of layers of one model. Holds no weights, only the vectors that power iteration keeps.

    Args:
        model: whose layers; it is run once on an empty image, in eval mode, to see the size of every convolution's input.
        image_shape: (C, H, W).
        under: prefixes of the layers' names, e.g. ("encoder.", "head").
        operator: "exact" (dense and circular layers), "power" (any padding; see PowerIteration), or "reshaped": the norm of
            the kernel as a matrix (c_out, c_in k_h k_w), which is not the operator's (Yoshida and Miyato 2017).
        iterations: of "power", at each use.
        fold_batchnorm: take diag(gamma / sqrt(var + eps)) W of a convolution that BatchNorm directly follows; gamma gets a
            gradient. Residual sums, and BatchNorm elsewhere, stay uncontrolled; so do, with a warning that counts them,
            convolutions that no BatchNorm directly follows, as in pre-activation networks.

    Raises:
        InputError: a layer without a norm, a layer that is not circular for "exact", nothing to fold for fold_batchnorm.
    """

    def __init__(
        self,
        model: nn.Module,
        image_shape: Sequence[int],
        under: Sequence[str] = ("encoder.", "head"),
        *,
        operator: Operator = "power",
        iterations: int = 1,
        fold_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.operator, self.iterations = operator, iterations
        sizes = input_sizes(model, image_shape)
        self.sizes = {name: size for name, size in sizes.items() if name.startswith(tuple(under))}
        self.batchnorms = _folded(model, self.sizes) if fold_batchnorm else {}
        self.powers = nn.ModuleDict()
        for name, size in self.sizes.items():
            layer = model.get_submodule(name)
            weight_of(layer)
            if operator == "exact":
                check_exact(layer, size)
            if operator == "power":
                self.powers[_key(name)] = PowerIteration(layer, size)

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        """{name of the layer: sigma_max^2}, scalars that are differentiable in the model's weights; float32."""
        with full_float32():
            return {name: self._squared(model, name) for name in self.sizes}

    def converge(self, model: nn.Module, tolerance: float = 1e-2, limit: int = 50) -> dict[str, Tensor]:
        """As forward, without gradients, after `PowerIteration.converge`.

        The defaults are cheap enough for every epoch: on a fresh ResNet-18 they fall short of sigma^2 by 0.7 % at most.
        """
        with full_float32(), torch.no_grad():
            for name in self.sizes if self.operator == "power" else ():
                layer, weight = self._weight(model, name)
                self._power(name).converge(layer, weight, tolerance=tolerance, limit=limit)
            return {name: self._squared(model, name, kept=True) for name in self.sizes}

    def _squared(self, model: nn.Module, name: str, kept: bool = False) -> Tensor:
        layer, weight = self._weight(model, name)
        if self.operator == "exact":
            return exact_squared_norm(layer, self.sizes[name], weight)
        if self.operator == "reshaped":
            return dense_squared_norm(weight.flatten(1))
        return self._power(name)(layer, 0 if kept else self.iterations, weight)

    def _power(self, name: str) -> PowerIteration:
        power = self.powers[_key(name)]
        assert isinstance(power, PowerIteration)
        return power

    def _weight(self, model: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
        layer = model.get_submodule(name)
        weight = weight_of(layer)
        if name in self.batchnorms:
            norm = model.get_submodule(self.batchnorms[name])
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            weight = weight * gain.view(-1, 1, 1, 1)
        return layer, weight


def input_sizes(model: nn.Module, image_shape: Sequence[int]) -> dict[str, Size]:
    """{name: (H, W) of its input, None for other layers} of every layer with a weight matrix, in the order of the forward pass.

    Of a model that has no readout yet, these are the layers up to its features.
    """
    sizes: dict[str, Size] = {}

    def note(name: str, layer: nn.Module, x: Tensor) -> None:
        sizes[name] = (x.shape[2], x.shape[3]) if isinstance(layer, nn.Conv2d) else None

    weighty = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(w := getattr(m, "weight", None), Tensor) and w.ndim > 1
    ]
    hooks = [m.register_forward_pre_hook(lambda m, args, name=name: note(name, m, args[0])) for name, m in weighty]
    device = next(model.parameters()).device
    try:
        with frozen_eval(model), torch.no_grad():
            forward = model if not isinstance(model, SelfSupervised) or model.predicts else model.features
            forward(torch.zeros(1, *image_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _folded(model: nn.Module, sizes: Mapping[str, Size]) -> dict[str, str]:
    """{name of a layer in `sizes`: name of the BatchNorm that directly follows it}; says what is left out.

    Raises:
        InputError: that is none of them.
    """
    found = {name: norm for name, norm in batchnorm_after(model).items() if name in sizes}
    if not found:
        raise InputError(
            f"fold_batchnorm=True has nothing to fold: BatchNorm directly follows none of the penalised layers "
            f"({', '.join(sizes)}). Leave it at False, or take an architecture with BatchNorm after its convolutions, e.g. small_cnn."
        )
    left = [name for name, size in sizes.items() if size is not None and name not in found]
    if left:
        warnings.warn(
            f"fold_batchnorm: folded {len(found)} of {len(found) + len(left)} convolutions; BatchNorm does not directly follow the "
            f"others, such as {left[0]}, whose weights are penalised as they are.",
            UserWarning,
            stacklevel=3,
        )
    return found


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's name may hold no dot


@dataclass(frozen=True, kw_only=True)
class Regularised(Method):
    """A task's loss, CE(f(x), y) on clean images; after the burn-in, that + strength * penalty in every `cadence`-th step of an epoch.

    Burn-in and what follows are two stages of the same names in every such method, and the second starts with fresh momentum
    (the released code starts from a stored base model), so methods of one recipe share the burn-in bit for bit. `strength=0` is
    the unregularised arm. The learning rate goes on where it stood. Convolutions are circular in all of them. The released loop
    also takes, by a slip, a step on the penalty alone after each epoch, and repeats the first epoch after the burn-in; here
    it does neither. The last epoch counts, as there: the best on clean validation images would mostly be one at which the penalty has
    hardly begun. The singular values of all layers, the readout included, are watched ("probe/sigma/...").
    """

    notebook = "rep_spectral"
    protocol = ""  # its papers report adversarial distances, or clean accuracy alone

    epochs: int = 200  # the burn-in included
    batch_size: int = 1024
    lr: float = 0.01
    schedule: str = "constant"
    weight_decay: float = 1e-4  # the paper trains with 0 and with 1e-4
    burn_in: float = 0.8  # share of the epochs that is trained without the penalty; the paper's 160 of 200
    strength: float = 0.01  # lambda, of the penalty; 0 for none
    cadence: int = 24  # the penalty is taken in the steps 0, cadence, 2 cadence ... of each epoch; 1 for all

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InputError(
                f"{self.name}: strength={self.strength!r}: give a number of at least 0; 0 drops the penalty."
            )
        if not 0 <= self.burn_in < 1:
            raise InputError(
                f"{self.name}: burn_in={self.burn_in!r} leaves no epoch for the penalty: give a share of the {self.epochs} "
                "epochs, 0 <= burn_in < 1, e.g. 0.8."
            )
        if self.cadence < 1:
            raise InputError(f"{self.name}: cadence={self.cadence!r}: give a whole number of steps of at least 1.")

    def model_options(self) -> dict[str, Any]:
        """Circular convolutions: of them the exact norms are known."""
        return {"padding_mode": "circular"}

    def kept(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        """What the penalty keeps from step to step, checkpointed beside the model, e.g. a `LayerNorms`; None for nothing."""
        return None

    def trained(self, model: Any) -> Iterable[nn.Parameter]:
        """The weights that are trained."""
        return model.parameters()

    def task(self, model: Any, x: Tensor, batch: Batch) -> tuple[Loss, Tensor]:
        """What is minimised without the penalty, and the outputs (B, K) in float32 that the penalty may look at: CE and logits.

        Args:
            model: in train mode.
            x: the batch's images (B, C, H, W).
            batch: the batch itself, for labels and further views.
        """
        logits = model(x).float()
        ce = F.cross_entropy(logits, batch.y)
        return Loss(ce, {"ce": ce}), logits

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        """What is added to the loss with weight `strength`, a scalar.

        Args:
            kept: as made by `kept`.
            model: in train mode.
            x: the batch (B, C, H, W), requiring gradients.
            outputs: of `task`, with their graph.
            context: where in the stage.
        """
        raise NotImplementedError

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """The burn-in, unless it is shorter than an epoch, and the regularised rest.

        Raises:
            InputError: a layer whose norm is asked for and not known.
        """
        kept, watch = self.kept(dataset, model), LayerNorms(model, dataset.image_shape)
        modules = {"watch": watch, **({} if kept is None else {"kept": kept})}
        burn_in, usual = int(round(self.burn_in * self.epochs, 6)), self.lr_schedule()

        def probe(shown: nn.Module, batch: Batch) -> dict[str, float]:
            found = watch.converge(shown)
            return {f"sigma/{name.removeprefix('encoder.')}": float(value.sqrt()) for name, value in found.items()}

        def begin() -> None:
            if isinstance(kept, LayerNorms) and self.strength:
                kept.converge(model)

        def stage(name: str, start: int, end: int, **rest: Any) -> Stage:
            optim = replace(self.optim(self.trained(model)), schedule=lambda epoch: usual(epoch + start))
            passes = (Pass(self._updates(model, kept, penalised=name == "regularised"), augment=self.augment),)
            probes = {"sigma": probe}
            return Stage(
                name, end - start, {"model": optim}, passes, keep="last", modules=modules, probes=probes, **rest
            )

        last = stage("regularised", burn_in, self.epochs, ema=self.ema, begin=begin)
        return [stage("burn-in", 0, burn_in), last] if burn_in else [last]

    def _updates(self, model: nn.Module, kept: nn.Module | None, penalised: bool) -> Any:
        """The heart of both stages. "penalty" is what it adds to the loss, so its mean over an epoch counts the steps without."""

        def updates(batch: Batch, context: StepContext) -> Updates:
            now = penalised and self.strength > 0 and context.step % self.cadence == 0
            x = batch.x.detach().requires_grad_(now)
            loss, outputs = self.task(model, x, batch)
            added = self.strength * self.penalty(kept, model, x, outputs, context) if now else loss.total.new_zeros(())
            yield "model", Loss(loss.total + added, {**loss.parts, "penalty": added})

        return updates


@dataclass(frozen=True, kw_only=True)
class RepSpectral(Regularised):
    """min CE(f(x), y) + strength sum_{l<L} sigma_max(W_l)^2 over the layers of the representation, the readout left out (eq. 5).

    As the released code: no factor 1/2, convolutions as the circular operators they are, residual sums, biases and, unless
    folded, BatchNorm ignored. BatchNorm makes weights scale-free, so there the penalty bounds nothing by itself.
    """

    name = "rep_spectral"
    title = "Rep-spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv"
    summary = "Clean training that ends with a penalty on the largest singular values up to the representation."

    operator: Operator = "exact"  # a layer's norm: exact, power (block iteration), reshaped (kernel as a matrix)
    iterations: int = 1  # of power iteration at each use
    fold_batchnorm: bool = False  # take the weights with the gains of the BatchNorm that follows them; not the paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operator not in get_args(Operator):
            raise unknown("operator", self.operator, get_args(Operator))
        if self.iterations < 1:
            raise InputError(f"{self.name}: iterations={self.iterations!r}: give a whole number of at least 1.")

    def penalised(self) -> tuple[str, ...]:
        """The penalised layers, by how their names begin."""
        return ("encoder.",)

    def kept(self, dataset: Dataset, model: nn.Module) -> nn.Module | None:
        """The norms of the penalised layers."""
        return LayerNorms(
            model,
            dataset.image_shape,
            self.penalised(),
            operator=self.operator,
            iterations=self.iterations,
            fold_batchnorm=self.fold_batchnorm,
        )

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        """sum_l sigma_max(W_l)^2."""
        return torch.stack(list(kept(model).values())).sum()


@dataclass(frozen=True, kw_only=True)
class LLSpectral(RepSpectral):
    """min CE(f(x), y) + strength sum_{l<=L} sigma_max(W_l)^2, the readout included (Yoshida and Miyato 2017): the main baseline.

    Of networks with one hidden layer the released code penalises, by a slip, the readout alone: `readout_only`.
    """

    name = "ll_spectral"
    title = "LL-spectral"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Yoshida and Miyato 2017"
    summary = "Rep-spectral's penalty on all layers, the readout included."
    readout_only: bool = False  # penalise the readout alone, as the released code does for one hidden layer

    def penalised(self) -> tuple[str, ...]:
        """All layers, or the readout."""
        return ("head",) if self.readout_only else ("encoder.", "head")


@dataclass(frozen=True, kw_only=True)
class CrossLipschitz(Regularised):
    """min CE(f(x), y) + strength / (n K^2) sum_i sum_{l,m} |grad p_l(x_i) - grad p_m(x_i)|^2, p the softmax of the logits.

    Rep-spectral's release computes 1/K of this penalty, so its strengths are K times these. Gradients are in pixels of [0, 1].
    """

    name = "cross_lipschitz"
    title = "Cross-Lipschitz"
    paper = "Yang et al. 2024, Spectral Regularization for Adversarially-Robust Representation Learning, arXiv; after Hein and Andriushchenko 2017"
    summary = (
        "Clean training that ends with a penalty on how differently the classes' probabilities change with the image."
    )

    projections: int = 1  # random directions, a double backward pass each; 0 for the exact penalty, one for each class

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projections < 0:
            raise InputError(
                f"{self.name}: projections={self.projections!r}: give a number of random directions, or 0 for exact."
            )

    def penalty(self, kept: Any, model: Any, x: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        """The penalty on this batch's images."""
        return cross_lipschitz(outputs.softmax(1), x, projections=self.projections, generator=context.generator)
