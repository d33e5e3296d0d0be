"""One whole update of each method that trains on attacks, against the update written out in plain torch."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import ExampleRNG
from robustlib.errors import InputError
from robustlib.losses import mart_loss
from robustlib.methods import METHODS, make_method
from robustlib.methods.base import perturbed_weights
from robustlib.models import build_model
from tests.training_fixtures import step_context

SEED, EPS, BATCH = 5, 0.2, 16  # of the update's generator; of digits; images
LR, DECAY = 0.05, 0.01


def fresh(dataset):
    """A small CNN with BatchNorm and a batch, in float64: no sign of a gradient is in doubt."""
    torch.manual_seed(0)
    model = build_model("small_cnn", dataset).double().train()
    batch = next(dataset.train.batches(BATCH, augment="none"))
    return model, SimpleNamespace(x=batch.x.double(), y=batch.y)


def updated(name, dataset, epoch=0, **settings):
    """The model after a method's first update, driven as the loop does."""
    model, batch = fresh(dataset)
    stage = make_method(name, "digits", lr=LR, weight_decay=DECAY, **settings).stages(dataset, model)[0]
    optimiser = stage.optimisers["model"].build()
    for _, loss in stage.passes[0].updates(batch, step_context(epoch)):
        loss.total.backward()
        optimiser.step()
    return model


def descended(model, loss):
    """The restated step: w - lr (gradient + decay w), and what the loss's forward passes do to BatchNorm."""
    gradients = torch.autograd.grad(loss(model), list(model.parameters()))
    with torch.no_grad():
        for w, g in zip(model.parameters(), gradients, strict=True):
            w -= LR * (g + DECAY * w)
    return model


def attacked(model, batch, start, steps, length, radius, mode):
    """x' = clip(x + clip(x' + length sign(gradient) - x)), with BatchNorm in `mode` on a copy.

    As robustlib's search does, each example's loss is divided by its largest derivative by a logit. Without BatchNorm's batch
    statistics that changes no sign; with them, where examples see each other, it does.
    """
    model, x_adv = copy.deepcopy(model).train(mode == "train"), start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        z = model(x_adv)
        largest = (z.softmax(1) - F.one_hot(batch.y, 10)).abs().amax(1).detach()
        (g,) = torch.autograd.grad((F.cross_entropy(z, batch.y, reduction="none") / largest).sum(), x_adv)
        x_adv = (batch.x + (x_adv + length * g.sign() - batch.x).clamp(-radius, radius)).clamp(0, 1)
    return x_adv.detach()


def noise(kind, forked=True):
    rng = ExampleRNG.from_generator(torch.Generator().manual_seed(SEED), BATCH, torch.device("cpu"))
    rng = rng.fold_in(0) if forked else rng
    return (2 * rng.uniform(1, 8, 8) - 1 if kind == "uniform" else rng.normal(1, 8, 8)).double()


def same(a, b):
    """All weights and statistics agree; losses are taken in float32, everything else here in float64."""
    pairs = zip(a.state_dict().items(), b.state_dict().values(), strict=True)
    assert not {name: far.item() for (name, v), w in pairs if (far := (v - w).abs().max()) > 1e-6}


def bce(z_adv, y):
    """The boosted cross-entropy, image by image, with the released 1.0001."""
    rows = [(p[k], torch.cat((p[:k], p[k + 1 :])).max()) for p, k in zip(z_adv.softmax(1), y.tolist(), strict=True)]
    return torch.stack([-right.log() - (1.0001 - other).log() for right, other in rows]).mean()


def mart_restated(z, z_adv, y, beta):
    p, q = z.softmax(1), z_adv.softmax(1)
    rows = [(p[i] * (p[i].log() - q[i].log())).sum() * (1 - p[i, k]) for i, k in enumerate(y.tolist())]
    return bce(z_adv, y) + beta * torch.stack(rows).mean()


def released_trades(m, x, x_adv, y, beta=6.0):
    """trades.py: x, then x', then x again, each a pass in train mode; KL summed over classes, divided by the batch."""
    ce = F.cross_entropy(m(x), y)
    log_q = F.log_softmax(m(x_adv), dim=1)
    return ce + beta / len(x) * F.kl_div(log_q, F.softmax(m(x), dim=1), reduction="sum")


