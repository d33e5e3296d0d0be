"""PGD against what is known: analytic optima, invariants, peers, and the promises of its docstring."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, kstest, norm

from robustlib.attacks import FGSM, PGD, BatchPGD, ExampleRNG, Threat
from robustlib.attacks.objectives import dlr, kl, margin
from robustlib.errors import InputError
from robustlib.evaluation import valid
from robustlib.losses import nt_xent
from robustlib.rng import uniform_point
from tests.attacks.conftest import batch, generator
from tests.conftest import Linear

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.3)


def inner_images(n=6, shape=(1, 4, 4)):
    return 0.4 + 0.2 * torch.rand(n, *shape)  # so that the box does not bind


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("objective", ["ce", "margin"])
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_reaches_the_analytic_optimum_of_a_linear_model(linear, threat, objective, targeted):
    """The margin of two classes moves by eps times the dual norm of w_1 - w_0."""
    x, y = inner_images(), torch.tensor([0, 1] * 3)
    attack = PGD(threat, steps=60, step_size=threat.eps / 4, objective=objective, targeted=targeted)
    x_adv = attack(linear, x, y, target=1 - y if targeted else None)
    w = (linear.map.weight[1] - linear.map.weight[0]).detach()
    dual = w.abs().sum() if threat.norm == "linf" else w.norm()
    gained = (linear(x_adv) - linear(x)).detach() @ torch.tensor([-1.0, 1.0]) * (1 - 2 * y)
    assert torch.allclose(gained, (threat.eps * dual).expand(6), rtol=1e-3)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (lambda x: x[:1], r"start is torch.float32 \(1, .*: it must be finite images"),
        (lambda x: torch.full_like(x, torch.nan), "it must be finite images"),
        (lambda x: x * torch.inf, "it must be finite images"),
        (lambda x: x.tolist(), "start is a list"),
    ],
)
def test_a_first_iterate_is_finite_images(linear, start, said):
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match=said):
        PGD(LINF)(linear, x, y, start=start(x))


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_first_iterate_enters_the_ball(linear, threat):
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    far = (1000 * torch.randn_like(x)).double()
    x_adv = PGD(threat, steps=1, step_size=1e-6)(linear, x, y, start=far)
    assert valid(x_adv, x, threat).all()
    assert torch.allclose(x_adv, threat.project(far.float(), x), atol=1e-5), "it begins where it is told to"


def test_fgsm_is_the_optimum_in_one_step(linear):
    x, y = inner_images(), torch.zeros(6, dtype=torch.int64)
    w = linear.map.weight[1] - linear.map.weight[0]
    assert torch.allclose(FGSM(LINF)(linear, x, y), x + 0.1 * w.sign().view(1, 1, 4, 4))
    assert FGSM(LINF).steps == 1


def test_confident_examples_keep_a_gradient(linear):
    """In float32 the cross-entropy's gradient is exactly zero here."""
    with torch.no_grad():
        linear.map.weight.mul_(0).add_(torch.eye(2).repeat_interleave(8, 1) * 40)
    x = torch.full((2, 1, 4, 4), 0.4)
    x[:, :, :2] = 0.9
    y = linear(x).argmax(1)
    assert linear(x).softmax(1).max() == 1
    assert LINF.distance(FGSM(LINF)(linear, x, y), x).min() > 0.0999


