"""PGD against what is known: analytic optima, invariants, peers, and the promises of its docstring."""

import copy
import warnings
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import entropy
from torch import nn

from robustlib.attacks import FGSM, PGD, ExampleRNG, Threat
from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.attacks.objectives import dlr, kl, margin
from robustlib.errors import InputError
from tests.conftest import ConvNet, Linear

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


@given(
    st.sampled_from(["linf", "l2"]),
    st.floats(0, 1),
    st.sampled_from(["ce", "nll", "margin", "dlr", "kl"]),
    st.sampled_from(["uniform", "gaussian", "zero"]),
    st.sampled_from(["32-true", "bf16-mixed"]),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_invariants(norm, eps, objective, start, precision, restarts, early_stop, seed):
    torch.manual_seed(seed)
    model = ConvNet()
    model(torch.rand(8, 3, 6, 6))
    model.train()
    model[1].eval()  # a frozen BatchNorm in a training model
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    before, modes = copy.deepcopy(model), [m.training for m in model.modules()]
    x, y = torch.rand(5, 3, 6, 6), torch.randint(0, 5, (5,))
    kept = x.clone()
    threat = Threat(norm, eps)
    attack = PGD(threat, 3, None, objective, False, start, restarts, 1, early_stop, precision)
    x_adv = attack(model, x, y, generator=torch.Generator().manual_seed(seed))
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())
    assert bool((threat.distance(x_adv, x) <= eps + 1e-6).all())
    assert torch.equal(x, kept)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None


def test_train_mode_attack_restores_statistics_and_differs_from_eval(conv_net):
    x, y = torch.rand(16, 3, 8, 8), torch.randint(0, 5, (16,))
    conv_net.train()
    before = conv_net[1].running_mean.clone()
    results = [
        PGD(Threat("linf", 0.1), batchnorm=mode)(conv_net, x, y, generator=torch.Generator().manual_seed(0))
        for mode in ("train", "eval")
    ]
    assert torch.equal(conv_net[1].running_mean, before)
    assert not torch.equal(*results)


