"""Spectral norms of layers against the dense operator, and penalties against their formulas."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.errors import InputError
from robustlib.losses import batch_spectral_shrinkage, cross_lipschitz, exact_squared_norm, l2_sp, spectral
from robustlib.losses.spectral import PowerIteration
from tests.restated import class_jacobians, dense_operator, squared_norm

CLOSE = 1e-5  # relative, of sigma^2


def conv(ins, outs, k, stride=1, mode="circular", pad=None):
    return nn.Conv2d(ins, outs, k, stride=stride, padding=k // 2 if pad is None else pad, padding_mode=mode)


def dense_norm(layer, size):
    """sigma_max^2 by SVD of the matrix, written out."""
    return squared_norm(layer.weight.detach().double().numpy() if size is None else dense_operator(layer, size))


POWER = [  # with either padding
    *((conv(3, 5, 1), (6, 6)), (conv(3, 5, 3), (6, 6)), (conv(5, 3, 3), (5, 7)), (conv(4, 6, 3, 2), (8, 8))),
    *((conv(2, 3, 7, 2), (8, 6)), (conv(3, 7, 1, 2), (4, 8)), (conv(2, 9, 3, 3), (9, 6)), (nn.Linear(64, 10), None)),
]
EXACT = [
    *((conv(3, 3, 5), (4, 4)), (conv(4, 4, 3), (1, 1)), (conv(2, 2, 3), (2, 2)), (conv(3, 4, 4, 2, pad=1), (8, 8))),
    *((conv(3, 4, 2, 2, pad=0), (8, 8)), *((nn.Linear(*shape), None) for shape in ((10, 64), (7, 7), (1, 5)))),
]


@pytest.mark.parametrize(("layer", "size"), POWER + EXACT, ids=str)
def test_the_exact_norm_is_that_of_the_dense_operator(layer, size):
    layer.reset_parameters()
    assert exact_squared_norm(layer, size).item() == pytest.approx(dense_norm(layer, size), rel=CLOSE)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize(("layer", "size"), [*POWER, (conv(3, 4, 3, 2), (7, 7))], ids=str)
def test_power_iteration_converges_to_the_dense_operator(layer, size, mode):
    layer = copy.deepcopy(layer)
    layer.reset_parameters()
    layer.padding_mode = mode
    power, wanted = PowerIteration(layer, size), dense_norm(layer, size)
    assert not power.converge(layer, tolerance=1e-5, limit=20_000).requires_grad
    assert power(layer, 0).item() == pytest.approx(wanted, rel=CLOSE)
    assert 0.98 * wanted < power(layer).item() <= wanted * (1 + 1e-6)  # noise costs little, and it is from below


def by_differences(f, weight, h=1e-5):
    """df/dW entry by entry, central differences in float64."""
    found = torch.zeros_like(weight)
    for place in np.ndindex(*weight.shape):
        step = torch.zeros_like(weight)
        step[place] = h
        found[place] = (f(weight + step) - f(weight - step)) / (2 * h)
    return found


@pytest.mark.parametrize(
    ("layer", "size"),
    [(conv(3, 2, 3), (5, 6)), (conv(3, 2, 3, 2), (6, 8)), (conv(3, 2, 1, 2), (4, 4)), (nn.Linear(9, 6), None)],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(layer, size):
    layer.reset_parameters()
    other, power = copy.deepcopy(layer).double(), PowerIteration(layer, size)

    def dense(w):
        other.weight.data = w
        return dense_norm(other, size)

    wanted = by_differences(dense, layer.weight.detach().double())
    power.converge(layer, tolerance=1e-6, limit=50_000)
    for value in (exact_squared_norm(layer, size), power(layer, 0)):
        (found,) = torch.autograd.grad(value, layer.weight)
        assert torch.allclose(found.double(), wanted, atol=1e-3 * wanted.abs().max())


def followed(mode):
    """Mean over a training of how far the value falls short of sigma^2, worst layer; the penalty acts on the values."""
    torch.manual_seed(1)
    net = nn.Sequential(conv(3, 8, 3, 1, mode), nn.ReLU(), conv(8, 8, 3, 2, mode), nn.Flatten(), nn.Linear(72, 5))
    layers = [(net[0], (6, 6)), (net[2], (6, 6)), (net[4], None)]
    powers = [PowerIteration(layer, size) for layer, size in layers]
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
def test_kept_vectors_follow_a_training_that_a_single_one_loses(mode, monkeypatch):
    short = followed(mode)
    monkeypatch.setattr(spectral, "VECTORS", 1)
    assert 2 * short < min(0.1, followed(mode))


def test_all_is_computed_in_float32_under_autocast():
    layer, (a, b) = conv(3, 4, 3), torch.randn(2, 64, 16) + 10
    power = PowerIteration(layer, (8, 8))
    power.converge(layer)
    values = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            norms = exact_squared_norm(layer, (8, 8)), power(layer, 0)
            values.append((*norms, l2_sp([a], [b], [b]), batch_spectral_shrinkage(a, 2)))
    assert values[0] == values[1]
    assert {value.dtype for value in values[1]} == {torch.float32}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: exact_squared_norm(conv(3, 4, 3, 2), (7, 7)), "stride 2 on 7x7 pixels"),
        *(
            (lambda layer=layer: exact_squared_norm(layer, (8, 8)), says)
            for layer, says in (
                (conv(3, 4, 3, mode="zeros"), "padding_mode='circular'"),
                (conv(3, 4, 2, pad=1), "which Conv2d"),
                (nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="circular"), "dilation"),
                (nn.Conv2d(4, 4, 3, groups=2), "Conv2d of 2 groups"),
                (nn.ConvTranspose2d(3, 4, 3), "ConvTranspose2d: choose"),
            )
        ),
        (lambda: PowerIteration(nn.Conv2d(4, 4, 3, groups=4), (8, 8)), "groups=1"),
        (lambda: PowerIteration(nn.Linear(3, 3)).converge(nn.Linear(3, 3), tolerance=0), "tolerance=0"),
        (lambda: cross_lipschitz(torch.rand(2, 2), torch.rand(2, 3), projections=-1), "projections=-1"),
        (lambda: l2_sp([], [], [], alpha=-0.1), "alpha=-0.1"),
        *(
            (
                lambda k=k: batch_spectral_shrinkage(torch.rand(4, 9), k),
                f"k={k}: give a whole number of at least 1 and at most 4",
            )
            for k in (0, 5)
        ),
    ],
)
def test_bad_input_is_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_diverged_give_nan_for_the_loop_to_report(bad):
    for layer, size in ((nn.Linear(40, 30), None), (conv(9, 8, 3), (4, 4))):
        with torch.no_grad():
            layer.weight[0, 0] = bad
        assert not exact_squared_norm(layer, size).isfinite()
        assert not PowerIteration(layer, size)(layer).isfinite()


def test_cross_lipschitz_is_its_double_sum_and_trains():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 4)).double()  # logits: no sum of 0
    x = torch.rand(3, 2, 2, 2, dtype=torch.float64).requires_grad_(True)

    def restated(weight=None):
        model[1].weight.data = model[1].weight if weight is None else weight
        jacobians = class_jacobians(model, x.detach())
        return ((jacobians[:, :, None] - jacobians[:, None]) ** 2).sum() / (3 * 4**2)

    found, generator = cross_lipschitz(model(x), x), torch.Generator().manual_seed(0)
    assert found.item() == pytest.approx(restated(), rel=1e-5)
    guess = cross_lipschitz(model(x), x, projections=2000, generator=generator)
    assert guess.item() == pytest.approx(restated(), rel=0.1)
    (gradient,) = torch.autograd.grad(found, model[1].weight)
    wanted = by_differences(restated, model[1].weight.detach().clone())
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())


def test_l2_sp_equals_its_formula():
    weights, start = ([torch.randn(4, 3), torch.randn(5)] for _ in range(2))
    new, free = [torch.randn(2, 5), torch.randn(2)], [w.clone().requires_grad_() for w in weights]
    total = 0.1 * sum(((w - s).double() ** 2).sum() for w, s in zip(weights, start, strict=True))
    total += 0.01 * sum((part.double() ** 2).sum() for part in new)
    loss = l2_sp(iter(free), iter(start), iter(new))
    assert loss.item() == pytest.approx(float(total), rel=1e-5)
    assert l2_sp(weights, weights, new, 5.0, 0.0).item() == 0
    for gradient, w, s in zip(torch.autograd.grad(loss, free), weights, start, strict=True):
        assert torch.allclose(gradient, 0.2 * (w - s), atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_spectral_shrinkage_is_the_sum_of_the_smallest_squares(shape, k):
    features = torch.randn(*shape, requires_grad=True)
    u, s, v = np.linalg.svd(features.detach().double().numpy(), full_matrices=False)
    loss = batch_spectral_shrinkage(features, k)
    assert loss.item() == pytest.approx((s[-k:] ** 2).sum(), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, features)
    assert np.allclose(gradient.numpy(), 2 * (u[:, -k:] * s[-k:]) @ v[-k:], atol=1e-4)


def test_spectral_shrinkage_of_a_singular_batch():
    features = torch.randn(8, 4) @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert batch_spectral_shrinkage(features).item() == pytest.approx(0, abs=1e-10)
    assert batch_spectral_shrinkage(torch.full((3, 2), torch.nan)).isnan()
