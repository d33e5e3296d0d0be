"""The baselines: standard training, PGD-AT, TRADES, MART, and single-step training (FGSM-RS, N-FGSM); stages that others begin with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import Length, NonNegative
from robustlib.losses import mart_loss, trades_loss
from robustlib.methods.base import AdversarialMethod, Method, copy_weights, pretrained_run
from robustlib.models import Classifier
from robustlib.rng import ExampleRNG, uniform_point
from robustlib.threat import Threat
from robustlib.training import Loss, Pass, Stage, StepContext, Updates, cosine


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in float32, also of bf16 logits (B, K)."""
    return F.cross_entropy(logits.float(), y)


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Cross-entropy on clean images: min E CE(f(x), y)."""

    name, title = "standard", "Standard training"
    paper = "He et al. 2016, Deep Residual Learning for Image Recognition, CVPR"
    summary = "Cross-entropy on clean images; what every defence starts from."
    protocol = ""  # its paper attacks nothing

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        return self.single_stage(model, clean_updates(model), adversarial=False)


def clean_updates(model: nn.Module) -> Callable[[Batch, StepContext], Updates]:
    """Cross-entropy on clean images: yields ("model", loss)."""

    def updates(batch: Batch, context: StepContext) -> Updates:
        yield "model", Loss(cross_entropy(model(batch.x), batch.y))

    return updates


def natural_stage(method: Method, model: Classifier, name: str, epochs: int, lr: float) -> Stage:
    """Cross-entropy on clean images over encoder and head, by the method's optimiser from `lr` down a cosine to 0."""
    weights = method.optim([*model.encoder.parameters(), *model.head.parameters()])
    weights = replace(weights, lr=lr, schedule=cosine(epochs))
    return Stage(name, epochs, {"model": weights}, (Pass(clean_updates(model), augment=method.augment),))


def load_standard_run(method: Any, model: Classifier, dataset: Dataset) -> None:
    """Gives encoder and head the last weights of the finished `standard` run at the method's `pretrained`."""
    run = pretrained_run(method, f"standard on {dataset.name}", method="standard", dataset=dataset.name)
    natural = run.model("last")
    natural.check_data(dataset)
    copy_weights(method, run, model.encoder, natural.encoder)
    copy_weights(method, run, model.head, natural.head)


@dataclass(frozen=True, kw_only=True)
class PGDAT(AdversarialMethod):
    """min E CE(f(x'), y) with x' the PGD maximiser of the same loss in the ball around x (eq. 2.1)."""

    name, title, protocol = "pgd_at", "PGD adversarial training", "pgd20"
    paper = "Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR"
    summary = "Cross-entropy on images attacked by PGD at every step."

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        attack = self.inner_attack(dataset)
        return self.adversarial_stage(model, attack, lambda batch, x_adv: Loss(cross_entropy(model(x_adv), batch.y)))


@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialMethod):
    """min E CE(f(x), y) + beta max KL(p(x) || p(x')) over the ball around x (eq. 5).

    The attack ascends the same KL from x + 0.001 N(0, I) in eval mode; the clean side of the KL is not detached. Unlike the
    release, the attack's start is clipped to [0, 1] before its first gradient (there after its first step).
    """

    name, title, protocol = "trades", "TRADES", "pgd20"
    paper = "Zhang et al. 2019, Theoretically Principled Trade-off between Robustness and Accuracy, ICML"
    summary = "Clean cross-entropy plus a weighted KL between clean and attacked predictions."

    beta: NonNegative = 6.0  # weight of the robust term (1/lambda in the paper, section 5; 6 on CIFAR-10)

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        attack = self.inner_attack(dataset, objective="kl", start="gaussian")
        return self.adversarial_stage(model, attack, partial(trades_forward, model, self.beta))


def trades_forward(model: nn.Module, beta: float, batch: Batch, x_adv: Tensor) -> Loss:
    """TRADES' loss from separate forward passes in the released order x, x', x.

    The release takes the KL's clean side from a second pass over x. In train mode its logits are those of the first, so no
    gradient differs, but BatchNorm's running statistics move towards x twice and towards x' once. Here that pass comes with the
    gradients, so activations of x and x' are never held together.
    """
    logits = checkpoint(model, batch.x, use_reentrant=False)  # the backward pass forwards x again, once x' is done with
    return Loss(*trades_loss(logits, model(x_adv), batch.y, beta))


