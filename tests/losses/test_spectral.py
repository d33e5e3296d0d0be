"""Spectral norms of layers against the dense operator, and the cross-Lipschitz penalty against its double sum."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.errors import InputError
from robustlib.losses import PowerIteration, conv_squared_norm, cross_lipschitz, dense_squared_norm, exact_squared_norm
from tests.restated import class_jacobians, dense_operator, squared_norm

CLOSE = 1e-5  # relative, of sigma^2


def conv(ins, outs, k, stride=1, mode="circular"):
    return nn.Conv2d(ins, outs, k, stride=stride, padding=k // 2, padding_mode=mode)


CIRCULAR = [
    (3, 5, 1, 1, (6, 6)),
    (3, 5, 3, 1, (6, 6)),
    (5, 3, 3, 1, (5, 7)),
    (4, 6, 3, 2, (8, 8)),
    (2, 3, 7, 2, (8, 6)),
    (3, 7, 1, 2, (4, 8)),
    (2, 9, 3, 3, (9, 6)),
    (3, 3, 5, 1, (4, 4)),
    (4, 4, 3, 1, (1, 1)),
    (2, 2, 3, 1, (2, 2)),
]


@pytest.mark.parametrize(("ins", "outs", "k", "stride", "size"), CIRCULAR)
def test_exact_norm_of_circular_convolutions_is_that_of_the_dense_operator(ins, outs, k, stride, size):
    layer = conv(ins, outs, k, stride)
    found = exact_squared_norm(layer, size)
    assert abs(found.item() / squared_norm(dense_operator(layer, size)) - 1) < CLOSE


@pytest.mark.parametrize(("k", "pad"), [(4, 1), (2, 0)])
def test_even_kernels_that_fit_their_stride_are_circular(k, pad):
    layer = nn.Conv2d(3, 4, k, stride=2, padding=pad, padding_mode="circular")
    found = exact_squared_norm(layer, (8, 8))
    assert abs(found.item() / squared_norm(dense_operator(layer, (8, 8))) - 1) < CLOSE


def test_known_norms():
    identity = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        nn.init.dirac_(identity.weight)
    assert torch.isclose(exact_squared_norm(identity, (8, 8)), torch.tensor(1.0))
    mean = torch.full((1, 1, 3, 3), 1 / 9)  # sigma = 1 at frequency 0, where all pixels are equal
    assert torch.isclose(conv_squared_norm(mean, (8, 8)), torch.tensor(1.0))
    sobel = torch.tensor([[[[1.0, 0, -1]]]])  # |e^{if} - e^{-if}| = 2 |sin f|, 2 at a quarter turn
    assert torch.isclose(conv_squared_norm(sobel, (4, 8)), torch.tensor(4.0))


@pytest.mark.parametrize("shape", [(10, 64), (64, 10), (7, 7), (1, 5)])
def test_exact_norm_of_dense_layers(shape):
    layer = nn.Linear(shape[1], shape[0])
    found = exact_squared_norm(layer).item()
    assert abs(found / squared_norm(layer.weight.detach().double().numpy()) - 1) < CLOSE


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(("ins", "outs", "k", "stride", "size"), [*CIRCULAR[:7], (3, 4, 3, 2, (7, 7))])
def test_power_iteration_converges_to_the_dense_operator(ins, outs, k, stride, size, mode):
    layer = conv(ins, outs, k, stride, mode)
    power = PowerIteration(layer, size)
    power.converge(layer, tolerance=1e-5, limit=20_000)
    wanted = squared_norm(dense_operator(layer, size))
    assert abs(power(layer, 0).item() / wanted - 1) < CLOSE
    assert 0.98 * wanted < power(layer).item() <= wanted * (1 + 1e-6)  # noise costs little, and it is from below


def test_power_iteration_of_a_dense_layer():
    layer = nn.Linear(64, 10)
    power = PowerIteration(layer)
    told = power.converge(layer, tolerance=1e-5, limit=20_000)
    wanted = squared_norm(layer.weight.detach().double().numpy())
    assert abs(told.item() / wanted - 1) < CLOSE
    assert not told.requires_grad


def test_the_gradient_is_two_sigma_u_v():
    weight = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dense_squared_norm(weight), weight)
    u, s, vh = np.linalg.svd(weight.detach().numpy())
    assert np.allclose(gradient.numpy(), 2 * s[0] * np.outer(u[:, 0], vh[0]), atol=1e-10)


def by_differences(f, weight, h=1e-5):
    """df/dW entry by entry, central differences in float64."""
    found = torch.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        step = torch.zeros_like(weight)
        step[place] = h
        found[place] = (f(weight + step) - f(weight - step)) / (2 * h)
    return found


@pytest.mark.parametrize(("k", "stride", "size"), [(3, 1, (5, 6)), (3, 2, (6, 8)), (1, 2, (4, 4))])
def test_gradients_of_convolutions_are_those_of_finite_differences(k, stride, size):
    layer = conv(3, 2, k, stride)
    weight = layer.weight.detach().double().requires_grad_(True)
    other = copy.deepcopy(layer)

    def dense(w):
        other.weight.data = w.detach()
        return squared_norm(dense_operator(other, size))

    wanted = by_differences(dense, weight.detach())
    (exact,) = torch.autograd.grad(conv_squared_norm(weight, size, (stride, stride)), weight)
    assert torch.allclose(exact, wanted, atol=1e-6)
    power = PowerIteration(layer, size)
    power.converge(layer, tolerance=1e-6, limit=50_000)
    (found,) = torch.autograd.grad(power(layer, 0), layer.weight)
    assert torch.allclose(found.double(), wanted, atol=1e-3 * wanted.abs().max())


def followed(vectors, mode):
    """Mean over a training of how far the value falls short of sigma^2, worst layer; the penalty acts on the values."""
    torch.manual_seed(1)
    net = nn.Sequential(conv(3, 8, 3, 1, mode), nn.ReLU(), conv(8, 8, 3, 2, mode), nn.Flatten(), nn.Linear(72, 5))
    layers = [(net[0], (6, 6)), (net[2], (6, 6)), (net[4], None)]
    powers = [PowerIteration(layer, size, vectors=vectors) for layer, size in layers]
    for power, (layer, _) in zip(powers, layers, strict=True):
        power.converge(layer, limit=100)
    x, y, short = torch.rand(64, 3, 6, 6), torch.arange(64) % 5, []
    optimiser = torch.optim.SGD(net.parameters(), 0.02, 0.9)
    for step in range(60):
        optimiser.zero_grad()
        found = [power(layer) for power, (layer, _) in zip(powers, layers, strict=True)]
        if step % 10 == 5:
            dense = [dense_operator(layer, size) if size else layer.weight.detach().numpy() for layer, size in layers]
            short.append([1 - value.item() / squared_norm(m) for value, m in zip(found, dense, strict=True)])
        (nn.functional.cross_entropy(net(x), y) + 0.01 * sum(found)).backward()
        optimiser.step()
    return np.array(short).mean(0).max()


@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_kept_vectors_follow_a_training_that_a_single_one_loses(mode):
    assert followed(16, mode) < 0.05
    assert followed(1, mode) > 2 * followed(16, mode)


def test_the_vector_is_a_buffer_that_a_checkpoint_restores():
    layer = nn.Linear(6, 4)
    first, second = PowerIteration(layer), PowerIteration(layer, seed=1)
    first.converge(layer)
    second.load_state_dict(first.state_dict())
    assert first(layer, 0) == second(layer, 0)


def test_norms_are_computed_in_float32_under_autocast():
    layer = conv(3, 4, 3)
    power = PowerIteration(layer, (8, 8))
    power.converge(layer)
    plain = exact_squared_norm(layer, (8, 8)), power(layer, 0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = exact_squared_norm(layer, (8, 8)), power(layer, 0)
    assert plain == cast
    assert cast[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "size", "says"),
    [
        (conv(3, 4, 3, 2), (7, 7), "stride 2 on 7x7 pixels"),
        (conv(3, 4, 3, mode="zeros"), (8, 8), "padding_mode='circular'"),
        (nn.Conv2d(3, 4, 2, padding=1, padding_mode="circular"), (8, 8), "which Conv2d"),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="circular"), (8, 8), "dilation"),
        (nn.Conv2d(4, 4, 3, groups=2), (8, 8), "Conv2d of 2 groups"),
        (nn.ConvTranspose2d(3, 4, 3), (8, 8), "ConvTranspose2d: choose"),
        (nn.Conv1d(3, 4, 3), (8, 8), "Conv1d"),
        (nn.Bilinear(3, 4, 3), None, "Bilinear"),
    ],
)
def test_layers_without_an_exact_norm_are_refused(layer, size, says):
    with pytest.raises(InputError, match=says):
        exact_squared_norm(layer, size)


def test_power_iteration_refuses_what_has_no_norm():
    with pytest.raises(InputError, match="groups=1"):
        PowerIteration(nn.Conv2d(4, 4, 3, groups=4), (8, 8))
    with pytest.raises(InputError, match="tolerance=0"):
        PowerIteration(nn.Linear(3, 3)).converge(nn.Linear(3, 3), tolerance=0)
    with pytest.raises(InputError, match="vectors=0"):
        PowerIteration(nn.Linear(3, 3), vectors=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_diverged_give_nan_for_the_loop_to_report(bad):
    for layer, size in ((nn.Linear(40, 30), None), (conv(9, 8, 3), (4, 4))):
        with torch.no_grad():
            layer.weight[0, 0] = bad
        assert not exact_squared_norm(layer, size).isfinite()
        assert not PowerIteration(layer, size)(layer).isfinite()


def test_cross_lipschitz_is_its_double_sum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4), nn.Softmax(1))
    x = torch.rand(5, 3, 2, 2).requires_grad_(True)
    jacobians = class_jacobians(model, x.detach())
    total = 0.0
    for image in jacobians:
        for first in image:
            for second in image:
                total += ((first - second) ** 2).sum()
    wanted = total / (5 * 4**2)
    found = cross_lipschitz(model(x), x)
    assert np.isclose(found.item(), wanted, rtol=1e-5)
    released = 2 / (5 * 4**2) * ((jacobians**2).sum() - (jacobians.sum(1) ** 2).sum())
    assert np.isclose(
        found.item(), 4 * released, rtol=1e-4
    )  # K times the release's value, as softmax gradients sum to 0
    generator = torch.Generator().manual_seed(0)
    guess = cross_lipschitz(model(x), x, projections=2000, generator=generator)
    assert np.isclose(guess.item(), wanted, rtol=0.1)


def test_cross_lipschitz_of_logits_ignores_what_all_classes_share():
    x = torch.rand(3, 1, 2, 2).requires_grad_(True)
    first = x.flatten(1) @ torch.randn(4, 3)
    shift = 7 * x.square().sum((1, 2, 3))[:, None]
    assert torch.isclose(cross_lipschitz(first + shift, x), cross_lipschitz(first, x), rtol=1e-4)


def test_cross_lipschitz_trains():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    x = torch.rand(6, 1, 2, 2).requires_grad_(True)
    weight = model[1].weight
    (gradient,) = torch.autograd.grad(cross_lipschitz(model(x).softmax(1), x), weight)
    h, step = 1e-2, torch.zeros_like(weight)
    step[2, 1] = h
    values = []
    for sign in (1, -1):
        weight.data += sign * step
        values.append(cross_lipschitz(model(x).softmax(1), x).item())
        weight.data -= sign * step
    assert np.isclose(gradient[2, 1].item(), (values[0] - values[1]) / (2 * h), rtol=0.05, atol=1e-6)
    with pytest.raises(InputError, match="projections=-1"):
        cross_lipschitz(model(x), x, projections=-1)
