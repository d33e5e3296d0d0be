"""Images beside their copies, attacked, augmented or purified: how far their features lie apart, and what a purifier does and costs.

Models are left as found; clean images and their adversarial copies are (B, C, H, W) in [0, 1].
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import PGD, Attack
from robustlib.attacks.base import frozen_eval, validation_view
from robustlib.data import Batch, Split, check_split
from robustlib.errors import InputError, check_known
from robustlib.losses import pick_negatives
from robustlib.models import Purified
from robustlib.models.classifier import View
from robustlib.models.purified import Randomness, RandomTransform
from robustlib.representation.features import FEATURES, Features, activations, features, resolve_layers
from robustlib.representation.measures import GapMeasure, alignment, feature_gap
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat

CLEAN = "clean"
WATCHED: tuple[GapMeasure, ...] = ("relative_l2", "cosine", "linf")
RATES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
MIXES = (1, 2, 4, 8, 16)
IMAGE, PURIFIED = "image", "purified"
ROUNDS = 15  # interleaved, of which the median counts


def image_copies(
    model: nn.Module, split: Split, attack: Attack, *, augment: str = "simclr", seed: int = 0
) -> dict[str, Features]:
    """The penultimate features of the same images as they are ("clean"), "augmented" and "attacked", N each in one order.

    `augment` and `seed` as of `features`; the attack is on the plain images.
    """
    kinds: dict[str, Any] = {CLEAN: {}, "augmented": {"augment": augment}, "attacked": {"attack": attack}}
    return {kind: features(model, split, seed=seed, **how) for kind, how in kinds.items()}


def displacement(copies: Mapping[str, Features]) -> dict[str, Tensor]:
    """By kind of copy (see `image_copies`) 1 - cos of each image's features to its clean ones, (N,) in [0, 2]."""
    return {kind: feature_gap(before, after, "cosine") for kind, before, after in _beside_clean(copies)}


def consistency(models: Mapping[str, Mapping[str, Features]]) -> pd.DataFrame:
    """How consistent models are under augmentation and under attack; low gaps, a low alignment and many same answers are good.

    A row a model and kind of copy, from the `image_copies` of each model by its name: model, copy, the means of `alignment` and of
    the relative L2 gap, and the share of copies that the model answers as it answers their image ("same answer").
    """
    rows = []
    for name, copies in models.items():
        for kind, before, after in _beside_clean(copies):
            means = {"alignment": alignment(before, after), "relative_l2": feature_gap(before, after)}
            means["same answer"] = (copies[kind].predictions == copies[CLEAN].predictions).float()
            rows.append({"model": name, "copy": kind} | {key: float(value.mean()) for key, value in means.items()})
    return pd.DataFrame(rows)


def _beside_clean(copies: Mapping[str, Features]) -> list[tuple[str, Tensor, Tensor]]:
    """(kind of copy, clean features, its features) for all but the clean ones."""
    if CLEAN not in copies:
        raise InputError(f"No clean features are among {', '.join(copies) or 'none'}: take those of image_copies.")
    return [(kind, copies[CLEAN][FEATURES], copy[FEATURES]) for kind, copy in copies.items() if kind != CLEAN]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features (N, D) of N images, of their attacked copies, and of one image of another class pulled to each one's class."""

    images: Tensor
    copies: Tensor
    others: Tensor

    def distances(self, measure: str = "cosine") -> dict[str, Tensor]:
        """By kind of pair the distances of each image to its partner, (N,): "cosine" (1 - cos, in [0, 2]) or "l2" (raw).

        A robust representation keeps attacked copies near (alignment) and pulled images of other classes far (exclusion).
        """
        check_known("measure", measure, ("cosine", "l2"))
        kinds = {"attacked copy": self.copies, "another class, pulled": self.others}
        if measure == "l2":
            return {kind: (self.images - partner).norm(dim=1) for kind, partner in kinds.items()}
        return {kind: 1 - F.cosine_similarity(self.images, partner) for kind, partner in kinds.items()}