@dataclass(frozen=True, kw_only=True)
class MART(AdversarialMethod):
    """min E BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)) with x' the PGD maximiser of the cross-entropy.

    As released, the attack starts from x + 0.001 N(0, I) in eval mode, and x and x' are forwarded separately in train mode.
    Unlike the release, that start is clipped to [0, 1] before its first gradient (there after its first step).
    Epochs, learning rate and weight decay are those of the released ResNet-18 script.
    """

    name, title, protocol = "mart", "MART", "pgd20"
    paper = "Wang et al. 2020, Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR"
    summary = "Boosted cross-entropy on attacked images plus a KL that weighs misclassified images more."

    epochs: int = 120
    lr: float = 0.01  # a tenth of the usual, with seven times the weight decay
    weight_decay: float = 3.5e-3
    milestones: tuple[float, ...] = (74, 89, 99)  # the release counts epochs from 1: 75, 90, 100
    attack_step_size: float | None = 0.007  # at 8/255
    beta: NonNegative = 5.0  # weight of the KL (lambda in the paper); released: 5 with ResNet-18, 6 with WRN

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        attack, beta = self.inner_attack(dataset, start="gaussian"), self.beta
        return self.adversarial_stage(
            model, attack, lambda batch, x_adv: Loss(*mart_loss(model(batch.x), model(x_adv), batch.y, beta))
        )


@dataclass(frozen=True, kw_only=True)
class FGSMRS(PGDAT):
    """PGD training with one step of 1.25 eps from a random point of the ball, projected back on it (algorithm 3).

    Epochs, learning rate and the BatchNorm mode of the attack are those of the released code (train_fgsm.py). In train mode
    examples see each other, and `PGD` weighs their losses by their confidence where the released code weighs them alike.
    """

    name, title, protocol = "fgsm_rs", "FGSM-RS (fast adversarial training)", "pgd50x10"
    paper = "Wong et al. 2020, Fast is better than free: Revisiting adversarial training, ICLR"
    summary = "Cross-entropy on images attacked by a single step from a random start."

    epochs: int = 30
    lr: float = 0.2
    schedule: str = "piecewise"
    points: tuple[tuple[float, float], ...] = ((0, 0.0), (15, 1.0), (30, 0.0))
    attack_steps: Annotated[int, "[1, 1]", "it takes 1; for more train pgd_at"] = 1  # no other number is allowed
    attack_step_size: Annotated[float, "(0, 0)", "give step_factor, in units of eps, instead"] | None = None  # not used
    attack_batchnorm: Literal["eval", "train"] = "train"  # as released
    step_factor: Length = 1.25  # length of the step in units of eps: 10/255 at 8/255; longer ones collapse

    def inner_attack(self, dataset: Dataset, **settings: Any) -> PGD:
        return super().inner_attack(dataset, step_size=self.step_factor * self.threat(dataset).eps or None, **settings)


@dataclass(frozen=True, kw_only=True)
class NFGSM(FGSMRS):
    """FGSM-RS from noise of `noise` * eps around the image, a step of eps, and no projection on the ball.

    x' = clip(x_n + eps sign(gradient at x_n)), x_n = clip(x + U(-noise eps, noise eps)), clip to [0, 1] (train.py, clip = -1).
    """

    name, title = "n_fgsm", "N-FGSM"
    paper = "de Jorge et al. 2022, Make Some Noise: Reliable and Efficient Single-Step Adversarial Training, NeurIPS"
    summary = "Cross-entropy on images with strong noise and a single attack step that is not projected."

    step_factor: float = 1.0  # alpha / eps
    noise: NonNegative = 2.0  # k: radius of the noise in units of eps; 2 in the released code

    def inner_attack(self, dataset: Dataset, **settings: Any) -> PGD:
        """One step in a ball so wide that noise and step together stay inside it."""
        attack = super().inner_attack(dataset, **settings)
        return replace(attack, threat=attack.threat.scaled(self.noise + self.step_factor))

    def attacked(self, attack: PGD, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """One step from the noisy batch."""
        x, rng = batch.x, ExampleRNG.from_generator(context.generator, len(batch.x), batch.x.device)
        around = Threat(attack.threat.norm, attack.length / self.step_factor).scaled(self.noise)
        start = uniform_point(around, x, rng)
        return replace(attack, precision=context.precision)(model, x, batch.y, rng=rng, start=start)
