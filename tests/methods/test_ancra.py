"""ANCRA: one update against the paper's formulas written out, its switches, its negatives."""

import copy

import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD
from robustlib.losses import mart_loss, pick_negatives, trades_loss
from robustlib.methods import make_method
from robustlib.models import ReverseAttention
from robustlib.models.classifier import View
from tests.training_fixtures import built, first_batch, same_state, step_context, updated

OFF = {"reverse_attention": False, "negative_contrast": False}


@pytest.fixture
def made(digits, batch):
    """Makes an ANCRA for the digits, and its model in train mode, BatchNorm's statistics being those of a few batches."""

    def make(**settings):
        method = make_method("ancra", "digits", **settings)
        model = built(method, digits)
        for _ in range(3):
            model(batch.x)
        return method, model

    return make


@pytest.fixture
def batch(digits):
    return first_batch(digits, 24)


def sim(a, b):
    """Sim of section 2.2 of the paper's page, pair by pair."""
    pairs = zip(a.softmax(1), b.softmax(1), strict=True)
    return sum((p.argmax() == q.argmax()) * (p.max() * q.max()).sqrt() for p, q in pairs) / len(a)


def joint_pgd(method, digits):
    return PGD(digits.threat, objective="nll", start="gaussian", **method.attack_settings())


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_loss_equals_the_papers_formula(batch, made, base, alpha):
    method, model = made(base=base, alpha=alpha, beta=4.0, zeta=3.0, ra_weight=2.0)
    x_adv = (batch.x + 0.1 * torch.randn_like(batch.x)).clamp(0, 1)
    picked = pick_negatives(batch.y)
    x_o, y_o = batch.x[picked], batch.y[picked]
    other = copy.deepcopy(model)
    loss = method.loss(model, batch, x_adv, (x_o, y_o))
    loss.total.backward()

    seen = [other.attend(x, y) for x, y in ((batch.x, batch.y), (x_adv, batch.y), (x_o, y_o))]
    views = [[view.logits, *view.auxiliary] for view in seen]

    def kl(p, q):
        return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)

    def bce(q):
        others = [max(p for c, p in enumerate(row) if c != k) for row, k in zip(q.softmax(1), batch.y, strict=True)]
        return F.cross_entropy(q, batch.y) - torch.stack([(1.0001 - p).log() for p in others]).mean()

    doubt = 1 - views[0][0].softmax(1)[range(24), batch.y]  # of the final head, for every head

    def term(p, q, o):
        contrast = alpha * sim(p.detach(), o) + (1 - alpha) * sim(p, o.detach())
        based = {
            "trades": lambda: F.cross_entropy(p, batch.y) + 4 * kl(p, q).mean(),
            "pgd_at": lambda: F.cross_entropy(q, batch.y),
            "mart": lambda: bce(q) + 4 * (kl(p, q) * doubt).mean(),
        }
        return 3 * contrast + based[base]()

    final, *auxiliary = (term(*head) for head in zip(*views, strict=True))
    expected = final + 2 * sum(auxiliary) / len(auxiliary)
    expected.backward()
    parts = {"trades": {"ce", "kl"}, "pgd_at": set(), "mart": {"bce", "kl"}}[base]
    assert set(loss.parts) == parts | {"contrast"}
    assert torch.isclose(loss.total, expected, rtol=1e-5)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6) for p, q in pairs)
    assert same_state(model, other, atol=1e-6), "BatchNorm sees x, x', x_o in this order"


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
def test_both_switches_off_are_the_base_bit_for_bit(digits, batch, made, base):
    method, model = made(base=base, **OFF)
    plain = copy.deepcopy(model)
    assert type(model) is not ReverseAttention
    (stage,), attack = method.stages(digits, model), PGD(digits.threat, start="gaussian", **method.attack_settings())
    optimisers = [stage.optimisers["model"].build(), method.optim(plain.parameters()).build()]
    for _ in range(2):
        loss = updated(stage, batch)["model"].total
        x_adv = attack(plain, batch.x, batch.y, generator=step_context().generator)
        if base == "pgd_at":
            expected = F.cross_entropy(plain(x_adv), batch.y)
        else:
            expected = {"trades": trades_loss, "mart": mart_loss}[base](plain(batch.x), plain(x_adv), batch.y, 6.0)[0]
        for total, optimiser in zip((loss, expected), optimisers, strict=True):
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
        assert torch.equal(loss, expected)
        assert same_state(model, plain)
    assert model.training


def test_a_step_attacks_negatives_then_images_and_takes_their_loss(digits, batch, made):
    method, model = made()
    plain, attack, now = copy.deepcopy(model), joint_pgd(method, digits), step_context()
    negatives = method.draw_negatives(plain, View(plain, "joint"), attack, batch, now)
    x_adv = method.attacked(attack, View(plain, "joint"), batch, now)
    found = updated(method.stages(digits, model)[0], batch)["model"].total
    assert torch.equal(found, method.loss(plain, batch, x_adv, negatives).total)
    assert same_state(model, plain)


def test_negatives_are_pulled_to_the_anchors_class(digits, batch, made):
    values, picked = {}, pick_negatives(batch.y, generator=step_context().generator)
    for attacked in (True, False):
        method, model = made(attack_negatives=attacked)
        x_o, y_o = method.draw_negatives(model, View(model, "joint"), joint_pgd(method, digits), batch, step_context())
        assert bool((y_o != batch.y).all())
        values[attacked] = View(model.eval(), "joint")(x_o)[range(24), batch.y]
        distance = (x_o - batch.x[picked]).abs().max()
        assert distance <= digits.threat.eps + 1e-6
        assert (distance > 0.5 * digits.threat.eps) == attacked
    assert bool((values[True] > values[False]).all())


def test_negatives_are_mined_after_the_first_epochs(digits, batch, made):
    method, model = made(negatives="hard", attack_negatives=False, mining_from=2)
    parts = model, View(model, "joint"), joint_pgd(method, digits), batch
    before, after = (method.draw_negatives(*parts, step_context(epoch)) for epoch in (1, 2))
    assert model.training
    hard = {"strategy": "hard", "logits": model.eval()(batch.x)}
    for (x_o, _), settings in ((before, {}), (after, hard)):
        assert torch.equal(x_o, batch.x[pick_negatives(batch.y, generator=step_context().generator, **settings)])


def test_a_batch_of_one_class_is_trained_on_without_negatives(digits, made):
    batch = next(digits.train.select(digits.train.labels == 0).batches(8, augment="none"))
    method, model = made()
    for _ in range(2):  # said once in each training
        stage = method.stages(digits, model)[0]
        with pytest.warns(UserWarning, match=r"a batch of one class has no negatives.*negative_contrast=false"):
            assert set(updated(stage, batch)["model"].parts) == {"ce", "kl"}
        updated(stage, batch)  # another warning would be an error


def test_a_run_is_trained_and_kept_with_its_gates(run_of):
    run = run_of("ancra", train_examples=200)
    assert run.params()["model"] == {"reverse_attention": True}
    assert set(run.model().surrogates()) >= {"head 1", "joint"}
    assert run.metrics()[["loss", "ce", "kl", "contrast"]].iloc[1:].notna().all(axis=None)
