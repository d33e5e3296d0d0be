"""AFD: adversarial fine-tuning by feature disentanglement (Zhou et al. 2025)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from robustlib.data import Batch
from robustlib.errors import check_choices
from robustlib.losses import confusion_labels, mean_cosine
from robustlib.methods.fine_tuning import FineTuning
from robustlib.methods.natural import cross_entropy
from robustlib.models import Disentangled
from robustlib.models.disentangled import IntrinsicBranch
from robustlib.training import Loss, Optim


@dataclass(frozen=True, kw_only=True)
class AFD(FineTuning):
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
    all else, weight decay included, as it is. `classify="latent"` trains the same weights, epoch for epoch, and deploys W h + b instead of z1;
    the best epoch is chosen on what is deployed, so the branches are best compared at the last one.
    With `awp_gamma` both losses are taken at the perturbed weights, from the one forward pass that they share; D2 itself stays
    where it is, since the loss that chooses the perturbation takes f2 as a constant.
    """

    name = "afd"
    title = "AFD"
    paper = "Zhou et al. 2025, Mitigating Feature Gap for Adversarial Robustness by Feature Disentanglement, AAAI"
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
        check_choices(self, mode=("repo", "paper"), classify=("intrinsic", "latent"))
        on = {"alpha": "disentangle", "beta": "disentangle", "gamma": "align"}
        self.check_weights({name: f"set {switch}=false" for name, switch in on.items() if getattr(self, switch)})

    def model_options(self) -> dict[str, Any]:
        """The model has the disentangler from the start; natural training leaves it alone."""
        return {"disentangled": True} | ({} if self.classify == "intrinsic" else {"classify": self.classify})

    def watched(self) -> dict[str, str]:
        """h, and f1 where the deployed model computes it."""
        return {"h": "encoder"} | ({"f1": "intrinsic"} if self.classify == "intrinsic" else {})

    def victim(self, model: Any) -> nn.Module:
        """z1, whatever is deployed."""
        return model if self.classify == "intrinsic" else IntrinsicBranch(model)

    def optimisers(self, model: Any) -> dict[str, Optim]:
        """One of D2, if it learns, and one of all else."""
        rest = [*model.encoder.parameters(), *model.intrinsic.parameters(), *model.head.parameters()]
        main = {"model": replace(self.optim(rest), weight_decay=self._times * self.weight_decay)}
        return {"confused": self.optim(model.confused.parameters()), **main} if self.disentangle else main

    @property
    def _times(self) -> int:
        """How often the released loop applies what its second optimiser has applied already."""
        return 2 if self.mode == "repo" else 1

    def losses(self, model: Any, batch: Batch, x_adv: Tensor, natural: Tensor) -> dict[str, Loss]:
        """What D2 minimises, if it learns, then what encoder, D1 and head do, to whom f2 is a constant; see FineTuning."""
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
