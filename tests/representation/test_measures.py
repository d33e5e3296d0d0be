import importlib
import math

import pytest
import torch
from torch import Tensor, nn

from robustlib import representation as r
from robustlib.errors import InputError


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


COSINE = 8 / (5 * math.sqrt(17))  # of (3, 4) and (4, -1)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("relative_l2", math.sqrt(26) / 5), ("cosine", 1 - COSINE), ("l1", 6), ("l2", math.sqrt(26)), ("linf", 5)],
)
def test_feature_gap_by_hand(measure, expected):
    clean, adversarial = table((3.0, 4.0), (1.0, 0.0)), table((4.0, -1.0), (1.0, 0.0))
    gap = r.feature_gap(clean, adversarial, measure)
    assert gap.tolist() == pytest.approx([expected, 0.0], abs=1e-6)
    factor = 1 if measure in ("relative_l2", "cosine") else 7
    torch.testing.assert_close(r.feature_gap(7 * clean, 7 * adversarial, measure), factor * gap, rtol=1e-5, atol=1e-6)
    assert r.feature_gap(torch.zeros(2, 3), torch.zeros(2, 3), measure).tolist() == [0, 0]


def test_alignment_by_angle(on_circle):
    pairs = r.alignment(on_circle(0, 0, 0), on_circle(0, 90, 180))
    assert pairs.tolist() == pytest.approx([0, 2, 4], abs=1e-5)


def test_class_alignment_is_the_mean_over_pairs(clouds):
    f, y = clouds(30)
    u = f / f.norm(dim=1, keepdim=True)
    squares = torch.cdist(u, u).square()
    by_pairs = [float(squares[i][(y == y[i]) & (torch.arange(30) != i)].mean()) for i in range(30)]
    assert r.class_alignment(f, y).tolist() == pytest.approx(by_pairs, abs=1e-5)
    with pytest.raises(InputError, match="Class 3 has a single example"):
        r.class_alignment(torch.cat((f, f[:1])), torch.cat((y, torch.tensor([3]))))


def test_exclusion_on_a_circle(on_circle):
    apart = r.exclusion(on_circle(0, 10, 70, 90), torch.tensor([0, 0, 1, 1]))
    assert apart.nearest.tolist() == pytest.approx([chord(70), chord(60), chord(60), chord(80)], abs=1e-4)
    mean = [(chord(70) + chord(90)) / 2, (chord(60) + chord(80)) / 2]
    assert apart.mean[:2].tolist() == pytest.approx(mean, abs=1e-4)
    margins = [chord(70) - chord(10), chord(60) - chord(10), chord(60) - chord(20), chord(80) - chord(20)]
    assert apart.margin.tolist() == pytest.approx(margins, abs=1e-4)


def test_exclusion_of_adversarial_features_ignores_the_own_natural_image(on_circle):
    natural, y = on_circle(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    crossed = natural.clone()
    crossed[0] = torch.tensor([0.0, 1.0])  # the first is now where class 1 is
    apart = r.exclusion(crossed, y, natural)
    assert float(apart.nearest[0]) == pytest.approx(0, abs=1e-3)
    assert float(apart.margin[0]) == pytest.approx(-chord(80), abs=1e-3)  # to the other of its class, not to itself
    lonely = r.exclusion(on_circle(0, 1, 2), torch.tensor([0, 0, 1])).margin
    assert lonely.isnan().tolist() == [False, False, True]


def test_uniformity(on_circle):
    assert r.uniformity(on_circle(0, 180)) == pytest.approx(-8, abs=1e-4)
    assert r.uniformity(on_circle(20, 20, 20)) == pytest.approx(0, abs=1e-5)
    assert r.uniformity(on_circle(0, 90), t=1) == pytest.approx(-2, abs=1e-5)
    even = torch.randn(800, 200, generator=torch.Generator().manual_seed(0))
    assert r.uniformity(even) == pytest.approx(-4, abs=0.1)
    assert r.uniformity(even) < r.uniformity(even + 2)
    with pytest.raises(InputError, match="at least two"):
        r.uniformity(table((1.0, 2.0)))


def test_pieces_change_nothing(clouds, monkeypatch):
    f, y = clouds(50)

    def numbers():
        probe = r.knn_probe(f, y, k=5).predict(f).float().mean()
        return r.exclusion(f, y).margin, r.uniformity(f), r.neural_collapse(f, y).variability, r.cka(f, f[:, :3]), probe

    whole = numbers()
    for name in ("features", "measures"):
        module = importlib.import_module(f"robustlib.representation.{name}")
        monkeypatch.setattr(module, "rows_at_once", lambda columns: 7)
    torch.testing.assert_close(numbers(), whole)


def test_cka_is_blind_to_rotation_shift_and_scale_and_matches_its_gram_form():
    f, g = torch.randn(400, 6), torch.randn(400, 9)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    assert r.cka(f, 3 * f @ turn + 5) == pytest.approx(1, abs=1e-5)
    assert r.cka(f, g) < 0.1
    a, b = (t - t.mean(0) for t in (f, f @ torch.randn(6, 4)))
    k, m = a @ a.T, b @ b.T
    assert r.cka(a, b) == pytest.approx(float((k * m).sum() / (k.norm() * m.norm())), abs=1e-4)
    assert r.cka(f, torch.ones(400, 2)) == 0


def test_effective_rank_counts_equal_directions():
    axes = torch.cat((torch.eye(4), -torch.eye(4)))
    wide = torch.cat((axes, torch.zeros(8, 6)), 1) + 3
    assert r.effective_rank(wide) == pytest.approx(4, abs=1e-4)
    assert r.effective_rank(torch.arange(9.0)[:, None] * torch.ones(5)) == pytest.approx(1, abs=1e-3)
    assert r.effective_rank(torch.ones(5, 3)) == 0
    stretched = axes * torch.tensor([3.0, 1.0, 0.0, 0.0])
    shares = torch.tensor([0.75, 0.25])
    assert r.effective_rank(stretched) == pytest.approx(float((-(shares * shares.log()).sum()).exp()), abs=1e-4)


def head_of(weight: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], len(weight))
    head.load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
    return head


