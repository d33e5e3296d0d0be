"""PGD against what is known: analytic optima, invariants, peers, and the promises of its docstring."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from robustlib.attacks import FGSM, PGD, ExampleRNG, Threat
from robustlib.attacks.objectives import dlr, kl, margin
from robustlib.errors import InputError
from tests.conftest import Linear

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.3)


def inner_images(n=6, shape=(1, 4, 4)):
    return 0.4 + 0.2 * torch.rand(n, *shape)  # so that the box does not bind


# ---- analytic optimum: on a two-class linear model the margin moves by eps times the dual norm of w_1 - w_0


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("objective", ["ce", "margin"])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_reaches_the_analytic_optimum_of_a_linear_model(linear, threat, objective, targeted):
    x, y = inner_images(), torch.tensor([0, 1] * 3)
    attack = PGD(threat, steps=60, step_size=threat.eps / 4, objective=objective, targeted=targeted)
    x_adv = attack(linear, x, y, target=1 - y if targeted else None)
    w = (linear.map.weight[1] - linear.map.weight[0]).detach()
    dual = w.abs().sum() if threat.norm == "linf" else w.norm()
    moved = (linear(x_adv) - linear(x)).detach() @ torch.tensor([-1.0, 1.0]) * (1 - 2 * y)
    assert torch.allclose(moved, (threat.eps * dual).expand(6), rtol=1e-3)


@pytest.mark.parametrize("targeted", [False, True])
def test_nll_of_log_probabilities_is_the_cross_entropy(conv_net, targeted):
    class LogProbabilities(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).log_softmax(1)

    x, y = torch.rand(6, 3, 8, 8), torch.randint(0, 5, (6,))
    found = [
        PGD(LINF, objective=objective, start="zero", targeted=targeted)(
            model, x, y, target=(y + 1) % 5 if targeted else None
        )
        for objective, model in (("ce", conv_net), ("nll", LogProbabilities(conv_net)))
    ]
    assert (found[0] - found[1]).abs().max() < 1e-6
    assert LINF.distance(found[0], x).min() > 0.09


def test_fgsm_is_the_optimum_in_one_step(linear):
    x, y = inner_images(), torch.zeros(6, dtype=torch.int64)
    w = linear.map.weight[1] - linear.map.weight[0]
    assert torch.allclose(FGSM(LINF)(linear, x, y), x + 0.1 * w.sign().view(1, 1, 4, 4))


def test_confident_examples_keep_a_gradient(linear):
    """In float32 the cross-entropy's gradient is exactly zero here, and the attack would stand still."""
    with torch.no_grad():
        linear.map.weight.mul_(0).add_(torch.eye(2).repeat_interleave(8, 1) * 40)
    x = torch.full((2, 1, 4, 4), 0.4)
    x[:, :, :2] = 0.9
    y = linear(x).argmax(1)
    assert linear(x).softmax(1).max() == 1
    assert LINF.distance(FGSM(LINF)(linear, x, y), x).min() > 0.0999


# ---- invariants