def test_modes_come_back_after_an_error(conv_net):
    conv_net.train()
    with pytest.raises(RuntimeError):
        PGD(LINF)(conv_net, torch.rand(2, 4, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert conv_net.training
    assert all(p.requires_grad for p in conv_net.parameters())


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


def test_draws_belong_to_examples_not_to_batches():
    model, x, y = trained_net()
    attack, rng = PGD(LINF, restarts=2, early_stop=True), ExampleRNG.for_examples(7, torch.arange(35))
    whole = attack(model, x[:35], y[:35], rng=rng)
    parts = [attack(model, x[i : i + 7], y[i : i + 7], rng=rng[torch.arange(i, i + 7)]) for i in range(0, 35, 7)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


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


def test_bf16_successes_are_verified_in_float32():
    class OnlyWrongInBf16(Linear):
        def forward(self, x):
            logits = super().forward(x)
            return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits

    model, x = OnlyWrongInBf16(scale=50.0), inner_images()
    y = model(x).argmax(1)
    x_adv = PGD(Threat("linf", 1e-3), steps=4, start="zero", early_stop=True, precision="bf16-mixed")(model, x, y)
    assert LINF.distance(x_adv, x).min() > 0  # nobody left at the start, where bf16 believed in a success


def test_eot_averages_what_a_noisy_model_shows():
    class Noisy(Linear):
        stochastic = True

        def forward(self, x):
            return super().forward(x) + 30 * torch.randn(len(x), 2) * x.mean((1, 2, 3))[:, None]

    model, x, y = Noisy(), inner_images(64), torch.zeros(64, dtype=torch.int64)
    w = (model.map.weight[1] - model.map.weight[0]).detach().view(1, 1, 4, 4)
    gains = [
        float(
            (w * (PGD(LINF, steps=5, start="zero", objective="margin", eot=n)(model, x, y) - x))
            .flatten(1)
            .sum(1)
            .mean()
        )
        for n in (1, 64)
    ]
    assert gains[1] > 2 * gains[0]


def test_folded_replica_equals_the_model_and_follows_its_weights(conv_net):
    x = torch.rand(8, 3, 8, 8)
    with torch.no_grad():
        twin = fold_batchnorm(conv_net, x, "32-true")
        assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
        assert torch.allclose(twin(x), conv_net(x), atol=1e-5)
        conv_net[0].weight.mul_(1.3)
        conv_net[1].running_var.mul_(2)
        again = fold_batchnorm(conv_net, x, "32-true")
        assert again is twin
        assert torch.allclose(twin(x), conv_net(x), atol=1e-5)


def test_replica_falls_back_where_folding_changes_the_function(conv_net):
    class Lies(nn.Sequential):
        def forward(self, x):  # BatchNorm does not follow the convolution
            return self[4](self[3](self[2](self[0](self[1](x)))))

    model = Lies(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    for _ in range(3):
        model(torch.rand(32, 8, 8, 8) * 3)
    assert fold_batchnorm(model.eval(), torch.rand(4, 8, 8, 8), "32-true") is None


@pytest.mark.parametrize("change", ["setting", "tensor", "hook"])
def test_replica_notices_whatever_changes_the_function(change):
    class Switch(ConvNet):
        flipped = False
        gain = torch.ones(())

        def forward(self, x):
            return super().forward(x) * (-1 if self.flipped else 1) * self.gain

    model, x = Switch(), torch.rand(8, 3, 8, 8)
    model(x)
    model.eval()
    model.gain = torch.ones(())
    with torch.no_grad():
        assert torch.allclose(fold_batchnorm(model, x, "32-true")(x), model(x), atol=1e-5)
        if change == "setting":
            model.flipped = True
        elif change == "tensor":
            model.gain.mul_(3)
        else:
            model.register_forward_hook(lambda module, inputs, output: 2 * output)
        assert torch.allclose(fold_batchnorm(model, x, "32-true")(x), model(x), atol=1e-5)


def test_a_fresh_model_hides_no_wrong_fold():
    class Lies(nn.Sequential):
        def forward(self, x):  # BatchNorm comes first, and nearly is the identity in a fresh model
            return self[4](self[3](self[2](self[0](self[1](x)))))

    model = Lies(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)).eval()
    assert fold_batchnorm(model, torch.rand(4, 8, 8, 8), "32-true") is None


@pytest.mark.parametrize("threat", [Threat("linf", 0.02), Threat("l2", 0.15)], ids=str)
def test_averaging_samples_of_a_deterministic_confident_model_changes_nothing(threat):
    model, x, y = trained_net()
    with torch.no_grad():
        model[4].weight.mul_(100)
        model[4].bias.mul_(100)
    found = [PGD(threat, steps=10, start="zero", eot=n)(model, x, y) for n in (1, 2)]
    assert torch.allclose(*found, atol=1e-4)


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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"step_size": -1.0}, "step_size"),
        ({"objective": "mergin"}, "'margin'"),
        ({"precision": "fp16"}, "bf16-mixed"),
        ({"batchnorm": "frozen"}, "batchnorm 'frozen'"),
        ({"targeted": True, "objective": "kl"}, "no target"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(InputError, match=says):
        PGD(LINF, **settings)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((2, 1, 4, 4), 255.0), "divide grey levels by 255"),
        (torch.full((2, 1, 4, 4), float("nan")), r"\[0, 1\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "float images"),
    ],
)
def test_bad_images(linear, x, says):
    with pytest.raises(InputError, match=says):
        PGD(LINF)(linear, x, torch.zeros(2, dtype=torch.int64))


def test_labels_out_of_range(linear):
    with pytest.raises(InputError, match="model of 2 classes"):
        PGD(LINF)(linear, inner_images(2), torch.tensor([0, 7]))
    with pytest.raises(InputError, match="model of 2 classes"):
        PGD(LINF, targeted=True)(linear, inner_images(2), torch.tensor([0, 1]), target=torch.tensor([1, -1]))


def test_softmax_outputs_warn(linear):
    model = nn.Sequential(linear, nn.Softmax(1))
    with pytest.warns(UserWarning, match="softmax"):
        PGD(LINF)(model, inner_images(), torch.zeros(6, dtype=torch.int64))


def test_repr_is_the_protocol():
    attack = PGD(Threat("linf", 8 / 255), steps=20, restarts=5)
    assert eval(repr(attack)) == attack
    assert replace(attack, steps=1) != attack


def test_no_images_no_work(linear):
    assert PGD(LINF)(linear, torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 4, 4)
