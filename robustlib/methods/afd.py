"""AFD: adversarial fine-tuning by feature disentanglement (Zhou et al. 2025)."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import InputError, check_choices
from robustlib.losses import confusion_labels, mean_cosine
from robustlib.methods.adversarial import AdversarialMethod
from robustlib.models import Branches, Disentangled
from robustlib.runs import Run
from robustlib.training import At, Loss, Pass, Stage, Updates, cosine

# 0.025 for ten epochs, then 0.02, 0.01, 0.005, 0.0025 and 0.00125 for two epochs each (the released tl+sl.py)
PUBLISHED: tuple[tuple[float, float], ...] = (
    *((0, 1), (10, 1), (10, 0.8), (12, 0.8), (12, 0.4), (14, 0.4)),
    *((14, 0.2), (16, 0.2), (16, 0.1), (18, 0.1), (18, 0.05), (20, 0.05)),
)


@dataclass(frozen=True, kw_only=True)
class AFD(AdversarialMethod):
    """min CE(z1, y) + gamma (1 - cos(f1, f_T(x))) + beta cos(f1, f2), with f2 = D2 h taught the strongest wrong class c.

    A naturally trained model T is copied and fine-tuned on PGD images x': h = encoder(x'), f1 = D1 h and z1 = W f1 + b; f_T(x)
    are the features of the frozen T at the clean image. D2 minimises alpha CE(z2, c) with z2 = W f2 + b and c the strongest wrong
    class of z1; no gradient of it reaches the encoder. Adversarial images alone move BatchNorm's statistics.

    The released loop (tl+sl.py) steps three optimisers in turn, two of them over the same weights, without clearing gradients, and
    current versions of torch refuse it. `mode="repo"` is one step that equals it to first order in the learning rate: beta counts
    twice, weight decay too (except for D2), and W and b also learn 2 alpha CE(z2, c). `mode="paper"` is the formula above.
    Unlike the released code, images are normalised inside the model, and the attack's random start is clipped to [0, 1].
    """

    name = "afd"
    title = "AFD"
    paper = "Zhou et al. 2025, Mitigating Feature Gap for Adversarial Robustness by Feature Disentanglement, AAAI"
    summary = "Fine-tunes a natural model on attacked images and removes the features that speak for the strongest wrong class."
    protocol = "pgd20"

    epochs: int = 20  # of fine-tuning
    lr: float = 0.025
    schedule: str = "piecewise"
    points: tuple[tuple[float, float], ...] = PUBLISHED
    ema: float = 0.999  # of the fine-tuning; the average is what the paper reports
    attack_step_size: float | None = 0.007  # at 8/255
    alpha: float = 0.05  # weight of CE(z2, c)
    beta: float = 0.25  # weight of cos(f1, f2); `--sigma` in the released code
    gamma: float = 25.0  # weight of the alignment with the natural model's clean features
    mode: Literal["repo", "paper"] = "repo"  # which update: see above
    pretrained: str = ""  # directory of a finished `standard` run to fine-tune; "" trains one first
    pretrain_epochs: int = 100  # of natural training, SGD with a cosine to 0 (the recipe is not published)
    pretrain_lr: float = 0.1  # its peak learning rate

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, mode=("repo", "paper"))
        if self.awp_gamma:
            raise InputError(
                f"afd does not perturb weights, so awp_gamma={self.awp_gamma!r} would be ignored: leave it at 0."
            )
        for name in ("alpha", "beta", "gamma", "pretrain_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"afd: {name}={getattr(self, name)!r}: give a number of at least 0.")

    @property
    def all_epochs(self) -> int:
        """Natural epochs, unless they are done, and those of fine-tuning."""
        return self.epochs + (0 if self.pretrained else self.pretrain_epochs)

    def model_options(self) -> dict[str, Any]:
        """The model has the disentangler from the start; natural training leaves it alone."""
        return {"disentangled": True}

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        """Natural training, unless a finished run is given, then fine-tuning.

        Raises:
            InputError: a model without a disentangler; when fine-tuning begins, a `pretrained` run that does not fit.
        """
        if not isinstance(model, Disentangled):
            raise InputError("afd trains a model with a disentangler: build_model(arch, dataset, disentangled=True).")
        tuning = self._fine_tuning(dataset, model)
        return [tuning] if self.pretrained else [self._natural(model), tuning]

    def _natural(self, model: Disentangled) -> Stage:
        """Cross-entropy on clean images; D1 and D2 stay the identity."""

        def updates(batch: Batch, at: At) -> Updates:
            yield "model", Loss(F.cross_entropy(model(batch.x).float(), batch.y))

        weights = self.optim([*model.encoder.parameters(), *model.head.parameters()])
        weights = replace(weights, lr=self.pretrain_lr, schedule=cosine(self.pretrain_epochs))
        return Stage("natural", self.pretrain_epochs, {"model": weights}, (Pass(updates, augment=self.augment),))

    def _fine_tuning(self, dataset: Dataset, model: Disentangled) -> Stage:
        """The student begins as the natural model, which stays beside it as the teacher."""
        attack = PGD(self.threat(dataset), **self.attack_settings())
        teacher = copy.deepcopy(model).eval().requires_grad_(False)

        def begin() -> None:
            if self.pretrained:
                _start_from(self.pretrained, model, dataset)
            teacher.load_state_dict(model.state_dict())

        def updates(batch: Batch, at: At) -> Updates:
            out = model.branches(self.attacked(attack, model, batch, at))
            with torch.no_grad():
                wrong, target = confusion_labels(out.logits, batch.y), teacher.latent(batch.x)
            agreement = (out.confused_logits.argmax(1) == wrong).float().mean()
            yield "confused", Loss(self.alpha * _ce(out.confused_logits, wrong), {"agreement": agreement})
            yield "model", self._loss(model, out, batch.y, wrong, target)

        rest = [*model.encoder.parameters(), *model.intrinsic.parameters(), *model.head.parameters()]
        optimisers = {
            "confused": self.optim(model.confused.parameters()),
            "model": replace(self.optim(rest), weight_decay=self._times * self.weight_decay),
        }
        passes = (Pass(updates, augment=self.augment),)
        beside = {"teacher": teacher}
        return Stage(
            self.name, self.epochs, optimisers, passes, adversarial=True, ema=self.ema, begin=begin, modules=beside
        )

    @property
    def _times(self) -> int:
        """How often the released loop applies what its second optimiser has applied already."""
        return 2 if self.mode == "repo" else 1

    def _loss(self, model: Disentangled, out: Branches, y: Tensor, wrong: Tensor, target: Tensor) -> Loss:
        """What encoder, D1 and head minimise; f2 is a constant here."""
        confused = out.confused.detach()
        ce, gap = _ce(out.logits, y), 1 - mean_cosine(out.intrinsic, target)
        alike = mean_cosine(out.intrinsic, confused)
        total = ce + self.gamma * gap + self._times * self.beta * alike
        if self.mode == "repo":  # what L_neg leaves on the shared classifier
            total = total + self._times * self.alpha * _ce(model.head(confused), wrong)
        return Loss(total, {"ce": ce, "gap": gap, "cosine": alike})


def _ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), y)


def _start_from(path: str, model: Disentangled, dataset: Dataset) -> None:
    """Gives the model the last weights of the finished `standard` run at `path`.

    Raises:
        InputError: no such run, not finished, or of another method, data set or architecture.
    """
    run = Run(Path(path))
    params = run.params()
    if params.get("method") != "standard" or not run.finished:
        found = f"{run.name}, {run.status()['state']}" if params else "no run"
        raise InputError(f"afd: pretrained={path!r} is {found}: give the directory of a finished `standard` run.")
    if params["dataset"] != dataset.name:
        raise InputError(
            f"afd: pretrained={path!r} was trained on {params['dataset']!r}, not on {dataset.name!r}: "
            "give a run of the same data set."
        )
    natural = run.model("last")
    natural.check_data(dataset)
    for mine, theirs in ((model.encoder, natural.encoder), (model.head, natural.head)):
        try:
            mine.load_state_dict(theirs.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"afd: pretrained={path!r} is a {params['arch']!r}, whose weights do not fit the architecture that is "
                f"to be fine-tuned: give --set arch={params['arch']}, or another run."
            ) from error
