"""The disentangler of AFD (Zhou et al. 2025): two linear maps between a classifier's encoder and its head."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from robustlib.models.classifier import Classifier, ImageSpec


class Branches(NamedTuple):
    """What a `Disentangled` model computes of a batch: features (B, D) and logits (B, K)."""

    latent: Tensor  # h, the encoder's output
    intrinsic: Tensor  # f1 = D1 h, which the deployed model classifies
    confused: Tensor  # f2 = D2 sg[h]; no gradient reaches the encoder
    logits: Tensor  # z1 = W f1 + b
    confused_logits: Tensor  # z2 = W f2 + b


class Disentangled(Classifier):
    """normalise -> encoder -> D1 -> head, and beside it encoder -> stop-gradient -> D2 -> the same head.

    D1 (`intrinsic`) and D2 (`confused`) are D x D matrices without bias that start as the identity, as in the released code
    (models/resnet.py): a fresh model is the plain `Classifier` of the same seed. `forward` is the deployed path x -> z1, and
    `features` are f1, which `head` sees.

    With `classify` "latent" the deployed path is x -> W h + b, as if D1 were absent, and `features` are h.
    """

    def __init__(
        self, encoder: nn.Module, spec: ImageSpec, classify: Literal["intrinsic", "latent"] = "intrinsic"
    ) -> None:
        super().__init__(encoder, spec)
        self.classify = classify
        width = self.head.in_features
        self.intrinsic, self.confused = (nn.Linear(width, width, bias=False) for _ in range(2))
        for branch in (self.intrinsic, self.confused):
            nn.init.eye_(branch.weight)

    def latent(self, x: Tensor) -> Tensor:
        """The encoder's features h (B, D), before they are disentangled."""
        return super().features(x)

    def features(self, x: Tensor) -> Tensor:
        """The input of `head`: the intrinsic features f1 = D1 h (B, D), or h if those are classified."""
        return self.latent(x) if self.classify == "latent" else self.intrinsic(self.latent(x))

    def branches(self, x: Tensor) -> Branches:
        """Features and logits of both branches from one pass through the encoder."""
        latent = self.latent(x)
        intrinsic, confused = self.intrinsic(latent), self.confused(latent.detach())
        return Branches(latent, intrinsic, confused, self.head(intrinsic), self.head(confused))


class IntrinsicBranch(nn.Module):
    """x -> z1 = W D1 h + b of a model, also where the latent features are deployed; it shares the weights and the mode."""

    def __init__(self, model: Disentangled) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits z1 (B, K)."""
        return self.model.head(self.model.intrinsic(self.model.latent(x)))