def test_neural_collapse_by_hand():
    """Complete; means -1 and +1, each with two examples 0.5 away (within 0.25, between 1, K = 2); unequal means."""
    means, y = torch.eye(4) - 1 / 4, torch.arange(20) % 4
    complete = r.neural_collapse(means[y] + 7, y, head_of(3 * means))
    assert complete.nearest_centre == 0.0
    numbers = (complete.variability, complete.equinorm, complete.equiangular, complete.self_duality)
    assert numbers == pytest.approx((0, 0, 0, 0), abs=1e-5)
    f, y = table((-1.5, 0.0), (-0.5, 0.0), (0.5, 0.0), (1.5, 0.0)), torch.tensor([0, 0, 1, 1])
    wrong = r.neural_collapse(f, y, head_of(table((1.0, 0.0), (-1.0, 0.0))))
    assert (wrong.variability, wrong.self_duality, wrong.nearest_centre) == pytest.approx((0.125, 2, 1))
    assert math.isnan(r.neural_collapse(f, y).self_duality)
    f = table((5.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)).repeat(2, 1)
    unequal = r.neural_collapse(f, torch.tensor([0, 1, 2] * 2))
    assert unequal.equinorm > 0.2
    assert unequal.equiangular > 0.1


def test_principal_components_find_the_long_direction():
    long = torch.linspace(-5, 5, 50)[:, None] * table((0.6, -0.8, 0.0)) + 0.01 * torch.randn(50, 3)
    scores, shares = r.principal_components(long, 2)
    assert float(shares[0]) > 0.99
    assert float(shares.sum()) <= 1 + 1e-6
    assert scores[[0, -1], 0].tolist() == pytest.approx([5, -5], abs=0.1)
    assert scores.mean(0).abs().max() < 1e-5


def test_probes_read_separable_classes_and_not_noise(clouds):
    f, y = clouds(90)
    other = f + 0.1 * torch.randn(90, 8)
    for probe in (r.linear_probe(f, y), r.knn_probe(f, y, k=5)):
        assert probe.accuracy(other, y) == 1.0
        assert probe.accuracy(f[:, torch.randperm(8)], y) < 1.0
    noise = torch.randn(300, 4)
    guess = r.linear_probe(noise[:150], torch.arange(150) % 3).accuracy(noise[150:], torch.arange(150) % 3)
    assert 0.2 < guess < 0.5


def test_nearer_neighbours_weigh_more(on_circle):
    probe = r.knn_probe(on_circle(0, 40, 41), torch.tensor([0, 1, 1]), k=3)
    assert probe.predict(on_circle(2, 38)).tolist() == [0, 1]


ONES, ZEROS = torch.ones(3, 2), torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: r.effective_rank(torch.ones(3)), r"not of shape \(3,\)"),
        (lambda: r.effective_rank(torch.ones(0, 2)), "at least one row"),
        (lambda: r.effective_rank(table((1.0, math.nan))), "NaN or infinite"),
        (lambda: r.uniformity(table((1e20, 0.0), (0.0, 1e20))), "too long for float32"),
        (lambda: r.feature_gap(ONES, torch.ones(4, 2)), "not of the same examples"),
        (lambda: r.feature_gap(ONES, ONES, "l3"), "Unknown measure of the feature gap 'l3'"),
        (lambda: r.cka(torch.randn(400, 6), ONES), "not 400 with 3"),
        (lambda: r.class_alignment(ONES, torch.zeros(2, dtype=torch.int64)), "as many labels"),
        (lambda: r.exclusion(torch.ones(2, 2), torch.tensor([4, 4])), "All 2 examples are of class 4"),
        (lambda: r.linear_probe(torch.randn(8, 2), ZEROS), "All 8 examples are of class 0: give examples of two"),
        (lambda: r.knn_probe(torch.randn(8, 2), ZEROS), "20 neighbours among 8 examples"),
        (lambda: r.neural_collapse(torch.randn(4, 3), torch.tensor([0, 0, 2, 2])), "Class 1 has no example"),
        (lambda: r.neural_collapse(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), nn.Linear(5, 2)), "The head has"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
