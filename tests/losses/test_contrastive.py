"""SupCon and NT-Xent against their formulas written as loops, in bf16 too, and where their value is known."""

import math

import numpy as np
import pytest
import torch

from robustlib.errors import InputError
from robustlib.losses import confidence_similarity, negative_contrast, nt_xent, pick_negatives, supcon_loss
from tests.restated import supcon


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("views", "labelled"), [(1, True), (2, True), (2, False), (3, True), (3, False), (4, True)])
def test_supcon_equals_its_loop(views, labelled, temperature):
    z = 3 * torch.randn(views, 11, 6)
    labels = torch.randint(0, 4, (11,)) if labelled else None
    assert np.isclose(supcon_loss(z, labels, temperature).item(), supcon(z, labels, temperature), rtol=1e-5)


def test_nt_xent_is_the_cross_entropy_of_the_partner():
    a, b = torch.randn(9, 5), torch.randn(9, 5)
    u = torch.nn.functional.normalize(torch.cat((a, b)), dim=1)
    logits = (u @ u.t() / 0.5).fill_diagonal_(-torch.inf)
    partner = torch.arange(18).roll(9)
    assert torch.isclose(nt_xent(a, b), torch.nn.functional.cross_entropy(logits, partner), rtol=1e-5)
    assert np.isclose(nt_xent(a, b, 0.2).item(), supcon(torch.stack((a, b)), None, 0.2), rtol=1e-5)


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


# ---- ANCRA's negative contrast, and the choice of negatives


def test_similarity_equals_its_loop():
    a, b = torch.randn(40, 4), torch.randn(40, 4)
    p, q = (z.softmax(1).numpy().astype(float) for z in (a, b))
    total = 0.0
    for i in range(40):
        if np.argmax(p[i]) == np.argmax(q[i]):
            total += np.sqrt(np.max(p[i]) * np.max(q[i]))
    assert np.isclose(confidence_similarity(a, b).item(), total / 40, rtol=1e-5)
    assert torch.equal(confidence_similarity(a, b), confidence_similarity(b, a))


def test_similarity_where_it_is_known():
    sure = torch.eye(3) * 1e4
    assert confidence_similarity(sure, sure) == 1
    assert confidence_similarity(sure, sure.roll(1, 0)) == 0
    flat = torch.zeros(5, 4)
    assert confidence_similarity(flat, flat) == pytest.approx(0.25)
    assert confidence_similarity(flat.bfloat16(), flat).dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_shares_out_the_gradient_and_keeps_the_value(alpha):
    x, other = (torch.randn(30, 3, requires_grad=True) for _ in range(2))
    value = negative_contrast(x, other, alpha)
    assert value.item() == pytest.approx(confidence_similarity(x, other).item(), rel=1e-6)
    mine = torch.autograd.grad(value, (x, other), allow_unused=True, materialize_grads=True)
    full = torch.autograd.grad(confidence_similarity(x, other), (x, other))
    assert torch.allclose(mine[0], (1 - alpha) * full[0], atol=1e-7)
    assert torch.allclose(mine[1], alpha * full[1], atol=1e-7)
    assert full[0].abs().max() > 1e-3


def test_pushing_lowers_the_negatives_confidence_and_leaves_other_predictions_alone():
    x = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    other = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(negative_contrast(x, other), other)
    assert gradient[0, 0] > 0 > gradient[0, 1], "descent takes the confused negative's confidence away"
    assert gradient[1].abs().max() == 0


def test_random_negatives_are_a_class_first_and_then_an_image():
    y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([pick_negatives(y, generator=generator) for _ in range(4000)])
    assert bool((y[draws] != y).all())
    of_class_2 = draws[:, 7]  # the others are class 0 with six images, class 1 with one
    shares = torch.bincount(of_class_2, minlength=9) / 4000
    expected = torch.tensor([1 / 12] * 6 + [1 / 2, 0, 0])
    assert torch.allclose(shares, expected, atol=0.03)


def test_random_negatives_follow_their_generator():
    y = torch.randint(0, 10, (64,))
    one, two, other = (pick_negatives(y, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("strategy", ["soft", "hard", "easy"])
def test_mined_negatives_equal_their_loop(strategy):
    y, logits = torch.randint(0, 5, (48,)), torch.randn(48, 5)
    picked = pick_negatives(y, strategy, logits=logits, generator=torch.Generator().manual_seed(0))
    predicted, fell_back = logits.argmax(1).tolist(), 0
    for i in range(48):
        wanted = {
            "soft": lambda j, i=i: predicted[j] == predicted[i],
            "hard": lambda j, i=i: predicted[j] == y[i],
            "easy": lambda j, i=i: predicted[j] not in (predicted[i], y[i]),
        }[strategy]
        pool = [j for j in range(48) if y[j] != y[i] and wanted(j)]
        fell_back += not pool
        if pool:
            assert picked[i] == max(pool, key=lambda j, i=i: logits[j, y[i]].item())
        assert y[picked[i]] != y[i]
    assert fell_back < 48


def test_without_candidates_a_random_negative_is_taken():
    y = torch.tensor([0, 0, 1, 1, 2])
    right = 9.0 * torch.nn.functional.one_hot(y, 3)
    for strategy in ("soft", "hard"):  # nobody of another class is predicted as the anchor
        settings = {"logits": right, "generator": torch.Generator().manual_seed(4)}
        random = pick_negatives(y, generator=torch.Generator().manual_seed(4))
        assert torch.equal(pick_negatives(y, strategy, **settings), random)


def test_a_batch_of_one_class_has_no_negatives():
    assert pick_negatives(torch.zeros(8, dtype=torch.int64)) is None
    assert pick_negatives(torch.zeros(1, dtype=torch.int64)) is None
    assert pick_negatives(torch.tensor([3, 1])).tolist() == [1, 0]


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"Unknown negative strategy 'harrd'. Did you mean 'hard'"):
        pick_negatives(torch.tensor([0, 1]), "harrd")
