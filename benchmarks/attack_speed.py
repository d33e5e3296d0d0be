"""PGD-10 on ResNet-18 (batch 128, 32x32) against torchattacks, foolbox and ART: time, memory and strength in one run.

    python benchmarks/attack_speed.py                 # about 20 minutes on two idle CPU cores; writes attack_speed.md
    python benchmarks/attack_speed.py --device cuda   # under a minute; writes attack_speed_cuda.md

Needs the extra `test`, and `reference` for the peers: those that are not installed are left out. Strength is compared on a PGD-AT
model of the digits preset (trained in runs/ if it is not there): each library attacks the same 500 test images from its own random
starts with 5 seeds.
"""

import argparse
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable

import torch
from side_by_side import (
    absent,
    alternate,
    cifar_model,
    left_out,
    markdown,
    passes_per_image,
    timed_options,
    write_report,
)
from torch import Tensor, nn

from robustlib.attacks import PGD, Threat
from robustlib.data import load_dataset
from robustlib.methods import make_method
from robustlib.training import fit

EPS, STEPS = 8 / 255, 10
TARGETS = {"fp32": {"torchattacks": 1.3, "foolbox": 1.8, "ART": 2.5}, "bf16": {"torchattacks": 4.0}}
Attack = Callable[[Tensor, Tensor], Tensor]


def torchattacks_pgd(model: nn.Module, eps: float, seed: int = 0) -> Attack:
    import torchattacks

    torch.manual_seed(seed)
    return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=STEPS, random_start=True)


def foolbox_pgd(model: nn.Module, eps: float, seed: int = 0) -> Attack:
    import foolbox

    torch.manual_seed(seed)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=STEPS, random_start=True)
    return lambda x, y: attack(wrapped, x, y, epsilons=eps)[1]


def art_pgd(model: nn.Module, eps: float, seed: int = 0) -> Attack:
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(seed)
    device = next(model.parameters()).device
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        model.image_shape,
        10,
        clip_values=(0, 1),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        estimator, eps=eps, eps_step=eps / 4, max_iter=STEPS, num_random_init=1, batch_size=128, verbose=False
    )
    return lambda x, y: torch.from_numpy(
        attack.generate(x.cpu().numpy(), nn.functional.one_hot(y, 10).cpu().numpy())
    ).to(device)


def ours(precision: str) -> Callable[..., Attack]:
    def build(model: nn.Module, eps: float, seed: int = 0) -> Attack:
        attack = PGD(Threat("linf", eps), steps=STEPS, precision=precision)
        generator = torch.Generator().manual_seed(seed)
        return lambda x, y: attack(model, x, y, generator=generator)

    return build


PEERS = {"torchattacks": torchattacks_pgd, "foolbox": foolbox_pgd, "ART": art_pgd}
MISSING = [name for name in PEERS if absent([name.lower()])]
FOUND = [name for name in PEERS if name not in MISSING]
LIBRARIES = {"robustlib fp32": ours("32-true"), "robustlib bf16": ours("bf16-mixed")} | {n: PEERS[n] for n in FOUND}


def inputs(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator)
    return x.to(device), torch.randint(0, 10, (batch,), generator=generator).to(device)


