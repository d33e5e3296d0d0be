"""AToP: a purifier before a frozen classifier, pre-trained on clean images and fine-tuned on attacked ones (Lin et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import FGSM, PGD
from robustlib.data import Batch, Dataset
from robustlib.errors import Count, InputError, Maps, NonNegative, ShareBelowOne, Whole, Width
from robustlib.methods.base import AdversarialMethod, NoAWP
from robustlib.methods.baselines import cross_entropy, load_standard_run, natural_stage
from robustlib.models import PatchDiscriminator, Purified, Randomness, RandomTransform
from robustlib.models.build import default_width
from robustlib.models.classifier import View
from robustlib.models.purifier import HEADS
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, StepContext, Updates

ADAM = partial(OptimizerSpec, kind="adam", betas=(0.5, 0.999))  # of both networks (released configs/train.yaml)
Parts = Mapping[str, tuple[float, Tensor]]  # of the purifier's loss: name -> weight and loss
MEDIAN_OF = 256  # training images whose median is the constant image
# A pre-trained purifier's L1 error is below this share of the best constant image's
MAX_L1_SHARE = 0.7
MAX_L1_SHARE_RT3 = 1.0  # every pixel is guessed: on digits the two purifiers reach 0.96 and 0.92 (one seed)
MAX_HIDDEN_SHARE = 1.2  # over hidden pixels alone; on digits 0.93 to 0.98, and 2.1 where they are left grey


@dataclass(frozen=True, kw_only=True)
class AToP(AdversarialMethod):
    """f(g(t(x))): classifier f frozen, random transform t, purifier g; stages "classifier", "purifier" and "tuning".

    Pre-training, x clean: sum_k |x - g_k(t(x))|_1 - gan_weight * D(g(t(x))), mean over pixels of images scaled to [-1, 1], k over the
    purifier's outputs, with a hinge discriminator D that takes its step before. Fine-tuning, x' attacked: the same on x'
    (`recon_target` "adversarial", the paper's equation and the released notebooks) or on x ("clean", the author's published log),
    plus cls_weight * CE(f(g(t(x'))), y) from epoch `warm_up` on; both passes share noise and masks, drawn afresh after the attack.
    One attack step is FGSM, more are PGD. "classifier" attacks f alone, as the released code does; "pipeline" is the equation's
    max_x' CE(f(g(t(x'))), y), each gradient of another draw. A masked autoencoder has no discriminator. `optimiser`, `momentum`
    and `weight_decay` are those of the classifier alone.

    Read from the released code (glin2022/atop) and its OpenReview thread, with these differences: the generator feels its
    discriminator (the release detaches it), which goes on from pre-training (there fine-tuning starts a new one), images are in [0, 1]
    before f as well, every image has its own mask, the perturbation is at the data set's own resolution, not at 256 x 256, and the
    purifier is small and starts from random weights, where the release starts DeepFillv2 from Places2: numbers are not the paper's.
    """

    name, title, notebook = "atop", "AToP", "atop"
    paper = "Lin et al. 2024, Adversarial Training on Purification (AToP): Advancing Both Robustness and Generalization, ICLR"
    summary = "A purifier destroys and completes images before a frozen classifier; adversarial training fine-tunes it."

    purifier: Literal["none", "gan", "mae"] = "gan"  # inpainting GAN; masked autoencoder; none: holes stay grey
    transform: Literal["none", "rt1", "rt2", "rt3"] = "rt2"  # mask; noise and mask; noise and masks that cover all
    sigma: NonNegative = 0.25  # standard deviation of the noise of rt2 and rt3, in [0, 1] pixel units
    missing: ShareBelowOne = 0.25  # share of the blocks that a mask hides
    grid: int = 8  # blocks a side
    width: Maps | None = None  # maps of purifier (released: 24) and discriminator (64); None: 24, small images 12
    embed_dim: Width | None = None  # numbers in a token of the autoencoder, a multiple of 4; None: 48 or 96
    pretrained: str = ""  # directory of a finished `standard` run that is the classifier; "" trains one first
    classifier_epochs: Count = 100  # of the classifier, SGD with a cosine to 0
    classifier_lr: NonNegative = 0.1  # its peak learning rate
    purifier_epochs: Count = 100  # of pre-training on clean images; the release starts from Places2 instead
    purifier_lr: NonNegative = 1e-4  # of pre-training, Adam
    fine_tune: bool = True  # adversarial training of the purifier; false stops after its pre-training
    augment: str = "flip"  # of all stages: a purifier that sees crops learns to paint their black borders
    batch_size: int = 64  # released: 8, of 256 x 256 pixels
    epochs: int = 30  # of fine-tuning; released: 300 of 5 000 images
    lr: float = 1e-4  # of fine-tuning, Adam; the discriminator has the purifier's throughout
    schedule: str = "constant"  # of fine-tuning
    repeats: Count = 1  # passes over the images in each epoch of the purifier, which is then validated
    attack_steps: int = 1  # 1 is FGSM, more are PGD
    attack_step_size: float | None = None  # in pixel units; None: eps for FGSM, eps / 4 for PGD
    attack_through: Literal["classifier", "pipeline"] = "classifier"  # the bare classifier, or the whole model
    recon_target: Literal["adversarial", "clean"] = "adversarial"  # what fine-tuning reconstructs, and from what
    awp_gamma: NoAWP = 0.0  # no weights are perturbed
    cls_weight: NonNegative = 0.05  # lambda, of the cross-entropy in fine-tuning
    warm_up: Whole = 0  # epochs of fine-tuning before lambda counts; released: 10 000 images, less than one of CIFAR-10
    gan_weight: NonNegative = 1.0  # of the discriminator's verdict, purifier="gan" only; 0 trains none

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            random = RandomTransform(self.transform, self.sigma, self.missing, self.grid).random
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        alone, unpurified = self.transform == "none", self.purifier == "none"
        settings = f"transform={self.transform!r} with missing={self.missing:g}, sigma={self.sigma:g}"
        grey = "rt3 keeps only what a purifier paints, and without one every image is grey"
        waits = f"warm_up={self.warm_up} of epochs={self.epochs} leaves none with the classifier's loss"
        self.refuse(
            ((self.embed_dim or 0) % HEADS, f"embed_dim={self.embed_dim}: give a multiple of {HEADS}, its heads."),
            (not alone and not random, f"{settings} changes nothing: set transform=none, or hide something."),
            (unpurified and self.fine_tune, "purifier='none' has nothing to fine-tune: set fine_tune=false."),
            (unpurified and self.transform == "rt3", f"{grey}: set transform=rt2, or a purifier."),
            (unpurified and alone, "without transform and purifier the classifier is alone: train standard."),
            (self.fine_tune and self.warm_up >= self.epochs, f"{waits}: give fewer, or fine_tune=false."),
        )

    @property
    def all_epochs(self) -> int:
        """Of the classifier, unless it is done, of the purifier and of fine-tuning; an epoch of the latter is `repeats` passes."""
        purifier = 1 if self.purifier == "none" else self.purifier_epochs
        return (0 if self.pretrained else self.classifier_epochs) + purifier + (self.epochs if self.fine_tune else 0)

    @property
    def attack_passes(self) -> int:
        """Each image is attacked once in each pass of fine-tuning; through the classifier alone a pass is a cheaper one."""
        return self.attack_steps * self.epochs * self.repeats if self.fine_tune else 0

    def model_options(self) -> dict[str, Any]:
        names = ("purifier", "transform", "sigma", "missing", "grid")
        width = self.embed_dim if self.purifier == "mae" else self.width
        return {"purified": {**{name: getattr(self, name) for name in names}, "width": width}}

    def inner_attack(self, dataset: Dataset, **settings: Any) -> PGD:
        usual = {name: value for name, value in self.attack_settings().items() if value is not None}
        return (FGSM if self.attack_steps == 1 else PGD)(self.threat(dataset), **usual | settings)

    def stages(self, dataset: Dataset, model: nn.Module) -> list[Stage]:
        model = self.check_model(model, Purified)
        shape = dataset.image_shape
        model.transform.draw(torch.zeros(1, *shape), torch.Generator())  # refuses a grid too fine before any training
        shared: dict[str, nn.Module] = {}
        if self.purifier == "gan" and self.gan_weight:
            shared["discriminator"] = PatchDiscriminator(shape, self.width or default_width("gan", shape))
        natural = natural_stage(self, model, "classifier", self.classifier_epochs, self.classifier_lr)
        stages = [*([] if self.pretrained else [natural]), self._pretraining(dataset, model, shared)]
        return [*stages, self._fine_tuning(dataset, model, shared)] if self.fine_tune else stages

    def _pretraining(self, dataset: Dataset, model: Purified, shared: Mapping[str, nn.Module]) -> Stage:
        """Clean images; without a purifier, the one moment in which the transform is put before the classifier."""

        def begin() -> None:
            if self.pretrained:
                load_standard_run(self, model, dataset)
            model.deploy()

        def updates(batch: Batch, context: StepContext) -> Updates:
            randomness = model.transform.draw(batch.x, context.generator)
            outputs = model.outputs(batch.x, randomness)
            yield from self.purifier_steps(shared.get("discriminator"), batch.x, outputs, randomness, {})

        if self.purifier == "none":
            return Stage("purifier", 1, {}, (), begin=begin)
        median = dataset.train.sample(MEDIAN_OF).images.float().median(0).values / 255

        def end(deployed: nn.Module, batch: Batch) -> None:
            self.check_learnt(l1_share(deployed, batch, median), l1_share(deployed, batch, median, hidden=True))

        probes = {"l1_share": partial(l1_share, constant=median)}
        if self.transform != "none":
            probes["hidden_share"] = partial(l1_share, constant=median, hidden=True)
        # The last weights are those that `end` checks and that fine-tuning starts from.
        rest: Any = {"begin": begin, "end": end, "keep": "last", "modules": shared, "probes": probes}
        passes = (Pass(updates, repeats=self.repeats, augment=self.augment),)
        adam = {"model": model.purifier, **shared}
        optimisers = {name: ADAM(part.parameters(), self.purifier_lr) for name, part in adam.items()}
        return Stage("purifier", self.purifier_epochs, optimisers, passes, **rest)

    def _fine_tuning(self, dataset: Dataset, model: Purified, shared: Mapping[str, nn.Module]) -> Stage:
        """Attacked images, and the frozen classifier's loss on what the purifier makes of them."""
        attack = self.inner_attack(dataset)
        target = View(model, "classify") if self.attack_through == "classifier" else Pipeline(model)

        def updates(batch: Batch, context: StepContext) -> Updates:
            if isinstance(target, Pipeline):
                target.generator = context.generator
            x_adv = self.attacked(attack, target, batch, context)
            randomness = model.transform.draw(x_adv, context.generator)
            purified = model.outputs(x_adv, randomness)
            ce = cross_entropy(model.classify(model.combined(purified[-1], randomness)), batch.y)
            weight = self.cls_weight if context.epoch >= self.warm_up else 0.0
            original, outputs = x_adv, purified
            if self.recon_target == "clean":
                original, outputs = batch.x, model.outputs(batch.x, randomness)
            parts = {"ce": (weight, ce)}
            yield from self.purifier_steps(shared.get("discriminator"), original, outputs, randomness, parts)

        passes = (Pass(updates, repeats=self.repeats, augment=self.augment),)
        optimisers = {"model": ADAM(model.purifier.parameters(), self.lr, schedule=self.lr_schedule())}
        optimisers |= {name: ADAM(part.parameters(), self.purifier_lr) for name, part in shared.items()}
        return Stage("tuning", self.epochs, optimisers, passes, adversarial=True, ema=self.ema, modules=shared)

    def purifier_steps(
        self, discriminator: Any, target: Tensor, outputs: Sequence[Tensor], randomness: Randomness, parts: Parts
    ) -> Updates:
        """The discriminator's step on its hinge loss, then the purifier's, which is judged by the discriminator's new weights.

        L_D = E relu(1 - D(target)) / 2 + E relu(1 + D(g)) / 2, L_g = sum_k E |target - g_k| - gan_weight * E D(g) + `parts`, with
        the L1 terms on images scaled to [-1, 1], as released: twice what they are on [0, 1]. Half of L_g is what is minimised, since
        Adam does not feel a common factor; "l1" in the metrics is on [0, 1]. Each of the N images of a transform counts alike.

        `target` (B, C, H, W) in [0, 1] is to be reconstructed by the purifier's `outputs`, each (N, B, C, H, W), the last of which
        D judges; without `discriminator`, (images, masks) -> scores, both of its terms are left out.
        """
        l1 = torch.stack([(image.float() - target).abs().mean() for image in outputs]).sum()
        said = {"l1": l1, **{name: loss for name, (_, loss) in parts.items()}}
        total = l1 + sum(weight / 2 * loss for weight, loss in parts.values())
        if discriminator is not None:
            last, masks = outputs[-1].flatten(0, 1), randomness.masks.flatten(0, 1)
            real = target.expand_as(outputs[-1]).flatten(0, 1)
            verdicts = discriminator(torch.cat([real, last.detach()]), torch.cat([masks, masks])).float()
            on_real, on_made = verdicts.chunk(2)
            yield "discriminator", Loss((F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()) / 2)
            said["gan"] = -discriminator(last, masks).float().mean()
            total = total + self.gan_weight / 2 * said["gan"]
        yield "model", Loss(total, said)

    def check_learnt(self, share: float, hidden: float) -> None:
        """Raises InputError for a purifier that is no better than a constant image, over all pixels or over hidden ones.

        The latter since one that paints nothing does well over all pixels of rt1, most of which it is shown.
        """
        most = MAX_L1_SHARE_RT3 if self.transform == "rt3" else MAX_L1_SHARE
        error = "pixels its L1 error on validation images is {:.2f} of that of the best constant image, and {:g} is asked for"
        remedy = f"raise purifier_epochs ({self.purifier_epochs}), purifier_lr ({self.purifier_lr:g}) or its size, or lower sigma."
        over = "the purifier has learnt nothing: over"
        self.refuse(
            (not share < most, f"{over} all {error.format(share, most)}: {remedy}"),  # NaN: it diverged
            # NaN: nothing is hidden
            (hidden >= MAX_HIDDEN_SHARE, f"{over} hidden {error.format(hidden, MAX_HIDDEN_SHARE)}: {remedy}"),
        )


class Pipeline(nn.Module):
    """x -> logits of a `Purified`, each pass with randomness of its own from `generator`, where the model draws from the global one."""

    def __init__(self, model: Purified) -> None:
        super().__init__()
        self.model, self.stochastic = model, model.transform.random
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.model.classify(self.model.purify(x, self.model.transform.draw(x, self.generator)))


@torch.no_grad()
def l1_share(model: nn.Module, batch: Batch, constant: Tensor, hidden: bool = False) -> float:
    """mean |x - purified x| over mean |x - constant|, of one draw that is the same whenever it is asked.

    With `hidden` over hidden pixels only (NaN without any): of all pixels, a purifier that paints nothing may still do well.
    """
    assert isinstance(model, Purified)
    x = batch.x
    randomness = model.transform.draw(x, torch.Generator(x.device).manual_seed(0))
    where = randomness.masks.sum(0) if hidden else 1.0
    error, worst = (((image - x).abs() * where).mean() for image in (model.purify(x, randomness), constant.to(x)))
    return float(error / worst)
