"""A frozen classifier behind a purifier behind a random transform (AToP, Lin et al. 2024, section 3): f(g(t(x)))."""

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from robustlib.errors import Count, InputError, NonNegative, ShareBelowOne, Whole, check_fields, typed
from robustlib.models.classifier import Classifier, ImageSpec, View
from robustlib.models.purifier import Purifier
from robustlib.rng import drawn

WHOLE = 0.1  # how far 1 / missing of rt3 may lie from a whole number: 0.33 is a third
GREY = 0.5  # of a hidden pixel: 0 in the [-1, 1] space in which the released code masks


class Randomness(NamedTuple):
    """One draw of a transform, for each image of a batch by itself."""

    noise: Tensor | None  # (B, C, H, W) to be added, in units of [0, 1]; None without noise
    masks: Tensor  # (N, B, 1, H, W), 1 where a pixel is hidden, else 0; N = 1 but for rt3, whose N masks cover the image once


@dataclass(frozen=True)
class RandomTransform:
    """t(x) = (1 - m) * clip(x + sigma * noise) + m / 2, with random blocks m of a grid of `grid` x `grid`.

    rt1 hides a share `missing` of the blocks, rt2 adds noise before that, and rt3 adds noise and gives N = round(1 / missing)
    copies of the image whose hidden blocks are disjoint and together all of it. The order noise, clip, mask is the released
    code's; it draws one mask for a batch, here every image has its own. Where the grid does not divide an image, blocks differ by a pixel.
    """

    kind: Literal["none", "rt1", "rt2", "rt3"] = "none"
    sigma: NonNegative = 0.25  # standard deviation of the noise, in units of [0, 1]
    missing: ShareBelowOne = 0.25  # share of the blocks that a mask hides
    grid: Count = 8  # blocks a side
    clip: bool = True  # noisy images to [0, 1]; False only for an attacker, who wants the gradient of clipped pixels

    def __post_init__(self) -> None:
        check_fields(self)
        asked, blocks = f"missing={self.missing!r}", self.grid**2
        if self.kind == "rt3" and not 2 <= self.passes <= blocks:
            parts = f"round(1 / missing) parts, at least 2 and at most the {blocks} block(s) of the grid"
            raise InputError(f"{asked}: rt3 hides the image in {parts}: give 0.5 or less, or a finer grid.")
        if self.kind == "rt3" and abs(1 / self.missing - self.passes) > WHOLE:
            parts = f"parts of one size, and {1 / self.missing:.3g} of them is no whole number"
            remedy = f"give {1 / self.passes:.3g} for {self.passes} parts"
            raise InputError(f"{asked}: rt3 hides the whole image in {parts}: {remedy}.")
        if self.kind in ("rt1", "rt2") and self.missing and not 0 < self.hidden < blocks:
            hides = f"of a grid of {self.grid} x {self.grid} hides {self.hidden} of {blocks} block(s)"
            raise InputError(f"{asked} {hides}: give another rate, or a finer grid.")

    @property
    def random(self) -> bool:
        """Whether two draws can differ."""
        return self.kind != "none" and (self.noisy or self.kind == "rt3" or self.hidden > 0)

    @property
    def noisy(self) -> bool:
        """Whether it adds noise."""
        return self.kind in ("rt2", "rt3") and self.sigma > 0

    @property
    def hidden(self) -> int:
        """Blocks that a mask of rt1 and rt2 hides."""
        return round(self.missing * self.grid**2)

    @property
    def passes(self) -> int:
        """N, how many masked copies of an image it gives, each to be completed: round(1 / missing) for rt3, else 1."""
        return 1 if self.kind != "rt3" or not self.missing else round(1 / self.missing)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Randomness:
        """Noise and masks for every image of x (B, C, H, W), on its device and in its dtype; of x only the shape matters."""
        size, _, height, width = x.shape
        device = x.device if generator is None else generator.device
        noise = None
        if self.noisy:
            shape = x.shape[1:]
            noise = drawn(lambda n: torch.randn(n, *shape, generator=generator, device=device), size).to(x) * self.sigma
        if self.kind == "none":
            return Randomness(None, x.new_zeros(1, size, 1, height, width))
        if self.grid > min(height, width):
            said = f"grid={self.grid} asks for more blocks a side than an image of {height}x{width} pixels has pixels"
            raise InputError(f"{said}: give at most {min(height, width)}.")
        # a shuffle for each image
        blocks = self.grid**2
        places = drawn(lambda n: torch.rand(n, blocks, generator=generator, device=device), size).argsort(1)
        if self.kind == "rt3":
            part = places * self.passes // self.grid**2
            hidden = torch.stack([part == number for number in range(self.passes)])
        else:
            hidden = (places < self.hidden)[None]
        rows, columns = (torch.arange(side, device=device) * self.grid // side for side in (height, width))
        masks = hidden.view(-1, size, 1, self.grid, self.grid)[..., rows[:, None], columns]
        return Randomness(noise, masks.to(x))

    def apply(self, x: Tensor, randomness: Randomness) -> Tensor:
        """t(x) (N, B, C, H, W) of images x (B, C, H, W) in [0, 1] with this noise and behind these masks."""
        if randomness.noise is not None:
            x = x + randomness.noise
            x = x.clamp(0, 1) if self.clip else x
        return x * (1 - randomness.masks) + GREY * randomness.masks


class Purified(Classifier):
    """x -> logits of the classifier at the purified image, differentiable from end to end.

    Until `deploy`, which is saved with its weights, it is the plain classifier, which can be trained. Then the classifier is frozen:
    always in eval mode, and its weights take no gradients, though gradients flow through it to the purifier and to the image. Unless
    `fixed`, every image of every pass gets its own randomness from torch's global generator: the model is `stochastic`.
    """

    purifying: Tensor
    purifier: Purifier

    def __init__(self, encoder: nn.Module, spec: ImageSpec, purifier: Purifier, transform: RandomTransform) -> None:
        super().__init__(encoder, spec)
        self.purifier, self.transform = purifier, transform
        self.seed: int | None = None  # of randomness that is drawn once; None for fresh draws
        self.straight_through = False  # BPDA: backwards, purifier and transform count as the identity
        self.register_buffer("purifying", torch.tensor(False))
        self._on = {"purifying": False}  # what the buffer says, for which a GPU need not be waited for; views share it

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether it answers the same image differently each time: deployed, with a random transform, and not `fixed`."""
        return self.seed is None and self.transform.random and self._on["purifying"]

    def deploy(self, purifying: bool = True) -> None:
        """Puts purifier and transform before the classifier and freezes it; False takes them away and frees it again.

        A frozen classifier's weights have `requires_grad=False`: make its optimisers before.
        """
        self.purifying.fill_(purifying)
        self._on["purifying"] = purifying
        for part in (self.encoder, self.head):
            part.requires_grad_(not purifying)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the classifier behind a purifier stays in eval mode."""
        super().train(mode)
        if self._on["purifying"]:
            self.encoder.eval()
            self.head.eval()
        return self

    def draw(self, x: Tensor) -> Randomness:
        """The randomness of a pass of x: new, or the `fixed` one, the same for each image."""
        if self.seed is None:
            return self.transform.draw(x)
        once = self.transform.draw(x.new_zeros(1, *self.image_shape), torch.Generator().manual_seed(self.seed))
        noise = None if once.noise is None else once.noise.repeat_interleave(len(x), 0)
        return Randomness(noise, once.masks.repeat_interleave(len(x), 1))

    def outputs(self, x: Tensor, randomness: Randomness) -> tuple[Tensor, ...]:
        """All outputs of the purifier, each (N, B, C, H, W), one for each of an image's N masks; deployed or not."""
        hidden = self.transform.apply(x, randomness)
        completed = self.purifier.outputs(hidden.flatten(0, 1), randomness.masks.flatten(0, 1))
        return tuple(image.view(hidden.shape) for image in completed)

    def purify(self, x: Tensor, randomness: Randomness | None = None) -> Tensor:
        """What the classifier sees (B, C, H, W), in [0, 1]: x itself until it is deployed; None draws the model's own randomness."""
        self.check_input(x)
        if not self._on["purifying"]:
            return x
        randomness = self.draw(x) if randomness is None else randomness
        pure = self.combined(self.outputs(x, randomness)[-1], randomness)
        return pure.detach() + (x - x.detach()) if self.straight_through else pure

    def combined(self, images: Tensor, randomness: Randomness) -> Tensor:
        """The purified image (B, C, H, W) of the N images (N, B, C, H, W) that `outputs` gives for this randomness.

        rt1 and rt2 take it as a whole, visible pixels included; rt3 takes of each what was hidden there: sum_i m_i * g((1 - m_i) * ..., m_i).
        """
        return (images * randomness.masks).sum(0) if len(images) > 1 else images[0]

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the bare classifier, without transform and purifier."""
        return self.head(self._bare_features(x))

    def features(self, x: Tensor) -> Tensor:
        return self._bare_features(self.purify(x))

    def fixed(self, seed: int) -> "Purified":
        """The deterministic model whose randomness is drawn once, from `seed`, and is the same for every image.

        An attacker who knows it meets no randomness at all; what robustness is left is the purifier's. It shares the weights.
        """
        return self._view(seed=typed(seed, Whole, "Purified seed"))

    def surrogates(self) -> dict[str, nn.Module]:
        """Views that an adaptive adversary attacks beside the model; without those that are the model itself.

        "bpda" answers as the model does and is differentiated as if the purified image were the image (Athalye et al. 2018,
        section 4.1.2): its gradient is the classifier's, at the purified image. "classifier" is the classifier alone. "unclipped"
        does not clip noisy images, so that pixels near 0 and 1 keep their gradient in every draw.
        """
        if not self._on["purifying"] or (type(self.purifier) is Purifier and not self.transform.random):
            return {}
        views: dict[str, nn.Module] = {"bpda": self._view(straight_through=True), "classifier": View(self, "classify")}
        if self.transform.noisy and self.transform.clip:
            views["unclipped"] = self._view(transform=replace(self.transform, clip=False))
        return views

    def extra_repr(self) -> str:
        """The transform, which weights do not tell: for digests of the model."""
        return str(self.transform)

    def _bare_features(self, x: Tensor) -> Tensor:
        if self._on["purifying"] and any(module.training for module in (self.encoder, self.head)):
            said = "The classifier behind the purifier was put into train mode, where it judges images by their batch"
            raise InputError(f"{said}: call train() or eval() of the whole model, which keep it in eval mode.")
        return super().features(x)

    def _view(self, **changes: Any) -> "Purified":
        view = copy.copy(self)  # of the same modules, weights and buffers
        vars(view).update(changes)
        return view

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.deploy(bool(self.purifying))
