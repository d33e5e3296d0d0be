"""A frozen classifier behind a purifier behind a random transform (AToP, Lin et al. 2024): f(g(t(x)))."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from robustlib.errors import InputError, check_counts
from robustlib.models.classifier import Classifier, ImageSpec
from robustlib.models.purifier import Purifier
from robustlib.models.random_transforms import Randomness, RandomTransform


class Purified(Classifier):
    """x -> logits of the classifier at the purified image, differentiable from end to end.

    Until `deploy` it is the plain classifier, which can be trained; `around` makes one of a classifier that is. From then on the classifier is frozen: always in eval mode,
    whatever `train` says, and its weights take no gradients, though gradients flow through it to the purifier and to the image.
    Whether it is deployed is saved with its weights. Without `fixed` randomness every image of every pass gets its own, from
    torch's global generator; then the model is `stochastic`, and attacks must average over draws.

    Args:
        encoder: x -> features (B, D), with D in its attribute `out_features`.
        spec: shape, classes and statistics of the images.
        purifier: completes images of this shape.
        transform: what destroys them first.
        votes: see `voting`.

    Raises:
        InputError: a purifier of other images, or votes < 1.
    """

    purifying: Tensor
    purifier: Purifier

    def __init__(
        self, encoder: nn.Module, spec: ImageSpec, purifier: Purifier, transform: RandomTransform, votes: int = 1
    ) -> None:
        super().__init__(encoder, spec)
        if purifier.image_shape != self.image_shape:
            raise InputError(
                f"The purifier completes images of shape {purifier.image_shape}, the classifier takes {self.image_shape}: "
                "build both for the same data set."
            )
        self.purifier, self.transform, self.votes = purifier, transform, votes
        self.seed: int | None = None  # of randomness that is drawn once; None for fresh draws
        self.straight_through = False  # BPDA: backwards, purifier and transform pass for the identity
        self.register_buffer("purifying", torch.tensor(False))
        check_counts(self, "votes")

    @classmethod
    def around(
        cls, classifier: Classifier, purifier: Purifier, transform: RandomTransform, votes: int = 1
    ) -> "Purified":
        """A deployed model of a copy of a finished classifier, of whatever training, behind a purifier: `purifier` itself, which may
        come from another model of the same images.

        Raises:
            InputError: a classifier that is more than an encoder and a linear head, a purifier of other images, or votes < 1.
        """
        if type(classifier) is not Classifier:
            raise InputError(
                f"A {type(classifier).__name__} is more than an encoder and a head, which is all that a purifier is put before here: "
                "give a Classifier, as build_model and most runs have it."
            )
        spec = SimpleNamespace(image_shape=classifier.image_shape, num_classes=classifier.num_classes)
        spec.mean, spec.std = classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()
        model = cls(copy.deepcopy(classifier.encoder), spec, purifier, transform, votes)
        model.head.load_state_dict(classifier.head.state_dict())
        model.to(classifier.mean.device).deploy()
        return model

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether it answers the same image differently each time: deployed, with a random transform, and not `fixed`."""
        return self.seed is None and self.transform.random and bool(self.purifying)

    def deploy(self, purifying: bool = True) -> None:
        """Puts purifier and transform before the classifier, and freezes it; False takes them away and frees it again.

        Weights of a frozen classifier have `requires_grad=False`: make optimisers of them before, or not at all.
        """
        self.purifying.fill_(purifying)
        self._settle()

    def train(self, mode: bool = True) -> Self:
        """As of any module, but the classifier behind a purifier stays in eval mode."""
        super().train(mode)
        if bool(self.purifying):
            self.encoder.eval()
            self.head.eval()
        return self

    # ---- what it computes

    def draw(self, x: Tensor, copies: int = 1) -> Randomness:
        """The randomness of `copies` passes of each image of x, for x.repeat(copies, 1, 1, 1): fresh, or the `fixed` one."""
        if self.seed is None:
            return self.transform.draw(x.repeat(copies, 1, 1, 1))
        generator = torch.Generator().manual_seed(self.seed)
        once = self.transform.draw(x.new_zeros(copies, *self.image_shape), generator)
        noise = None if once.noise is None else once.noise.repeat_interleave(len(x), 0)
        return Randomness(noise, once.masks.repeat_interleave(len(x), 1))

    def outputs(self, x: Tensor, randomness: Randomness) -> tuple[Tensor, ...]:
        """All outputs of the purifier, each (N, B, C, H, W): one for each of the N masks that `randomness` has for an image.

        The last is what `purify` combines; a loss looks at all. Computed whether deployed or not.
        """
        hidden = self.transform.apply(x, randomness)
        completed = self.purifier.outputs(hidden.flatten(0, 1), randomness.masks.flatten(0, 1))
        return tuple(image.view(hidden.shape) for image in completed)

    def purify(self, x: Tensor, randomness: Randomness | None = None) -> Tensor:
        """What the classifier sees (B, C, H, W), in [0, 1]: x itself until it is deployed.

        rt1 and rt2 take the purifier's image as a whole, visible pixels included; rt3 takes of each of its N images what was
        hidden there: sum_i m_i * g((1 - m_i) * ..., m_i), all of it painted.

        Args:
            x: images (B, C, H, W) in [0, 1].
            randomness: of this batch; None for the model's own, fresh or fixed.

        Raises:
            InputError: images of another shape than the model was built for.
        """
        self.check_input(x)
        if not bool(self.purifying):
            return x
        randomness = self.draw(x) if randomness is None else randomness
        pure = self.combined(self.outputs(x, randomness)[-1], randomness)
        return pure.detach() + (x - x.detach()) if self.straight_through else pure

    def combined(self, images: Tensor, randomness: Randomness) -> Tensor:
        """The purified image (B, C, H, W) of the N images (N, B, C, H, W) that `outputs` gives for this randomness; see `purify`."""
        return (images * randomness.masks).sum(0) if len(images) > 1 else images[0]

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the bare classifier, as if nothing stood before it.

        Raises:
            InputError: images of another shape, or a frozen classifier that was put into train mode.
        """
        return self.head(self._bare_features(x))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D) of the purified images, the input of `head`; of one draw, whatever the votes.

        Raises:
            InputError: as of `purify` and `classify`.
        """
        return self._bare_features(self.purify(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K); with several votes log p, p the mean of the draws' probabilities."""
        if self.votes == 1 or not bool(self.purifying):
            return self.head(self.features(x))
        self.check_input(x)
        every = self.head(self._bare_features(self.purify(x.repeat(self.votes, 1, 1, 1), self.draw(x, self.votes))))
        return every.log_softmax(1).unflatten(0, (self.votes, len(x))).logsumexp(0) - math.log(self.votes)

    # ---- views that share its weights

    def fixed(self, seed: int) -> "Purified":
        """The deterministic model whose randomness is drawn once, from `seed`, and is the same for every image.

        An attacker who knows it faces no randomness at all; what robustness is left is the purifier's.

        Raises:
            InputError: no whole number of at least 0; None would leave it random.
        """
        view = self._view(seed=seed)
        check_counts(view, "seed", least=0)
        return view

    def voting(self, votes: int) -> "Purified":
        """The model that answers with log p, p the mean of the class probabilities over `votes` draws: still random, but less so.

        Each image costs `votes` passes, made as one batch. This one is to be deployed, attacked and differentiated; the vote that
        evaluation answers BPDA with (`robustlib.evaluation.randomness.Vote`) averages logits, as the numbers it is compared with do.

        Raises:
            InputError: votes < 1.
        """
        view = self._view(votes=votes)
        check_counts(view, "votes")
        return view

    def surrogates(self) -> dict[str, nn.Module]:
        """Views that an adaptive adversary attacks beside the model; without those that are the model itself.

        "bpda" answers as the model does and is differentiated as if the purified image were the image (Athalye et al. 2018,
        section 4.1.2): its gradient is the classifier's, at the purified image. "classifier" is the classifier alone. "unclipped"
        does not clip noisy images, so that pixels near 0 and 1 keep their gradient in every draw.
        """
        if not bool(self.purifying) or (type(self.purifier) is Purifier and not self.transform.random):
            return {}
        views: dict[str, nn.Module] = {"bpda": self._view(straight_through=True), "classifier": Bare(self)}
        if self.transform.noisy and self.transform.clip:
            views["unclipped"] = self._view(transform=replace(self.transform, clip=False))
        return views

    def extra_repr(self) -> str:
        """What weights do not tell, for digests of the model."""
        return f"{self.transform}"

    def _bare_features(self, x: Tensor) -> Tensor:
        if bool(self.purifying) and any(module.training for module in (self.encoder, self.head)):
            raise InputError(
                "The classifier behind the purifier was put into train mode, where it judges images by their batch: call train() "
                "or eval() of the whole model, which keep it in eval mode."
            )
        return super().features(x)

    def _settle(self) -> None:
        """Makes the classifier's mode and gradients what `purifying` says."""
        for part in (self.encoder, self.head):
            part.requires_grad_(not bool(self.purifying))
        self.train(self.training)

    def _view(self, **changes: Any) -> "Purified":
        """The same modules, weights and buffers under other settings."""
        view = copy.copy(self)
        vars(view).update(changes)
        return view

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._settle()


class Bare(nn.Module):
    """The classifier of a `Purified` by itself; it shares its weights and its mode."""

    def __init__(self, model: Purified) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.model.classify(x)
