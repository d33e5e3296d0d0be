"""AutoAttack's parts against their published definitions, and the cascade on models whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from robustlib.attacks import AutoAttack, Square, Threat
from robustlib.attacks.apgd import checkpoints
from robustlib.attacks.fab import to_hyperplane
from robustlib.attacks.square import square_share, square_side
from tests.attacks.conftest import LINF, ROUNDS, batch, generator, name
from tests.conftest import Linear


def test_checkpoints_and_squares_are_the_published_ones():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert max(checkpoints(3)) <= 3
    halvings = {0: 0, 10: 0, 11: 1, 50: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 4500: 7}
    assert {query: square_share(query, 0.8) for query in halvings} == {q: 0.8 / 2**n for q, n in halvings.items()}
    assert [square_side(share, 32, 32) for share in (0.8, 0.4, 0.1, 0.8 / 128, 1e-6)] == [29, 20, 10, 3, 1]
    assert (square_side(1e-6, 32, 32, least=3), square_side(1.0, 8, 6)) == (3, 6)


@pytest.mark.parametrize(("norm", "seed"), [*(("linf", s) for s in range(12)), *(("l2", s) for s in range(4))])
def test_fab_projects_as_a_solver_does(norm, seed):
    rng, n = np.random.default_rng(seed), 9 if norm == "linf" else 6
    x, w = rng.random(n), rng.standard_normal(n) * (rng.random(n) > 0.2)
    offset, box = float(w @ rng.random(n)), [*zip(-x, 1 - x, strict=True)]
    d = to_hyperplane(*map(torch.from_numpy, (x[None], w[None], np.array([offset - w @ x]))), norm)[0].numpy()
    if norm == "linf":  # minimise r subject to |d_i| <= r, w . (x + d) = offset and x + d in [0, 1]
        side = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        settings = {"A_ub": side, "b_ub": np.zeros(2 * n), "A_eq": np.r_[w, 0][None], "b_eq": [offset - w @ x]}
        best = linprog(np.r_[np.zeros(n), 1], **settings, bounds=[*box, (0, None)])
        assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-9)
    else:
        plane = {"type": "eq", "fun": lambda d: w @ (x + d) - offset}
        best = minimize(lambda d: d @ d, np.zeros(n), constraints=[plane], bounds=box, options={"ftol": 1e-14})
        assert np.linalg.norm(d) == pytest.approx(np.sqrt(best.fun), abs=1e-5)
    assert w @ (x + d) == pytest.approx(offset, abs=1e-9)
    assert (np.abs(x + d - 0.5) <= 0.5 + 1e-12).all()


def test_fab_goes_to_the_corner_where_the_box_ends_before_the_plane():
    x, w = torch.rand(3, 4), torch.tensor([[1.0, -1, 2, 0.0]]).expand(3, 4)
    d = to_hyperplane(x, w, torch.full((3,), 50.0), "linf")
    assert torch.allclose((x + d)[:, :3], torch.tensor([1.0, 0, 1]).expand(3, 3))
    assert (d[:, 3] == 0).all()


@pytest.mark.parametrize("attack", ROUNDS, ids=name)
def test_succeeds_exactly_where_a_linear_model_allows(attack):
    """Of two classes with margin m, the ball flips those with m < eps * ||w||_dual, far from the box's sides."""
    strong = replace(attack, **({"queries": 600} if isinstance(attack, Square) else {"steps": 30}))
    model, (x, _) = Linear(2, (1, 4, 4), scale=2.0), batch(n=200, shape=(1, 4, 4))
    x = 0.5 + (x - 0.5) * 0.2
    threat = replace(attack.threat, eps=0.1 if attack.threat.norm == "l2" else 0.05)
    w = model.map.weight[1] - model.map.weight[0]
    with torch.no_grad():
        model.map.bias.copy_(torch.tensor([w.sum() / 2, 0]))  # the boundary passes through the grey image
    logits = model(x).detach()
    y, gap = logits.argmax(1), (logits[:, 1] - logits[:, 0]).abs()
    reach = threat.eps * (w.abs().sum() if threat.norm == "linf" else w.norm()).item()
    success = model(replace(strong, threat=threat)(model, x, y, generator=generator())).argmax(1) != y
    assert not success[gap > reach].any()
    sure = 0.3 if isinstance(attack, Square) and threat.norm == "l2" else 0.97
    assert success[gap < sure * reach].all()
    assert 0 < success.sum() < 200


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_any_number_of_classes(classes):
    parts = AutoAttack(LINF).components(classes)
    assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert parts["apgd-t"].objective == ("dlr" if classes >= 4 else "margin")
    shortened = tuple((k, replace(part, **{"queries" if k == "square" else "steps": 4})) for k, part in parts.items())
    model, x = Linear(classes, (3, 8, 8)), batch(classes)[0]
    y = model(x).argmax(1)
    x_adv = AutoAttack(LINF, "custom", shortened)(model, x, y, generator=generator())
    assert (model(x_adv).argmax(1) != y).any()
    assert next(iter(AutoAttack(LINF, "rand").components(classes))) == "apgd-ce"


def test_the_cascade_attacks_only_what_stands_within_its_ball():
    given, wide = [], Threat("linf", 0.5)

    def far(count):
        def attack(model, x, y, *, generator=None, rng=None):
            given.append(len(x))
            return torch.cat([1 - x[:count], x[count:]])

        return attack

    class Sign(nn.Module):
        def forward(self, x):
            value = x.flatten(1).mean(1, keepdim=True) - 0.5
            return torch.cat([-value, value], 1)

    x, y = torch.full((20, 1, 2, 2), 0.8), (torch.arange(20) >= 3).long()  # three are wrong from the start
    attack = AutoAttack(wide, "custom", (("a", far(4)), ("b", far(0)), ("c", far(13)), ("d", far(1))))
    x_adv = attack(Sign(), x, y)
    assert given == [17, 13, 13]
    assert (Sign()(x_adv).argmax(1) != y).all()
    assert torch.equal(x_adv[:3], x[:3])
    assert torch.allclose(x_adv[3:], torch.tensor(0.3)), "0.2, but for the ball"
