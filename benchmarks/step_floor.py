"""Steps that cost more than 0.7 of their counted passes, or more memory than PGD-AT's: what they are made of, each part by itself.

    python benchmarks/step_floor.py --batch 16 --rounds 2 --threads 1     # five minutes of CPU time; writes step_floor.md

training_speed.py counts a step in passes of the bare model. An attack on the folded copy costs about 0.6 of such a pass, a pass that
trains costs a whole one: a step of few attack passes cannot come below 0.7. Its floor is the sum of its passes, each as cheap as it can be made,
on as many images as go through BatchNorm together. Times are CPU-seconds, which hold on a busy machine.

Memory is that of all tensors at a step's fullest moment, counted, not weighed. Beside what a step of PGD-AT holds, a method needs the
activations of as many views more as one loss joins, since none can be let go before the last is there, and, where its loss is
differentiated in parts, the weights' gradients of the parts before.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from side_by_side import alternate, cifar_model, markdown, timed_options, write_report
from torch import Tensor, nn
from training_speed import COUNTS
from training_steps import allocated_mb, made_up_dataset, our_step

from robustlib.attacks.base import PIECE
from robustlib.attacks.fold_batchnorm import fold_batchnorm

OVER = 1.15  # of the floor, at most: optimiser, losses, projections onto the ball, Python
MORE = 1.05  # of what views and gradients take, at most: projection and loss
# method: its parts as (what, views in one batch, how often)
PARTS: dict[str, list[tuple[str, int, int]]] = {
    "pgd_at": [("attack", 1, 10), ("train", 1, 1)],
    "trades": [("attack", 1, 10), ("folded forward", 1, 1), ("train", 1, 2), ("forward", 1, 1)],
    "fgsm_rs": [("attack in train mode", 1, 1), ("train", 1, 1)],
    "n_fgsm": [("attack in train mode", 1, 1), ("train", 1, 1)],
    "supcon": [("view", 1, 2), ("train", 2, 1)],
    "simclr": [("view", 1, 2), ("train", 2, 1)],
    "rocl": [("view", 1, 2), ("attack", 1, 10), ("folded forward", 1, 1), ("train", 2, 1), ("train", 3, 1)],
    "acl": [("view", 1, 2), ("attack", 2, 10), ("train", 2, 2)],
}
# method: the views whose activations one loss needs, whether gradients of another part are there before, and why
HELD: dict[str, tuple[int, bool, str]] = {
    "pgd_at": (1, False, "x'"),
    "trades": (1, True, "x' and then x, forwarded again once x' is done with"),
    "mart": (2, False, "x and x', whose logits the loss multiplies"),
    "supcon": (2, False, "both views, whose similarities the loss joins"),
    "rocl": (3, True, "x1, x2 and x' in one batch, after the pair x', x2"),
    "acl": (2, True, "both attacked views, after both clean ones"),
    "claf": (3, False, "x1, x2 and x' in one batch"),
    "ancra": (3, False, "x, x' and x_o in one batch"),
}


def part(what: str, views: int, batch: int) -> Callable[[], object]:
    """One part on `views` batches at once, by itself."""
    data = made_up_dataset(batch).train
    if what == "view":
        return lambda: next(data.batches(batch)).view("simclr")
    x = torch.cat([next(data.batches(batch)).x] * views).contiguous(memory_format=torch.channels_last)
    model = cifar_model("resnet18", torch.device("cpu")).to(memory_format=torch.channels_last)
    if what in ("attack", "folded forward"):
        folded = fold_batchnorm(model, x, "32-true")
        assert folded is not None
        pieces = x.split(PIECE // x[0].numel())
        return lambda: [_forward(folded, piece) if "forward" in what else _by_images(folded, piece) for piece in pieces]
    model.train().requires_grad_(what != "attack in train mode")
    return partial({"train": _by_weights, "forward": _forward}.get(what, _by_images), model, x)


def _by_images(model: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_(True)
    torch.autograd.grad(model(x).logsumexp(1).sum(), x)


def _by_weights(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    model(x).logsumexp(1).mean().backward()


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor) -> None:
    model(x)


def memory(batch: int, device: torch.device) -> tuple[list[Mapping[str, object]], dict[str, bool]]:
    """A row a method of HELD, and that its step holds no more than it must."""
    rows, claims = list[Mapping[str, object]](), dict[str, bool]()
    view = allocated_mb(part("train", 2, batch)) - allocated_mb(part("train", 1, batch))
    gradients = sum(p.nbytes for p in cifar_model("resnet18", device).parameters()) / 2**20
    peak = {name: allocated_mb(our_step(name, "fp32", batch, device)) for name in HELD}
    for name, (views, before, which) in HELD.items():
        floor = peak["pgd_at"] + (views - 1) * view + before * gradients
        more = {"gradients before": "yes" if before else "no", "views and gradients, MiB": f"{floor:.0f}"}
        ratios = {"step / these": f"{peak[name] / floor:.2f}", "of PGD-AT's": f"{peak[name] / peak['pgd_at']:.2f}"}
        own = {"method": name, "views at once": views, "which": which}
        rows.append({**own, **more, "step, MiB": f"{peak[name]:.0f}", **ratios})
        said = f"{name}: a step holds at most {MORE} of what its views and gradients take ({peak[name] / floor:.2f})"
        claims |= {said: peak[name] <= MORE * floor} if name != "pgd_at" else {}  # the measure of the others
    return rows, claims


def main() -> int:
    """The command."""
    options = timed_options(argparse.ArgumentParser(description=__doc__.splitlines()[0]), batch=32)
    device, batch = options.device, options.batch
    needed = sorted({(what, views) for parts in PARTS.values() for what, views, _ in parts})
    competitors = {f"{what} {views}": part(what, views, batch) for what, views in needed}
    competitors |= {name: our_step(name, "fp32", batch, device) for name in PARTS}
    seconds = alternate(competitors, options.rounds, device, clock=time.process_time)
    rows: list[Mapping[str, object]] = []
    claims: dict[str, bool] = {}
    for name, parts in PARTS.items():
        floor = sum(seconds[f"{what} {views}"] * times for what, views, times in parts)
        made = ", ".join(f"{times} x {what} on {views}" for what, views, times in parts)
        over, share = seconds[name] / floor, seconds[name] / (COUNTS[name][0] * seconds["train 1"])
        rows.append(
            {
                **{"method": name, "parts (views in one batch)": made, "parts, CPU-seconds": f"{floor:.2f}"},
                **{"step, CPU-seconds": f"{seconds[name]:.2f}", "step / parts": f"{over:.2f}"},
                **{"parts, share of the count": f"{share / over:.2f}", "step, share of the count": f"{share:.2f}"},
            }
        )
        claims[f"{name}: a step costs at most {OVER} of its parts timed alone ({over:.2f})"] = over <= OVER
    units = [f"{name}: {value:.3f}" for name, value in seconds.items() if name not in PARTS]
    words = f"CPU-seconds of the parts on so many views: {'; '.join(units)}.\n"
    held, kept = memory(batch, device)
    command = f"python benchmarks/step_floor.py --batch {batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"Training steps and the parts that they are made of: ResNet-18, batch {batch}, 32x32, float32, ten attack steps"
    return write_report("step_floor.md", title, command, device, [markdown(rows), words, markdown(held)], claims | kept)


if __name__ == "__main__":
    sys.exit(main())
