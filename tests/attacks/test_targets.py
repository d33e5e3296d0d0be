"""Which classes a targeted attack goes for, and the probability margin: against formulas written down again."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from robustlib.attacks import APGD, Threat
from robustlib.attacks.apgd import linear_distances, ranked_classes
from robustlib.attacks.base import AttackBatch, attack_context
from robustlib.attacks.objectives import gap, margin, probability_margin
from robustlib.rng import ExampleRNG
from tests.attacks.conftest import L2, LINF, batch, generator
from tests.conftest import ConvNet, Linear


def test_the_probability_margin_equals_its_formula():
    logits, y, target = np.random.default_rng(0).normal(0, 3, (40, 6)), np.arange(40) % 6, (np.arange(40) + 2) % 6
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows, others = np.arange(40), p.copy()
    others[rows, y] = -1
    z, labels, aims = torch.from_numpy(logits), torch.from_numpy(y), torch.from_numpy(target)
    assert np.allclose(probability_margin(z, labels), others.max(1) - p[rows, y])
    assert np.allclose(probability_margin(z, labels, aims), p[rows, target] - p[rows, y])
    assert np.allclose(gap(z, labels, aims), logits[rows, target] - logits[rows, y])
    assert torch.equal(gap(z, labels), margin(z, labels))
    assert torch.equal(probability_margin(z, labels) > 0, margin(z, labels) > 0), "the same images are adversarial"


def test_the_gradient_of_the_probability_margin_weighs_all_classes():
    """By the logits: p_m (1[k = m] - p_k) - p_y (1[k = y] - p_k), which is not that of the margin (m against y only)."""
    z = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    y, p = torch.arange(30) % 5, z.detach().softmax(1)
    (slope,) = torch.autograd.grad(probability_margin(z, y).sum(), z)
    rival = p.scatter(1, y[:, None], -1).argmax(1)
    one = nn.functional.one_hot
    pm, py = (p.gather(1, k[:, None]) for k in (rival, y))
    assert torch.allclose(slope, pm * (one(rival, 5) - p) - py * (one(y, 5) - p))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_of_a_linear_model_are_exact_and_rank_its_classes(norm):
    torch.manual_seed(0)
    model, (x, _) = Linear(6, scale=3.0).double(), batch(n=12, shape=(1, 4, 4))
    with torch.no_grad():
        model.map.weight.mul_(torch.tensor([1.0, 0.2, 3.0, 1.0, 0.5, 2.0])[:, None])  # unequal: logits rank otherwise
    x, threat = 0.5 + 0.01 * (x.double() - 0.5), Threat(norm, 0.3)
    logits = model(x).detach()
    y = logits.argmax(1)
    wanted = torch.full((12, 6), torch.inf, dtype=torch.float64)
    for n in range(12):
        for k in set(range(6)) - {int(y[n])}:
            w = (model.map.weight[k] - model.map.weight[y[n]]).detach().numpy()
            missing = float(logits[n, y[n]] - logits[n, k])
            wanted[n, k] = missing / np.linalg.norm(w)
            if norm == "linf":  # the least r with |d_i| <= r and w . d = missing
                side = np.block([[np.eye(16), -np.ones((16, 1))], [-np.eye(16), -np.ones((16, 1))]])
                plane = {"A_eq": np.r_[w, 0][None], "b_eq": [missing], "bounds": [(None, None)] * 17}
                wanted[n, k] = linprog(np.r_[np.zeros(16), 1], A_ub=side, b_ub=np.zeros(32), **plane).fun
    with attack_context(model, x, (y,)) as oracle:
        every = torch.arange(6).repeat(12, 1)
        found = linear_distances(oracle, AttackBatch(x, y), every, 1, threat)
        others = every != y[:, None]
        assert torch.allclose(found[others], wanted[others], rtol=1e-6)
        ranks = ranked_classes(oracle, AttackBatch(x, y), 3, 1, threat)
        likely = ranked_classes(oracle, AttackBatch(x, y), 3, 1)
    assert torch.equal(ranks, wanted.argsort(1)[:, :3])
    assert (ranks != likely).any()


def test_the_nearest_class_is_the_first_target_and_one_is_enough():
    """Two rivals: one likelier and out of reach, one less likely and near. One target by logits fails, one by MALT does not."""
    model, x = Linear(3, (1, 2, 2)), torch.full((8, 1, 2, 2), 0.5)
    with torch.no_grad():
        model.map.weight.copy_(torch.tensor([[0.0] * 4, [0.1] * 4, [5.0] * 4]))
        model.map.bias.copy_(torch.tensor([0.0, -0.3, -11.0]))
    y, threat = torch.zeros(8, dtype=torch.int64), Threat("linf", 0.1)
    settings = {"steps": 8, "objective": "margin", "targets": 1}
    by_logits = APGD(threat, **settings)(model, x, y, generator=generator())
    by_malt = APGD(threat, **settings, ranking="malt")(model, x, y, generator=generator())
    assert (model(by_logits).argmax(1) == 0).all()
    assert (model(by_malt).argmax(1) == 2).all()


def test_candidates_are_likely_and_a_class_without_gradient_is_last(monkeypatch):
    class Flat(nn.Module):
        """Class 1 is likeliest, but no pixel moves it nearer; nor does any move class 0."""

        def forward(self, x):
            value = x.flatten(1).sum(1)
            return torch.stack([value.detach() * 0 + 3, value.detach() * 0 + 2, value, -value, -9 * value], 1)

    x, y = torch.full((4, 1, 2, 2), 0.1), torch.zeros(4, dtype=torch.int64)
    with attack_context(Flat(), x, (y,)) as oracle:
        assert ranked_classes(oracle, AttackBatch(x, y), 4, 1, LINF)[0].tolist() == [4, 2, 3, 1]
        monkeypatch.setattr("robustlib.attacks.apgd.CANDIDATES", 3)
        assert ranked_classes(oracle, AttackBatch(x, y), 2, 1, LINF)[0].tolist() == [2, 3]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_both_find_what_other_objectives_find_on_a_small_network(threat):
    torch.manual_seed(0)
    model, (x, _) = ConvNet().eval(), batch()
    with torch.no_grad():
        y = model(x).argmax(1)
    rng = ExampleRNG.for_examples(0, torch.arange(len(x)))
    broken = {}
    for name, settings in {
        "dlr": {"objective": "dlr", "targets": 4},
        "malt": {"objective": "dlr", "targets": 4, "ranking": "malt"},
        "pma": {"objective": "probability_margin"},
        "pma-t": {"objective": "probability_margin", "targets": 4},
    }.items():
        x_adv = APGD(threat.scaled(0.3), 20, **settings)(model, x, y, rng=rng)
        broken[name] = int((model(x_adv).argmax(1) != y).sum())
    assert 2 <= min(broken.values()) <= max(broken.values()) <= 22, broken
    assert max(broken.values()) - min(broken.values()) <= 1, broken
