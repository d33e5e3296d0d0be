"""What AToP costs: a fine-tuning step at 32 and at 256 pixels, gradients averaged over draws, and the memory that these need.

    python benchmarks/purifier_speed.py                 # minutes on two idle CPU cores; writes purifier_speed.md
    python benchmarks/purifier_speed.py --device cuda   # writes purifier_speed_cuda.md
    python benchmarks/purifier_speed.py --batch 2 --rounds 1 --eot-batch 2 --trial    # a quick look, writes nothing

A step is the method's own as released: FGSM on ResNet-18, RT2, discriminator and purifier, optimisers included, in float32. The
released code enlarges images of 32 pixels to 256; its generator (DeepFillv2) has 24 maps at full resolution, as ours by default,
an attention branch that ours has not, and 4 052 478 parameters. An EOT gradient is the mean over 20 draws of the deployed model
(purifier and classifier), a plain one is of a single draw. Memory is that of a first call in a fresh process.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from side_by_side import alternate, markdown, timed_options, write_report
from torch import nn
from training_steps import made_up_dataset, peak_mb

from robustlib.attacks.base import AttackBatch, attack_context
from robustlib.data import load_dataset
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.training import StepContext

DRAWS = 20
GAIN, COST, SHARE = (
    10,
    1.1,
    0.5,
)  # at least, of the speed at 256 pixels; at most, of 20 plain gradients' time, of the memory unsplit
SIDES = {"native": 32, "enlarged": 256}
MODELS = {"digits": "small_cnn", "32 pixels": "resnet18"}  # whose EOT gradients are timed
MANY = 8  # times as many images of digits, which are small


def tuning(side: int, batch_size: int, device: torch.device) -> tuple[nn.Module, Callable[[], object]]:
    """A deployed model, and a step of its fine-tuning that counts the classifier's loss."""
    dataset, method = made_up_dataset(batch_size, side), make_method("atop", width=None, warm_up=0)
    torch.manual_seed(0)
    model = build_model("resnet18", dataset, **method.model_options()).to(device)
    stage = method.stages(dataset, model)[-1]
    for module in stage.modules.values():
        module.to(device)
    optimisers = {name: optim.build() for name, optim in stage.optimisers.items()}
    model.deploy()
    batch, context = (
        next(dataset.train.to(device).batches(batch_size)),
        StepContext(0, 0, 0.0, torch.Generator(device), "32-true"),
    )

    def work() -> None:
        model.train()
        for name, loss in stage.passes[0].updates(batch, context):
            for optimiser in optimisers.values():
                optimiser.zero_grad()
            loss.total.backward()
            optimisers[name].step()

    return model, work


def step(side: int, batch_size: int, device: torch.device) -> Callable[[], object]:
    """The step alone, for a process of its own."""
    return tuning(side, batch_size, device)[1]


def gradients(
    name: str, batch_size: int, device: torch.device, draws: int, times: int = 1, whole: bool = False, free: float = 0.0
) -> Callable[[], object]:
    """`times` gradients, each the mean over `draws` draws; `whole` in one batch, where only `free` MiB are left (0: no limit)."""
    dataset = load_dataset("digits") if name == "digits" else made_up_dataset(batch_size)
    method = make_method("atop", "digits" if name == "digits" else "cifar10-short")
    torch.manual_seed(0)
    model = build_model(MODELS[name], dataset, **method.model_options()).to(device)
    model.deploy()
    batch = next(dataset.train.to(device).batches(batch_size, augment="none"))
    goal = AttackBatch(batch.x, batch.y).objective("margin")

    def work() -> None:
        with attack_context(model, batch.x, (batch.y,)) as oracle:
            if whole:
                oracle.size = sys.maxsize
            if free:
                leave(free, device)
            for _ in range(times):
                oracle.gradient(batch.x, goal, draws)

    return work