def attacked_pairs(
    model: nn.Module, split: Split, threat: Threat, *, seed: int = 0, embed: Callable[[Tensor], Tensor] | None = None
) -> Pairs:
    """The pairs of ANCRA's figure of distances (Zhou et al. 2023; feature_distance.py), for any model and all classes.

    Copies are those of PGD-10. The other image is drawn from the split as in ANCRA's training, a class uniformly and then one
    of its images, and pulled towards the class of its partner by targeted PGD-10. Both attacks go on after a success and use the
    model's `attack_view`. `seed` is of negatives and random starts; `embed` maps images to features (B, D) for `model.features`.
    """
    split, weights = check_split(split), next(model.parameters(), None)
    split = split.to(split.labels.device if weights is None else weights.device)
    chosen = pick_negatives(split.labels, generator=torch.Generator(split.labels.device).manual_seed(seed))
    if chosen is None:
        raise InputError(f"All {len(split)} images are of class {int(split.labels[0])}: negatives need a second class.")
    to_features: Callable[[Tensor], Tensor] = embed or model.features  # type: ignore[assignment]
    view, triples = validation_view(model), []
    push, pull = PGD(threat, steps=10), PGD(threat, steps=10, targeted=True)
    with frozen_eval(model):
        for batch, places in zip(split.batches(256), chosen.split(256), strict=True):
            other = Batch(split.images[places], split.labels[places], split.indices[places])  # some come several times
            rng = ExampleRNG.for_examples(seed, batch.index)
            copies = push(view, batch.x, batch.y, rng=rng)
            pulled = pull(view, other.x, other.y, rng=rng.fold_in(1), target=batch.y)
            with torch.no_grad():
                triples.append([to_features(images).float().cpu() for images in (batch.x, copies, pulled)])
    return Pairs(*(torch.cat(parts) for parts in zip(*triples, strict=True)))


