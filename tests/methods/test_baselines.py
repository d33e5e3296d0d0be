"""One whole update of each method that trains on attacks, against the update written out in plain torch."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import ExampleRNG
from robustlib.losses import mart_loss
from robustlib.methods import make_method
from robustlib.models import build_model
from tests.accelerator import Held
from tests.training_fixtures import step_context

SEED, EPS, BATCH = 5, 0.2, 16  # of the update's generator; of digits; images
LR, DECAY = 0.05, 0.01


def fresh(dataset):
    """A small CNN with BatchNorm and a batch, in float64: no sign of a gradient is in doubt."""
    torch.manual_seed(0)
    model = build_model("small_cnn", dataset).double().train()
    batch = next(dataset.train.batches(BATCH, augment="none"))
    return model, SimpleNamespace(x=batch.x.double(), y=batch.y)


def updated(name, dataset, **settings):
    """The model after a method's first update, driven as the loop does."""
    model, batch = fresh(dataset)
    stage = make_method(name, "digits", lr=LR, weight_decay=DECAY, **settings).stages(dataset, model)[0]
    optimiser = stage.optimisers["model"].build()
    for _, loss in stage.passes[0].updates(batch, step_context()):
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


def attacked(model, batch, start, steps, length, radius=EPS, mode="eval", clean=None):
    """x' = clip(x + clip(x' + length sign(gradient) - x)), with BatchNorm in `mode` on a copy; with `clean` (B, K) of the KL to it.

    As in robustlib, each example's CE is divided by its largest derivative by a logit: in train mode that changes signs.
    """
    model, x_adv = copy.deepcopy(model).train(mode == "train"), start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        z = model(x_adv)
        largest = (z.softmax(1) - F.one_hot(batch.y, 10)).abs().amax(1).detach()
        ce = F.cross_entropy(z, batch.y, reduction="none") / largest
        loss = ce if clean is None else F.kl_div(z.log_softmax(1), clean, reduction="none")
        (g,) = torch.autograd.grad(loss.sum(), x_adv)
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
    clean, start = copy.deepcopy(model).eval()(batch.x).softmax(1).detach(), batch.x + 0.001 * noise("normal")
    x_adv = attacked(model, batch, start.clamp(0, 1), 10, EPS / 4, clean=clean)
    after = updated("trades", digits)
    same(after, descended(model, lambda m: released_trades(m, batch.x, x_adv, batch.y)))
    assert after.encoder.stage1[1].num_batches_tracked == 3


def test_trades_never_holds_activations_of_both_passes(digits):
    held = {}
    for name in ("pgd_at", "trades"):
        with Held() as held[name]:
            updated(name, digits)
    assert held["trades"].peak <= 1.05 * held["pgd_at"].peak


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_a_mart_update_is_the_one_written_out(digits, beta):
    model, batch = fresh(digits)
    start = (batch.x + (0.001 * noise("normal")).clamp(-EPS, EPS)).clamp(0, 1)
    x_adv = attacked(model, batch, start, 10, EPS / 4)
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
    # The last: certainly wrong, so it is finite, and a certain clean prediction weighs nothing.
    values = (-np.log(0.25) - np.log(0.7501), -np.log(1.0001), 200 - np.log(1e-4))
    for z, z_adv, value in zip((flat, sure, sure), (flat, sure, wrong), values, strict=True):
        total, parts = mart_loss(z, z_adv, y, 5.0)
        assert total.item() == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert parts["kl"] == 0
    assert torch.autograd.grad(total, wrong)[0].isfinite().all()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("name", "settings", "far", "step", "ball"),
    [
        ("pgd_at", {}, 1.0, 0.25, 1.0),
        *(("fgsm_rs", {"step_factor": factor}, 1.0, factor, 1.0) for factor in (1.25, 0.5)),
        *(("n_fgsm", {"noise": k}, k, 1.0, 9.0) for k in (2.0, 0.5, 0.0)),  # without projection
    ],
)
def test_an_update_from_a_random_start_is_the_one_written_out(digits, name, settings, far, step, ball, mode):
    model, batch = fresh(digits)
    start = (batch.x + far * EPS * noise("uniform", forked=name != "n_fgsm")).clamp(0, 1)
    x_adv = attacked(model, batch, start, 10 if name == "pgd_at" else 1, step * EPS, ball * EPS, mode)
    if ball > 1 and far:
        assert (x_adv - batch.x).abs().max() > 1.2 * EPS
    expected = descended(model, lambda m: F.cross_entropy(m(x_adv), batch.y))
    same(updated(name, digits, attack_batchnorm=mode, **settings), expected)


@pytest.mark.parametrize(("name", "least", "most"), [("fgsm_rs", 0.8, 1.0), ("n_fgsm", 2.0, 3.0)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5), ("linf", 0.0)])
def test_fast_attacks_reach_as_far_as_they_should(digits, name, least, most, norm, eps):
    model, batch = fresh(digits)
    method = make_method(name, "digits", norm=norm, eps=eps)
    x_adv = method.attacked(method.inner_attack(digits), model, batch, step_context())
    reached = method.threat(digits).distance(x_adv, batch.x)
    assert least * eps <= reached.max() <= most * eps + 1e-9
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