def test_nan_gradients_leave_the_image_whole():
    class Undefined(Linear):
        def forward(self, x):
            return super().forward(x).sub(1e3).clamp_min(0).sqrt()

    x = inner_images()
    x_adv = PGD(LINF, start="zero")(Undefined(), x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(x_adv, x)


def test_in_bf16_the_kl_attack_leaves_the_image_as_in_float32(conv_net):
    """x + 0.001 N(0, I) is x in bf16, and its logits are those of x: the first step would follow rounding."""
    (x, y), threat = batch(), Threat("linf", 8 / 255)
    bf16 = PGD(threat, 1, objective="kl", start="gaussian", precision="bf16-mixed")
    exact = replace(bf16, precision="32-true")
    assert torch.equal(*(attack(conv_net, x, y, generator=generator()) for attack in (bf16, exact)))
    far = [replace(attack, steps=3, restarts=2)(conv_net, x, y, generator=generator()) for attack in (bf16, exact)]
    assert not torch.equal(*far)  # the other steps are in bf16
    stays = replace(bf16, steps=3, early_stop=True)(conv_net, x, (conv_net(x).argmax(1) + 1) % 5, generator=generator())
    assert (stays - x).abs().max() < 0.01, "what is wrong at the start is a success there"
    with torch.no_grad():
        reached = [kl(conv_net(x_adv), conv_net(x)).mean().item() for x_adv in far]
    assert reached[0] == pytest.approx(reached[1], rel=0.05)


def test_random_numbers_are_a_hash_in_three_forms():
    """SplitMix64: 23 bits of it for `uniform` and `normal`, two times 23 for `quick_normal`."""
    rng = ExampleRNG.for_examples(0, torch.arange(20))
    u, z, quick = drawn = rng.uniform(3, 1667), rng.normal(3, 1667), rng.quick_normal(3, 1667)  # an odd number
    for numbers, law in zip(drawn, ("uniform", "norm", "norm"), strict=True):
        assert numbers.shape == (20, 3, 1667)
        assert len(numbers.unique()) > 98_000, "examples share none"
        assert kstest(numbers.flatten().numpy(), law).pvalue > 0.001
    for other in (ExampleRNG.for_examples(1, torch.arange(20)), rng.fold_in(1)):
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.uniform(5001).flatten()]))[0, 1])) < 0.02
    assert not (rng.fold_in(0).seeds == rng.fold_in(1).seeds).any()
    assert torch.equal(z, torch.special.ndtri(u + 2.0**-24)), "never infinite"
    for j in range(4):
        h = (int(rng.seeds[7]) + (j + 1) * 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
        assert u[7, 0, j] == (h >> 41) / 2**23
        for half, k in enumerate((h % 2**32, h >> 32)):
            k -= 2**32 * (k >= 2**31)  # as int32 holds it
            assert quick[7, 0, 2 * j + half] == pytest.approx(norm.ppf(0.5 + (k // 2**9 + 0.5) / 2**23), rel=1e-4)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_batch_pgd_is_the_loop_written_out(threat, conv_net):
    x, fixed = torch.rand(12, 3, 8, 8), torch.randn(12, 5)
    before = copy.deepcopy(conv_net.train().state_dict())
    x_adv = BatchPGD(threat, 4, 0.03)(conv_net, x, lambda m, v: nt_xent(m(v), fixed), generator=generator(5))
    assert conv_net.training
    assert all(torch.equal(value, before[key]) for key, value in conv_net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in conv_net.eval().parameters())
    at = start = uniform_point(threat, x, ExampleRNG.from_generator(generator(5), 12, x.device))
    for _ in range(4):
        at.requires_grad_(True)
        (g,) = torch.autograd.grad(nt_xent(conv_net(at), fixed), at)
        if threat.norm == "linf":
            at = (x + (at + 0.03 * g.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1).detach()
        else:
            delta = at + 0.03 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
            at = (x + delta * (0.3 / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)).clamp(0, 1).detach()
    assert (x_adv - at).abs().gt(1e-4).float().mean() < 0.02  # a sign may flip where a gradient is nearly 0
    assert nt_xent(conv_net(x_adv), fixed) > nt_xent(conv_net(start), fixed)
    assert threat.distance(x_adv, x).max() <= threat.eps + 1e-6


def test_objectives_equal_their_formulas():
    z, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(0, 6, (50,))
    target = (y + 2) % 6
    plain, targeted, margins = [], [], []
    for row, label, goal in zip(z.numpy(), y.tolist(), target.tolist(), strict=True):
        s = np.sort(row)[::-1]
        other = max(v for k, v in enumerate(row) if k != label)
        margins.append(other - row[label])
        plain.append(margins[-1] / (s[0] - s[2]))
        targeted.append(-(row[label] - row[goal]) / (s[0] - (s[2] + s[3]) / 2))
    assert np.allclose(dlr(z, y), plain)
    assert np.allclose(dlr(z, y, target), targeted)
    assert torch.allclose(dlr(3 * z + 1, y), dlr(z, y))
    assert np.allclose(margin(z, y), margins)
    assert np.allclose(kl(z.flip(0), z), entropy(z.softmax(1).T, z.flip(0).softmax(1).T))