def test_a_trades_update_is_the_one_written_out(digits):
    model, batch = fresh(digits)
    still = copy.deepcopy(model).eval()
    clean = still(batch.x).softmax(1).detach()
    x_adv = (batch.x + 0.001 * noise("normal")).clamp(0, 1)
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_(True)
        kl = F.kl_div(still(x_adv).log_softmax(1), clean, reduction="sum")
        x_adv = x_adv + EPS / 4 * torch.autograd.grad(kl, x_adv)[0].sign()
        x_adv = (batch.x + (x_adv - batch.x).clamp(-EPS, EPS)).clamp(0, 1)
    after = updated("trades", digits)
    same(after, descended(model, lambda m: released_trades(m, batch.x, x_adv.detach(), batch.y)))
    assert after.encoder.stage1[1].num_batches_tracked == 3


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_a_mart_update_is_the_one_written_out(digits, beta):
    model, batch = fresh(digits)
    start = (batch.x + (0.001 * noise("normal")).clamp(-EPS, EPS)).clamp(0, 1)
    x_adv = attacked(model, batch, start, 10, EPS / 4, EPS, "eval")
    after = updated("mart", digits, beta=beta)
    same(after, descended(model, lambda m: mart_restated(m(batch.x), m(x_adv), batch.y, beta)))
    assert after.encoder.stage1[1].num_batches_tracked == 2  # x and x', each by itself


def test_the_parts_of_mart_loss_are_its_two_terms():
    (z, z_adv), y = torch.randn(2, 8, 5, dtype=torch.float64), torch.randint(0, 5, (8,))
    total, parts = mart_loss(z, z_adv, y, 3.0)
    expected, boosted = mart_restated(z, z_adv, y, 3.0).item(), bce(z_adv, y).item()
    found = [total.item(), parts["bce"].item(), parts["kl"].item()]
    assert found == pytest.approx([expected, boosted, (expected - boosted) / 3], rel=1e-4)


def test_mart_loss_of_uniform_and_of_certain_predictions():
    y, flat = torch.tensor([0, 1, 2, 3]), torch.zeros(4, 4)
    sure = 200 * F.one_hot(y, 4).float()
    wrong = sure.roll(1, 0).requires_grad_(True)
    for z, z_adv, value in (
        (flat, flat, -np.log(0.25) - np.log(0.7501)),
        (sure, sure, -np.log(1.0001)),
        (sure, wrong, 200 - np.log(1e-4)),  # certainly wrong: finite, and a certain clean prediction weighs nothing
    ):
        total, parts = mart_loss(z, z_adv, y, 5.0)
        assert total.item() == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert parts["kl"] == 0
    assert torch.autograd.grad(total, wrong)[0].isfinite().all()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("factor", [1.25, 0.5])
def test_an_fgsm_rs_update_is_the_one_written_out(digits, factor, mode):
    model, batch = fresh(digits)
    start = (batch.x + EPS * noise("uniform")).clamp(0, 1)
    x_adv = attacked(model, batch, start, 1, factor * EPS, EPS, mode)
    expected = descended(model, lambda m: F.cross_entropy(m(x_adv), batch.y))
    same(updated("fgsm_rs", digits, step_factor=factor, attack_batchnorm=mode), expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("k", [2.0, 0.5, 0.0])
def test_an_n_fgsm_update_is_the_one_written_out_without_projection(digits, k, mode):
    model, batch = fresh(digits)
    start = (batch.x + k * EPS * noise("uniform", forked=False)).clamp(0, 1)
    x_adv = attacked(model, batch, start, 1, EPS, 9.0, mode)
    if k:
        assert (x_adv - batch.x).abs().max() > 1.2 * EPS
    expected = descended(model, lambda m: F.cross_entropy(m(x_adv), batch.y))
    same(updated("n_fgsm", digits, noise=k, attack_batchnorm=mode), expected)


@pytest.mark.parametrize(("name", "least", "most"), [("fgsm_rs", 0.8, 1.0), ("n_fgsm", 2.0, 3.0)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5), ("linf", 0.0)])
def test_fast_attacks_reach_as_far_as_they_should(digits, name, least, most, norm, eps):
    model, batch = fresh(digits)
    method = make_method(name, "digits", norm=norm, eps=eps)
    x_adv = method.attacked(method.inner_attack(digits), model, batch, step_context())
    reached = method.threat(digits).distance(x_adv, batch.x)
    assert least * eps <= reached.max() <= most * eps + 1e-9
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


# ---- adversarial weight perturbation


