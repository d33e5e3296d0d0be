"""The readout of frozen features: multinomial logistic regression, fitted once and not trained step by step.

The last stage on a pre-trained encoder: a linear head on clean or attacked images, or adversarial fine-tuning of all.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.attacks import PGD
from robustlib.attacks.base import frozen_eval
from robustlib.data import Batch, Split
from robustlib.errors import InputError, check_choices, check_counts
from robustlib.methods.base import AdversarialMethod
from robustlib.models import Classifier, SelfSupervised
from robustlib.models.classifier import full_float32
from robustlib.threat import Threat
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, StepContext, Updates, step

BATCH = 500


def fit_readout(model: SelfSupervised, split: Split, c: float = 1.0, iterations: int = 1000) -> None:
    """Gives the model the readout that fits its features of the plain images of `split`; the encoder stays as it is.

    Features are those of the deployed model: eval mode, float32, images neither augmented nor normalised anew.
    """
    features = features_of(model, split)
    weight, bias = logistic_regression(features, split.labels, c, iterations)
    model.set_readout(weight, bias)


def features_of(model: Classifier, split: Split) -> Tensor:
    """Features (N, D) of the plain images of `split`, in eval mode and float32, on the model's device."""
    device = next(model.parameters()).device
    with frozen_eval(model), torch.no_grad(), full_float32():
        return torch.cat([model.features(batch.x.to(device)) for batch in split.batches(BATCH)])


def logistic_regression(
    features: Tensor, labels: Tensor, c: float = 1.0, iterations: int = 1000
) -> tuple[Tensor, Tensor]:
    """The weight (K, D) and bias (K,) that minimise c sum_n CE(W f_n + b, y_n) + |W|^2 / 2, by scikit-learn (lbfgs), in float64.

    Two classes have one direction w there: they get -w/2 and w/2, which predict the same.

    Args:
        features: (N, D).
        labels: int64 (N,), every class 0 .. K - 1 among them.
        c: inverse strength of the L2 penalty, > 0.
        iterations: of lbfgs at most; where they do not do, a RuntimeWarning says so.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(C=c, solver="lbfgs", max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it names parameters of scikit-learn
        fitted.fit(features.cpu().double().numpy(), labels.cpu().numpy())
    if fitted.n_iter_.max() >= iterations:
        said = f"The readout's logistic regression has not converged after {iterations} iterations: raise readout_iterations."
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    weight, bias = (torch.from_numpy(part).to(features) for part in (fitted.coef_, fitted.intercept_))
    return (torch.cat((-weight, weight)) / 2, torch.cat((-bias, bias)) / 2) if len(bias) == 1 else (weight, bias)


@dataclass(frozen=True, kw_only=True)
class WithHead(AdversarialMethod):
    """A method whose last stage puts a head on an encoder, in one of the three ways in which the literature compares encoders.

    SLF is a linear head on the frozen encoder (eval-mode BatchNorm) trained on clean images, ALF one trained on PGD images, AFF the
    fine-tuning of the whole network by TRADES (ACL's release, there by batches of 128; here all stages have the method's own).
    """

    attacks: ClassVar[int] = 0  # views of an image that each epoch of pre-training attacks

    ema: float = 0.0  # decay of the averaged weights of the fine-tuning (final="aff") alone; 0 for none
    final: Literal["slf", "alf", "aff"] = "slf"  # linear on clean images, linear on attacked ones, or all fine-tuned
    head_epochs: int = 100  # of slf and alf
    head_lr: float = 1e-3  # of slf and alf: Adam, constant
    tuning_epochs: int = 25  # of aff
    tuning_lr: float = 0.1  # of aff, SGD with weight decay 2e-4; to a tenth at 60 % and 80 % of its epochs
    beta: float = 6.0  # weight of the KL of aff's TRADES
    final_steps: int = 10  # of the PGD of alf and aff

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "head_epochs", "tuning_epochs", "final_steps")
        check_choices(self, final=("slf", "alf", "aff"))
        for name in ("head_lr", "tuning_lr", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{self.name}: {name}={getattr(self, name)!r}: give a number of at least 0.")

    @property
    def numerics(self) -> tuple[str, ...]:
        """Its own, and those of fine-tuning."""
        return (*super().numerics, *(("methods/aff",) if self.final == "aff" else ()))

    @property
    def last_epochs(self) -> int:
        """Epochs of the last stage."""
        return self.tuning_epochs if self.final == "aff" else self.head_epochs

    @property
    def attack_passes(self) -> int:
        """Those of pre-training, also where another run has done it, and of the last stage."""
        last = 0 if self.final == "slf" else self.final_steps * self.last_epochs
        return self.attacks * self.attack_steps * self.epochs + last

    def last_stage(self, threat: Threat, model: Classifier, begin: Callable[[], None]) -> Stage:
        """The last stage, "slf", "alf" or "aff"; `begin` is called first and decides on what the head starts from."""
        if self.final == "aff":
            return self._tuning(threat, model, begin)
        attack = PGD(threat, **self._final_attack()) if self.final == "alf" else None
        part = Pass(self.head_updates(model, attack), augment=self.augment)
        optimisers = {"head": OptimizerSpec(model.head.parameters(), self.head_lr, "adam")}
        return Stage(self.final, self.head_epochs, optimisers, (part,), adversarial=attack is not None, begin=begin)

    def head_updates(
        self, model: Classifier, attack: PGD | None, batchnorm: Literal["eval", "train"] = "eval"
    ) -> Callable[[Batch, StepContext], Updates]:
        """CE of the head on frozen features, of images under `attack` where one is given: yields ("head", loss).

        Args:
            batchnorm: "train" takes features by the batch's statistics and moves the encoder's running ones, though no weight.
        """

        def updates(batch: Batch, context: StepContext) -> Updates:
            x = batch.x if attack is None else self.attacked(attack, model, batch, context)
            model.encoder.train(batchnorm == "train")  # the loop has put all of it in train mode
            with torch.no_grad():
                features = model.features(x)
            logits = model.head(features).float()
            right = (logits.argmax(1) == batch.y).float().mean()
            yield "head", Loss(F.cross_entropy(logits, batch.y), {"accuracy": right})

        return updates

    def _final_attack(self) -> dict[str, Any]:
        return {**self.attack_settings(), "steps": self.final_steps}

    def _tuning(self, threat: Threat, model: Classifier, begin: Callable[[], None]) -> Stage:
        """TRADES on the whole network but what it does not deploy."""
        attack = PGD(threat, objective="kl", start="gaussian", **self._final_attack())

        def updates(batch: Batch, context: StepContext) -> Updates:
            x_adv: Tensor = self.attacked(attack, model, batch, context)
            yield "model", self.trades_forward(model, batch, x_adv, self.beta)

        schedule = step((0.6 * self.tuning_epochs, 0.8 * self.tuning_epochs))
        weights = OptimizerSpec([*model.encoder.parameters(), *model.head.parameters()], self.tuning_lr)
        optimisers = {"model": replace(weights, weight_decay=2e-4, schedule=schedule)}
        part = Pass(updates, augment=self.augment)
        return Stage("aff", self.tuning_epochs, optimisers, (part,), adversarial=True, ema=self.ema, begin=begin)