def leave(free: float, device: torch.device) -> None:
    """So many MiB of a GPU and no more for the rest of this process."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + free * 2**20) / total, device)


def steps(options: argparse.Namespace) -> tuple[str, dict[str, bool]]:
    """The step at both sizes: the table and its claim."""
    device, batch = options.device, options.batch
    made = {name: tuning(side, batch, device) for name, side in SIDES.items()}
    seconds = alternate({name: work for name, (_, work) in made.items()}, options.rounds, device)
    rows = []
    for name, (model, _) in made.items():
        peak = peak_mb(step, SIDES[name], batch, device, device=device, threads=options.threads)
        size = sum(p.numel() for p in model.purifier.parameters())  # type: ignore[union-attr]
        rate = batch / seconds[name]
        row = {"generator": name, "pixels": SIDES[name], "its parameters": f"{size:,}".replace(",", " ")}
        rows.append(
            row | {"seconds a step": f"{seconds[name]:.3f}", "images a second": f"{rate:.2f}", "MiB": f"{peak:.0f}"}
        )
    gain = seconds["enlarged"] / seconds["native"]
    return markdown(rows), {f"at its native size a step is at least {GAIN}x as fast ({gain:.1f}x)": gain >= GAIN}


def averages(options: argparse.Namespace) -> tuple[str, dict[str, bool]]:
    """An EOT gradient against as many plain ones: the table and its claims."""
    rows, claims = [], {}
    for name in MODELS:
        n = options.eot_batch * (MANY if name == "digits" else 1)
        work = {"plain": gradients(name, n, options.device, 1, DRAWS), "eot": gradients(name, n, options.device, DRAWS)}
        seconds = alternate(work, options.rounds, options.device)
        cost = seconds["eot"] / seconds["plain"]
        row = {
            "model": f"{MODELS[name]}, {name}",
            "images": n,
            f"{DRAWS} plain gradients, seconds": f"{seconds['plain']:.3f}",
        }
        rows.append(row | {f"one of {DRAWS} draws": f"{seconds['eot']:.3f}", "share": f"{cost:.2f}"})
        claims[f"{name}: EOT over {DRAWS} draws costs at most {COST}x as much as {DRAWS} gradients ({cost:.2f}x)"] = (
            cost <= COST
        )
    return markdown(rows), claims


def memory(options: argparse.Namespace) -> tuple[str, dict[str, bool]]:
    """Peaks at 32 pixels: the table and its claim. On a GPU, which takes all that fits, also where only half of that is left; on
    a CPU whose memory is limited most libraries end the process before PyTorch can tell."""
    name, device = "32 pixels", options.device

    def peak(draws: int, whole: bool = False, free: float = 0.0) -> float:
        arguments = (gradients, name, options.eot_batch, device, draws, 1, whole, free)
        return peak_mb(*arguments, device=device, threads=options.threads)

    plain, split, whole = peak(1), peak(DRAWS), peak(DRAWS, True)
    rows = {"one draw": plain, f"{DRAWS} draws, split by the cache's rule": split, f"{DRAWS} draws, one batch": whole}
    if device.type == "cpu":
        share = split / whole
        claims = {f"split, {DRAWS} draws need at most {SHARE} of the memory of one batch ({share:.2f})": share <= SHARE}
    else:
        cramped = rows[f"the same with {whole / 2:.0f} MiB left"] = peak(DRAWS, True, whole / 2)
        said = f"where memory runs out it goes on with fewer draws at a time ({cramped:.0f} of {whole:.0f} MiB)"
        claims = {said: cramped < whole}
    shown = [
        {"gradient": row, "MiB": f"{mib:.0f}", "of one draw's": f"{mib / plain:.1f}x"} for row, mib in rows.items()
    ]
    return markdown(shown), claims


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--eot-batch", type=int, default=16, help=f"images of an EOT gradient; {MANY} times as many of digits"
    )
    parser.add_argument("--trial", action="store_true", help="write nothing")
    options = timed_options(parser, batch=8)
    tables, claims = [], {}
    for part in (steps, averages, memory):
        table, held = part(options)
        tables.append(table)
        claims |= held
    if options.trial:
        print(*tables, *(f"{ok}: {claim}" for claim, ok in claims.items()), sep="\n")
        return 0
    command = f"python benchmarks/purifier_speed.py --device {options.device} --batch {options.batch} --eot-batch {options.eot_batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"AToP: fine-tuning steps of {options.batch} images, gradients over {DRAWS} draws, their memory; median of {options.rounds} interleaved rounds"
    return write_report("purifier_speed.md", title, command, options.device, tables, claims)


if __name__ == "__main__":
    sys.exit(main())
