"""ANCRA: one update against the paper's formulas written out, its switches, its negatives, and what it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.losses import mart_loss, pick_negatives, trades_loss
from robustlib.methods import make_method
from robustlib.models import ReverseAttention, build_model
from robustlib.models.reverse_attention import Joint
from robustlib.runs import save_weights
from robustlib.training import fit
from tests.training_fixtures import step_context

OFF = {"reverse_attention": False, "negative_contrast": False}


def built(digits, seed=0, **settings):
    """A method for the digits and its fresh model, in train mode."""
    method = make_method("ancra", "digits", **settings)
    torch.manual_seed(seed)
    return method, build_model("small_cnn", digits, **method.model_options()).train()


def first_loss(method, model, digits, batch, epoch=0):
    ((name, loss),) = list(method.stages(digits, model)[0].passes[0].updates(batch, step_context(epoch)))
    assert name == "model"
    assert model.training
    return loss


@pytest.fixture
def batch(digits):
    return next(digits.train.batches(24, augment="none"))


def sim(a, b):
    """Sim of section 2.2 of the paper's page, pair by pair."""
    total = 0
    for p, q in zip(a.softmax(1), b.softmax(1), strict=True):
        total = total + (p.argmax() == q.argmax()) * (p.max() * q.max()).sqrt()
    return total / len(a)


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
def test_the_inner_attack_climbs_the_sum_over_heads(digits, batch, targeted):
    _, model = built(digits)
    for _ in range(3):
        model(batch.x)
    start = (batch.x + 0.001 * torch.randn_like(batch.x)).clamp(0, 1)
    target = (batch.y + 1) % 10
    attack = PGD(digits.threat, steps=10, objective="nll", targeted=targeted)
    ours = attack(Joint(model), batch.x, batch.y, start=start, target=target if targeted else None)
    labels, sign = (target, -1) if targeted else (batch.y, 1)
    theirs = joint_attack(model, batch.x, start, labels, sign, digits.threat.eps, digits.threat.eps / 4)
    assert ((ours - theirs).abs() < 1e-4).float().mean() > 0.98  # a sign of a gradient near zero may differ


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_loss_equals_the_papers_formula(digits, batch, base, alpha):
    method, model = built(digits, base=base, alpha=alpha, beta=4.0, zeta=3.0, ra_weight=2.0)
    x_adv = (batch.x + 0.1 * torch.randn_like(batch.x)).clamp(0, 1)
    picked = pick_negatives(batch.y)
    x_o, y_o = batch.x[picked], batch.y[picked]
    other = copy.deepcopy(model)
    heads = lambda x, y: (lambda s: [s.logits, *s.auxiliary])(model.attend(x, y))  # noqa: E731
    loss = method.loss(heads, batch, x_adv, (x_o, y_o))
    loss.total.backward()

    clean, robust, negative = (other.attend(x, y) for x, y in ((batch.x, batch.y), (x_adv, batch.y), (x_o, y_o)))

    def over_heads(term):
        views = [[s.logits for s in (clean, robust, negative)]]
        views += [[s.auxiliary[i] for s in (clean, robust, negative)] for i in range(other.gates)]
        final, *auxiliary = (term(*view) for view in views)
        return final + 2 * sum(auxiliary) / len(auxiliary)

    def kl(p, q):
        return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()

    def anc(p, q, o):
        return alpha * sim(p.detach(), o) + (1 - alpha) * sim(p, o.detach())

    def bce(q):
        others = [max(p for c, p in enumerate(row) if c != k) for row, k in zip(q.softmax(1), batch.y, strict=True)]
        return F.cross_entropy(q, batch.y) - torch.stack([(1.0001 - p).log() for p in others]).mean()

    def weighted_kl(p, q):
        doubt = 1 - clean.logits.softmax(1)[range(24), batch.y]  # of the final head, for every head
        return ((p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1) * doubt).mean()

    expected = 3 * over_heads(anc)
    if base == "mart":
        expected = expected + over_heads(lambda p, q, o: bce(q) + 4 * weighted_kl(p, q))
        assert set(loss.parts) == {"bce", "kl", "contrast"}
    elif base == "trades":
        expected = expected + over_heads(lambda p, q, o: F.cross_entropy(p, batch.y) + 4 * kl(p, q))
        assert set(loss.parts) == {"ce", "kl", "contrast"}
    else:
        expected = expected + over_heads(lambda p, q, o: F.cross_entropy(q, batch.y))
    expected.backward()
    assert torch.isclose(loss.total, expected, rtol=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6), name
    for (name, mine), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-6), f"{name}: x, x', x_o in this order"


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
def test_both_switches_off_are_the_base_bit_for_bit(digits, batch, base):
    method, model = built(digits, base=base, **OFF)
    plain = copy.deepcopy(model)
    assert type(model) is type(plain) is not ReverseAttention
    loss = first_loss(method, model, digits, batch)
    loss.total.backward()
    attack = PGD(digits.threat, start="gaussian", **method.attack_settings())
    x_adv = attack(plain, batch.x, batch.y, generator=torch.Generator().manual_seed(5))
    if base == "trades":
        expected = trades_loss(plain(batch.x), plain(x_adv), batch.y, 6.0)[0]
    elif base == "mart":
        expected = mart_loss(plain(batch.x), plain(x_adv), batch.y, 6.0)[0]
    else:
        expected = F.cross_entropy(plain(x_adv), batch.y)
    expected.backward()
    assert torch.equal(loss.total, expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize("awp_gamma", [0.0, 0.01])
def test_both_switches_off_and_base_mart_are_the_method_mart(digits, awp_gamma):
    """Bit for bit over several steps; the attack of MART is ANCRA's, so nothing is left to differ."""
    same = {"attack_steps": 2, "beta": 5.0, "lr": 0.05, "weight_decay": 1e-3, "awp_gamma": awp_gamma}
    left = []
    for method in (make_method("ancra", "digits", base="mart", **OFF, **same), make_method("mart", "digits", **same)):
        torch.manual_seed(0)
        model = build_model("small_cnn", digits).train()
        stage = method.stages(digits, model)[0]
        optimiser, now = stage.optimisers["model"].build(), step_context()
        for _, batch in zip(range(3), digits.train.batches(24, augment="none"), strict=False):
            for _, loss in stage.passes[0].updates(batch, now):
                optimiser.zero_grad()
                loss.total.backward()
                optimiser.step()
        left.append((loss.total.detach(), *model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


@pytest.mark.parametrize("base", ["trades", "pgd_at", "mart"])
def test_weights_are_perturbed_on_the_whole_loss_after_the_attacks(digits, batch, base):
    method, model = built(digits, base=base, awp_gamma=0.05)
    calm, other = built(digits, base=base)
    first = first_loss(calm, other, digits, batch)
    weights = [w for name, w in other.named_parameters() if "weight" in name and w.ndim > 1]
    steps = [
        0.05 * w.detach().norm() / g.norm() * g
        for w, g in zip(weights, torch.autograd.grad(first.total, weights), strict=True)
    ]

    now, fresh = step_context(), built(digits, base=base)[1]
    negatives = calm.draw_negatives(
        fresh, Joint(fresh), replace(joint_pgd(calm, digits), targeted=True), batch, now
    )  # on unmoved weights, and before the images' own attack
    x_adv = calm.attacked(joint_pgd(calm, digits), Joint(fresh), batch, now)
    with torch.no_grad():
        for name, w in fresh.named_parameters():
            if "weight" in name and w.ndim > 1:
                w += steps.pop(0)

    def heads(x, y):
        seen = fresh.attend(x, y)
        return [seen.logits, *seen.auxiliary]

    expected = calm.loss(heads, batch, x_adv, negatives).total
    before = copy.deepcopy(model.state_dict())
    updates = method.stages(digits, model)[0].passes[0].updates(batch, step_context())
    _, loss = next(updates)
    assert torch.isclose(loss.total, expected, rtol=1e-4)
    assert loss.total > first.total
    assert not torch.allclose(model.head.weight, before["head.weight"])
    updates.close()
    for name, w in model.named_parameters():
        assert torch.allclose(w, before[name], atol=1e-7), name
    assert model.encoder.stage1[1].num_batches_tracked == 3, "the pass that finds the perturbation leaves no trace"


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 3),
        ({"negative_contrast": False}, 2),
        ({"base": "pgd_at"}, 3),
        ({"base": "pgd_at", "negative_contrast": False}, 1),
        ({"base": "mart", "negative_contrast": False}, 2),
    ],
)
def test_attacks_leave_no_trace_and_each_view_is_a_pass_of_its_own(digits, batch, settings, passes):
    method, model = built(digits, **settings)
    loss = first_loss(method, model, digits, batch)
    assert bool(loss.total.isfinite())
    assert model.encoder.stage1[1].num_batches_tracked == passes
    assert ("contrast" in loss.parts) == method.negative_contrast


