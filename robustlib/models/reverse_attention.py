"""Reverse attention (Zhou et al. 2023, ANCRA): the last blocks' channels weighted by the classifier's row of one class.

The model's own prediction chooses the row, which gradients of the deployed logits hold fixed; `surrogates` show where it changes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.errors import InputError
from robustlib.models.classifier import Classifier, ImageSpec, View, spatial_mean

TEMPERATURES = (0.1, 0.3, 1.0)  # of the soft and the BPDA gates among the surrogates
SOFT = 0.3  # of the soft gates before the last head
AUXILIARY_WEIGHT = 2.0  # of the auxiliary heads' mean beside the final head (the release's cr_beta)


@dataclass(frozen=True)
class Attended:
    """What one forward pass through n gates gives; the last entry of each tuple belongs to the last block."""

    logits: Tensor  # p' = W GAP(z'_n) + b, (B, K)
    auxiliary: tuple[Tensor, ...]  # p_i = W GAP(z_i) + b, each (B, K)
    before: tuple[Tensor, ...]  # GAP(z_i), each (B, D), D the width of the last stage
    after: tuple[Tensor, ...]  # GAP(z'_i), each (B, D), with z'_i[k] = W[j_i, k] z_i[k]


class ReverseAttention(Classifier):
    """A classifier whose last blocks are each followed by z'_i = W[j_i] z_i, with W the one head that all of them share.

    Two blocks are gated (a stage of one block, as small_cnn's: one); pre-activation networks put their final BatchNorm and ReLU
    before each gate and nothing after the last, as released. Features are globally averaged at every image size; the release
    keeps 2 x 2 positions of 64-pixel images. W is neither detached nor normalised, its signs count. The encoder has `gates` blocks
    that take a `gate` (see robustlib.models.backbones). Its `features` are GAP(z'_n), what the paper calls so.
    """

    gated_blocks: Tensor

    def __init__(self, encoder: nn.Module, spec: ImageSpec) -> None:
        super().__init__(encoder, spec)
        self.gates = int(getattr(encoder, "gates", 0))
        if not self.gates:
            said = f"Reverse attention weights the maps of a last convolutional stage, which {type(encoder).__name__} lacks"
            raise InputError(f"{said}: choose small_cnn, a ResNet or a wide ResNet, or set reverse_attention=false.")
        # It has no weights of its own: this tells its checkpoints from those of the plain classifier.
        self.register_buffer("gated_blocks", torch.tensor(self.gates))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x).logits

    def features(self, x: Tensor) -> Tensor:
        return self.attend(x).after[-1]

    def latent(self, x: Tensor) -> Tensor:
        """GAP(z_n) (B, D), the features before the last weighting, which the last auxiliary head sees."""
        return self.attend(x).before[-1]

    def attend(self, x: Tensor, labels: Tensor | None = None) -> Attended:
        """All logits and features of images x (B, C, H, W); rows of `labels`, int64 (B,), or None: of predicted ones, weight each block."""
        if labels is None:
            return self.gated(x, lambda logits: self.head.weight[logits.argmax(1)])
        if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
            raise InputError(f"Gates need labels int64 ({len(x)},), got {labels.dtype} {tuple(labels.shape)}.")
        return self.gated(x, lambda logits: self.head.weight[labels])

    def gated(self, x: Tensor, mask: Callable[[Tensor], Tensor]) -> Attended:
        """As `attend`, with any weighting: `mask` takes a block's auxiliary logits (B, K) and gives (B, D)."""
        self.check_input(x)
        auxiliary, before, after = [], [], []

        def gate(z: Tensor) -> Tensor:
            pooled = spatial_mean(z)
            logits = self.head(pooled)
            weights = mask(logits)
            auxiliary.append(logits)
            before.append(pooled)
            after.append(pooled * weights)  # averaging and weighting commute
            return z * weights[:, :, None, None]

        features = self.encoder(self.normalise(x), gate)
        logits = self.head(features)  # the last call of `head`: who listens there sees the deployed features
        return Attended(logits, tuple(auxiliary), tuple(before), (*after[:-1], features))

    def surrogates(self) -> dict[str, nn.Module]:
        """What an adaptive adversary attacks: heads, their mean, the last behind soft gates, the joint loss, soft, BPDA and fixed gates.

        A view aimed at one class names it in `target`, one that needs another objective than the cross-entropy in `objective`, and
        one that differs from the deployed logits in its gates only, forwards, backwards or both, is `relaxed`. Views that would
        repeat another one are left out: with one gate the mean is that head, and no gate comes before it.
        """
        views: dict[str, nn.Module] = {f"head {i + 1}": View(self, "mean_head", i, i + 1) for i in range(self.gates)}
        if self.gates > 1:
            views["mean of heads"] = View(self, "mean_head", 0, self.gates)
            views[f"soft head {SOFT:g}"] = View(self, "soft_head", SOFT)
        views["joint"] = View(self, "joint", objective="nll")
        views |= {f"soft gate {t:g}": View(self, "soft_gate", t, relaxed=True) for t in TEMPERATURES}
        views |= {f"bpda gate {t:g}": View(self, "bpda_gate", t, relaxed=True) for t in TEMPERATURES}
        if self.gates > 1:
            views |= {f"gate {c}": View(self, "fixed_gate", c, target=c) for c in range(self.num_classes)}
        return views

    def attack_view(self) -> nn.Module:
        """The last auxiliary head p_n, which nearly always decides, behind soft gates, whose gradients are not hidden."""
        return View(self, "mean_head", 0, 1) if self.gates == 1 else View(self, "soft_head", SOFT)

    def mean_head(self, x: Tensor, first: int, last: int) -> Tensor:
        """The mean (B, K) of auxiliary logits p_i over blocks first <= i < last, counted from 0."""
        return torch.stack(self.attend(x).auxiliary[first:last]).mean(0)

    def joint(self, x: Tensor, weight: float = AUXILIARY_WEIGHT) -> Tensor:
        """log q' + weight * mean_i log q_i with q = softmax(p), (B, K) in float32: minus its entry at y is the release's joint loss.

        Entries are no log-probabilities of one distribution: the attack's objective "nll" climbs the loss itself, CE(p', y) +
        weight * mean_i CE(p_i, y), and "margin" the joint margin.
        """
        seen = self.attend(x)
        heads = torch.stack(seen.auxiliary).float().log_softmax(2).mean(0)
        return seen.logits.float().log_softmax(1) + weight * heads

    def soft_gate(self, x: Tensor, temperature: float) -> Tensor:
        """Deployed logits (B, K) with `soft_mask`: as temperature falls, the model itself, but with a gradient through its gates."""
        return self.gated(x, lambda logits: self.soft_mask(logits, temperature)).logits

    def soft_head(self, x: Tensor, temperature: float) -> Tensor:
        """The last auxiliary logits p_n (B, K) behind soft gates: behind hard ones part of their gradient is hidden too."""
        return self.gated(x, lambda logits: self.soft_mask(logits, temperature)).auxiliary[-1]

    def bpda_gate(self, x: Tensor, temperature: float) -> Tensor:
        """Deployed logits (B, K), differentiated as if their gates were soft (BPDA, Athalye et al. 2018, section 4.1.2)."""

        def mask(logits: Tensor) -> Tensor:
            soft = self.soft_mask(logits, temperature)
            return self.head.weight[logits.argmax(1)] + (soft - soft.detach())

        return self.gated(x, mask).logits

    def fixed_gate(self, x: Tensor, label: int) -> Tensor:
        """p_n (B, K) with every gate before it set to one class: a targeted attack on that class needs no gate to flip on its way."""
        return self.attend(x, torch.full((len(x),), label, device=x.device)).auxiliary[-1]

    def soft_mask(self, logits: Tensor, temperature: float) -> Tensor:
        """Weights sum_c softmax(p_i / temperature)_c W[c], (B, D), of a block's maps from its auxiliary logits p_i (B, K)."""
        return (logits / temperature).softmax(1).to(self.head.weight) @ self.head.weight
