"""ANCRA: asymmetric negative contrast and reverse attention (Zhou et al. 2023)."""

import warnings
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import NonNegative, Positive, Share, Whole
from robustlib.losses import mart_loss, negative_contrast, pick_negatives, trades_loss
from robustlib.losses.contrastive import Strategy
from robustlib.methods.base import AdversarialMethod
from robustlib.methods.baselines import cross_entropy
from robustlib.models import Classifier, ReverseAttention
from robustlib.models.classifier import View
from robustlib.models.reverse_attention import AUXILIARY_WEIGHT
from robustlib.training import Loss, Stage, StepContext
from robustlib.training.devices import gathered

Negatives = tuple[Tensor, Tensor]  # one of another class for each anchor: images (B, C, H, W), labels (B,)
ONE_CLASS = "ancra: a batch of one class has no negatives, so it is trained on without them (said once a training)"
LARGER = "take a larger batch_size, or set negative_contrast=false."


@dataclass(frozen=True, kw_only=True)
class ANCRA(AdversarialMethod):
    """min E L_base + zeta Sim^alpha(x, x_o), each term as l(p') + ra_weight mean_i l(p_i) over the heads (train_CIFAR10_ResNet.py).

    x_o is an image of another class of the batch, pulled to the anchor's class by targeted PGD. Attacks run in eval mode with
    predicted-label gates from x + 0.001 N(0, I) on the same sum over heads; the loss is taken in train mode with
    true-label gates, in separate passes over x, x' and x_o. Base "trades" is the released one: its x' ascends the
    cross-entropy, not the KL. "pgd_at" and "mart" were not released and are reconstructed from the code that ANCRA derives
    from (CAS, Bai et al. 2021), where every head's KL of MART is weighted by what the final head says of x: 1 - p'_y(x).
    Unlike the release, images are normalised inside the model, an attack's start is clipped to [0, 1] before its first gradient (there
    after its first step), and the run is judged by the epoch of the best validation accuracy, where the release reports its last.
    """

    name, title, notebook = "ancra", "ANCRA", "ancra"
    paper = "Zhou et al. 2023, Enhancing Robust Representation in Adversarial Training: Alignment and Exclusion Criteria, arXiv"
    summary = "TRADES with negatives pushed away and channels weighted by the classifier's row of the label."

    epochs: int = 120
    lr: float = 0.01  # a tenth of what TRADES takes; what the release ships
    weight_decay: float = 2e-4
    milestones: tuple[float, ...] = (74, 89, 99)  # the release counts epochs from 1: 75, 90, 100
    attack_step_size: float | None = 0.007  # at 8/255
    base: Literal["trades", "pgd_at", "mart"] = "trades"  # what it extends: trades, as released, or pgd_at or mart
    beta: NonNegative = 6.0  # weight of the KL of trades and mart; 6 is the release's for trades, give 5 for mart's own
    reverse_attention: bool = True  # gate the last features by the weights of a class
    ra_weight: Annotated[Positive, "or set reverse_attention=false"] = AUXILIARY_WEIGHT  # of auxiliary heads (cr_beta)
    negative_contrast: bool = True  # the asymmetric negative contrast
    zeta: Annotated[Positive, "or set negative_contrast=false"] = 3.0  # its weight
    alpha: Share = 1.0  # 1 freezes the natural example, 0 the negative, 0.5 is symmetric
    negatives: Strategy = "random"  # images of other classes: random, soft, hard or easy
    mining_from: Whole = 10  # epochs of random negatives before others are mined
    attack_negatives: bool = True  # targeted PGD from the negative towards the anchor's class; else the image as it is

    @property
    def attack_passes(self) -> int:
        """An attack on each image and one on its negative."""
        return super().attack_passes * (2 if self.negative_contrast and self.attack_negatives else 1)

    def model_options(self) -> dict[str, Any]:
        return {"reverse_attention": True} if self.reverse_attention else {}

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = self.check_model(model, ReverseAttention if self.reverse_attention else Classifier)
        target = View(model, "joint", self.ra_weight) if isinstance(model, ReverseAttention) else model
        objective = "nll" if self.reverse_attention else "ce"
        attack = self.inner_attack(dataset, objective=objective, start="gaussian")
        warned = False

        def search(batch: Batch, context: StepContext) -> tuple[Tensor, Negatives | None]:
            nonlocal warned
            negatives = self.draw_negatives(model, target, attack, batch, context) if self.negative_contrast else None
            if self.negative_contrast and negatives is None and not warned:
                warnings.warn(f"{ONE_CLASS}: {LARGER}", UserWarning, stacklevel=2)
                warned = True
            return self.attacked(attack, target, batch, context), negatives

        return self.adversarial_stage(model, search, lambda batch, attacked: self.loss(model, batch, *attacked))

    def draw_negatives(
        self, model: nn.Module, target: nn.Module, attack: PGD, batch: Batch, context: StepContext
    ) -> Negatives | None:
        """An example of another class for each anchor, pulled to the anchor's class by `attack`; None in a batch of one class."""
        strategy, logits = self.negatives if context.epoch >= self.mining_from else "random", None
        if strategy != "random":
            with frozen_eval(model), torch.no_grad():
                logits = gathered(model(batch.x))
        whole = batch.whole or batch
        picked = pick_negatives(whole.y, strategy, logits=logits, generator=context.generator)
        if picked is None:
            return None
        picked = picked if batch.rows is None else picked[batch.rows]
        x, y = whole.x[picked], whole.y[picked]
        if self.attack_negatives:
            pull = replace(attack, targeted=True, precision=context.precision)
            x = pull(target, x, y, generator=context.generator, target=batch.y)
        return x, y

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, negatives: Negatives | None) -> Loss:
        """The loss and its parts, summed over heads; forward passes in the order x, x', x_o, as released."""
        y, clean = batch.y, list[Tensor]()
        if self.base != "pgd_at" or negatives is not None:
            with torch.set_grad_enabled(self.base != "pgd_at" or self.alpha < 1):
                clean = head_logits(model, batch.x, y)
        robust = head_logits(model, x_adv, y)
        each: list[tuple[Tensor, dict[str, Tensor]]] = [(cross_entropy(q, y), {}) for q in robust]
        if self.base == "trades":
            each = [trades_loss(p, q, y, self.beta) for p, q in zip(clean, robust, strict=True)]
        elif self.base == "mart":
            pairs, final = zip(clean, robust, strict=True), clean[0]
            each = [mart_loss(p, q, y, self.beta, weighing=None if p is final else final) for p, q in pairs]
        total = self._over_heads([loss for loss, _ in each])
        parts = {name: self._over_heads([part[name] for _, part in each]) for name in each[0][1]}
        if negatives is not None:
            pairs = zip(clean, head_logits(model, *negatives), strict=True)
            parts["contrast"] = self._over_heads([negative_contrast(p, o, self.alpha) for p, o in pairs])
            total = total + self.zeta * parts["contrast"]
        return Loss(total, parts)

    def _over_heads(self, terms: list[Tensor]) -> Tensor:
        """l(p') + ra_weight mean_i l(p_i) from [l(p'), l(p_1), ...]; l(p') alone of a plain network."""
        final, *auxiliary = terms
        return final + self.ra_weight * torch.stack(auxiliary).mean() if auxiliary else final


def head_logits(model: nn.Module, x: Tensor, labels: Tensor) -> list[Tensor]:
    """[p', p_1, ..., p_n], each (B, K), of a model with the gates of the given labels; [p'] of a plain one."""
    if not isinstance(model, ReverseAttention):
        return [model(x)]
    seen = model.attend(x, labels)
    return [seen.logits, *seen.auxiliary]
