"""A faster copy of a model for the time of an attack: BatchNorm folded into convolutions, channels last, bf16 weights.

An attack runs the same weights dozens of times, in eval mode and without weight gradients. The copy is kept beside its model
and only its tensors are copied at each attack, so training pays for it once.
"""

import copy
import itertools
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustlib.models.classifier import View, full_float32

TOLERANCE = 1e-3  # of the largest logit: above it, folding is taken to have changed the function

_folded_views: "WeakKeyDictionary[nn.Module, dict[nn.Module, nn.Module | None]]" = WeakKeyDictionary()
_folded_models: "WeakKeyDictionary[nn.Module, dict[str, tuple[int, FoldedModel | None]]]" = WeakKeyDictionary()


def fold_batchnorm(model: nn.Module, x: Tensor, precision: str) -> nn.Module | None:
    """The model's folded copy with its present weights, or None where there can be none or its logits at `x` differ."""
    exact = all(t.dtype == torch.float32 for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    if getattr(model, "stochastic", False) or not len(x) or not exact or scripted:
        return None
    if isinstance(model, View) and (network := fold_batchnorm(model.model, x, precision)):
        return _folded_view(model, network, x, precision)
    known, signature = _folded_models.setdefault(model, {}), _signature(model, x.device)
    if precision not in known or known[precision][0] != signature:
        known[precision] = signature, _build(model, x, precision)
    folded = known[precision][1]
    if folded is None:
        return None
    folded.sync(model)
    return folded.module


def _folded_view(view: View, network: nn.Module, x: Tensor, precision: str) -> nn.Module | None:
    """The view on the folded network, which all views of a network share (ANCRA has one for each class); None if it answers otherwise."""
    known = _folded_views.setdefault(view, {})
    if network not in known:
        twin = copy.copy(view)
        twin._modules = {"model": network}
        # In bf16, or compiled, it is the network's own check that counts: the same layers are folded.
        checked = precision == "32-true" and not any(m._compiled_call_impl for m in network.modules())
        known[network] = twin if not checked or _alike(view, twin, x) else None
    return known[network]


def _signature(model: nn.Module, device: torch.device) -> int:
    """A number that changes when the model's structure, shapes of weights included, or anything else its modules hold does."""
    parts: list[Any] = [str(device)]
    for module in model.modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        parts += [id(module), *(None if tensor is None else tensor.shape for tensor in tensors)]
        for key, value in vars(module).items():
            if key in ("training", "_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, (bool, int, float, str, tuple)) or value is None:
                parts.append((key, repr(value)))
            elif isinstance(value, Tensor):
                parts.append((key, id(value), value._version))
            else:  # hooks by their number, anything else by identity
                parts.append((key, id(value), len(value) if hasattr(value, "__len__") else 0))
    return hash(tuple(parts))


def _build(model: nn.Module, x: Tensor, precision: str) -> "FoldedModel | None":
    """A checked copy; None if the model cannot be copied, folding changes its logits, or there is nothing to make faster.

    The check is made with random BatchNorm statistics, always the same: those of a fresh model hide a wrong order.
    """
    try:
        module, trial = (copy.deepcopy(model).eval().requires_grad_(False) for _ in range(2))
    except Exception:  # any object may refuse to be copied, and the attack can do without
        return None
    folded = FoldedModel(module)
    if precision == "32-true" and not folded.pairs and not any(isinstance(m, nn.Conv2d) for m in module.modules()):
        return None  # it would compute the same as the model, no faster
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in trial.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:  # shifted by up to a half
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                tensor.data = tensor.data * (0.5 + noise) + (noise - 0.5) * (tensor is norm.running_mean)
    folded.sync(trial)
    if not _alike(trial, module, x):
        return None
    if precision == "bf16-mixed":
        folded.cast(torch.bfloat16)
    for name, original in model.named_modules():
        if original._compiled_call_impl is not None:
            module.get_submodule(name).compile(dynamic=False)
    return folded


@torch.no_grad()
def _alike(model: nn.Module, other: nn.Module, x: Tensor) -> bool:
    with full_float32():
        wanted, got = (one(x[:4].clone()) for one in (model, other))
    return bool((wanted - got).abs().amax() <= TOLERANCE * wanted.abs().amax().clamp_min(1e-3))


def batchnorm_after(model: nn.Module) -> dict[str, str]:
    """{name of a convolution: name of the BatchNorm that directly follows it}: declared by a block as `folds`, or neighbours in
    a Sequential. Of a dual BatchNorm, "attacked" and "clean" in one, it is the attacked one, which is deployed."""
    pairs = {}
    for name, block in model.named_modules():
        prefix = f"{name}." if name else ""
        sequential = isinstance(block, nn.Sequential)
        for conv_name, norm_name in itertools.pairwise(block._modules) if sequential else getattr(block, "folds", ()):
            conv, norm = getattr(block, conv_name, None), getattr(block, norm_name, None)
            if attacked := getattr(norm, "attacked", None):
                norm, norm_name = attacked, f"{norm_name}.attacked"
            plain = type(conv) is nn.Conv2d and "weight" in conv._parameters and type(norm) is nn.BatchNorm2d
            if plain and norm is not None and norm.running_mean is not None and norm.affine:
                pairs[prefix + conv_name] = prefix + norm_name
    return pairs


class FoldedModel:
    """A copy of a model in which each BatchNorm of `pairs` (see `batchnorm_after`) is the identity; its weights are those
    of the last `sync`."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.pairs = module, batchnorm_after(module)
        self.eps: list[Any] = [module.get_submodule(name).eps for name in self.pairs.values()]
        for conv_name, norm_name in self.pairs.items():
            module.set_submodule(norm_name, nn.Identity())
            conv = module.get_submodule(conv_name)
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
        self.tensors = _tensors(module)
        self.cast(torch.float32)

    def cast(self, dtype: torch.dtype) -> None:
        """Keeps convolutions, channels last, and matrices in `dtype`; autocast keeps everything else in float32."""
        for module in (m for m in self.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            for tensor in (*module.parameters(False), *module.buffers(False)):
                layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
                tensor.data = tensor.data.to(dtype, memory_format=layout)

    @torch.no_grad()
    def sync(self, model: nn.Module) -> None:
        """Takes over the model's weights and statistics, in few launches and in place, so that a CUDA graph may go on with them."""
        value = _tensors(model)
        if self.pairs:
            # torch's fuse_conv_bn_weights rounds the bias in another order, which moves stored numbers
            keys = ("running_var", "running_mean", "weight", "bias")
            norms = {key: [value[f"{name}.{key}"] for name in self.pairs.values()] for key in keys}
            scales = torch._foreach_add(norms["running_var"], self.eps)
            torch._foreach_rsqrt_(scales)
            torch._foreach_mul_(scales, norms["weight"])
            shifts = torch._foreach_sub(norms["bias"], torch._foreach_mul(norms["running_mean"], scales))
            for name, scale, shift in zip(self.pairs, scales, shifts, strict=True):
                own = value.get(f"{name}.bias")
                value[f"{name}.bias"] = shift if own is None else own * scale + shift
                weight = value.pop(f"{name}.weight")
                torch.mul(weight, scale.view(-1, 1, 1, 1), out=self.tensors[f"{name}.weight"])
        for dtype in {tensor.dtype for tensor in self.tensors.values()}:
            names = [name for name, tensor in self.tensors.items() if tensor.dtype == dtype and name in value]
            torch._foreach_copy_([self.tensors[name] for name in names], [value[name] for name in names])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones by each of theirs."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
