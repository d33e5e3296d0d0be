"""AutoAttack against the authors' package: CPU-seconds (on a GPU seconds) of each attack and of the cascade, both timed in turn in one run.

    python benchmarks/autoattack_speed.py     # 32 images, the schedule shortened alike on both sides; writes autoattack_speed.md
    python benchmarks/autoattack_speed.py --device cuda --dataset cifar10 --training 1000 --images 512 --steps 20 --targets 3

Without the authors' package, which comes with the extra `reference`, the two precisions are compared alone; bf16 is left out where it
is no faster. The model is a ResNet-18 after a short PGD-AT, on the embedded digits enlarged to 32x32 colour images unless told otherwise
(kept in --weights).
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import Counted, absent, alternate, left_out, markdown, write_report
from torch import Tensor, nn

from robustlib.attacks import APGD, FAB, PGD, AutoAttack, Square, Threat, fastest_precision
from robustlib.data import Dataset, Split, load_dataset
from robustlib.models import build_model
from robustlib.runs.files import load_weights, save_weights

LR, BATCH = 0.05, 32  # of the training
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
MISSING = absent(["pyautoattack"])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KEYS = {label: f"{label} is faster by" for label in DTYPES}


def large_digits() -> Dataset:
    """The embedded digits at 32x32 in three channels."""
    digits = load_dataset("digits")
    splits = {part: enlarged(getattr(digits, part)) for part in ("train", "val", "test")}
    return replace(digits, name="digits32", mean=digits.mean * 3, std=digits.std * 3, **splits)


def enlarged(split: Split) -> Split:
    """8x8 grey digits as 32x32 colour images."""
    images = split.images.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 3, 1, 1)
    return Split(images, split.labels, split.indices)


def victim(dataset: Dataset, device: torch.device, options: argparse.Namespace) -> nn.Module:
    """A ResNet-18 after a short PGD-AT; trained once, then loaded from the file of weights."""
    torch.manual_seed(0)
    model = build_model("resnet18", dataset).to(device)
    if not options.weights.exists():
        x = next(iter(dataset.train.to(device).batches(BATCH))).x
        precision = fastest_precision(model, x)
        attack = PGD(dataset.threat, steps=2, step_size=0.75 * dataset.threat.eps, precision=precision)
        optimiser = torch.optim.SGD(model.train().parameters(), momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=options.training)
        generator, split = torch.Generator().manual_seed(0), dataset.train.to(device)
        for step in range(options.training):
            rows = torch.randint(len(split), (BATCH,), generator=generator).to(device)
            x, y = split.images[rows].float() / 255, split.labels[rows]
            x_adv = attack(model, x, y, generator=generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = F.cross_entropy(model(x_adv), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            print(f"training step {step + 1}/{options.training}: loss {loss:.2f}", flush=True)
        save_weights(model, options.weights)
    load_weights(model, options.weights)
    return model.eval()


def ours(threat: Threat, options: argparse.Namespace, precision: str) -> AutoAttack:
    """Our cascade with the shortened schedule."""
    parts = (
        APGD(threat, options.steps, precision=precision),
        APGD(threat, options.steps, objective="dlr", targets=options.targets, precision=precision),
        FAB(threat, options.steps, options.targets, precision=precision),
        Square(threat, options.queries, precision=precision),
    )
    return AutoAttack(threat, "custom", tuple(zip(PARTS, parts, strict=True)), precision=precision)


def theirs(
    model: nn.Module, threat: Threat, options: argparse.Namespace
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The authors' attacks with the same schedule, and their cascade as `all`."""
    from pyautoattack import AutoAttack as Reference
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    device = options.device
    cascade = Reference(model, norm="Linf", eps=threat.eps, seed=0, device=device)
    same = {"n_iter": options.steps, "norm": "Linf", "eps": threat.eps, "seed": 0, "device": device}
    cascade.apgd = APGDAttack(model, **same, logger=cascade.logger)
    cascade.apgd_targeted = APGDAttack_targeted(model, **same, n_target_classes=options.targets, logger=cascade.logger)
    cascade.fab.n_iter, cascade.fab.n_target_classes, cascade.fab.targeted = options.steps, options.targets, True
    cascade.square.n_queries = options.queries

    def all_of(x: Tensor, y: Tensor) -> Tensor:
        cascade.attacks_to_run = list(PARTS)
        found = cascade.run_standard_evaluation(x, y, batch_size=len(x))
        return found[0] if isinstance(found, tuple) else found

    parts = (cascade.apgd, cascade.apgd_targeted, cascade.fab, cascade.square)
    return {**{name: part.perturb for name, part in zip(PARTS, parts, strict=True)}, "all": all_of}


