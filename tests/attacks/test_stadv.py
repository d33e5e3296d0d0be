"""StAdv: shifted images, torch's own sampling, double loops, flows with an analytic optimum."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.attacks import PGD, ExampleRNG, StAdv, Threat
from robustlib.attacks.stadv import move, total_variation
from robustlib.data import Split
from robustlib.evaluation import evaluate
from tests.conftest import Linear

SIDE, SLOPE = 12, 1 / 12  # of `ramp`, whose every pixel is SLOPE brighter than its left neighbour


def ramp(n: int = 1) -> torch.Tensor:
    return (torch.arange(SIDE) * SLOPE).expand(n, 1, SIDE, SIDE).clone()


@pytest.mark.parametrize("shape", [(7, 10), (160, 160)])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (0, 1), (-2, 3), (40, -40)])
def test_whole_pixels_shift_the_image_exactly(down, right, shape):
    x = torch.rand(2, 3, *shape)
    flow = torch.tensor([down, right]).float().view(1, 2, 1, 1).expand(2, 2, *shape)
    rows, columns = ((np.arange(n) + by).clip(0, n - 1) for n, by in zip(shape, (down, right), strict=True))
    assert torch.equal(move(x, flow), x[:, :, rows][:, :, :, columns])


def test_samples_as_torch_does_with_its_gradient():
    x, flow = torch.rand(3, 2, 9, 14), (4 * torch.randn(3, 2, 9, 14)).requires_grad_()
    place = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(14.0), indexing="ij")) + flow
    grid = torch.stack([2 * place[:, 1] / 13 - 1, 2 * place[:, 0] / 8 - 1], -1)
    theirs = F.grid_sample(x, grid, padding_mode="border", align_corners=True)
    assert torch.allclose(move(x, flow), theirs, atol=2e-6)
    slopes = [torch.autograd.grad(moved.square().sum(), flow)[0] for moved in (move(x, flow), theirs)]
    assert torch.allclose(*slopes, atol=1e-5)


def test_total_variation_equals_its_formula():
    flow = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    wanted = [
        sum(
            float((one[:, i, j] - one[:, k, m]).norm())
            for i, j in itertools.product(range(4), range(5))
            for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            if 0 <= k < 4 and 0 <= m < 5
        )
        for one in flow
    ]
    assert total_variation(flow).tolist() == pytest.approx(wanted)
    shift = torch.full((1, 2, 4, 4), 3.0, requires_grad=True)
    assert torch.equal(torch.autograd.grad(total_variation(shift).sum(), shift)[0], torch.zeros(1, 2, 4, 4))


def flow_of(attack: StAdv, model: nn.Module) -> torch.Tensor:
    """How far to the right each pixel was read, as the ramp shows it, in columns that cannot reach the border."""
    x_adv = attack(model, ramp(), torch.zeros(1, dtype=torch.int64))
    return ((x_adv - ramp()) / SLOPE)[0, 0, :, 3:-3]


@pytest.mark.parametrize("objective", ["margin", "ce", "nll"])
def test_the_optimum_on_a_ramp_is_the_bound_everywhere(objective):
    model = Linear(shape=(1, SIDE, SIDE))
    with torch.no_grad():
        model.map.bias.copy_(torch.tensor([20.0, 0.0]))  # out of reach, or the example would leave
    w = (model.map.weight[1] - model.map.weight[0]).view(SIDE, SIDE)[:, 3:-3]
    if objective == "nll":
        w = -model.map.weight[0].view(SIDE, SIDE)[:, 3:-3]
    flow = flow_of(StAdv(0.8, 60, weight=0.0, objective=objective), model)
    assert torch.allclose(flow, 0.8 * w.detach().sign(), atol=1e-4)


def test_what_holds_a_flow_back():
    model = Linear(shape=(1, SIDE, SIDE))
    with torch.no_grad():
        model.map.bias.copy_(torch.tensor([1e3, 0.0]))
    flows = {weight: flow_of(StAdv(None, 60, 0.1, weight), model) for weight in (0.0, 1e-3, 1.0)}
    free, held, stiff = (flow.abs().max() for flow in flows.values())
    assert free > 2  # beyond any bound that was tested above
    assert stiff < 0.1 < held
    rough = [float(flow.diff(dim=0).abs().sum() + flow.diff(dim=1).abs().sum()) for flow in flows.values()]
    assert rough[0] > 1.5 * rough[1] > 1.5 * rough[2]


def test_a_success_stays_where_it_is_and_more_steps_lose_none(conv_net):
    x = torch.rand(40, 3, 8, 8)
    y, rng = conv_net(x).argmax(1), ExampleRNG.for_examples(0, torch.arange(40))
    x_advs = [StAdv(0.2, steps)(conv_net, x, y, rng=rng) for steps in (2, 3, 12)]
    early, late, latest = (conv_net(x_adv).argmax(1) != y for x_adv in x_advs)
    assert 0 < late.sum() < latest.sum()
    assert torch.equal(x_advs[0][early], x_advs[1][early])


def test_records_give_the_bound_and_know_no_ball(conv_net):
    x = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    split = Split(x, conv_net(x / 255).argmax(1), torch.arange(20))
    attacks = {"stadv": StAdv(0.8, 20), "free": StAdv(None, 20), "pgd": PGD(Threat("linf", 0.1), 2)}
    records = evaluate(conv_net, split, attacks)
    assert records.groupby("attack")["eps"].first().to_dict() == {"clean": 0, "stadv": 0.8, "free": 0, "pgd": 0.1}
    assert records["valid"].all()
    wrong = records["prediction"] != records["label"]
    assert wrong.groupby(records["attack"]).any()[["free", "stadv"]].all()


@pytest.mark.parametrize(
    ("bound", "lr", "weight"),
    [(0.05 * 16, 0.01 * 16, 0.0025 / 0.05 / 16), (0.2, 0.04, 0.0125), (None, 0.16, 0.05)],  # 16: a unit in DiffPure
)
def test_what_is_left_out_follows_the_bound(bound, lr, weight, conv_net):
    x, rng = torch.rand(4, 3, 8, 8), ExampleRNG.for_examples(0, torch.arange(4))
    attacks = (StAdv(bound, 4), StAdv(bound, 4, lr, weight), StAdv(bound, 4, lr, 2 * weight))
    default, given, other = (attack(conv_net, x, conv_net(x).argmax(1), rng=rng) for attack in attacks)
    assert StAdv().bound == 0.8
    assert torch.allclose(default, given, atol=1e-6)
    assert not torch.allclose(default, other, atol=1e-6)
