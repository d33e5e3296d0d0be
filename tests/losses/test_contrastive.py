"""SupCon and NT-Xent against their formulas written as loops, in bf16 too, and where their value is known."""

import math

import numpy as np
import pytest
import torch

from robustlib.errors import InputError
from robustlib.losses import nt_xent, supcon_loss


def restated(z, labels, temperature):
    """The formula, anchor by anchor and pair by pair in float64."""
    views, size = z.shape[:2]
    rows = z.detach().reshape(views * size, -1).double().numpy()
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in rows]
    kind = [(i % size) if labels is None else int(labels[i % size]) for i in range(len(rows))]
    total = 0.0
    for i, anchor in enumerate(rows):
        others = [a for a in range(len(rows)) if a != i]
        below = sum(math.exp(float(anchor @ rows[a]) / temperature) for a in others)
        positives = [p for p in others if kind[p] == kind[i]]
        for p in positives:
            total -= math.log(math.exp(float(anchor @ rows[p]) / temperature) / below) / len(positives)
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("views", "labelled"), [(1, True), (2, True), (2, False), (3, True), (3, False), (4, True)])
def test_supcon_equals_its_loop(views, labelled, temperature):
    z = 3 * torch.randn(views, 11, 6)
    labels = torch.randint(0, 4, (11,)) if labelled else None
    assert np.isclose(supcon_loss(z, labels, temperature).item(), restated(z, labels, temperature), rtol=1e-5)


def test_nt_xent_is_the_cross_entropy_of_the_partner():
    a, b = torch.randn(9, 5), torch.randn(9, 5)
    u = torch.nn.functional.normalize(torch.cat((a, b)), dim=1)
    logits = (u @ u.t() / 0.5).fill_diagonal_(-torch.inf)
    partner = torch.arange(18).roll(9)
    assert torch.isclose(nt_xent(a, b), torch.nn.functional.cross_entropy(logits, partner), rtol=1e-5)
    assert np.isclose(nt_xent(a, b, 0.2).item(), restated(torch.stack((a, b)), None, 0.2), rtol=1e-5)


def test_known_values():
    alike = torch.ones(2, 8, 4)
    assert supcon_loss(alike).item() == pytest.approx(
        math.log(15), rel=1e-5
    )  # all similarities are one: a uniform guess
    apart = torch.eye(4).expand(2, 4, 4)
    expected = math.log(1 + 6 * math.exp(-1 / 0.07))
    assert supcon_loss(apart).item() == pytest.approx(expected, abs=1e-6)
    lonely = supcon_loss(torch.randn(1, 3, 4), torch.arange(3))
    assert lonely == 0, "no anchor has a positive"
    assert supcon_loss(torch.randn(2, 1, 4)).item() == pytest.approx(0, abs=1e-6)


def test_one_sided_keeps_the_value_and_takes_the_anchors_gradient():
    z = torch.randn(3, 6, 4, dtype=torch.float32, requires_grad=True)
    both, one = supcon_loss(z, None, 0.5), supcon_loss(z, None, 0.5, one_sided=True)
    assert torch.equal(both, one)
    step, found = 1e-3, torch.autograd.grad(one, z)[0]
    with torch.no_grad():  # moving the anchors against rows that stay: finite differences of a restatement
        frozen = torch.nn.functional.normalize(z.flatten(0, 1), dim=1).double()

        def of_anchors(moved):
            u = torch.nn.functional.normalize(moved.flatten(0, 1).double(), dim=1)
            logits = (u @ frozen.t() / 0.5).fill_diagonal_(-torch.inf)
            image = torch.arange(6).repeat(3)
            positive = (image[:, None] == image) & ~torch.eye(18, dtype=torch.bool)
            return -(logits.log_softmax(1)[positive].sum() / 2 / 18)

        for where in ((0, 0, 0), (2, 3, 1), (1, 5, 3)):
            moved = z.double().clone(), z.double().clone()
            moved[0][where] += step
            moved[1][where] -= step
            slope = (of_anchors(moved[0]) - of_anchors(moved[1])) / (2 * step)
            assert slope.item() == pytest.approx(found[where].item(), abs=1e-5)
    full = torch.autograd.grad(both, z)[0]
    assert not torch.allclose(found, full, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_bf16_is_safe(scale):
    z, y = scale * torch.randn(3, 32, 16), torch.randint(0, 5, (32,))
    exact = supcon_loss(z.bfloat16().float(), y)
    narrow = z.bfloat16().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon_loss(narrow, y)
    assert loss.dtype == torch.float32
    assert torch.isclose(loss, exact, rtol=1e-6), "the products are taken in float32, autocast or not"
    (gradient,) = torch.autograd.grad(loss, narrow)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_a_zero_projection_is_no_nan():
    z = torch.randn(2, 4, 3)
    z[0, 1] = 0
    z.requires_grad_(True)
    loss = supcon_loss(z)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), float("inf")])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(InputError, match=r"temperature=.*give a positive number"):
        nt_xent(torch.randn(2, 3), torch.randn(2, 3), temperature)


def test_one_view_needs_labels():
    with pytest.raises(InputError, match="give two views or labels"):
        supcon_loss(torch.randn(1, 4, 3))