def gap_probe(
    attack: Attack, layers: Mapping[str, str], *, images: int = 128
) -> Callable[[nn.Module, Batch], dict[str, float]]:
    """Mean feature gaps of several layers (by their name in the metrics), to watch during training: an entry of `Stage.probes`.

    They appear as "probe/<layer's name>/<measure>": "linf" is what AFD plots, the others do not depend on the features' scale. One
    attack serves all, with the same random numbers in every epoch, on the same `images` of the batch, spread evenly over it.
    """

    def probe(model: nn.Module, batch: Batch) -> dict[str, float]:
        names = resolve_layers(model, tuple(layers.values()))
        spread = torch.arange(0, len(batch), max(1, len(batch) // images), device=batch.y.device)[:images]
        few = replace(batch, images=batch.images[spread], y=batch.y[spread], index=batch.index[spread])
        with frozen_eval(model):
            x_adv = attack(validation_view(model), few.x, few.y, rng=ExampleRNG.for_examples(0, few.index))
            with torch.no_grad():
                clean, adversarial = activations(model, few.x, names), activations(model, x_adv, names)
        return {
            f"{key}/{measure}": float(feature_gap(clean[name], adversarial[name], measure).mean())
            for key, name in zip(layers, names, strict=True)
            for measure in WATCHED
        }

    return probe


class Steps(NamedTuple):
    """Images after each step of a purifier, by the step's name and in order, each (B, C, H, W) on the CPU."""

    clean: dict[str, Tensor]
    adversarial: dict[str, Tensor]
    answers: dict[str, tuple[Tensor, Tensor]]  # of the classifier (B,) to both, to the images and to the purified ones


def purification_steps(model: Purified, clean: Tensor, adversarial: Tensor, *, seed: int = 0) -> Steps:
    """Images and their attacked copies on their way through a model, both by the same draw of its randomness.

    The steps: "image"; "noise added"; "blocks hidden" (of rt3 behind the first of its N masks); "holes filled", where hidden
    pixels alone are the purifier's; "purified", what the classifier sees. Steps that the model does not take are left out.
    """
    if clean.shape != adversarial.shape:
        shapes = f"Clean images {tuple(clean.shape)} and attacked ones {tuple(adversarial.shape)}"
        raise InputError(f"{shapes} must be the same images.")
    sides, answers, deployed = [], [], bool(model.purifying)
    with frozen_eval(model), torch.no_grad():
        drawn = model.transform.draw(clean.to(model.mean.device), torch.Generator().manual_seed(seed))
        mask, whole = drawn.masks[0], Randomness(drawn.noise, torch.zeros_like(drawn.masks[:1]))
        for images in (clean, adversarial):
            steps = {IMAGE: (x := images.to(model.mean.device))}
            noisy = model.transform.apply(x, whole)[0]
            if deployed and drawn.noise is not None:
                steps["noise added"] = noisy
            if deployed and bool(mask.any()):
                steps["blocks hidden"] = model.transform.apply(x, drawn)[0]
                steps["holes filled"] = noisy * (1 - mask) + model.outputs(x, drawn)[-1][0] * mask
            steps[PURIFIED] = model.purify(x, drawn)
            answers.append([model.classify(steps[step]).argmax(1).cpu() for step in (IMAGE, PURIFIED)])
            sides.append({step: image.cpu() for step, image in steps.items()})
    return Steps(sides[0], sides[1], dict(zip((IMAGE, PURIFIED), zip(*answers, strict=True), strict=True)))


def transform_surface(transform: RandomTransform, clean: Tensor, adversarial: Tensor, *, seed: int = 0) -> pd.DataFrame:
    """How far a random transform moves images, against its missing rate and the number of copies that are mixed.

    T is the mean of several draws of the transform (of rt3 one mask a draw). What the attack did shrinks by the missing rate alone,
    while what the transform does averages out: mixing brings the attack back out of the noise. After the released "impact of
    missing rate and mix number", with the model's blocks, noise and radius. A row for each of MIXES and of the rates near RATES that
    its grid can have: missing, mixes, apart (|T(x') - T(x)|, by the same draws), changed (|T(x') - x'|); means in [0, 1].
    """
    rows = []
    blocks = transform.grid**2
    for rate in sorted({round(rate * blocks) / blocks for rate in RATES} - {1.0}):
        mask = replace(transform, kind="rt2" if transform.noisy else "rt1", missing=rate)
        generator = torch.Generator().manual_seed(seed)
        sums = [torch.zeros_like(clean), torch.zeros_like(clean)]
        for count in range(1, MIXES[-1] + 1):
            drawn = mask.draw(clean, generator)
            sums = [total + mask.apply(x, drawn)[0] for total, x in zip(sums, (clean, adversarial), strict=True)]
            if count in MIXES:
                one, other = (total / count for total in sums)
                distances = {"apart": other - one, "changed": other - adversarial}
                means = {name: float(distance.abs().mean()) for name, distance in distances.items()}
                rows.append({"missing": rate, "mixes": count, **means})
    return pd.DataFrame(rows)


def purified_copies(model: Purified, split: Split, attack: Attack, *, seed: int = 0) -> dict[str, Features]:
    """Penultimate features of the same images with and without the purifier before the classifier, N each in one order.

    "clean" and "attacked" are those of the bare classifier, "purified" and "attacked, purified" those behind the purifier, by one
    draw. The attack is on the whole model; its images are rounded to 256 levels. For `consistency`, `displacement` and `embed_path`.
    """

    def bare(images: Split) -> Features:
        answers = features(View(model, "classify"), images, layers="model.encoder")
        return replace(answers, layers={FEATURES: answers["model.encoder"]})

    attacked = features(model, split, attack=attack, seed=seed, keep_images=True)
    shown = replace(split, images=attacked.images)  # type: ignore[arg-type]
    return {
        CLEAN: bare(split),
        "purified": features(model, split, seed=seed),
        "attacked": bare(shown),
        "attacked, purified": features(model, shown, seed=seed),
    }


def forward_cost(model: Purified, x: Tensor) -> pd.DataFrame:
    """The time for an image of x (B, C, H, W) with the purifier and without: a forward pass, and one with its gradient.

    Both take turns, so that other work of the machine falls on both; the median of 15 rounds counts. A row a pass: pass
    ("forward", "forward and gradient"), classifier, purified (milliseconds an image), ratio.
    """
    rows, x = [], x.to(model.mean.device)
    wait = torch.accelerator.synchronize if x.device.type != "cpu" else lambda: None

    def seconds(call: Callable[[Tensor], Tensor], backwards: bool) -> float:
        images = x.detach().clone().requires_grad_(backwards)
        wait()
        began = time.perf_counter()
        with torch.set_grad_enabled(backwards):
            answer = call(images)
        if backwards:
            answer.sum().backward()
        wait()
        return time.perf_counter() - began

    with frozen_eval(model):
        for name, backwards in (("forward", False), ("forward and gradient", True)):
            times = [[seconds(call, backwards) for call in (model.classify, model)] for _ in range(ROUNDS + 1)]
            # the first round warms up
            milliseconds = 1000 * torch.tensor(times[1:], dtype=torch.float64).median(0).values / len(x)
            alone, purified = milliseconds.tolist()
            rows.append({"pass": name, "classifier": alone, "purified": purified, "ratio": purified / alone})
    return pd.DataFrame(rows)
