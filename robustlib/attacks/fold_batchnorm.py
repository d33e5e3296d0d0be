"""A faster twin of a model for the time of an attack: BatchNorm folded into convolutions, channels last, bf16 weights.

An attack runs the same weights forwards and backwards dozens of times, in eval mode and without weight gradients. There,
convolution + BatchNorm is one convolution with scaled weights, and casting weights once is cheaper than at every pass.
The twin is kept beside its model and only its tensors are renewed at each attack, so training pays for it once.
"""

import copy
import itertools
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustlib.models.classifier import full_float32

TOLERANCE = 1e-3  # of the largest logit: above it, folding is taken to have changed the function

_twins: "WeakKeyDictionary[nn.Module, dict[str, tuple[int, FoldedModel | None]]]" = WeakKeyDictionary()


def fold_batchnorm(model: nn.Module, x: Tensor, precision: str) -> nn.Module | None:
    """The model's twin with today's weights, or None where a twin is impossible or its logits at `x` differ."""
    if getattr(model, "stochastic", False) or not len(x):
        return None
    if any(t.is_floating_point() and t.dtype != torch.float32 for t in (*model.parameters(), *model.buffers())):
        return None
    twins, now = _twins.setdefault(model, {}), _signature(model, x.device)
    known, twin = twins.get(precision, (None, None))
    if known != now:
        twin = _build(model, x, precision)
        twins[precision] = now, twin
    if twin is None:
        return None
    twin.sync(model)
    return twin.module


def _signature(model: nn.Module, device: torch.device) -> int:
    """A number that changes when the model's structure, or anything its modules hold besides weights, does."""
    facts: list[Any] = [str(device)]
    for module in model.modules():
        facts.append(id(module))
        for key, value in vars(module).items():
            if key in ("training", "_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, (bool, int, float, str, tuple)) or value is None:
                facts.append((key, repr(value)))
            else:  # a tensor by its version, hooks by their number, anything else by identity
                content = (
                    value._version if isinstance(value, Tensor) else len(value) if hasattr(value, "__len__") else 0
                )
                facts.append((key, id(value), content))
    return hash(tuple(facts))


def _build(model: nn.Module, x: Tensor, precision: str) -> "FoldedModel | None":
    """A checked twin; None if the model cannot be copied, folding changes its logits, or there is nothing to make faster.

    The check is made on a copy with random BatchNorm statistics: those of a fresh model hide a wrong order.
    """
    try:
        module, trial = (copy.deepcopy(model).eval().requires_grad_(False) for _ in range(2))
    except Exception:  # any object may refuse to be copied, and the attack can do without
        return None
    randomise_batchnorm(trial)
    folds = _fold(module)
    plain = precision == "32-true" and not any(isinstance(part, nn.Conv2d) for part in module.modules())
    if plain and not folds:
        return None  # it would compute the same as the model, no faster
    exact, twin = FoldedModel(module, folds, torch.float32), FoldedModel(module, folds, _dtype(precision))
    exact.sync(trial)
    with torch.no_grad(), full_float32():
        wanted, got = trial(x[:4]), module(x[:4])
    return twin if bool((wanted - got).abs().amax() <= TOLERANCE * wanted.abs().amax().clamp_min(1e-3)) else None


def randomise_batchnorm(model: nn.Module) -> None:
    """Moves every BatchNorm's statistics and affine weights by up to a half, with numbers of its own."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                    tensor.data = tensor.data * (0.5 + noise) + (noise - 0.5) * (tensor is module.running_mean)


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16-mixed" else torch.float32


def batchnorm_after(model: nn.Module) -> dict[str, str]:
    """{name of a convolution: name of the BatchNorm that directly follows it}, as far as the model's blocks tell.

    Of a dual BatchNorm, "attacked" and "clean" in one, it is the attacked one, which is deployed.
    """
    pairs = {}
    for name, block in model.named_modules():
        prefix = f"{name}." if name else ""
        for conv_name, norm_name in _pairs(block):
            norm = getattr(block, norm_name, None)
            if attacked := getattr(norm, "attacked", None):
                norm, norm_name = attacked, f"{norm_name}.attacked"
            if _foldable(getattr(block, conv_name, None), norm):
                pairs[prefix + conv_name] = prefix + norm_name
    return pairs


def _fold(module: nn.Module) -> dict[str, str]:
    """Replaces each foldable BatchNorm by the identity; returns {name of convolution: name of its BatchNorm}."""
    folded = batchnorm_after(module)
    for conv_name, norm_name in folded.items():
        block, _, name = norm_name.rpartition(".")
        setattr(module.get_submodule(block), name, nn.Identity())
        conv = module.get_submodule(conv_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
    return folded


def _pairs(block: nn.Module) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) attribute names: declared by the block as `folds`, or neighbours in a Sequential."""
    if isinstance(block, nn.Sequential):
        names = list(block._modules)
        return list(itertools.pairwise(names))
    return list(getattr(block, "folds", ()))


def _foldable(conv: Any, norm: Any) -> bool:
    plain = type(conv) is nn.Conv2d and "weight" in conv._parameters and type(norm) is nn.BatchNorm2d
    return plain and norm.running_mean is not None


@dataclass(frozen=True)
class FoldedModel:
    """The folded copy, which convolution swallowed which BatchNorm, and the dtype of its convolutions and matrices."""

    module: nn.Module
    folds: dict[str, str]
    dtype: torch.dtype

    @torch.no_grad()
    def sync(self, model: nn.Module) -> None:
        """Takes over the model's weights and statistics; unchanged tensors are shared, not copied."""
        source = dict(model.named_modules())
        for name, mine in self.module.named_modules():
            theirs = source.get(name)
            if name in self.folds:
                assert theirs is not None
                tensors = _folded(theirs, source[self.folds[name]])
            elif theirs is None or isinstance(mine, nn.Identity):
                continue
            else:
                tensors = {k: v for k, v in {**theirs._parameters, **theirs._buffers}.items() if v is not None}
            for key, value in tensors.items():
                getattr(mine, key).data = self._cast(mine, value)

    def _cast(self, module: nn.Module, value: Tensor) -> Tensor:
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            return value.data  # autocast keeps everything else in float32
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.data.to(self.dtype, memory_format=layout)


def _folded(conv: nn.Module, norm: nn.Module) -> dict[str, Tensor]:
    """Weight and bias of the one convolution that equals `norm(conv(.))` in eval mode."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - mean * scale
    bias = shift if conv.bias is None else conv.bias * scale + shift
    return {"weight": conv.weight * scale.view(-1, 1, 1, 1), "bias": bias}
