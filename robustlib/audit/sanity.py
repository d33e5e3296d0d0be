"""Before anything is attacked: is this network the one its owner thinks it is, and is it shown images as it wants them?

Every way in which a foreign network is usually misused leaves a trace on clean images: classes in another order, images normalised twice
or not at all, grey levels of 0 to 255, probabilities for logits. Each has its own sentence.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robustlib.attacks.base import frozen_eval
from robustlib.audit.audit import train_mode_layers
from robustlib.data import Dataset, Split, check_dataset, check_split
from robustlib.evaluation.measurements import images_of
from robustlib.evaluation.metrics import wilson
from robustlib.figures.canvas import percent
from robustlib.models import Classifier
from robustlib.models.classifier import full_float32
from robustlib.rng import forked
from robustlib.runs import Run, digest, measured
from robustlib.training.fit import resolve_device

EXAMPLES, GRADIENTS = 512, 64  # images that are classified, and those whose gradients are looked at
GAINS = 0.1  # by which another reading of the images must raise the accuracy to be named
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5,), (0.5,))


@dataclass(frozen=True)
class Finding:
    """One answer: what was looked at, "pass", "amber" or "red", and a sentence."""

    name: str
    verdict: Literal["pass", "amber", "red"]
    text: str


def check_run(run: Run, dataset: Dataset, *, device: str = "auto") -> list[Finding]:
    """The findings on a finished run, on at most 512 test images (a stratified choice); kept in its sanity.json."""
    split, where = images_of(run, dataset, EXAMPLES), resolve_device(device)

    def measure() -> dict[str, Any]:
        found = check_model(run.model().to(where), split.to(where), dataset)
        return {"findings": [asdict(finding) for finding in found]}

    facts = {"n": len(split), "images": digest(split.images.numpy().tobytes())}
    facts |= run.digests("model.safetensors")
    return [Finding(**finding) for finding in measured(run, "sanity.json", facts, measure)["findings"]]


def check_model(model: Classifier, split: Split, dataset: Dataset) -> list[Finding]:
    """Five questions to a model on images of a data set: accuracy and, where it is low, why; logits; determinism; gradients; modes."""
    check_split(split), check_dataset(dataset)
    x, y = split.images.float() / 255, split.labels
    with frozen_eval(model), full_float32(), forked(x.device):
        torch.manual_seed(0)
        logits = _answer(model, x)
        found = [_accuracy(model, x, y, logits, dataset), _logits(logits), _determinism(model, x, logits)]
        found += [_gradients(model, x[:GRADIENTS], y[:GRADIENTS])]
        moving = train_mode_layers(model)
    if moving:
        said = f"{len(moving)} layer(s) stay in train mode after eval(), such as {moving[0]}."
        return [*found, Finding("modes", "red", said)]
    return [*found, Finding("modes", "pass", "All layers are in eval mode.")]


def _answer(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(some) for some in x.split(64)]).float()


def _right(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).float().mean())


def _accuracy(model: Classifier, x: Tensor, y: Tensor, logits: Tensor, dataset: Dataset) -> Finding:
    """Clean accuracy against chance, and the misuse that explains a low one."""
    accuracy, classes = _right(logits, y), logits.shape[1]
    chance = float(y.bincount(minlength=classes).max()) / len(y)
    low, high = wilson(accuracy * len(y), len(y))
    said = f"{percent(accuracy)} of {len(y)} test images are right without attack (95 % interval {percent(low)} to {percent(high)})"
    reasons = [*_other_order(logits, y, accuracy, dataset.class_names), *_other_images(model, x, y, accuracy, dataset)]
    if reasons:
        return Finding("clean accuracy", "red", f"{said}. {' '.join(reasons)}")
    if low <= chance:
        guess = f"always the commonest class would be right for {percent(chance)}"
        return Finding(
            "clean accuracy", "red", f"{said}: no better than chance, {guess}. Are these its weights and its data set?"
        )
    return Finding("clean accuracy", "pass", f"{said}; the commonest class alone would give {percent(chance)}.")


def _other_order(logits: Tensor, y: Tensor, accuracy: float, names: tuple[str, ...]) -> Iterator[str]:
    """A sentence where another order of the classes fits the answers better."""
    from scipy.optimize import linear_sum_assignment

    classes = logits.shape[1]
    met = torch.zeros(classes, classes).index_put_(
        (logits.argmax(1).cpu(), y.cpu()), torch.ones(len(y)), accumulate=True
    )
    given, true = linear_sum_assignment(-met.numpy())
    # Of few images of many classes some order always fits by luck.
    if (best := float(met[given, true].sum()) / len(y)) > max(accuracy + GAINS, 2 * accuracy) and len(y) >= 4 * classes:
        k = next(int(k) for k, right in zip(given, true, strict=True) if k != right and met[k, right])
        example = f"its answer {k} means {names[int(true[list(given).index(k)])]!r} and not {names[k]!r}"
        yield f"Its classes are in another order: put right, {percent(best)} would be right ({example}). Sort its outputs as the data set does."


def _other_images(model: Classifier, x: Tensor, y: Tensor, accuracy: float, dataset: Dataset) -> Iterator[str]:
    """A sentence where the model does better on images in other units than those it is shown."""
    stats: dict[str, tuple[Any, Any]] = {"the data set's": (dataset.mean, dataset.std), "[-1, 1]": HALVES}
    stats |= {"ImageNet's": IMAGENET} if x.shape[1] == 3 else {}
    plain = x * 1.0

    def shown(images: Tensor) -> float:  # to the network itself, whatever the model does before
        return _right(_answer(lambda some: model(model.denormalise(some)), images), y)

    tries = {"images of 0 to 255": (255 * plain, "divide by 255 in the network, or give --mean 0 --std 0.00392157")}
    for name, (mean, std) in stats.items():
        m, s = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (mean, std))
        numbers = [",".join(f"{value:.4g}" for value in values) for values in (mean, std)]
        words = (
            "images normalised to [-1, 1]" if name == "[-1, 1]" else f"images normalised by {name} mean and deviation"
        )
        tries[words] = ((plain - m) / s, f"give --mean {numbers[0]} --std {numbers[1]}")
    if bool((model.mean != 0).any() or (model.std != 1).any()):
        tries["images in [0, 1]"] = (plain, "it normalises inside: leave --mean and --std out")
    scores = {words: shown(images) for words, (images, _) in tries.items()}
    best = max(scores, key=lambda words: scores[words])
    if scores[best] > accuracy + GAINS:
        yield f"On {best} {percent(scores[best])} would be right: {tries[best][1]}."


def _logits(logits: Tensor) -> Finding:
    """Whether the answers are finite logits that differ, and no probabilities."""
    if not bool(logits.isfinite().all()):
        return Finding(
            "logits", "red", f"{int((~logits.isfinite().all(1)).sum())} of {len(logits)} answers are NaN or infinite."
        )
    sums, least = logits.sum(1), logits.min()
    if bool(((sums - 1).abs() < 1e-3).all()) and least >= 0:
        said = "Its answers are probabilities (they sum to 1), on which cross-entropy attacks are nearly blind"
        return Finding("logits", "red", f"{said}: return what is before the softmax.")
    if bool((logits.exp().sum(1) - 1).abs().max() < 1e-3):
        return Finding("logits", "pass", "Its answers are log-probabilities, which attacks take as logits.")
    if len(answers := logits.argmax(1).unique()) == 1:
        return Finding("logits", "red", f"It answers class {int(answers[0])} to every image.")
    return Finding("logits", "pass", f"Finite logits, from {float(logits.min()):.3g} to {float(logits.max()):.3g}.")


def _determinism(model: Classifier, x: Tensor, logits: Tensor) -> Finding:
    """Whether the same image gets the same answer, again and in other company."""
    size, few = float(logits.abs().max()) or 1.0, x[:64]
    again = float((_answer(model, few) - logits[:64]).abs().max()) / size
    alone = (
        float((_answer(lambda some: torch.cat([model(one[None]) for one in some]), few[:4]) - logits[:4]).abs().max())
        / size
    )
    if again > 1e-4:
        if model.stochastic:
            return Finding(
                "determinism", "pass", "It answers at random, as it was declared to: attacks average over draws."
            )
        said = f"The same images get other logits at the second time (by {percent(again)} of the largest)"
        return Finding("determinism", "red", f"{said}: give --stochastic, so that attacks average over draws.")
    if alone > 1e-3:
        said = f"An image gets other logits in other company (by {percent(alone)} of the largest)"
        return Finding(
            "determinism", "red", f"{said}: some layer looks at the batch, such as BatchNorm without its averages."
        )
    if model.stochastic:
        return Finding("determinism", "amber", "It was declared stochastic, but two passes gave the same logits.")
    return Finding("determinism", "pass", "The same image gets the same logits, again and in other company.")


def _gradients(model: Classifier, x: Tensor, y: Tensor) -> Finding:
    """Whether gradients of the loss reach the images."""
    with torch.enable_grad():
        images = x.clone().requires_grad_()
        try:
            loss = torch.nn.functional.cross_entropy(model(images), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
        except RuntimeError as error:
            reason, remedy = str(error).partition("\n")[0], "only black-box attacks say anything here"
            return Finding("gradients", "red", f"No gradient reaches the images ({reason}): {remedy}.")
    if gradient is None or not bool(gradient.isfinite().all()):
        return Finding(
            "gradients", "red", f"The gradients at the images are {'missing' if gradient is None else 'not finite'}."
        )
    dead = float((gradient.flatten(1).abs().amax(1) == 0).float().mean())
    if dead > 0.05:
        said = f"{percent(dead)} of the images have a gradient of exactly 0"
        return Finding(
            "gradients",
            "amber",
            f"{said}: rounded inputs, saturated answers or a detached layer hide it; see the audit.",
        )
    return Finding("gradients", "pass", f"Finite gradients reach the images ({percent(1 - dead)} are not 0).")
