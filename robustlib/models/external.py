"""A network that was made elsewhere, seen as ours are: images in [0, 1] -> float32 logits, with features where its last linear layer looks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from robustlib.errors import InputError, shown
from robustlib.models.classifier import Classifier, ImageSpec

LOGITS = ("logits", "out", "output", "outputs", "y", "pred")  # what others call their logits
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)  # what others call averaged weights, which they evaluate
WRAPPED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # that wrappers put before names


class External(Classifier):
    """`net` as a classifier of the images that `spec` describes: always in eval mode, in float32, never handed the caller's own tensor.

    `output` says where the logits are in what `net` answers: a key, an attribute or a position; "" for the answer itself.
    `layer` names the module whose answers are the features; "" for the input of the last linear layer. With `mean` and `std`, one
    number a channel, images are normalised first.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: ImageSpec,
        *,
        output: str = "",
        layer: str = "",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        stochastic: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.image_shape, self.num_classes = tuple(spec.image_shape), spec.num_classes
        self.encoder, self.output, self.stochastic = net, output, stochastic
        self.normalised, self.layer, self.last_linear = bool(mean or std), layer, ""
        self.answering: tuple[str, ...] | None = (
            None  # the modules that can be looked at as layers, where they are known
        )
        for name, values, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
            numbers = list(values) or [usual] * self.image_shape[0]
            if len(numbers) not in (1, self.image_shape[0]) or (name == "std" and min(numbers) <= 0):
                said = f"{name}={shown(values)} is not one {'positive ' * (name == 'std')}number for each of {self.image_shape[0]} channel(s)"
                raise InputError(f"{said}: give as many, for images in [0, 1].")
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.eval()

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last linear layer, of which the input is "features"; none where another layer was named, or there is no such layer."""
        if not self.last_linear or self.layer:
            raise AttributeError("head")
        return self.encoder.get_submodule(self.last_linear)

    @property
    def tap(self) -> str:
        """The module whose answers are "features"; "" where the head's input is, or the logits are all there is."""
        return f"encoder.{self.layer}" if self.layer else ""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K), float32 also inside autocast."""
        self.check_input(x)
        shown_to_net = self.normalise(x) if self.normalised else x.clone()  # it may change its input in place
        with _differentiable_checkpoints():
            return select(self.encoder(shown_to_net), self.output).float()

    def features(self, x: Tensor) -> Tensor:
        """The input of the last linear layer as it is called, (B, D) for most networks."""
        seen: list[Tensor] = []
        with self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
            self(x)
        return seen[-1]

    def surrogates(self) -> dict[str, nn.Module]:
        """Those that the network offers by a method of that name, images in [0, 1] -> logits (B, K)."""
        return dict(getattr(self.encoder, "surrogates", dict)())

    def train(self, mode: bool = True) -> "External":
        """Nothing is trained here: it stays in eval mode."""
        return super().train(False)


class _Checkpoint:
    """In the place of torch's reentrant checkpointing, whose backward pass `torch.autograd.grad` cannot take."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def _differentiable_checkpoints() -> Iterator[None]:
    """For one forward pass of a network that may checkpoint with `use_reentrant=True`: gradients of attacks go through it as well."""
    old, checkpoint.CheckpointFunction = checkpoint.CheckpointFunction, _Checkpoint  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = old  # type: ignore[misc]


def select(answer: Any, output: str) -> Tensor:
    """The logits in what a network answers (see `External`); raises InputError where there are none."""
    try:
        if output.lstrip("-").isdigit():
            return answer[int(output)]
        if output and isinstance(answer, Mapping):
            return answer[output]
        return getattr(answer, output) if output else answer
    except (AttributeError, KeyError, IndexError, TypeError):
        raise InputError(f"The network's answer has no {output!r}: it is {described(answer)}. Give --output.") from None


def described(answer: Any) -> str:
    """What a network answers, in words."""
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)}"
    if isinstance(answer, Mapping):
        return "a mapping with " + ", ".join(f"{key} ({described(value)})" for key, value in answer.items())
    if isinstance(answer, (tuple, list)):
        return f"a {type(answer).__name__} of " + ", ".join(map(described, answer))
    return f"a {type(answer).__name__}"


