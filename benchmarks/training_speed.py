"""A PGD-AT step of ResNet-18 (PGD-10, batch 128, 32x32) against what it would cost without any of our work.

    python benchmarks/training_speed.py                 # about 15 minutes on two idle CPU cores; writes training_speed.md
    python benchmarks/training_speed.py --device cuda   # seconds; writes training_speed_cuda.md

Two references at each precision: "bare" is 11 forward-backward passes of the bare model in the same memory format, the usual
estimate of an adversarial step; "plain fp32 loop" is the step as the papers' code writes it (torch.autograd.grad on a model whose
weights require gradients, NCHW, float32).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import CIFAR, alternate, cifar_model, markdown, publish
from torch import Tensor, nn

from robustlib.data import Dataset, Split
from robustlib.methods import make_method
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training.loop import Training
from robustlib.training.stage import At

STEPS, EPS = 10, 8 / 255


def made_up_dataset(n: int) -> Dataset:
    """Random images of CIFAR-10's shape: speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(n) % 10, torch.arange(n))
    names = tuple(map(str, range(10)))
    return Dataset("made-up", split, split, split, names, CIFAR.mean, CIFAR.std, Threat("linf", EPS))


def our_step(precision: str, batch_size: int, device: torch.device) -> Callable[[], object]:
    """One step of the real loop on the real method."""
    dataset = made_up_dataset(batch_size)
    method = make_method("pgd_at", batch_size=batch_size, attack_steps=STEPS)
    run = Run(Path(tempfile.mkdtemp()))
    training = Training(run, method, dataset, cifar_model("resnet18", device), 0, device, precision, None, False, False)
    training.stage = method.stages(dataset, training.model)[0]
    training.optimisers = {name: spec.build() for name, spec in training.stage.optimisers.items()}
    training.ema, part = None, training.stage.passes[0]
    batch = next(training.train.batches(batch_size))
    generator = torch.Generator(device).manual_seed(0)
    training.model.train()
    return lambda: training._step(part, batch, At(0, 0, 0.0, generator, precision))


def bare_passes(precision: str, x: Tensor, y: Tensor) -> Callable[[], object]:
    """STEPS + 1 forward-backward passes in train mode, weight gradients included."""
    model = cifar_model("resnet18", x.device).to(memory_format=torch.channels_last).train()

    def work() -> None:
        for _ in range(STEPS + 1):
            model.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()

    return work


def plain_loop(x: Tensor, y: Tensor) -> Callable[[], object]:
    """The published form of an adversarial step, float32."""
    model: nn.Module = cifar_model("resnet18", x.device)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def work() -> None:
        model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv = x_adv.detach().requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)[0]
            x_adv = x_adv.detach() + EPS / 4 * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
        model.train()
        optimiser.zero_grad()
        F.cross_entropy(model(x_adv.detach()), y).backward()
        optimiser.step()

    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    data = made_up_dataset(options.batch).train.to(device)
    x, y = data.images.float() / 255, data.labels
    competitors: dict[str, Callable[[], object]] = {"plain fp32 loop": plain_loop(x, y)}
    for label, precision in (("fp32", "32-true"), ("bf16", "bf16-mixed")):
        competitors[f"bare {label}"] = bare_passes(precision, x, y)
        competitors[f"robustlib {label}"] = our_step(precision, options.batch, device)
    seconds = alternate(competitors, options.rounds, device)
    plain = seconds["plain fp32 loop"]
    ratios = {label: seconds[f"robustlib {label}"] / seconds[f"bare {label}"] for label in ("fp32", "bf16")}
    rows = [
        {"step": name, "seconds": f"{value:.3f}", "faster than the plain fp32 loop": f"{plain / value:.2f}x"}
        for name, value in seconds.items()
    ]
    claims = {
        f"{label}: a step costs at most 0.7 of {STEPS + 1} bare forward-backward passes ({ratio:.2f})": ratio <= 0.7
        for label, ratio in ratios.items()
    }
    gain = plain / seconds["robustlib bf16"]
    claims[f"bf16 is at least 3x as fast as the plain fp32 loop ({gain:.2f}x)"] = gain >= 3
    suffix = "" if device.type == "cpu" else f"_{device.type}"
    command = f"python benchmarks/training_speed.py --device {options.device} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"A PGD-AT step: PGD-{STEPS}, ResNet-18, batch {options.batch}, 32x32; median of {options.rounds} interleaved rounds"
    return publish(f"training_speed{suffix}.md", title, command, device, [markdown(rows)], claims)


if __name__ == "__main__":
    sys.exit(main())