def perturbed_by_theirs(
    name: str, threat: Threat, options: argparse.Namespace, net: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    """What one of the authors' attacks, or their cascade, makes of the images."""
    return theirs(net, threat, options)[name](x, y)


def measure(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, options: argparse.Namespace
) -> list[dict[str, object]]:
    """One row a component: median seconds, passes, ratios to the first side, and the images each side left standing; the best known is
    what all of them together leave."""
    rows, best, counted = [], torch.ones_like(y, dtype=torch.bool), Counted(model).eval()
    precisions = {"fp32": "32-true", "bf16": "bf16-mixed"} if bf16_pays(model, x) else {"fp32": "32-true"}
    bare = {label: bare_convolutions(model, x, DTYPES[label]) for label in precisions}
    for precision in precisions.values():
        PGD(threat, 1, precision=precision)(counted, x, y)  # once for each, a folded copy of the model is checked
    for name in (*PARTS, "all"):
        sides = (
            {} if MISSING else {"reference": Side(counted, x, y, partial(perturbed_by_theirs, name, threat, options))}
        )
        for label, precision in precisions.items():
            cascade = ours(threat, options, precision)
            attack = cascade if name == "all" else dict(cascade.attacks)[name]
            sides[label] = Side(counted, x, y, attack)
        seconds = alternate(sides, options.rounds, x.device)
        passes = [f"{side.passes.total() / len(x):.0f}" for side in sides.values()]
        over = []
        for label in precisions:
            met = sides[label].passes
            both = met["forward"] * bare[label][0] + met["backward"] * bare[label][1]
            over.append(f"{seconds[label] / both:.2f}")
        for side in sides.values():
            best = best & side.standing
        standing = {label: side.standing for label, side in sides.items()}
        first, *rest = sides
        others = {label: int((standing[label] != standing[first]).sum()) for label in rest}
        rows.append(
            {
                "attack": "whole cascade" if name == "all" else name,
                f"{first}, {'seconds' if x.is_cuda else 'CPU-seconds'}": f"{seconds[first]:.1f}",
                **{f"{label} is faster by": f"{seconds[first] / seconds[label]:.2f}x" for label in rest},
                f"of the bare convolutions' time: {', '.join(precisions)}": ", ".join(over),
                f"passes per image: {', '.join(sides)}": ", ".join(passes),
                f"left standing: {', '.join(sides)}": ", ".join(str(int(flags.sum())) for flags in standing.values()),
                f"other verdicts than the {first}: {', '.join(rest)}": ", ".join(map(str, others.values())),
            }
        )
        print(rows[-1], flush=True)
    return [{**row, "best known": int(best.sum())} for row in rows]


def bf16_pays(model: nn.Module, x: Tensor) -> bool:
    """Whether searches on this device are faster in bf16; where it is emulated they would take most of the time."""
    return fastest_precision(model, x) == "bf16-mixed"


def bare_convolutions(model: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds for an image that the model's convolutions alone take, channels last: forward, and the gradient by their inputs."""
    met: list[tuple[nn.Conv2d, torch.Size]] = []
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_hook(lambda conv, given, _: met.append((conv, given[0].shape))) for conv in convs]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    forward = backward = 0.0
    for conv, shape in met:
        given = torch.rand(shape, device=x.device).to(dtype, memory_format=torch.channels_last)
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        how: Any = (conv.stride, conv.padding, conv.dilation)
        slope = F.conv2d(given, weight, None, *how)
        by_input = (None, *how, False, (0, 0), 1, (True, False, False))
        forward += seconds_of(partial(F.conv2d, given, weight, None, *how), x.device)
        backward += seconds_of(partial(torch.ops.aten.convolution_backward, slope, given, weight, *by_input), x.device)
    return forward / len(x), backward / len(x)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of ten calls."""
    return min(alternate({"work": work}, 1, device)["work"] for _ in range(10))


@dataclass
class Side:
    """One library's attack on the batch; after a call, its passes, and which images the float32 model still classifies rightly."""

    model: Counted
    x: Tensor
    y: Tensor
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor]
    passes: Counter[str] = field(default_factory=Counter)
    standing: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self) -> None:
        torch.manual_seed(0)
        Counted.seen.clear()
        x_adv = self.attack(self.model, self.x, self.y)
        self.passes = Counter(Counted.seen)
        with torch.no_grad():
            self.standing = self.model(x_adv).argmax(1) == self.y


def claims(rows: list[dict[str, object]]) -> dict[str, bool]:
    """What is asked of the whole cascade against the reference, where that is installed; of bf16 where it was timed."""
    if MISSING:
        return {}
    whole = rows[-1]
    faster = {label: float(str(whole[key])[:-1]) for label, key in KEYS.items() if key in whole}
    counts = next(str(found) for key, found in whole.items() if key.startswith("other verdicts"))
    said = ", ".join(f"{label} {n}" for label, n in zip(faster, counts.split(", "), strict=True))
    asked = {
        "fp32": (1.5, "fp32 is at least 1.5x as fast"),
        "bf16": (3, "bf16 search with fp32 verdicts is at least 3x as fast"),
    }
    found = {f"{asked[label][1]} ({ratio:.2f}x)": ratio >= asked[label][0] for label, ratio in faster.items()}
    verdicts = f"verdicts of the cascade differ on at most one image ({said})"
    return found | {verdicts: max(map(int, counts.split(", "))) <= 1}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--targets", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--training", type=int, default=80, help="steps of the model's training")
    parser.add_argument("--weights", type=Path, default=Path("runs/autoattack_speed.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="pyautoattack")
    device, small = torch.device(options.device), options.dataset == "digits"
    dataset = large_digits() if small else load_dataset(options.dataset, root=options.data_root)
    model = victim(dataset, device, options)
    batch = next(iter(dataset.test.sample(options.images).to(device).batches(options.images)))
    rows = measure(model, batch.x, batch.y, dataset.threat, options)
    schedule = f"{options.steps} steps, {options.targets} targets, {options.queries} queries"
    title = f"AutoAttack, PGD-AT ResNet-18, {options.images} images of {dataset.name}, {dataset.threat}: {schedule}"
    command = "python benchmarks/autoattack_speed.py " + " ".join(sys.argv[1:])
    lacks = "" if KEYS["bf16"] in rows[0] else "bf16 is not timed: searches are no faster in it on this device.\n"
    parts = [markdown(rows), *left_out(MISSING), *([lacks] if lacks else [])]
    return write_report("autoattack_speed.md", title, command.strip(), device, parts, claims(rows))


if __name__ == "__main__":
    sys.exit(main())
