"""AFD: adversarial fine-tuning by feature disentanglement (Zhou et al. 2025), and the rows of its comparison: vAFT, AFKD, ARREST."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Dataset
from robustlib.errors import Count, NonNegative, Positive, Share, typed
from robustlib.losses import confusion_labels, mean_cosine
from robustlib.methods.base import AdversarialMethod, perturbed_weights
from robustlib.methods.baselines import cross_entropy, load_standard_run, natural_stage
from robustlib.models import Classifier, Disentangled
from robustlib.models.classifier import View
from robustlib.representation import gap_probe, probe_attack
from robustlib.rng import ExampleRNG, uniform_point
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, StepContext, Updates
from robustlib.training.devices import averaged

# 0.025 for ten epochs, then 0.02, 0.01, 0.005, 0.0025 and 0.00125 for two epochs each (AFD's released tl+sl.py)
PUBLISHED: tuple[tuple[float, float], ...] = (
    *((0, 1), (10, 1), (10, 0.8), (12, 0.8), (12, 0.4), (14, 0.4)),
    *((14, 0.2), (16, 0.2), (16, 0.1), (18, 0.1), (18, 0.05), (20, 0.05)),
)
Input = tuple[Tensor, dict[str, float]]  # images x' (B, C, H, W), and what the metrics say of them


@dataclass(frozen=True, kw_only=True)
class VAFT(AdversarialMethod):
    """min CE(f(x'), y) from a naturally trained model T, which stays beside it as a frozen teacher.

    Monitored, not minimised, are the gap to the teacher's clean features on training images ("gap") and, on validation images, that
    between the model's own clean and attacked ones ("probe/...", figure 1a of Zhou et al. 2025). As AFD's released ARREST.py without its two flags, but with AFD's averaged weights (`ema=0`: without) and steps of its
    attack, 0.007 instead of 2/255, so that all rows are trained alike.
    """

    name, title, protocol, notebook = "vaft", "vAFT", "pgd20", "afd"
    paper = "Zhou et al. 2025, Mitigating Feature Gap for Adversarial Robustness by Feature Disentanglement, AAAI"
    summary = "Fine-tunes a natural model on attacked images with cross-entropy alone."
    network: ClassVar[type[Classifier]] = Classifier  # the kind of model that it trains

    epochs: int = 20  # of fine-tuning
    lr: float = 0.025  # its peak learning rate
    schedule: str = "piecewise"
    points: tuple[tuple[float, float], ...] = PUBLISHED
    ema: float = 0.999  # of the fine-tuning; AFD reports the average, so all its rows are compared with one
    attack_step_size: float | None = 0.007  # at 8/255
    pretrained: str = ""  # directory of a finished `standard` run to fine-tune; "" trains one first
    pretrain_epochs: Count = 100  # of natural training, SGD with a cosine to 0 (the recipe is not published)
    pretrain_lr: NonNegative = 0.1  # its peak learning rate

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """The student begins as the natural model; with AWP all losses of a step are taken from one forward pass."""
        model = self.check_model(model, self.network)
        attack, target = self.inner_attack(dataset), self.attack_target(model)
        teacher = copy.deepcopy(model).eval().requires_grad_(False)

        def begin() -> None:
            if self.pretrained:
                load_standard_run(self, model, dataset)
            teacher.load_state_dict(model.state_dict())

        def updates(batch: Batch, context: StepContext) -> Updates:
            with torch.no_grad():
                teacher.check_input(batch.x)
                clean = teacher.encoder(teacher.normalise(batch.x))
            x_adv, said = self.training_input(attack, target, batch, context, clean)
            losses = partial(self.losses, model, batch, x_adv, clean)
            with perturbed_weights(model, lambda: losses()["model"].total, self.awp_gamma_at(context)):
                for name, loss in losses().items():
                    yield name, replace(loss, parts={**loss.parts, **said}) if name == "model" else loss

        probes = {"gap": gap_probe(probe_attack(attack.threat), self.monitored())}
        rest: dict[str, Any] = {"ema": self.ema, "begin": begin, "modules": {"teacher": teacher}, "probes": probes}
        passes = (Pass(updates, augment=self.augment),)
        tuning = Stage(self.name, self.epochs, self.optimisers(model), passes, adversarial=True, **rest)
        natural = natural_stage(self, model, "natural", self.pretrain_epochs, self.pretrain_lr)
        return [tuning] if self.pretrained else [natural, tuning]

    def training_input(self, attack: PGD, target: Any, batch: Batch, context: StepContext, natural: Tensor) -> Input:
        """The images on which the student trains: attacked ones."""
        return self.attacked(attack, target, batch, context), {}

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """The losses of one step by optimiser, in the order of their steps, that of "model" last.

        `natural` (B, D) are the teacher's features f_T(x) of the clean images, of the encoder alone.
        """
        features = model.features(x_adv)
        ce, gap = cross_entropy(model.head(features), batch.y), 1 - mean_cosine(features, natural)
        return {"model": Loss(ce, {"ce": ce, "gap": gap})}

    def attack_target(self, model: Any) -> nn.Module:
        """The model that the inner attack sees."""
        return model

    def monitored(self) -> dict[str, str]:
        """The layers whose feature gap is monitored, by their name in the metrics."""
        return {"h": "encoder"}

    def optimisers(self, model: Any) -> dict[str, OptimizerSpec]:
        """The optimisers of fine-tuning by name."""
        return {"model": self.optim(model.parameters())}


@dataclass(frozen=True, kw_only=True)
class AFD(VAFT):
    """min CE(z1, y) + gamma (1 - cos(f1, f_T(x))) + beta cos(f1, f2), with f2 = D2 h taught the strongest wrong class c.

    A naturally trained model T is copied and fine-tuned on PGD images x': h = encoder(x'), f1 = D1 h and z1 = W f1 + b; f_T(x)
    are the features of the frozen T at the clean image. D2 minimises alpha CE(z2, c) with z2 = W f2 + b and c the strongest wrong
    class of z1; no gradient of it reaches the encoder. Adversarial images alone move BatchNorm's statistics.

    The released loop (tl+sl.py) steps three optimisers in turn, two of them over the same weights, without clearing gradients, and
    current versions of torch refuse it. `mode="repo"` is one step that equals it to first order in the learning rate: beta counts
    twice, weight decay too (except for D2), and W and b also learn 2 alpha CE(z2, c). `mode="paper"` is the formula above.
    Unlike the released code, images are normalised inside the model, the attack's random start is clipped to [0, 1], and the run is
    judged by the epoch of the best validation accuracy, where the release reports its last average; the last is reported beside it.

    Rows of the ablation: `disentangle=False` drops the losses of D2 and of cos(f1, f2), `align=False` that of the gap; both leave
    all else, weight decay included, as it is. `classify="latent"` trains the same weights, epoch for epoch, and deploys W h + b
    instead of z1; the best epoch is chosen on what is deployed, so the branches are best compared at the last one. With `awp_gamma`
    both losses are taken at the perturbed weights; D2 stays, since the loss that chooses the perturbation takes f2 as a constant.
    """

    name, title = "afd", "AFD"
    summary = "Fine-tunes a natural model on attacked images and removes the features that speak for the strongest wrong class."
    network = Disentangled

    disentangle: bool = True  # teach D2 the strongest wrong class and turn f1 away from it
    align: bool = True  # hold f1 to the natural model's clean features
    classify: Literal["intrinsic", "latent"] = "intrinsic"  # what the deployed head sees: f1, or h as if D1 were absent
    alpha: float = 0.05  # weight of CE(z2, c)
    beta: float = 0.25  # weight of cos(f1, f2); `--sigma` in the released code
    gamma: float = 25.0  # weight of the alignment with the natural model's clean features
    mode: Literal["repo", "paper"] = "repo"  # which update: see above

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, switch in (("alpha", "disentangle"), ("beta", "disentangle"), ("gamma", "align")):
            if getattr(self, switch):
                typed(getattr(self, name), float, f"{self.name} {name}", "(0, inf)", f"or set {switch}=false")

    def model_options(self) -> dict[str, Any]:
        """The model has the disentangler from the start; natural training leaves it alone."""
        return {"disentangled": True} | ({} if self.classify == "intrinsic" else {"classify": self.classify})

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """The loss of D2, if it learns, then that of encoder, D1 and head, to which f2 is a constant."""
        out = model.branches(x_adv)
        ce, gap = cross_entropy(out.logits, batch.y), 1 - mean_cosine(out.intrinsic, natural)
        total, parts = ce + self.gamma * gap if self.align else ce, {"ce": ce, "gap": gap}
        if not self.disentangle:
            return {"model": Loss(total, parts)}
        wrong, confused = confusion_labels(out.logits.detach(), batch.y), out.confused.detach()
        alike = mean_cosine(out.intrinsic, confused)
        total = total + self._times * self.beta * alike
        if self.mode == "repo":  # what L_neg leaves on the shared classifier
            total = total + self._times * self.alpha * cross_entropy(model.head(confused), wrong)
        agreement = (out.confused_logits.argmax(1) == wrong).float().mean()
        negative = Loss(self.alpha * cross_entropy(out.confused_logits, wrong), {"agreement": agreement})
        return {"confused": negative, "model": Loss(total, {**parts, "cosine": alike})}

    @property
    def _times(self) -> int:
        """How often the released loop applies what its second optimiser has applied already."""
        return 2 if self.mode == "repo" else 1

    def optimisers(self, model: Any) -> dict[str, OptimizerSpec]:
        rest = [*model.encoder.parameters(), *model.intrinsic.parameters(), *model.head.parameters()]
        main = {"model": replace(self.optim(rest), weight_decay=self._times * self.weight_decay)}
        return {"confused": self.optim(model.confused.parameters()), **main} if self.disentangle else main

    def attack_target(self, model: Any) -> nn.Module:
        """z1, whatever is deployed."""
        return model if self.classify == "intrinsic" else View(model, "intrinsic_logits")

    def monitored(self) -> dict[str, str]:
        return {"h": "encoder"} | ({"f1": "intrinsic"} if self.classify == "intrinsic" else {})


@dataclass(frozen=True, kw_only=True)
class AFKD(VAFT):
    """min CE(f(x'), y) + weight (1 - cos(f(x'), f_T(x))), f_T the frozen natural model's penultimate features.

    Representation-guided knowledge distillation (Suzuki et al. 2023) on adversarial fine-tuning: "AFT + RGKD" in AFD's figure 1a.
    AFD's AFKD has no released script of its own; taking ARREST's without its noisy replay for it is our reading.
    """

    name, title = "afkd", "AFKD"
    summary = "Fine-tunes a natural model on attacked images and holds its features to the natural model's clean ones."

    weight: Annotated[Positive, "or train vaft, which has no such term"] = 50.0  # of 1 - cos(f(x'), f_T(x)) (ARREST.py)

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        loss = super().losses(model, batch, x_adv, natural)["model"]
        return {"model": replace(loss, total=loss.total + self.weight * loss.parts["gap"])}


@dataclass(frozen=True, kw_only=True)
class ARREST(AFKD):
    """AFKD's loss, and noisy replay: a batch whose clean features have left the teacher's is trained on under noise, not attacked.

    Where mean (1 - cos(f_T(x), f(x))) >= 1 - cos(angle) in eval mode during the first `replay` of the epochs, x' is a uniformly
    random point of the ball. As AFD's ARREST.py (angle 30 degrees, epochs 1 to 10 of 20), except that the teacher's BatchNorm
    is in eval mode (there it drifts in train mode), that weights are averaged (`ema=0`: without), and steps 0.007, as AFD's, not 2/255.
    """

    name, title = "arrest", "ARREST"
    paper = "Suzuki et al. 2023, Adversarial Finetuning with Latent Representation Constraint to Mitigate Accuracy-Robustness Tradeoff, ICCV"
    summary = "AFKD that shows noise instead of attacks while clean features are far from the natural model's."

    angle: Annotated[float, "[0, 180]"] = 30.0  # degrees between clean features from which on noise is replayed
    replay: Share = 0.5  # share of the fine-tuning in which it may be; published: 10 of 20 epochs

    def training_input(self, attack: PGD, target: Any, batch: Batch, context: StepContext, natural: Tensor) -> Input:
        """Attacked images or, where noise is replayed, the points their attack would start from; "replayed": their share."""
        drifted = False
        if context.progress < self.replay:
            with frozen_eval(target), torch.no_grad():
                (gap,) = averaged([1 - mean_cosine(natural, target.features(batch.x))])
            drifted = bool(gap >= 1 - math.cos(math.radians(self.angle)))
        if not drifted:
            return self.attacked(attack, target, batch, context), {"replayed": 0.0}
        rng = ExampleRNG.from_generator(context.generator, len(batch.x), batch.x.device).fold_in(0)
        return uniform_point(attack.threat, batch.x, rng), {"replayed": 1.0}