def test_nan_gradients_leave_the_image_whole():
    class Broken(Linear):
        def forward(self, x):
            return super().forward(x).sub(1e3).clamp_min(0).sqrt()

    x = inner_images()
    x_adv = PGD(LINF, start="zero")(Broken(), x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(x_adv, x)


# ---- peers, from the same start points


def trained_net():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.rand(400, 1, 8, 8)
    y = x.view(400, 2, 4, 2, 4).mean((2, 4)).flatten(1).argmax(1)  # the brightest quarter
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), x[:300], y[:300]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_same_predictions_as_torchattacks(norm):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = trained_net()
    eps = 0.03 if norm == "linf" else 0.2
    torch.manual_seed(3)
    if norm == "linf":
        theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10, random_start=True)(x, y)
        torch.manual_seed(3)
        start = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)  # as it draws its start
    else:
        theirs = torchattacks.PGDL2(model, eps=eps, alpha=eps / 4, steps=10, random_start=False)(x, y)
        start = x
    ours = PGD(Threat(norm, eps), steps=10, step_size=eps / 4)(model, x, y, start=start)
    changed = model(ours).argmax(1) != model(theirs).argmax(1)
    assert (model(ours).argmax(1) == y).float().mean() < 0.9 * (model(x).argmax(1) == y).float().mean()
    assert changed.float().mean() <= 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_same_predictions_as_foolbox(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 (2024) imports with deprecation warnings
        foolbox = pytest.importorskip("foolbox")
    import eagerpy

    model, x, y = trained_net()
    eps = 0.03 if norm == "linf" else 0.2
    start = Threat(norm, eps).random_start(x, torch.rand_like(x), torch.randn_like(x))
    base = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD

    class FromStart(base):
        def get_random_start(self, x0, epsilon):
            return eagerpy.astensor(start)

    peer = FromStart(abs_stepsize=eps / 4, steps=10, random_start=True)
    _, theirs, _ = peer(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=eps)
    ours = PGD(Threat(norm, eps), steps=10, step_size=eps / 4)(model, x, y, start=start)
    assert (model(ours).argmax(1) != model(theirs).argmax(1)).float().mean() <= 0.01


# ---- the promises of the docstring


def test_draws_are_uniform_and_normal_and_differ():
    rng = ExampleRNG.for_examples(0, torch.arange(200))
    u, z = rng.uniform(50), rng.fold_in(1).normal(50)
    assert abs(float(u.mean()) - 0.5) < 0.01
    assert abs(float(u.std()) - 12**-0.5) < 0.01
    assert abs(float(z.mean())) < 0.03
    assert abs(float(z.std()) - 1) < 0.03
    assert len(u.unique()) > 9900
    assert abs(float(torch.corrcoef(u[:2])[0, 1])) < 0.5
    assert not torch.equal(u, ExampleRNG.for_examples(1, torch.arange(200)).uniform(50))


def test_generator_seeds_the_attack():
    model, x, y = trained_net()
    runs = [PGD(LINF)(model, x[:9], y[:9], generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_restarts_and_early_stop_never_lose_a_success():
    model, x, y = trained_net()
    threat, rng = Threat("linf", 0.02), ExampleRNG.for_examples(0, torch.arange(300))
    broken = {}
    for name, attack in {
        "last iterate": PGD(threat, steps=5),
        "any iterate": PGD(threat, steps=5, early_stop=True),
        "restarts": PGD(threat, steps=5, restarts=4, early_stop=True),
    }.items():
        broken[name] = model(attack(model, x, y, rng=rng)).argmax(1) != y
    assert bool((broken["last iterate"] <= broken["any iterate"]).all())
    assert bool((broken["any iterate"] <= broken["restarts"]).all())
    assert broken["restarts"].sum() > 0


# ---- objectives


def test_dlr_equals_its_formula():
    z, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(0, 6, (50,))
    target = (y + 2) % 6
    plain, targeted = [], []
    for row, label, goal in zip(z.numpy(), y.tolist(), target.tolist(), strict=True):
        s = np.sort(row)[::-1]
        other = max(v for k, v in enumerate(row) if k != label)
        plain.append(-(row[label] - other) / (s[0] - s[2]))
        targeted.append(-(row[label] - row[goal]) / (s[0] - (s[2] + s[3]) / 2))
    assert np.allclose(dlr(z, y), plain)
    assert np.allclose(dlr(z, y, target), targeted)
    assert torch.allclose(dlr(3 * z + 1, y), dlr(z, y))


def test_kl_and_margin_equal_their_formulas():
    z, other, y = torch.randn(20, 4).double(), torch.randn(20, 4).double(), torch.randint(0, 4, (20,))
    assert np.allclose(kl(other, z), entropy(z.softmax(1).T, other.softmax(1).T))
    wrong = [
        max(v for k, v in enumerate(row) if k != i) - row[i] for row, i in zip(z.tolist(), y.tolist(), strict=True)
    ]
    assert np.allclose(margin(z, y), wrong)


def test_dlr_needs_three_classes(linear):
    with pytest.raises(InputError, match="3 classes"):
        PGD(LINF, objective="dlr")(linear, inner_images(), torch.zeros(6, dtype=torch.int64))


# ---- bad input


def test_repr_is_the_protocol():
    attack = PGD(Threat("linf", 8 / 255), steps=20, restarts=5)
    assert eval(repr(attack)) == attack
    assert replace(attack, steps=1) != attack