def test_negatives_are_pulled_to_the_anchors_class(digits, batch):
    values = {}
    for attacked in (True, False):
        method, model = built(digits, attack_negatives=attacked)
        for _ in range(3):
            model(batch.x)
        pull = PGD(digits.threat, objective="nll", targeted=True, start="gaussian", **method.attack_settings())
        x_o, y_o = method.draw_negatives(model, Joint(model), pull, batch, step_context())
        assert bool((y_o != batch.y).all())
        values[attacked] = Joint(model.eval())(x_o)[range(24), batch.y]
        picked = pick_negatives(batch.y, generator=torch.Generator().manual_seed(5))
        distance = (x_o - batch.x[picked]).abs().max()
        assert distance <= digits.threat.eps + 1e-6
        assert (distance > 0.5 * digits.threat.eps) == attacked
    assert bool((values[True] > values[False]).all())


def test_negatives_are_mined_after_the_first_epochs(digits, batch):
    method, model = built(digits, negatives="hard", attack_negatives=False, mining_from=2)
    for _ in range(3):
        model(batch.x)
    pull = PGD(digits.threat, objective="nll", targeted=True)
    before, after = (method.draw_negatives(model, Joint(model), pull, batch, step_context(epoch)) for epoch in (1, 2))
    assert model.training
    logits = model.eval()(batch.x)
    generators = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(before[0], batch.x[pick_negatives(batch.y, generator=next(generators))])
    assert torch.equal(after[0], batch.x[pick_negatives(batch.y, "hard", logits=logits, generator=next(generators))])


