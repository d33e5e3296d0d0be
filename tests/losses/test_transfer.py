"""Barlow Twins, L2-SP and batch spectral shrinkage against their formulas written as loops, in bf16 too, and their gradients."""

import numpy as np
import pytest
import torch

from robustlib.errors import InputError
from robustlib.losses import barlow_twins_loss, batch_spectral_shrinkage, l2_sp
from tests.restated import barlow_twins


@pytest.mark.parametrize("off_diagonal", [0.005, 0.0, 1.0])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_barlow_twins_equals_its_double_loop(off_diagonal, eps):
    a, b = 3 * torch.randn(9, 5) + 2, torch.randn(9, 5)
    wanted = barlow_twins(a, b, off_diagonal, eps)
    assert barlow_twins_loss(a, b, off_diagonal, eps=eps).item() == pytest.approx(wanted, rel=1e-5)
    twice = barlow_twins_loss(torch.cat([a, a]), torch.cat([b, b]), off_diagonal, eps=eps)
    assert twice.item() == pytest.approx(wanted, rel=1e-5), "the batch divides the cross-correlation alone"


def test_barlow_twins_where_it_is_known():
    a = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # uncorrelated columns
    assert barlow_twins_loss(a, 5 * a + 3, eps=0.0).item() == pytest.approx(0, abs=1e-10), "at any scale and shift"
    assert barlow_twins_loss(a, -a, eps=0.0).item() == pytest.approx(2 * 4)
    collapsed = torch.ones(4, 2, requires_grad=True)
    loss = barlow_twins_loss(collapsed, collapsed)
    assert loss.item() == pytest.approx(2.0)
    assert torch.autograd.grad(loss, collapsed)[0].isfinite().all()


def test_losses_are_float32_under_autocast():
    a, b = torch.randn(64, 16) + 10, torch.randn(64, 16)
    losses = lambda: [barlow_twins_loss(a, b), l2_sp([a], [b], [b]), batch_spectral_shrinkage(a, 2)]  # noqa: E731
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses()
    assert mixed == losses()
    assert {loss.dtype for loss in mixed} == {torch.float32}
    low = a.bfloat16(), b.bfloat16()
    assert barlow_twins_loss(*low).item() == pytest.approx(barlow_twins(*low, 0.005), rel=1e-3)


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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: barlow_twins_loss(torch.rand(4, 3), torch.rand(4, 2)), r"\(4, 3\) and \(4, 2\)"),
        (lambda: barlow_twins_loss(torch.rand(1, 3), torch.rand(1, 3)), "B >= 2"),
        (lambda: barlow_twins_loss(torch.rand(4, 3), torch.rand(4, 3), -1.0), "off_diagonal=-1.0"),
        (lambda: l2_sp([], [], [], alpha=-0.1), "alpha=-0.1"),
        (
            lambda: batch_spectral_shrinkage(torch.rand(4, 9), 5),
            "k=5: a batch of 4 images with 9 features has 4 singular",
        ),
        (lambda: batch_spectral_shrinkage(torch.rand(4, 9), 0), "k=0"),
    ],
)
def test_bad_input_is_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
