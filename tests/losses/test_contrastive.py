"""SupCon, NT-Xent, Barlow Twins and ANCRA's contrast against their formulas written as loops, in bf16 too."""

import math

import numpy as np
import pytest
import torch

from robustlib.errors import InputError
from robustlib.losses import barlow_twins_loss, negative_contrast, nt_xent, pick_negatives, supcon_loss
from robustlib.losses.contrastive import confidence_similarity
from tests.restated import barlow_twins, supcon


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("views", "labelled"), [(1, True), (2, True), (2, False), (3, True), (3, False), (4, True)])
def test_supcon_equals_its_loop(views, labelled, temperature):
    z = 3 * torch.randn(views, 11, 6)
    labels = torch.randint(0, 4, (11,)) if labelled else None
    loss = supcon_loss(z, labels, temperature)
    assert np.isclose(loss.item(), supcon(z, labels, temperature), rtol=1e-5)
    if (views, labelled) == (2, False):
        assert torch.equal(nt_xent(*z, temperature), loss)
        assert torch.equal(nt_xent(*z), supcon_loss(z, None, 0.5))


def test_supcon_where_there_is_nothing_to_compare():
    assert supcon_loss(torch.randn(1, 3, 4), torch.arange(3)) == 0, "no anchor has a positive"
    assert supcon_loss(torch.randn(2, 1, 4)).item() == pytest.approx(0, abs=1e-6)


def test_one_sided_keeps_the_value_and_takes_the_anchors_gradient():
    z = torch.randn(3, 6, 4, requires_grad=True)
    both, one = supcon_loss(z, None, 0.5), supcon_loss(z, None, 0.5, one_sided=True)
    assert torch.equal(both, one)
    u, image = torch.nn.functional.normalize(z.flatten(0, 1), dim=1), torch.arange(6).repeat(3)
    positive = (image[:, None] == image) & ~torch.eye(18, dtype=torch.bool)
    logits = (u @ u.detach().t() / 0.5).fill_diagonal_(-torch.inf)  # anchors against rows that stay
    expected, found, full = (
        torch.autograd.grad(v, z, retain_graph=True)[0]
        for v in (-logits.log_softmax(1)[positive].sum() / 2 / 18, one, both)
    )
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, full, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_bf16_is_safe(scale):
    z, y = scale * torch.randn(3, 32, 16), torch.randint(0, 5, (32,))
    narrow = z.bfloat16().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon_loss(narrow, y)
    assert loss.dtype == torch.float32
    exact = supcon_loss(narrow.detach().float(), y)
    assert torch.isclose(loss, exact, rtol=1e-6), "the products are taken in float32, autocast or not"
    (gradient,) = torch.autograd.grad(loss, narrow)
    assert gradient.isfinite().all()
    assert (gradient.abs().max() > 0) == (scale > 0)


@pytest.mark.parametrize("off_diagonal", [0.005, 0.0, 1.0])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_barlow_twins_equals_its_double_loop(off_diagonal, eps):
    a, b = 3 * torch.randn(9, 5) + 2, torch.randn(9, 5)
    wanted = barlow_twins(a, b, off_diagonal, eps)
    assert barlow_twins_loss(a, b, off_diagonal, eps=eps).item() == pytest.approx(wanted, rel=1e-5)
    twice = barlow_twins_loss(torch.cat([a, a]), torch.cat([b, b]), off_diagonal, eps=eps)
    assert twice.item() == pytest.approx(wanted, rel=1e-5), "the batch divides the cross-correlation alone"
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins_loss(a.bfloat16(), b.bfloat16(), off_diagonal, eps=eps)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(barlow_twins(a.bfloat16(), b.bfloat16(), off_diagonal, eps), rel=1e-5)


def test_barlow_twins_of_collapsed_projections():
    collapsed = torch.ones(4, 2, requires_grad=True)
    loss = barlow_twins_loss(collapsed, collapsed)
    assert loss.item() == pytest.approx(2.0)
    assert torch.autograd.grad(loss, collapsed)[0].isfinite().all()


def test_similarity_equals_its_loop():
    a, b = torch.randn(40, 4), torch.randn(40, 4)
    pairs = list(zip(*(z.softmax(1).double().numpy() for z in (a, b)), strict=True))
    total = sum(np.sqrt(p.max() * q.max()) for p, q in pairs if p.argmax() == q.argmax())
    assert np.isclose(confidence_similarity(a, b).item(), total / 40, rtol=1e-5)
    assert torch.equal(confidence_similarity(a, b), confidence_similarity(b, a))
    assert confidence_similarity(a.bfloat16(), b).dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_shares_out_the_gradient_and_keeps_the_value(alpha):
    x, other = (torch.randn(30, 3, requires_grad=True) for _ in range(2))
    value = negative_contrast(x, other, alpha)
    assert value.item() == pytest.approx(confidence_similarity(x, other).item(), rel=1e-6)
    shares = torch.autograd.grad(value, (x, other), allow_unused=True, materialize_grads=True)
    full = torch.autograd.grad(confidence_similarity(x, other), (x, other))
    assert torch.allclose(shares[0], (1 - alpha) * full[0], atol=1e-7)
    assert torch.allclose(shares[1], alpha * full[1], atol=1e-7)
    assert full[0].abs().max() > 1e-3


def test_random_negatives_are_a_class_first_and_then_an_image():
    y, generator = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2]), torch.Generator().manual_seed(0)
    draws = torch.stack([pick_negatives(y, generator=generator) for _ in range(4000)])
    assert bool((y[draws] != y).all())
    shares = torch.bincount(draws[:, 7], minlength=9) / 4000  # class 0 has six images, class 1 has one
    assert torch.allclose(shares, torch.tensor([1 / 12] * 6 + [1 / 2, 0, 0]), atol=0.03)


@pytest.mark.parametrize("strategy", ["soft", "hard", "easy"])
def test_mined_negatives_equal_their_loop(strategy):
    y, logits = torch.randint(0, 5, (48,)), torch.randn(48, 5)
    logits[y == 4, 4], logits[y != 4, 4] = 9.0, -9.0  # no image of another class is predicted as class 4
    random = pick_negatives(y, generator=torch.Generator().manual_seed(0))
    picked = pick_negatives(y, strategy, logits=logits, generator=torch.Generator().manual_seed(0))
    predicted, without = logits.argmax(1).tolist(), 0
    for i, k in enumerate(y.tolist()):
        wanted = {"soft": {predicted[i]}, "hard": {k}, "easy": set(range(5)) - {predicted[i], k}}[strategy]
        pool = [j for j in range(48) if y[j] != k and predicted[j] in wanted]
        assert picked[i] == (max(pool, key=lambda j: logits[j, k].item()) if pool else random[i])
        without += not pool
    assert (0 < without < 48) or strategy == "easy"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *(
            (lambda t=t: supcon_loss(torch.rand(2, 2, 3), None, t), f"temperature={t}")
            for t in (0.0, math.nan, math.inf)
        ),
        (lambda: supcon_loss(torch.rand(1, 4, 3)), "give two views or labels"),
        (lambda: pick_negatives(torch.tensor([0, 1]), "harrd"), "Unknown negative strategy 'harrd'"),
        (lambda: barlow_twins_loss(torch.rand(4, 3), torch.rand(4, 2)), r"\(4, 3\) and \(4, 2\)"),
        (lambda: barlow_twins_loss(torch.rand(1, 3), torch.rand(1, 3)), "B >= 2"),
        (lambda: barlow_twins_loss(torch.rand(4, 3), torch.rand(4, 3), -1.0), "off_diagonal=-1.0"),
    ],
)
def test_bad_input_is_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
