"""What others publish, on the same images: the authors' own AutoAttack (package pyautoattack) as a second opinion, and CLAF's
protocol as it was run, which is no valid robust accuracy, so that a reader sees where 60.47 % comes from."""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.data import Dataset, Split, check_split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import BATCH, device_of
from robustlib.evaluation.measurements import images_of, records_of, threat_of
from robustlib.evaluation.metrics import accuracy, answer, robust_correct, valid
from robustlib.models import Classifier
from robustlib.models.classifier import full_float32
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

STEPS, CLAF_BATCH = 10, 500  # of CLAF's release
INVALID = (
    "Invalid: the attack clamps normalised images to [0, 1], as CLAF's release does, so that they are no images of the data set "
    "within the stated radius."
)


@dataclass(frozen=True)
class Comparison:
    """Two AutoAttacks on the same images."""

    ours: dict[str, float]  # see `accuracy`
    theirs: dict[str, float]
    only_ours: list[int]  # indices of the images that only we broke
    only_theirs: list[int]
    seconds: float  # of the authors' package

    @property
    def difference(self) -> float:
        """Our accuracy less theirs, in points: negative where our attack is the stronger one."""
        return 100 * (self.ours["accuracy"] - self.theirs["accuracy"])


def compare_with_reference(
    run: Run, dataset: Dataset, *, n: int | None = None, device: str = "auto", seed: int = 0
) -> Comparison:
    """The authors' AutoAttack on the best weights of an evaluated run (deterministic, of at least 4 classes) and on its images."""
    split, model, records = images_of(run, dataset, n), run.model(), records_of(run)
    records = records[(records["attack"] == "autoattack") & (records["surrogate"] == "")]
    if not set(split.indices.tolist()) <= set(records["index"]):
        raise InputError(f"{run.path} has no AutoAttack on all {len(split)} images: call `robustlib evaluate` first.")
    if model.stochastic or model.num_classes < 4:
        raise InputError("The authors' standard AutoAttack judges deterministic models of at least 4 classes only.")
    withstood = robust_correct(records).groupby(records["index"]).min()
    ours = torch.tensor(withstood.loc[split.indices.tolist()].tolist())
    began = time.monotonic()
    theirs = reference_correct(model.to(resolve_device(device)), split, threat_of(run), seed=seed)
    return Comparison(
        accuracy(int(ours.sum()), len(split)),
        accuracy(int(theirs.sum()), len(split)),
        split.indices[theirs & ~ours].tolist(),
        split.indices[ours & ~theirs].tolist(),
        time.monotonic() - began,
    )


def reference_correct(
    model: nn.Module, split: Split, threat: Threat, *, seed: int = 0, attacks: Sequence[str] = ()
) -> Tensor:
    """Which examples withstand the authors' standard AutoAttack: (N,) bool on the CPU, judged like ours. `attacks` are only these of its
    parts, by their names there (also "apgd-dlr"); () for all four."""
    try:
        from pyautoattack import AutoAttack as Authors
    except ImportError as error:
        message = "The reference suite needs the authors' package: pip install 'robustlib[reference]'."
        raise InputError(message) from error
    device = device_of(model, split)
    split = split.to(device)
    x, y = split.images.float() / 255, split.labels
    norm: Any = {"linf": "Linf", "l2": "L2"}[threat.norm]
    with frozen_eval(model), full_float32(), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        authors = Authors(model, norm=norm, eps=threat.eps, seed=seed, version="standard", device=device)
        authors.verbose, authors.attacks_to_run = False, list(attacks) or authors.attacks_to_run
        classes = int(model(x[:1]).shape[1])
        for attack in (authors.fab, authors.apgd_targeted):
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        x_adv, _ = authors.run_standard_evaluation(x, y, batch_size=BATCH)
        predicted = torch.cat([answer(model, part)[1] for part in x_adv.split(BATCH)])
    return ((predicted == y) & valid(x_adv, x, threat)).cpu()


@dataclass(frozen=True)
class PublishedProtocol:
    """What `claf_published_protocol` finds; `said` must stand wherever `accuracy` does. All in [0, 1], pixel units or fractions."""

    accuracy: float  # on the clamped and attacked images
    clamped: float  # accuracy on images that are clamped and not attacked
    budget: float  # mean over channels of the radius that +-eps of normalised values are
    moved: float  # mean over images of the largest change of a pixel; far above eps because of the clamp
    n: int
    said: str = INVALID

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The two accuracies as rows: attack, accuracy with its Wilson interval low to high, and valid: False."""
        shares = {"published protocol": self.accuracy, "its clamp alone, without an attack": self.clamped}
        return [{"attack": name, **accuracy(round(v * self.n), self.n), "valid": False} for name, v in shares.items()]


def claf_published_protocol(
    model: Classifier, split: Split, *, eps: float = 8 / 255, step_size: float = 2 / 255
) -> PublishedProtocol:
    """PGD in the space of normalised images, clamped to [0, 1] there (AdirRahamim/CLAF's main.py with torchattacks 3.0).

    There z = (x - mean) / std is taken for an image: z_0 = clamp(z + U(-eps, eps)), then 10 steps of step_size * sign(gradient of the
    cross-entropy), each projected on |z' - z| <= eps and clamped to [0, 1]. So the radius in pixels is eps std, about a fifth
    of eps on CIFAR-10, while the clamp alone lifts each pixel below the channel's mean to the mean and cuts what is more than one
    standard deviation above it. Report it beside `evaluate`, never instead. `eps` and `step_size` are of normalised images.
    """
    if not (0 <= eps < math.inf and 0 < step_size < math.inf):
        settings = f"claf_published_protocol: eps={eps!r}, step_size={step_size!r}"
        raise InputError(f"{settings}: give a radius of at least 0 and a positive length.")

    def logits(z: Tensor) -> Tensor:  # of normalised images
        return model(z * model.std + model.mean).float()

    split = check_split(split).to(model.mean.device)
    generator = torch.Generator(model.mean.device).manual_seed(0)
    right, clamped, moved = [], [], []
    with frozen_eval(model):
        for batch in split.batches(CLAF_BATCH):
            z = model.normalise(batch.x)
            at = (z + eps * (2 * torch.rand(z.shape, generator=generator, device=z.device) - 1)).clamp(0, 1)
            for _ in range(STEPS):
                at = at.detach().requires_grad_(True)
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(at), batch.y), at)
                at = (z + (at + step_size * gradient.sign() - z).clamp(-eps, eps)).clamp(0, 1).detach()
            with torch.no_grad():
                right.append(logits(at).argmax(1) == batch.y)
                clamped.append(logits(z.clamp(0, 1)).argmax(1) == batch.y)
            moved.append(((at - z) * model.std).flatten(1).abs().amax(1))
    attacked, still, far = (float(torch.cat(parts).float().mean()) for parts in (right, clamped, moved))
    return PublishedProtocol(attacked, still, float((eps * model.std).mean()), far, len(split))
