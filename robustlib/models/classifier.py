"""The classifier every method trains and every attack attacks: images in [0, 1] -> logits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustlib.errors import InputError


class ImageSpec(Protocol):
    """What a model must know about its images; a Dataset has it, and so has a run's params.json."""

    @property
    def num_classes(self) -> int: ...
    @property
    def image_shape(self) -> Sequence[int]: ...  # (C, H, W)
    @property
    def mean(self) -> Sequence[float]: ...  # per channel, of images in [0, 1]
    @property
    def std(self) -> Sequence[float]: ...


class Classifier(nn.Module):
    """normalise -> encoder -> head: images float (B, C, H, W) in [0, 1] -> logits (B, K).

    The encoder maps x -> features (B, D), with D in its attribute `out_features`.
    """

    stochastic: bool = False  # True for randomised models, whose attackers average over draws
    predicts: bool = True  # False while a self-supervised model has no readout: then it has features, but no logits
    draws_by_example: bool = True  # False where one draw serves a whole batch: attacks then make one pass a draw
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.image_shape = tuple(spec.image_shape)
        self.num_classes = spec.num_classes
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(1, -1, 1, 1))
        self.encoder = encoder
        self.head = nn.Linear(int(encoder.out_features), spec.num_classes)  # type: ignore[arg-type]
        if (std := getattr(encoder, "init_std", None)) is not None:
            for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
                nn.init.normal_(layer.weight, std=std)
                nn.init.normal_(layer.bias, std=std)

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [0, 1] with mean 0 and standard deviation 1 per channel over the training set."""
        return (x - self.mean) / self.std

    def denormalise(self, x: Tensor) -> Tensor:
        """Images whose `normalise` is x."""
        return x * self.std + self.mean

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D), the input of `head`; raises InputError for images of another shape."""
        self.check_input(x)
        return self.encoder(self.normalise(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.features(x))

    def surrogates(self) -> dict[str, nn.Module]:
        """Other differentiable views of this model that an adversary would attack; none for a plain classifier."""
        return {}

    def attack_view(self) -> nn.Module:
        """The view x -> logits (B, K) whose gradients tell an attack most; here the model itself.

        Used where one attack must do (the validation of every epoch, adversarial examples whose features are compared); the
        deployed model decides what is adversarial. An evaluation attacks all `surrogates` as well.
        """
        return self

    def check_input(self, x: Tensor) -> None:
        """Raises InputError, naming what differs, if `x` is no batch of this model's images; looks at shapes only."""
        if x.ndim != 4:
            raise InputError(f"The model takes a batch (B, C, H, W), not a tensor of shape {tuple(x.shape)}.")
        self._check_shape(tuple(x.shape[1:]), "got a batch")

    def check_data(self, spec: ImageSpec) -> None:
        """Raises InputError, naming what differs, if the model was built for other images or classes than `spec`'s."""
        self._check_shape(tuple(spec.image_shape), "the data set has images")
        if spec.num_classes != self.num_classes:
            said = f"The model tells {self.num_classes} classes apart, the data set has {spec.num_classes}"
            raise InputError(f"{said}: choose the data set the model was trained on, or train a model for this one.")

    def _check_shape(self, shape: tuple[int, ...], whose: str) -> None:
        if shape == self.image_shape:
            return
        channels = shape[0] != self.image_shape[0]
        own, other = (f"{s[0]} channel(s)" if channels else f"{s[1]}x{s[2]} pixels" for s in (self.image_shape, shape))
        shapes = f"(shape {shape}, expected {self.image_shape}): choose the data set it was trained on"
        raise InputError(f"The model was built for images of {own}, but {whose} of {other} {shapes}.")


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K) at images x (B, ...), of which the model gets a copy, since it may change them in place (see `check_logits`);
    raises InputError for a model that cannot take them."""
    try:
        return check_logits(model(x.clone()), len(x))
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        said = f"The model cannot take images {x.dtype} {tuple(x.shape)} on {x.device} ({reason})"
        raise InputError(f"{said}: give it images of the shape that it was built for, where it is.") from error


def check_logits(answer: object, images: int) -> Tensor:
    """A copy of a model's logits (B, K) for so many images, as it may change its answer later; raises InputError for other answers."""
    if not isinstance(answer, Tensor):
        remedy = "wrap it in a module whose forward returns the logits alone, e.g. model(x)[0]"
        raise InputError(f"The model answers with a {type(answer).__name__}, not with logits (B, K): {remedy}.")
    if answer.ndim != 2 or len(answer) != images or not answer.is_floating_point():
        given = f"{answer.dtype} {tuple(answer.shape)}, not with float logits ({images}, K)"
        remedy = "let it keep the batch's dimension, by flatten(1) for squeeze() and mean() over the others only"
        raise InputError(f"The model answers {images} image(s) with {given}: {remedy}.")
    return answer.clone()


class View(nn.Module):
    """x -> `method`(x, *args) (B, K) of a model, as a module that shares its weights; `hints`, how to attack it, become attributes."""

    def __init__(self, model: nn.Module, method: str, *args: Any, **hints: Any) -> None:
        super().__init__()
        self.model, self.method, self.args = model, method, args
        vars(self).update(hints)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K)."""
        return getattr(self.model, self.method)(x, *self.args)


def spatial_mean(z: Tensor) -> Tensor:
    """The mean (B, C) of maps z (B, C, H, W) over their positions: bit for bit `z.mean((2, 3))`, and so is its gradient.

    But that gradient is always laid out channels first. After a network that computes channels last, the backward pass would
    then walk across memory, which takes a sixth of an attack's step on small_cnn.
    """
    if z.is_contiguous(memory_format=torch.channels_last):
        return z.permute(0, 2, 3, 1).mean((1, 2))
    return z.mean((2, 3))


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, float32 is float32: neither TF32, which has bf16's resolution and which convolutions use on GPUs unless told otherwise, nor
    the CPU's bf16. Afterwards each of torch's switches is as it was, whether it was set by its new name or its old one."""
    backends = torch.backends
    kinds = ((backends.cudnn, "conv rnn"), (backends.cuda, "matmul"), (backends.mkldnn, "conv rnn matmul"))
    switches: list[Any] = [getattr(kind, name) for kind, names in kinds for name in names.split()]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
