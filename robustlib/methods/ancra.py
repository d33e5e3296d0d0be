"""ANCRA: asymmetric negative contrast and reverse attention (Zhou et al. 2023)."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError, unknown
from robustlib.losses import mart_loss, negative_contrast, pick_negatives, trades_loss
from robustlib.losses.contrastive import STRATEGIES, Strategy
from robustlib.methods.base import AdversarialMethod
from robustlib.models import ReverseAttention
from robustlib.models.reverse_attention import AUXILIARY_WEIGHT, Joint
from robustlib.training import Loss, Stage, StepContext

Base = Literal["trades", "pgd_at", "mart"]
Heads = Callable[
    [Tensor, Tensor], list[Tensor]
]  # images and whose rows weight them -> p', then p_1 .. p_n, each (B, K)
Negatives = tuple[Tensor, Tensor]  # one of another class for each anchor: images (B, C, H, W), labels (B,)
ALONE = (
    "ancra: a batch of one class has no negatives, so it is trained on without them (said once a training): take a larger "
    "batch_size, or set negative_contrast=false."
)


@dataclass(frozen=True, kw_only=True)
class ANCRA(AdversarialMethod):
    """min E L_base + zeta Sim^alpha(x, x_o), each term as l(p') + ra_weight mean_i l(p_i) over the heads (train_CIFAR10_ResNet.py).

    x_o is an image of another class of the batch, pulled to the anchor's class by targeted PGD. Attacks run in eval mode with
    predicted-label gates from x + 0.001 N(0, I) on the same sum over heads; the loss is taken in train mode with
    true-label gates, in separate passes over x, x' and x_o. Base "trades" is the released one: its x' climbs the
    cross-entropy, not the KL. "pgd_at" and "mart" were not released and are reconstructed from the code that ANCRA derives
    from (CAS, Bai et al. 2021), where every head's KL of MART is weighted by what the final head says of x: 1 - p'_y(x).
    Unlike the release, images are normalised inside the model, an attack's start is clipped to [0, 1] before its first gradient (there
    after its first step), and the run is judged by the epoch of the best validation accuracy, where the release reports its last one;
    the last is reported beside it.
    """

    name = "ancra"
    title = "ANCRA"
    paper = "Zhou et al. 2023, Enhancing Robust Representation in Adversarial Training: Alignment and Exclusion Criteria, arXiv"
    summary = "TRADES with negatives pushed away and channels weighted by the classifier's row of the label."
    notebook = "ancra"

    epochs: int = 120
    lr: float = 0.01  # a tenth of what TRADES takes; what the release ships
    weight_decay: float = 2e-4
    milestones: tuple[float, ...] = (74, 89, 99)  # the release counts epochs from 1: 75, 90, 100
    attack_step_size: float | None = 0.007  # at 8/255
    base: Base = "trades"  # what it is put on: trades, as released; pgd_at or mart, reconstructed
    beta: float = 6.0  # weight of the KL of trades and mart; 6 is the release's for trades, give 5 for mart's own
    reverse_attention: bool = True  # gate the last features by the weights of a class
    ra_weight: float = AUXILIARY_WEIGHT  # of the auxiliary heads' mean in every term (cr_beta of the release)
    negative_contrast: bool = True  # the asymmetric negative contrast
    zeta: float = 3.0  # its weight
    alpha: float = 1.0  # 1 freezes the natural example, 0 the negative, 0.5 is symmetric
    negatives: Strategy = "random"  # images of other classes: random, soft, hard or easy
    mining_from: int = 10  # epochs of random negatives before others are mined
    attack_negatives: bool = True  # targeted PGD from the negative towards the anchor's class; else the image as it is

    def __post_init__(self) -> None:
        super().__post_init__()
        choices: dict[str, tuple[Any, Iterable[str]]] = {
            "base": (self.base, get_args(Base)),
            "negative strategy": (self.negatives, STRATEGIES),
        }
        for kind, (value, known) in choices.items():
            if value not in known:
                raise unknown(kind, value, known)
        for name, off in (("ra_weight", "reverse_attention=false"), ("zeta", "negative_contrast=false")):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"ancra: {name}={getattr(self, name)!r}: give a positive weight, or set {off}.")
        if not self.beta >= 0 or not self.mining_from >= 0:
            raise InputError(
                f"ancra: beta={self.beta!r}, mining_from={self.mining_from!r}: give numbers of at least 0."
            )
        if not 0 <= self.alpha <= 1:
            raise InputError(f"ancra: alpha={self.alpha!r}: give a share, 0 <= alpha <= 1; the paper's is 1.")

    @property
    def attack_passes(self) -> int:
        """An attack on each image and one on its negative."""
        return super().attack_passes * (2 if self.negative_contrast and self.attack_negatives else 1)

    def model_options(self) -> dict[str, Any]:
        """Reverse attention is part of the model."""
        return {"reverse_attention": True} if self.reverse_attention else {}

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """One adversarial stage.

        Raises:
            InputError: a model built without reverse attention where it is on, or with it where it is off.
        """
        if isinstance(model, ReverseAttention) != self.reverse_attention:
            raise InputError(
                f"ancra: reverse_attention={self.reverse_attention}, but the model is a {type(model).__name__}: "
                "build it with the method's model_options()."
            )
        heads, view = _heads(model), Joint(model, self.ra_weight) if isinstance(model, ReverseAttention) else model
        objective = "nll" if self.reverse_attention else "ce"
        settings = {"objective": objective, "start": "gaussian", **self.attack_settings()}
        attack = PGD(self.threat(dataset), **settings)
        pull, told = replace(attack, targeted=True), False

        def search(batch: Batch, context: StepContext) -> tuple[Tensor, Negatives | None]:
            nonlocal told
            negatives = self._negatives(model, view, pull, batch, context) if self.negative_contrast else None
            if self.negative_contrast and negatives is None and not told:
                warnings.warn(ALONE, UserWarning, stacklevel=2)
                told = True
            return self.attacked(attack, view, batch, context), negatives

        return self.searching_stage(model, search, lambda batch, found: self._loss(heads, batch, *found))

    def _negatives(
        self, model: nn.Module, view: nn.Module, pull: PGD, batch: Batch, context: StepContext
    ) -> Negatives | None:
        """One example of another class for each anchor; None in a batch of one class."""
        mined, logits = context.epoch >= self.mining_from and self.negatives != "random", None
        if mined:
            with frozen_eval(model), torch.no_grad():
                logits = model(batch.x)
        picked = pick_negatives(
            batch.y, self.negatives if mined else "random", logits=logits, generator=context.generator
        )
        if picked is None:
            return None
        x, y = batch.x[picked], batch.y[picked]
        if self.attack_negatives:
            x = replace(pull, precision=context.precision)(view, x, y, generator=context.generator, target=batch.y)
        return x, y

    def _loss(self, heads: Heads, batch: Batch, x_adv: Tensor, negatives: Negatives | None) -> Loss:
        """The loss and its parts, summed over heads; forward passes in the order x, x', x_o, as released."""
        clean: list[Tensor] = []
        if self.base != "pgd_at" or negatives is not None:
            with torch.set_grad_enabled(self.base != "pgd_at" or self.alpha < 1):
                clean = heads(batch.x, batch.y)
        each = self._base(clean, heads(x_adv, batch.y), batch.y)
        total = self._over_heads([loss for loss, _ in each])
        parts = {name: self._over_heads([part[name] for _, part in each]) for name in each[0][1]}
        if negatives is not None:
            pairs = zip(clean, heads(*negatives), strict=True)
            parts["contrast"] = self._over_heads([negative_contrast(p, o, self.alpha) for p, o in pairs])
            total = total + self.zeta * parts["contrast"]
        return Loss(total, parts)

    def _base(self, clean: list[Tensor], robust: list[Tensor], y: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The base's loss and its parts, for each head."""
        if self.base == "pgd_at":
            return [(F.cross_entropy(q.float(), y), {}) for q in robust]
        pairs = list(zip(clean, robust, strict=True))
        if self.base == "trades":
            return [trades_loss(p, q, y, self.beta) for p, q in pairs]
        final = clean[0]
        return [mart_loss(p, q, y, self.beta, weighing=None if p is final else final) for p, q in pairs]

    def _over_heads(self, terms: list[Tensor]) -> Tensor:
        """l(p') + ra_weight mean_i l(p_i) from [l(p'), l(p_1), ...]; l(p') alone of a plain network."""
        final, *auxiliary = terms
        return final + self.ra_weight * torch.stack(auxiliary).mean() if auxiliary else final


def _heads(model: nn.Module) -> Heads:
    """How the loss looks at a model: with true-label gates where it has gates."""
    if not isinstance(model, ReverseAttention):
        return lambda x, labels: [model(x)]

    def gated(x: Tensor, labels: Tensor) -> list[Tensor]:
        seen = model.attend(x, labels)
        return [seen.logits, *seen.auxiliary]

    return gated