def find_logits(answer: Any, images: int, classes: int) -> str:
    """Where the logits (images, classes) are in a network's answer, as `output` of `External`; raises InputError where nobody can tell."""

    def fits(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape) == (images, classes)

    if isinstance(answer, Tensor):
        return ""
    named: Any = answer.items() if isinstance(answer, Mapping) else getattr(answer, "__dict__", {}).items()
    numbered = enumerate(answer) if isinstance(answer, (tuple, list)) else ()
    found = [str(key) for key, value in chain(named, numbered) if fits(value)]
    if preferred := [key for key in LOGITS if key in found] or found[:1]:
        return preferred[0]
    remedy = "name them by --output, such as logits, or 0 for the first of a tuple"
    raise InputError(
        f"No logits ({images}, {classes}) were found in the network's answer, {described(answer)}: {remedy}."
    )


def unwrap(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network without wrappers of torch.compile and DataParallel and in float32, and a sentence on each change."""
    said = []
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(inner := net.module if isinstance(net, parallel) else getattr(net, "_orig_mod", None), nn.Module):
        said.append(f"It was taken out of {type(net).__name__}.")
        net = inner
    others = {str(t.dtype).removeprefix("torch.") for t in chain(net.parameters(), net.buffers()) if _inexact(t)}
    if others:
        said.append(
            f"Its {' and '.join(sorted(others))} weights were converted to float32, in which verdicts are given."
        )
        net = net.float()
    return net, said


def _inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def last_linear(net: nn.Module, model: nn.Module, x: Tensor) -> str:
    """The name of the linear layer of `net` that is called last when `model` answers images x; "" where none is seen."""
    called: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear) and name:
                hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: called.append(name)))
        model(x)
    return called[-1] if called else ""


def answering(net: nn.Module, model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """The outermost modules of `net` that answer a tensor (B, ...) when `model` answers images x (B, C, H, W), in their order.

    In place of a module that answers something else, or is never called as a whole, its own modules stand.
    """
    found: set[str] = set()

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(x) and value.is_floating_point():
            found.add(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in net.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooks.enter_context(module.register_forward_hook(lambda _, args, out, name=name: keep(name, out)))
        model(x)

    def outermost(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            yield from [prefix + name] if prefix + name in found else outermost(child, f"{prefix}{name}.")

    prefix = ""
    while len(children := list(net.named_children())) == 1 and [*children[0][1].children()]:
        prefix, net = f"{prefix}{children[0][0]}.", children[0][1]
    return tuple(outermost(net, prefix))


def fit_weights(net: nn.Module, checkpoint: Any, where: object) -> str:
    """Loads a checkpoint as people store them: bare or wrapped, with prefixes of wrappers, averaged weights first; says which it took.

    Raises InputError with the first names that are missing or unexpected, or whose shapes differ.
    """
    candidates = list(_state_dicts(checkpoint))
    if not candidates:
        raise InputError(f"{where} holds no weights by name: give a state dict, or a dict with one under 'state_dict'.")
    own, problems = net.state_dict(), list[tuple[int, str]]()
    for label, state in candidates:
        stripped = _strip(state, own)
        problem = _misfit(own, stripped)
        if problem is None:
            net.load_state_dict(stripped, strict=False)
            return str(label)
        problems.append(problem)
    remedy = "give the factory, or the --model-args, that they were made with"
    raise InputError(f"The weights in {where} do not fit the network: {min(problems)[1]}; {remedy}.")


def _state_dicts(checkpoint: Any, label: str = "") -> Any:
    """(where, names -> tensors) for everything in a checkpoint that looks like a state dict, averaged weights first."""
    if not isinstance(checkpoint, Mapping):
        return
    for key in (*AVERAGED, *WRAPPED):
        yield from _state_dicts(checkpoint.get(key), f"{label}{key}/")
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if tensors:
        yield label.rstrip("/"), tensors


def _strip(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the network's own names: without the prefixes of wrappers and the counter of averaged weights."""
    named = {name: value for name, value in state.items() if name in own or name != "n_averaged"}
    while named and not set(named) & set(own):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in named)), "")
        if not prefix:
            break
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """How many names do not fit, and the first of them in words; None where all fit (counters of BatchNorm may be missing)."""
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    parts = [f"it lacks {_few(missing)}"] * bool(missing) + [f"it has {_few(unexpected)} besides"] * bool(unexpected)
    for name in other[:1]:
        parts.append(f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the network")
    return (len(missing) + len(unexpected) + len(other), " and ".join(parts)) if parts else None


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
