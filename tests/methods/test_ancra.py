"""ANCRA: one update against the paper's formulas written out, its switches, its negatives, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.losses import mart_loss, pick_negatives, trades_loss
from robustlib.methods import make_method
from robustlib.models import ReverseAttention, build_model
from robustlib.models.classifier import View
from robustlib.runs import save_weights
from tests.training_fixtures import built, same_state, step_context, train, updated

OFF = {"reverse_attention": False, "negative_contrast": False}


@pytest.fixture
def made(digits):
    """Makes an ANCRA for the digits, and its model in train mode."""

    def make(**settings):
        method = make_method("ancra", "digits", **settings)
        return method, built(method, digits)

    return make


@pytest.fixture
def warm(made, batch):
    """As `made`, with BatchNorm's statistics of a few batches."""

    def make(**settings):
        method, model = made(**settings)
        for _ in range(3):
            model(batch.x)
        return method, model

    return make


@pytest.fixture
def batch(digits):
    return next(digits.train.batches(24, augment="none"))


def sim(a, b):
    """Sim of section 2.2 of the paper's page, pair by pair."""
    pairs = zip(a.softmax(1), b.softmax(1), strict=True)
    return sum((p.argmax() == q.argmax()) * (p.max() * q.max()).sqrt() for p, q in pairs) / len(a)


def joint_attack(model, x, start, labels, sign, eps, length):
    """sign * [CE(p', labels) + 2 mean_i CE(p_i, labels)] climbed by hand, in eval mode with predicted-label gates."""
    model.eval()
    x_adv = start
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_(True)
        seen = model.attend(x_adv)
        auxiliary = sum(F.cross_entropy(p, labels, reduction="sum") for p in seen.auxiliary) / len(seen.auxiliary)
        loss = F.cross_entropy(seen.logits, labels, reduction="sum") + 2 * auxiliary
        (g,) = torch.autograd.grad(sign * loss, x_adv)
        x_adv = (x + (x_adv + length * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    model.train()
    return x_adv.detach()


def joint_pgd(method, digits):
    return PGD(digits.threat, objective="nll", start="gaussian", **method.attack_settings())


@pytest.mark.parametrize("targeted", [False, True])
def test_the_inner_attack_climbs_the_sum_over_heads(digits, batch, warm, targeted):
    _, model = warm()
    start = (batch.x + 0.001 * torch.randn_like(batch.x)).clamp(0, 1)
    target = (batch.y + 1) % 10
    attack = PGD(digits.threat, steps=10, objective="nll", targeted=targeted)
    ours = attack(View(model, "joint"), batch.x, batch.y, start=start, target=target if targeted else None)
    labels, sign = (target, -1) if targeted else (batch.y, 1)
    theirs = joint_attack(model, batch.x, start, labels, sign, digits.threat.eps, digits.threat.eps / 4)
    assert ((ours - theirs).abs() < 1e-4).float().mean() > 0.98  # a sign of a gradient near zero may differ


def heads_of(model):
    def heads(x, y):
        seen = model.attend(x, y)
        return [seen.logits, *seen.auxiliary]

    return heads


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

    views = [heads_of(other)(x, y) for x, y in ((batch.x, batch.y), (x_adv, batch.y), (x_o, y_o))]

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
    loss = updated(method.stages(digits, model)[0], batch)["model"]
    loss.total.backward()
    attack = PGD(digits.threat, start="gaussian", **method.attack_settings())
    x_adv = attack(plain, batch.x, batch.y, generator=step_context().generator)
    if base == "pgd_at":
        expected = F.cross_entropy(plain(x_adv), batch.y)
    else:
        expected = {"trades": trades_loss, "mart": mart_loss}[base](plain(batch.x), plain(x_adv), batch.y, 6.0)[0]
    expected.backward()
    assert torch.equal(loss.total, expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert same_state(model, plain)
    assert model.training


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
def test_weights_are_perturbed_on_the_whole_loss_after_the_attacks(digits, batch, made, base):
    (method, model), (calm, other), (_, fresh) = made(base=base, awp_gamma=0.05), made(base=base), made(base=base)
    first, before = updated(calm.stages(digits, other)[0], batch)["model"], copy.deepcopy(model.state_dict())
    weights = {name: w for name, w in other.named_parameters() if "weight" in name and w.ndim > 1}
    gradients = torch.autograd.grad(first.total, list(weights.values()))

    now, joint = step_context(), View(fresh, "joint")  # on unmoved weights, and negatives before the images' own attack
    negatives = calm.draw_negatives(fresh, joint, replace(joint_pgd(calm, digits), targeted=True), batch, now)
    x_adv = calm.attacked(joint_pgd(calm, digits), joint, batch, now)
    for (name, w), g in zip(weights.items(), gradients, strict=True):
        fresh.get_parameter(name).data += 0.05 * w.detach().norm() / g.norm() * g

    updates = method.stages(digits, model)[0].passes[0].updates(batch, step_context())
    _, loss = next(updates)
    assert torch.isclose(loss.total, calm.loss(fresh, batch, x_adv, negatives).total, rtol=1e-4)
    assert loss.total > first.total
    assert not torch.allclose(model.head.weight, before["head.weight"])
    updates.close()
    assert all(torch.allclose(w, before[name], atol=1e-7) for name, w in model.named_parameters())
    assert model.encoder.stage1[1].num_batches_tracked == 3, "the pass that finds the perturbation leaves no trace"


def test_negatives_are_pulled_to_the_anchors_class(digits, batch, warm):
    values, picked = {}, pick_negatives(batch.y, generator=step_context().generator)
    for attacked in (True, False):
        method, model = warm(attack_negatives=attacked)
        pull = replace(joint_pgd(method, digits), targeted=True)
        x_o, y_o = method.draw_negatives(model, View(model, "joint"), pull, batch, step_context())
        assert bool((y_o != batch.y).all())
        values[attacked] = View(model.eval(), "joint")(x_o)[range(24), batch.y]
        distance = (x_o - batch.x[picked]).abs().max()
        assert distance <= digits.threat.eps + 1e-6
        assert (distance > 0.5 * digits.threat.eps) == attacked
    assert bool((values[True] > values[False]).all())


def test_negatives_are_mined_after_the_first_epochs(digits, batch, warm):
    method, model = warm(negatives="hard", attack_negatives=False, mining_from=2)
    pull = PGD(digits.threat, objective="nll", targeted=True)
    before, after = (
        method.draw_negatives(model, View(model, "joint"), pull, batch, step_context(epoch)) for epoch in (1, 2)
    )
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


def test_a_run_is_trained_and_kept_with_its_gates(few, tmp_path):
    run = train(make_method("ancra", "digits", epochs=2, train_examples=200, attack_steps=2), few, tmp_path)
    assert run.params()["model"] == {"reverse_attention": True}
    assert set(run.model().surrogates()) >= {"head 1", "joint"}
    assert run.metrics()[["loss", "ce", "kl", "contrast"]].iloc[1:].notna().all(axis=None)
    save_weights(build_model("small_cnn", few), run.path / "model.safetensors")
    with pytest.raises(InputError, match=r"gated_blocks is missing there.*model options \(such as reverse_attention\)"):
        run.model()


def test_a_model_of_the_other_kind_is_refused(digits, made):
    method, model = made()
    with pytest.raises(InputError, match="ancra trains a ReverseAttention, not a Classifier"):
        method.stages(digits, build_model("small_cnn", digits))
    with pytest.raises(InputError, match="ancra trains a Classifier, not a ReverseAttention"):
        make_method("ancra", "digits", **OFF).stages(digits, model)