def memory(name: str, batch: int, device_name: str, out: "multiprocessing.Queue[float]") -> None:
    """MiB that one call adds to the peak of a process that has already imported, built the model and classified the batch."""
    device = torch.device(device_name)
    model, (x, y) = cifar_model("resnet18", device), inputs(batch, device)
    attack = LIBRARIES[name](model, EPS)
    attack(x[:2], y[:2])
    with torch.no_grad():
        model(x[:2])
    before = peak(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
    attack(x, y)
    out.put(peak(device) - before)


def peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(batch: int, device: torch.device) -> dict[str, float]:
    context, found = multiprocessing.get_context("spawn"), {}
    for name in LIBRARIES:
        out = context.Queue()
        child = context.Process(target=memory, args=(name, batch, str(device), out))
        child.start()
        found[name] = out.get(timeout=1800)  # else a child that died would be waited for
        child.join()
    return found


def strength(device: torch.device) -> tuple[dict[str, list[float]], float]:
    """Robust accuracy in percent of a PGD-AT digits model, a number for each of 5 attack seeds; and what all of them together leave."""
    digits = load_dataset("digits")
    run = fit(make_method("pgd_at", "digits"), digits, device="cpu", threads=1)
    model, split = run.model().to(device), digits.test.to(device)
    x, y = split.images.float() / 255, split.labels
    found, best = {}, torch.ones_like(y, dtype=torch.bool)
    for name, build in LIBRARIES.items():
        accuracies = []
        for seed in range(5):
            x_adv = build(model, digits.threat.eps, seed)(x, y)
            with torch.no_grad():
                right = model(x_adv).argmax(1) == y
            accuracies.append(float(right.float().mean() * 100))
            best &= right
        found[name] = accuracies
    return found, float(best.float().mean() * 100)


def claims(seconds: dict[str, float], used: dict[str, float], mean: dict[str, float]) -> dict[str, bool]:
    """What is promised against the peers that are installed, with what was measured: a sentence -> whether it holds."""
    said: dict[str, bool] = {}
    for precision, peers in TARGETS.items():
        for peer in [name for name in peers if name in FOUND]:
            ratio = seconds[peer] / seconds[f"robustlib {precision}"]
            said[f"{precision} is at least {peers[peer]}x as fast as {peer} ({ratio:.2f}x)"] = ratio >= peers[peer]
    for name in ("robustlib fp32", "robustlib bf16") if FOUND else ():
        least = min(used[peer] for peer in FOUND)
        lean = f"{name} adds no more memory than the leanest peer ({used[name]:.0f} against {least:.0f} MiB)"
        gap = max(abs(mean[name] - mean[peer]) for peer in FOUND)
        alike = f"{name} is within 1 point of every peer's robust accuracy (at most {gap:.2f} away)"
        said |= {lean: used[name] <= least * 1.02, alike: gap <= 1}
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = timed_options(parser, batch=128)
    warnings.simplefilter("ignore")  # the peers' own
    device = options.device
    robust, best = strength(device)
    used = measure_memory(options.batch, device)
    model, (x, y) = cifar_model("resnet18", device), inputs(options.batch, device)
    attacks = {name: build(model, EPS) for name, build in LIBRARIES.items()}
    seconds = alternate({name: lambda a=a: a(x, y) for name, a in attacks.items()}, options.rounds, device)
    few = min(16, options.batch)
    passes = {
        name: passes_per_image(lambda counted, build=build: build(counted, EPS)(x[:few], y[:few]), model, few)
        for name, build in LIBRARIES.items()
    }

    mean = {name: sum(values) / 5 for name, values in robust.items()}
    rows = [
        {
            "library": name,
            "CPU-seconds (on a GPU seconds)": f"{seconds[name]:.2f}",
            "passes per image (forward + backward)": f"{passes[name]:.0f}",
            "fp32 is faster by": f"{seconds[name] / seconds['robustlib fp32']:.2f}x",
            "bf16 is faster by": f"{seconds[name] / seconds['robustlib bf16']:.2f}x",
            "added peak memory (MiB)": f"{used[name]:.0f}",
            "robust accuracy, 5 seeds (%)": f"{mean[name]:.2f} ({min(robust[name]):.1f} to {max(robust[name]):.1f})",
            "above the best known (points)": f"{mean[name] - best:.2f}",
        }
        for name in LIBRARIES
    ]
    command = f"python benchmarks/attack_speed.py --device {options.device} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"PGD-{STEPS}, ResNet-18, batch {options.batch}, 32x32, eps 8/255: median of {options.rounds} interleaved rounds"
    parts = [markdown(rows), *left_out(MISSING)]
    return write_report("attack_speed.md", title, command, device, parts, claims(seconds, used, mean))


if __name__ == "__main__":
    sys.exit(main())
