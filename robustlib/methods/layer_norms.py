"""The spectral norms of a model's layers: which layers there are, and what is taken for their norm."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.attacks.fold_batchnorm import batchnorm_after
from robustlib.errors import InputError
from robustlib.losses.spectral import PowerIteration, check_exact, dense_squared_norm, exact_squared_norm, weight_of
from robustlib.models import SelfSupervised
from robustlib.models.classifier import full_float32

Operator = Literal["exact", "power", "reshaped"]


class LayerNorms(nn.Module):
    """sigma_max^2 of layers of one model. Holds no weights, only the vectors of power iteration.

    Of those whose names begin as `under` says. The model is run once on an empty image (C, H, W), in eval mode, to see the size of
    every convolution's input. The operator is "exact" (dense and circular layers), "power" (any padding, `iterations` at each use;
    see PowerIteration), or "reshaped": the norm of the kernel as a matrix (c_out, c_in k_h k_w), which is not the operator's (Yoshida
    and Miyato 2017). `fold_batchnorm` takes diag(gamma / sqrt(var + eps)) W of a convolution that BatchNorm directly follows; gamma
    gets a gradient. Residual sums, other BatchNorm and, with a warning, convolutions that none directly follows stay uncontrolled.
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
        self.batchnorms = self._foldable(model) if fold_batchnorm else {}
        powers: dict[str, nn.Module] = {}
        for name, size in self.sizes.items():
            layer = model.get_submodule(name)
            weight_of(layer)
            if operator == "exact":
                check_exact(layer, size)
            if operator == "power":
                powers[name.replace(".", "/")] = PowerIteration(layer, size)  # a module's name may hold no dot
        self.powers = nn.ModuleDict(powers)

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        """{name of the layer: sigma_max^2}, scalars that are differentiable in the model's weights; float32."""
        with full_float32():
            return {name: self._squared(model, name, self.iterations) for name in self.sizes}

    def converge(self, model: nn.Module, tolerance: float = 1e-2, limit: int = 50) -> dict[str, Tensor]:
        """As forward, without gradients, after `PowerIteration.converge`.

        The defaults are cheap enough for every epoch: on a fresh ResNet-18 they fall short of sigma^2 by 0.7 % at most.
        """
        with full_float32(), torch.no_grad():
            for name in self.sizes if self.operator == "power" else ():
                layer, weight = self._weight(model, name)
                power: Any = self.powers[name.replace(".", "/")]
                power.converge(layer, weight, tolerance=tolerance, limit=limit)
            return {name: self._squared(model, name, iterations=0) for name in self.sizes}

    def _squared(self, model: nn.Module, name: str, iterations: int) -> Tensor:
        layer, weight = self._weight(model, name)
        if self.operator == "exact":
            return exact_squared_norm(layer, self.sizes[name], weight)
        if self.operator == "reshaped":
            return dense_squared_norm(weight.flatten(1))
        power: Tensor = self.powers[name.replace(".", "/")](layer, iterations, weight)
        return power

    def _weight(self, model: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
        """The layer and its weight, with BatchNorm folded in where asked for."""
        layer = model.get_submodule(name)
        if name not in self.batchnorms:
            return layer, weight_of(layer)
        norm: Any = model.get_submodule(self.batchnorms[name])
        gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        return layer, weight_of(layer) * gain.view(-1, 1, 1, 1)

    def _foldable(self, model: nn.Module) -> dict[str, str]:
        """{name of a layer: name of the BatchNorm that directly follows it}; warns of convolutions without one."""
        folded = {name: norm for name, norm in batchnorm_after(model).items() if name in self.sizes}
        if not folded:
            where = f"BatchNorm directly follows none of the penalised layers ({', '.join(self.sizes)})"
            remedy = "Leave it at False, or take an architecture with BatchNorm after its convolutions, e.g. small_cnn."
            raise InputError(f"fold_batchnorm=True has nothing to fold: {where}. {remedy}")
        others = [name for name, size in self.sizes.items() if size is not None and name not in folded]
        if others:
            folds = f"folded {len(folded)} of {len(folded) + len(others)} convolutions"
            rest = f"the others, such as {others[0]}, whose weights are penalised as they are"
            said = f"fold_batchnorm: {folds}; BatchNorm does not directly follow {rest}."
            warnings.warn(said, UserWarning, stacklevel=3)
        return folded


def input_sizes(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, int] | None]:
    """{name: (H, W) of its input, None for other layers} of every layer with a weight matrix, in the order of the forward pass.

    Of a model that has no readout yet, these are the layers up to its features.
    """
    sizes: dict[str, tuple[int, int] | None] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor], name: str) -> None:
        x = inputs[0]
        sizes[name] = (x.shape[2], x.shape[3]) if isinstance(layer, nn.Conv2d) else None

    with ExitStack() as hooks, frozen_eval(model), torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1:
                hooks.enter_context(module.register_forward_pre_hook(partial(note, name=name)))
        forward = model if not isinstance(model, SelfSupervised) or model.predicts else model.features
        forward(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    return sizes