def awp_restated(model, loss, gamma):
    """The released update: a proxy's ascent step, w + gamma diff, a step of SGD, w - gamma diff."""
    proxy = copy.deepcopy(model)
    (-loss(proxy)).backward()
    torch.optim.SGD(proxy.parameters(), lr=0.01).step()
    diffs = []
    for (name, w), v in zip(model.named_parameters(), proxy.parameters(), strict=True):
        if "weight" in name and w.ndim > 1:
            delta = (v - w).detach()
            diffs.append((w, w.detach().norm() / (delta.norm() + 1e-20) * delta))
    for w, diff in diffs:
        w.data.add_(gamma * diff)
    descended(model, loss)
    for w, diff in diffs:
        w.data.sub_(gamma * diff)
    return model


LOSSES = {
    "pgd_at": lambda m, x, x_adv, y: F.cross_entropy(m(x_adv), y),
    "trades": released_trades,
    "mart": lambda m, x, x_adv, y: mart_restated(m(x), m(x_adv), y, 5.0),
    "n_fgsm": lambda m, x, x_adv, y: F.cross_entropy(m(x_adv), y),
}


@pytest.mark.parametrize("gamma", [0.01, 0.3])
@pytest.mark.parametrize("name", LOSSES)
def test_an_update_with_awp_is_the_one_written_out(digits, name, gamma, monkeypatch):
    model, batch = fresh(digits)
    seen, kind = [], METHODS[name]
    real = kind.attacked
    monkeypatch.setattr(kind, "attacked", lambda *args: seen.append(real(*args)) or seen[-1])
    after = updated(name, digits, awp_gamma=gamma)
    (x_adv,) = seen  # found before the weights move; the attacks themselves are tested above
    same(after, awp_restated(model, lambda m: LOSSES[name](m, batch.x, x_adv, batch.y), gamma))
    assert after.encoder.stage1[1].num_batches_tracked == {"trades": 3, "mart": 2}.get(name, 1)
    assert not torch.allclose(updated(name, digits).head.weight, after.head.weight, rtol=0, atol=1e-6)


def test_awp_starts_with_its_epoch(digits):
    plain = updated("pgd_at", digits).head.weight
    for epoch, warmup, moves in ((0, 0, True), (0, 1, True), (8, 10, False), (9, 10, True)):
        after = updated("pgd_at", digits, epoch=epoch, awp_gamma=0.01, awp_warmup=warmup).head.weight
        assert torch.equal(plain, after) != moves


def test_perturbed_weights_have_the_stated_length_and_come_back(digits):
    model, batch = fresh(digits)
    model.encoder.stage1[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def interrupted():
        for name, w in model.named_parameters():
            length = (w - before[name]).norm() / before[name].norm().clamp_min(1e-9)
            assert length.item() == pytest.approx(0.02 if w.ndim > 1 and w.requires_grad else 0.0), name
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        raise KeyError("stop")

    inside = perturbed_weights(model, lambda: F.cross_entropy(model(batch.x), batch.y), 0.02)
    with pytest.raises(KeyError, match="stop"), inside:
        interrupted()
    assert all(torch.allclose(w, before[name], rtol=0, atol=1e-12) for name, w in model.named_parameters())


def test_a_loss_without_gradient_moves_no_weight():
    model = torch.nn.Linear(3, 2)
    before = model.weight.clone()
    for share in (0 * model.weight.sum(), 0):  # nor one that does not know it
        with perturbed_weights(model, lambda: share + model.bias.sum(), 0.5):  # noqa: B023
            assert torch.equal(model.weight, before)


def test_autocast_uses_the_perturbed_weights(digits):
    """Autocast keeps bf16 copies of weights while a generator runs; those from before the perturbation must not be used."""
    model, batch = fresh(digits)
    model, x = model.float(), batch.x.float()
    with torch.autocast("cpu", torch.bfloat16):
        with perturbed_weights(model, lambda: F.cross_entropy(model(x).float(), batch.y), 0.3):
            inside, moved = model(x), copy.deepcopy(model)
        torch.clear_autocast_cache()
        assert torch.equal(moved.train()(x), inside)


def test_awp_is_never_ignored_in_silence(digits):
    with pytest.raises(InputError, match="pgd_at: this method does not perturb weights: leave awp_gamma at 0"):
        make_method("pgd_at", "digits", awp_gamma=0.01).single_stage(fresh(digits)[0], print, adversarial=True)
