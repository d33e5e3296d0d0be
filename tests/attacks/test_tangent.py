"""Tangent Attack and minimal distances: exact where the answer is known, honest where nothing is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.attacks import FAB, ExampleRNG, SurrogateModel, Tangent, Threat
from robustlib.attacks.active_set import ActiveSet
from robustlib.attacks.base import AttackBatch, attack_context
from robustlib.attacks.tangent import TangentState, tangent_point
from robustlib.errors import InputError
from robustlib.evaluation import valid
from tests.attacks.conftest import L2, generator
from tests.conftest import Hidden, Linear

QUICK = Tangent(L2, queries=1500)
BOTH = pytest.mark.parametrize("attack", [QUICK, FAB(L2, 5, 2)], ids=lambda a: type(a).__name__)


@pytest.fixture
def case(conv_net):
    x = torch.rand(10, 3, 8, 8)
    return conv_net, x, conv_net(x).argmax(1)


class Line(nn.Module):
    """Two classes on either side of y = 2 x, the origin in the middle of the box; counts the rows it is asked about."""

    def __init__(self):
        super().__init__()
        self.asked = 0
        self.register_buffer("unused", torch.zeros(1, dtype=torch.float64))  # so there is no folded copy

    def forward(self, x):
        self.asked += len(x)
        place = x.flatten(1) - 0.5
        side = place[:, 1] - 2 * place[:, 0]
        return torch.stack([side, -side], 1)


class Sphere(nn.Module):
    """Two classes, inside (1) and outside (0) of a sphere of radius 2 around the middle of the box."""

    def forward(self, x):
        outside = (x - 0.5).flatten(1).norm(dim=1, keepdim=True) - 2
        return torch.cat([outside, -outside], 1)


@pytest.mark.parametrize("dims", [2, 3, 64])
def test_the_tangent_point_solves_its_equations(dims):
    """k = now + c, c in the span of the normal and x - now, |c| = R, c at right angles to k - x; the upper of two."""
    rng = np.random.default_rng(dims)
    for _ in range(20):
        x, now, normal = rng.random(dims), rng.random(dims), rng.standard_normal(dims)
        normal /= np.linalg.norm(normal)
        back, radius = x - now, rng.uniform(0.05, 0.99) * np.linalg.norm(x - now)
        along = back - (back @ normal) * normal
        along /= np.linalg.norm(along)
        p, q = back @ along, back @ normal  # unit (s, t) with s p + t q = R
        roots = np.roots([p**2 + q**2, -2 * q * radius, radius**2 - p**2]).real
        t = roots.max()
        expected = now + radius * ((radius - t * q) / p * along + t * normal)
        tensors = (torch.from_numpy(part)[None] for part in (x, now, normal))
        point = tangent_point(*tensors, torch.tensor([radius], dtype=torch.float64))[0].numpy()
        assert point == pytest.approx(expected, abs=1e-7)


def test_the_normal_is_the_mean_of_probes_weighted_by_decisions():
    model, x = Linear(3, (1, 2, 2), scale=5.0), torch.rand(4, 1, 2, 2)
    y, rng = model(x).argmax(1), ExampleRNG.for_examples(1, torch.arange(4))
    reach, count = torch.tensor([0.1, 0.3, 0.6, 1e-4]), 5000  # more than a block; some clipped; of the last all agree
    with attack_context(model, x, (y,)) as oracle:
        walk = TangentState(Tangent(L2, 1500), ActiveSet(oracle, AttackBatch(x, y), rng), 0, None)
        spent = walk.spent.clone()
        normals = walk._normal_at(torch.arange(4), x, reach, count, rng)
        assert (walk.spent - spent == count).all()
    block = 2**14 // 4
    for i in range(4):
        starts = range(0, count, block)
        probes = torch.cat([rng.fold_in(s).quick_normal(min(block, count - s), 4)[i] for s in starts]).double().numpy()
        points = np.clip(x[i].flatten().numpy() + np.float32(reach[i]) * probes, 0, 1)
        decisions = model(torch.from_numpy(points).float().view(-1, 1, 2, 2)).argmax(1).numpy()
        phi = np.where(decisions != y[i].item(), 1.0, -1.0)
        weights = phi - phi.mean() if abs(phi.mean()) < 1 else phi
        u = weights @ (points - x[i].flatten().double().numpy())
        assert normals[i].flatten().numpy() == pytest.approx(u / np.linalg.norm(u), abs=1e-3)


def test_a_step_halves_its_radius_until_a_tangent_point_is_adversarial(monkeypatch):
    model, x, tried = Line(), torch.tensor([[[[0.4, 0.6]]]]), []
    y, rng = model(x).argmax(1), ExampleRNG.for_examples(0, torch.arange(1))
    with attack_context(model, x, (y,)) as oracle:
        walk = TangentState(QUICK, ActiveSet(oracle, AttackBatch(x, y), rng), 0, None)
        now = walk.now.clone()

        def never(points, rows):
            tried.append((points - now).flatten(1).norm(dim=1))
            return torch.zeros(len(points), dtype=torch.bool)

        monkeypatch.setattr(walk, "_adversarial", never)
        walk._step(4)
    expected = (now - x).norm() / 2 * 0.5 ** torch.arange(24)
    assert torch.allclose(torch.cat(tried), expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(walk.now, now)
    assert expected[0] > 0.01


def test_exact_on_a_line():
    """The distances of (+-1, +-1) from y = 2 x, in units of a quarter of the box: 1 / sqrt 5 and 3 / sqrt 5."""
    corners = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]]) / 4 + 0.5
    x, model = corners.view(4, 1, 1, 2), Line()
    result = Tangent(L2).nearest(model, x, model(x).argmax(1), generator=generator())
    true = torch.tensor([1.0, 3, 3, 1]) / 5**0.5 / 4
    assert torch.allclose(result.distance, true, rtol=1e-3)
    assert (result.distance > true * (1 + 0.9e-5)).all(), "beyond the boundary, by a little"
    assert torch.allclose((result.x_adv - x).flatten(1).norm(dim=1), result.distance)


@pytest.mark.parametrize("seed", range(3))
def test_exact_on_a_sphere(seed):
    """3 x 5 x 5 images along the diagonal; those outside of it start from within, where noise does not lead."""
    x = torch.stack([torch.full((3, 5, 5), value) for value in (0.7, 0.75, 0.25, 0.9, 0.55, 0.6)])
    x = (x + 0.02 * torch.randn(x.shape, generator=generator(seed))).clamp(0, 1)
    model, inside = Sphere(), 0.5 + 0.05 * torch.randn(x.shape, generator=generator(seed + 100))
    result = Tangent(L2).nearest(model, x, model(x).argmax(1), starts=inside, generator=generator(seed))
    ratio = result.distance / ((x - 0.5).flatten(1).norm(dim=1) - 2).abs()
    assert (ratio > 1 - 1e-4).all()
    assert (ratio[:4] < 1.01).all()
    assert (ratio[4:] < 1.05).all()  # near the centre every direction is almost as good


def test_fab_goes_on_from_its_starts(case):
    x, fab = case[1], FAB(L2, steps=3, targets=1)
    default, same, other = (fab.nearest(*case, starts=starts) for starts in (None, x, 1 - x))
    assert torch.equal(default.x_adv, same.x_adv)
    assert not torch.equal(default.x_adv, other.x_adv)
    assert (default.queries == 2 * 3).all()


@pytest.mark.parametrize("queries", [200, 1000, 5000])
def test_every_query_is_counted_and_none_is_too_many(queries):
    x, model = torch.rand(7, 1, 1, 2), Line()
    y = Line()(x).argmax(1)
    result = Tangent(L2, queries=queries).nearest(model, x, y, generator=generator())
    overhead = 1 + 2 * len(x)  # a look at the model, and the verdicts before and after
    assert model.asked - overhead == result.queries.sum()
    assert result.queries.max() <= queries
    assert queries == 200 or result.queries.min() > 0.5 * queries


def test_restarts_share_the_queries_and_the_nearest_counts(case):
    rng = ExampleRNG.for_examples(0, torch.arange(10))
    four = Tangent(L2, 4000, restarts=4).nearest(*case, rng=rng)
    first = Tangent(L2, 1000).nearest(*case, rng=rng)
    assert (four.distance <= first.distance).all()
    assert (four.distance < first.distance).any()
    assert (four.queries <= 4000).all()
    assert (four.queries > 3 * first.queries).all()
    within = Tangent(Threat("l2", float(four.distance.median())), 4000, restarts=4)(*case, rng=rng)
    assert (case[0](within).argmax(1) != case[2]).sum() >= 5


@BOTH
def test_draws_belong_to_examples(attack, case):
    (model, x, y), rng = case, ExampleRNG.for_examples(3, torch.arange(10))
    whole = attack.nearest(*case, rng=rng)
    parts = [attack.nearest(model, x[i : i + 4], y[i : i + 4], rng=rng[i : i + 4]) for i in range(0, 10, 4)]
    assert torch.allclose(whole.distance, torch.cat([part.distance for part in parts]), rtol=0.02)
    again = attack.nearest(*case, rng=ExampleRNG.for_examples(4, torch.arange(10)))
    assert isinstance(attack, FAB) or not torch.equal(whole.x_adv, again.x_adv)


@BOTH
def test_what_is_found_fools_the_model_alone_too(attack, conv_net):
    x = torch.rand(10, 3, 8, 8)
    x[0], x[1] = 0.0, 1.0
    y = conv_net(x).argmax(1)
    result = attack.nearest(conv_net, x, y, generator=generator())
    alone = torch.cat([conv_net(one[None]).argmax(1) for one in result.x_adv])
    assert (alone != y)[result.distance.isfinite()].all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()


@BOTH
def test_a_failed_search_has_no_distance(attack, linear):
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 0, 0, 1, 1])
    nn.init.zeros_(linear.map.weight)
    linear.map.bias.data = torch.tensor([3.0, 0])
    result = attack.nearest(linear, x, y, generator=generator())
    assert result.distance[:3].isnan().all()
    assert (result.distance[3:] == 0).all()
    assert (result.queries[3:] == 0).all()
    assert torch.equal(result.x_adv, x)
    if attack is QUICK:
        assert torch.equal(attack(linear, x, y, generator=generator()), x)
        assert (result.queries[:3] == 100).all()


def test_within_a_threat_it_is_an_attack_like_any_other(case):
    (model, x, y), rng = case, ExampleRNG.for_examples(0, torch.arange(10))
    distance = QUICK.nearest(*case, rng=rng).distance
    threat = Threat("l2", float(distance.nanmedian()))
    x_adv = replace(QUICK, threat=threat)(*case, rng=rng)
    assert valid(x_adv, x, threat).all()
    success = model(x_adv).argmax(1) != y
    assert success[distance < 0.9 * threat.eps].all()
    assert not success[distance > 1.2 * threat.eps].any()
    assert torch.equal(replace(QUICK, threat=Threat("l2", 0.0))(*case), x)


def test_a_view_is_walked_and_the_deployed_model_judges():
    inner, other, x = Line(), Linear(2, (1, 1, 2), scale=3.0), torch.rand(8, 1, 1, 2)
    for deployed in (Hidden(inner, open=False), other):
        y = deployed(x).argmax(1)
        result = QUICK.nearest(SurrogateModel(inner, deployed), x, y, generator=generator())
        success = result.distance.isfinite()
        assert (deployed(result.x_adv[success]).argmax(1) != y[success]).all()
        if deployed is not other:  # it decides as the view does
            assert torch.equal(result.x_adv, QUICK.nearest(inner, x, y, generator=generator()).x_adv)


@BOTH
def test_a_stochastic_model_is_refused_and_no_image_is_no_row(attack):
    noisy, x, y = Linear(), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    noisy.stochastic = True
    for search in (attack.nearest, QUICK):
        with pytest.raises(InputError, match="stochastic"):
            search(noisy, x, noisy(x).argmax(1))
    assert attack.nearest(noisy, x[:0], y[:0]).x_adv.shape == (0, 1, 4, 4)