def test_a_batch_of_one_class_is_trained_on_without_negatives(digits):
    zeros = digits.train.select(digits.train.labels == 0)
    batch = next(zeros.batches(8, augment="none"))
    method, model = built(digits)
    for training in range(2):  # said once in each
        updates = method.stages(digits, model)[0].passes[0].updates
        with pytest.warns(UserWarning, match=r"a batch of one class has no negatives.*negative_contrast=false"):
            ((_, loss),) = updates(batch, step_context(training))
        assert set(loss.parts) == {"ce", "kl"}
        ((_, loss),) = updates(batch, step_context(training))  # another warning would be an error
        assert set(loss.parts) == {"ce", "kl"}


@pytest.mark.parametrize(
    ("precision", "settings"),
    [("32-true", {}), ("bf16-mixed", {}), ("bf16-mixed", {"base": "mart", "awp_gamma": 0.01})],
)
def test_a_run_is_trained_and_kept_with_its_gates(digits, tmp_path, precision, settings):
    small = replace(digits, val=Split(*(t[:40] for t in (digits.val.images, digits.val.labels, digits.val.indices))))
    method = make_method("ancra", "digits", epochs=2, train_examples=200, attack_steps=2, **settings)
    run = fit(method, small, root=tmp_path, device="cpu", threads=1, progress=False, precision=precision)
    assert run.params()["model"] == {"reverse_attention": True}
    model = run.model()
    assert isinstance(model, ReverseAttention)
    assert set(model.surrogates()) >= {"head 1", "joint"}
    metrics = run.metrics()
    assert metrics[["loss", "bce" if settings else "ce", "kl", "contrast"]].iloc[1:].notna().all(axis=None)
    save_weights(build_model("small_cnn", digits), run.path / "model.safetensors")
    with pytest.raises(InputError, match=r"gated_blocks is missing there.*model options \(such as reverse_attention\)"):
        run.model()


def test_a_model_of_the_other_kind_is_refused(digits):
    method, model = built(digits)
    with pytest.raises(InputError, match=r"reverse_attention=True, but the model is a Classifier.*model_options"):
        method.stages(digits, build_model("small_cnn", digits))
    with pytest.raises(InputError, match=r"reverse_attention=False, but the model is a ReverseAttention"):
        make_method("ancra", "digits", **OFF).stages(digits, model)
