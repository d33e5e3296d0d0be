"""What rep-spectral's penalty costs on ResNet-18 (32x32): power iteration against a training step, the exact norm against a restatement.

    python benchmarks/spectral_speed.py                 # minutes on two idle CPU cores; writes spectral_speed.md
    python benchmarks/spectral_speed.py --device cuda   # seconds; writes spectral_speed_cuda.md
    python benchmarks/spectral_speed.py --arch small_cnn --batch 8 --rounds 1    # a quick look

A penalty is the sum of sigma^2 over the layers of the representation, forward and backward. The training step is the real loop's
without a penalty. The restatement is what the release does: kernels padded to the image, poly-phase, full complex FFT, eigvalsh
of the smaller Gram matrix at every frequency, differentiated by autograd.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from side_by_side import alternate, cifar_model, markdown, timed_options, write_report
from torch import Tensor, nn
from training_steps import made_up_dataset

from robustlib.methods import make_method
from robustlib.methods.layer_norms import LayerNorms, input_sizes
from robustlib.training import StepContext

SHAPE = (3, 32, 32)
CADENCE = 24  # the paper's
COST, GAIN, AGREE = (
    0.05,
    1.4,
    1e-4,
)  # at most, of a step; at least, of the restatement's speed; at most, between the two


def restated(weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """sigma_max^2 of a circular convolution as the release has it."""
    outs, ins, rows, columns = weight.shape
    padded = nn.functional.pad(weight, (0, size[1] - columns, 0, size[0] - rows))
    phases = [padded[:, :, i::stride, j::stride] for i in range(stride) for j in range(stride)]
    p = torch.fft.fft2(torch.cat(phases, 1)).permute(2, 3, 0, 1)
    gram = p @ p.mH if outs <= ins * stride**2 else p.mH @ p
    return torch.linalg.eigvalsh(gram)[..., -1].max()


def restated_sum(model: nn.Module) -> Tensor:
    """Over the convolutions of the representation."""
    sizes = {name: size for name, size in input_sizes(model, SHAPE).items() if size}
    layers = [(model.get_submodule(name), size) for name, size in sizes.items()]
    return torch.stack([restated(layer.weight, size, layer.stride[0]) for layer, size in layers]).sum()


def ours(model: nn.Module, operator: str) -> Callable[[], Tensor]:
    """The library's sum of sigma^2, converged where it iterates."""
    norms = LayerNorms(model, SHAPE, ("encoder.",), operator=operator).to(next(model.parameters()).device)
    norms.converge(model, limit=20)  # that it may be far from converged does not change what a use costs
    return lambda: torch.stack(list(norms(model).values())).sum()


def training_step(model: nn.Module, batch_size: int, device: torch.device) -> Callable[[], object]:
    """A step of the method without its penalty, optimiser included."""
    dataset = made_up_dataset(batch_size)
    stage = make_method("rep_spectral", "cifar10-paper", strength=0.0).stages(dataset, model)[-1]
    optimiser, batch = stage.optimisers["model"].build(), next(dataset.train.to(device).batches(batch_size))
    context = StepContext(0, 0, 0.0, torch.Generator(device), "32-true")

    def work() -> None:
        model.train()
        for _, loss in stage.passes[0].updates(batch, context):
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()

    return work


def differentiated(value: Callable[[], Tensor], model: nn.Module) -> Callable[[], object]:
    """Forward and backward."""

    def work() -> None:
        model.zero_grad()
        value().backward()

    return work


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    options = timed_options(parser, batch=128)
    device = options.device
    model = cifar_model(options.arch, device, padding_mode="circular")
    values = {"power iteration": ours(model, "power"), "exact": ours(model, "exact")}
    values["restatement"] = lambda: restated_sum(model)
    apart = abs(float(values["exact"]().detach() / values["restatement"]().detach()) - 1)
    work = {name: differentiated(value, model) for name, value in values.items()}
    seconds = alternate({"step": training_step(model, options.batch, device), **work}, options.rounds, device)
    rows = [
        {"": name, "seconds": f"{t:.3f}", f"of a step, every {CADENCE} steps": f"{t / CADENCE / seconds['step']:.1%}"}
        for name, t in seconds.items()
    ]
    rows[0][f"of a step, every {CADENCE} steps"] = "–"
    cost = seconds["power iteration"] / CADENCE / seconds["step"]
    gain = seconds["restatement"] / seconds["exact"]
    claims = {
        f"power iteration costs at most {COST:.0%} of a training step at a cadence of {CADENCE} ({cost:.1%})": cost
        <= COST,
        f"the exact norm is at least {GAIN}x as fast as the restatement ({gain:.2f}x)": gain >= GAIN,
        f"and within {AGREE:g} of it ({apart:.1e})": apart <= AGREE,
    }
    command = f"python benchmarks/spectral_speed.py --arch {options.arch} --device {options.device} --batch {options.batch} --rounds {options.rounds} --threads {options.threads}"
    title = f"Rep-spectral's penalty: {options.arch}, 32x32, batch {options.batch}; median of {options.rounds} interleaved rounds"
    return write_report("spectral_speed.md", title, command, device, [markdown(rows)], claims)


if __name__ == "__main__":
    sys.exit(main())
