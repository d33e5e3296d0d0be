"""AFD and its rows: losses and AFD's update against the released loop written out, stages, the gap, runs they start from."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector as weights

from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.losses import confusion_labels, mean_cosine
from robustlib.methods import make_method
from robustlib.models import Disentangled, build_model
from robustlib.representation import feature_gap, features, gap_probe, probe_attack
from robustlib.rng import ExampleRNG, uniform_point
from robustlib.training.validation import probe_batch
from tests.training_fixtures import altered, built, first_batch, same_state, staged, step_context, updated

DECAY = 0.05  # of the weights: large enough that a decay applied once too little shows
WEIGHTS = {"alpha": 0.7, "beta": 0.5, "gamma": 2.0}
FAMILY = ("vaft", "afkd", "arrest", "afd")


def shaken(digits, seed=0) -> Disentangled:
    """A tiny model whose maps are not the identity: there, cos(f1, f2) = 1 has no gradient."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    encoder.out_features = 6
    model = Disentangled(encoder, digits)
    for branch in (model.intrinsic, model.confused):
        branch.weight.data += 0.3 * torch.randn_like(branch.weight)
    return model


def tuned_afd(digits, model, **settings):
    """AFD's fine-tuning, with a teacher that is not the model; eps 0 by default, so that x' = x."""
    method = make_method("afd", "digits", **{"eps": 0.0, "attack_steps": 1, **WEIGHTS, **settings})
    stage = method.stages(digits, model)[-1]
    stage.modules["teacher"].load_state_dict(shaken(digits, 99).state_dict())
    return stage


def drive(stage, batches):
    """What the loop does with a stage: each yield is differentiated and stepped by its optimiser alone."""
    optimisers = {name: spec.build() for name, spec in stage.optimisers.items()}
    for batch in batches:
        for name, loss in stage.passes[0].updates(batch, step_context()):
            for optimiser in optimisers.values():
                optimiser.zero_grad()
            loss.total.backward()
            optimisers[name].step()


def batches(digits, n=3, size=32):
    stream = digits.train.batches(size, augment="none")
    return [next(stream) for _ in range(n)]


class ByHand:
    """SGD with momentum and weight decay that moves weights behind autograd's back, as it could before torch counted."""

    def __init__(self, params, lr, momentum=0.9, decay=DECAY):
        self.params, self.lr, self.momentum, self.decay = list(params), lr, momentum, decay
        self.buffers = [torch.zeros_like(p) for p in self.params]

    def step(self):
        for p, buffer in zip(self.params, self.buffers, strict=True):
            buffer.mul_(self.momentum).add_(p.grad + self.decay * p.data)
            p.data.sub_(self.lr * buffer)


def released(model, teacher, data, lr, alpha, beta, gamma):
    """tl+sl.py: three optimisers in turn on one forward pass, gradients cleared only before the first."""
    d2 = model.confused.weight
    rest = [p for p in model.parameters() if p is not d2]
    first, second, third = ByHand([d2], lr), ByHand(rest, lr), ByHand(rest, lr)
    for batch in data:
        h = model.encoder((batch.x - model.mean) / model.std)
        f1, f2 = h @ model.intrinsic.weight.T, h.detach() @ d2.T
        z1, z2 = (f @ model.head.weight.T + model.head.bias for f in (f1, f2))
        top = z1.topk(2).indices
        c = torch.where(top[:, 0] == batch.y, top[:, 1], top[:, 0])
        natural = teacher.encoder((batch.x - model.mean) / model.std).detach()
        for p in model.parameters():
            p.grad = None
        (alpha * F.cross_entropy(z2, c)).backward(retain_graph=True)
        first.step()
        (beta * F.cosine_similarity(f1, f2).mean()).backward(retain_graph=True)
        second.step()
        (F.cross_entropy(z1, batch.y) + gamma * (1 - F.cosine_similarity(f1, natural).mean())).backward()
        third.step()


def compared(digits, lr, steps, mode):
    """How far the released loop and the method end apart, how far the weights moved, and how far apart the D2 are."""
    ours, theirs, data = shaken(digits), shaken(digits), batches(digits, steps)
    start = weights(ours.parameters()).detach()
    drive(tuned_afd(digits, ours, lr=lr, mode=mode, weight_decay=DECAY), data)
    released(theirs, shaken(digits, 99), data, lr, **WEIGHTS)
    d2 = (ours.confused.weight - theirs.confused.weight).abs().max().item()
    end, other = (weights(model.parameters()).detach() for model in (ours, theirs))
    return (end - other).norm().item(), (end - start).norm().item(), d2


@pytest.mark.parametrize(("mode", "steps", "order"), [("repo", 1, 2), ("repo", 3, 2), ("paper", 1, 1)])
def test_repo_mode_is_the_released_update_to_first_order_and_paper_mode_is_not(digits, mode, steps, order):
    wide, near = (compared(digits, lr, steps, mode) for lr in (0.0025, 0.00125))
    assert 0.92 * 2**order < wide[0] / near[0] < 1.08 * 2**order  # half the learning rate, a quarter of the difference
    assert 1.9 < wide[1] / near[1] < 2.1  # and half the move
    assert mode == "paper" or wide[0] < 0.002 * wide[1]
    assert steps > 1 or wide[2] < 1e-7  # D2 comes first: it is the same


def in_float64(model, teacher, batch, x_adv):
    """CE(z1, y), CE(z2, c), 1 - cos(f1, f_T), cos(f1, f2) and how often z2 says c."""
    m, natural = copy.deepcopy(model).double(), copy.deepcopy(teacher).double()
    h, t = m.encoder((x_adv - m.mean) / m.std), natural.encoder((batch.x - m.mean) / m.std)
    f1, f2 = h @ m.intrinsic.weight.T, h @ m.confused.weight.T
    z1, z2 = (f @ m.head.weight.T + m.head.bias for f in (f1, f2))
    pairs = zip(z1.tolist(), batch.y.tolist(), strict=True)
    c = torch.tensor([max((k for k in range(10) if k != y), key=z.__getitem__) for z, y in pairs])
    ce, negative, agreement = F.cross_entropy(z1, batch.y), F.cross_entropy(z2, c), (z2.argmax(1) == c).float()
    gap, alike = 1 - F.cosine_similarity(f1, t).mean(), F.cosine_similarity(f1, f2).mean()
    return [value.item() for value in (ce, negative, gap, alike, agreement.mean())]


@pytest.mark.parametrize("mode", ["repo", "paper"])
@pytest.mark.parametrize(("disentangle", "align"), [(True, True), (True, False), (False, True), (False, False)])
def test_afds_losses_equal_their_formula_and_switches_drop_their_terms(digits, mode, disentangle, align):
    model, (batch,) = shaken(digits), batches(digits, 1)
    settings = {"eps": 0.2, "attack_steps": 3, "weight_decay": DECAY, "disentangle": disentangle, "align": align}
    stage = tuned_afd(digits, model, mode=mode, **settings)
    found = updated(stage, batch)
    x_adv = PGD(Threat("linf", 0.2), steps=3)(model, batch.x, batch.y, generator=step_context().generator)
    ce, neg, gap, alike, agreement = in_float64(model, stage.modules["teacher"], batch, x_adv)
    times, leak = (2, 2) if mode == "repo" else (1, 0)
    total = ce + align * 2 * gap + disentangle * (times * 0.5 * alike + leak * 0.7 * neg)
    assert np.isclose(found["model"].total.item(), total, rtol=1e-5)
    assert list(found) == list(stage.optimisers) == (["confused", "model"] if disentangle else ["model"])
    parts = {"ce": ce, "gap": gap} | ({"cosine": alike} if disentangle else {})  # the gap is monitored in any case
    assert {name: part.item() for name, part in found["model"].parts.items()} == pytest.approx(parts, rel=1e-4)
    assert stage.optimisers["model"].weight_decay == times * DECAY
    if disentangle:
        confused = [found["confused"].total.item(), found["confused"].parts["agreement"].item()]
        assert confused == pytest.approx([0.7 * neg, agreement], rel=1e-5)


def test_which_weights_learn_from_what(digits):
    model, (batch,) = shaken(digits), batches(digits, 1)
    loss = updated(tuned_afd(digits, model, disentangle=False, align=False), batch)["model"]
    pair = [torch.autograd.grad(v, model.head.weight, retain_graph=True)[0] for v in (loss.total, loss.parts["ce"])]
    assert torch.equal(*pair)  # the paper's W learns nothing of the wrong class
    for mode in ("repo", "paper"):
        model = shaken(digits)
        found = updated(tuned_afd(digits, model, mode=mode), batch)
        weights = [model.confused.weight, model.encoder[1].weight, model.intrinsic.weight]
        for name, learns in (("confused", [True, False, False]), ("model", [False, True, True])):
            gradients = torch.autograd.grad(found[name].total, weights, allow_unused=True)
            assert [g is not None and bool(g.abs().max() > 1e-3) for g in gradients] == learns


def test_confusion_labels_and_mean_cosines_of_known_values():
    assert confusion_labels(torch.tensor([[3.0, -1e30]]), torch.tensor([0])) == 1  # two classes: always the other
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, -2.0], [4.0, 3.0], [1.0, 1.0]])
    assert mean_cosine(a, b).item() == pytest.approx((1 - 1 + 24 / 25 + 0) / 4)
    assert mean_cosine(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def tuned(digits, name, **settings):
    """Model, teacher and fine-tuning stage of a method on a small CNN; the teacher is another model than the student."""
    method = make_method(name, "digits", **{"attack_steps": 3, **settings})
    model, (*_, stage) = staged(method, digits)
    stage.modules["teacher"].load_state_dict(built(method, digits, seed=1).state_dict())
    return model, stage.modules["teacher"], stage


def ce_and_gap(model, teacher, batch, x_adv):
    """CE and mean 1 - cos of penultimate features, in float64."""
    f, t = (z.detach().double() for z in (model.features(x_adv), teacher.eval().features(batch.x)))
    ce = F.cross_entropy(f @ model.head.weight.T.double() + model.head.bias.double(), batch.y)
    return ce.item(), 1 - F.cosine_similarity(f, t).mean().item()


@pytest.mark.parametrize(("name", "weight"), [("vaft", 0.0), ("afkd", 50.0)])
def test_losses_equal_their_formula(digits, name, weight):
    model, teacher, stage = tuned(digits, name)
    batch = first_batch(digits, 24)
    x_adv = PGD(digits.threat, steps=3)(model, batch.x, batch.y, generator=step_context().generator)
    loss = updated(stage, batch)["model"]
    ce, gap = ce_and_gap(model, teacher, batch, x_adv)
    found = [loss.total.item(), loss.parts["ce"].item(), loss.parts["gap"].item()]
    assert found == pytest.approx([ce + weight * gap, ce, gap], rel=1e-4)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_arrest_replays_noise_where_clean_features_drifted(digits, norm):
    batch = first_batch(digits, 24)
    model, teacher, _ = tuned(digits, "arrest")
    f, t = (m.eval().features(batch.x).detach().double() for m in (model, teacher))
    limit = math.degrees(math.acos(F.cosine_similarity(f, t).mean()))
    for angle, noisy in ((limit - 0.1, True), (limit + 0.1, False)):
        model, teacher, stage = tuned(digits, "arrest", angle=angle, norm=norm)
        before = copy.deepcopy(model)
        loss = updated(stage, batch)["model"]
        assert loss.parts["replayed"] == float(noisy)
        assert model.training
        assert model.encoder.stage1[1].num_batches_tracked == 1  # neither the distance nor the attack leaves a trace
        threat, now = Threat(norm, digits.threat.eps), step_context().generator
        if noisy:  # where the attack would have started
            rng = ExampleRNG.from_generator(now, len(batch.x), batch.x.device).fold_in(0)
            x = uniform_point(threat, batch.x, rng)
        else:
            x = PGD(threat, steps=3)(before, batch.x, batch.y, generator=now)
        ce, gap = ce_and_gap(model, teacher, batch, x)
        assert np.isclose(loss.total.item(), ce + 50 * gap, rtol=1e-4)


def test_arrest_replays_noise_in_the_first_half_only(digits):
    batch = first_batch(digits, 24)
    for epochs, last in ((20, 9), (40, 19)):  # published: epochs 1 to 10 of 20
        _, _, stage = tuned(digits, "arrest", angle=0.0, epochs=epochs)
        times = [step_context(e, progress=(e + 0.5) / epochs) for e in (0, last, last + 1)]
        assert [updated(stage, batch, at)["model"].parts["replayed"] for at in times] == [1.0, 1.0, 0.0]


def test_stages_are_natural_training_and_fine_tuning(digits):
    method = make_method("afd", "cifar10-paper", arch="small_cnn")
    model, (natural, tuning) = staged(method, digits)
    assert (natural.epochs, natural.adversarial, natural.ema) == (100, False, 0.0)
    assert (tuning.epochs, tuning.adversarial, tuning.ema) == (20, True, 0.999)
    assert method.all_epochs == 120
    assert make_method("afd", "cifar10-paper", pretrained="somewhere").all_epochs == 20
    stretched = make_method("afd", "digits")
    assert (stretched.epochs, stretched.lr) == (40, method.lr)
    for epoch in (0.5, 9.9, 10, 12, 14, 16, 18, 19.9):
        assert stretched.lr_schedule()(2 * epoch) == pytest.approx(method.lr_schedule()(epoch))
    decays = {name: spec.weight_decay for name, spec in tuning.optimisers.items()}
    assert decays == {"confused": 5e-4, "model": 1e-3}
    owned = [set(map(id, spec.params)) for spec in tuning.optimisers.values()]
    assert not owned[0] & owned[1]
    assert owned[0] | owned[1] == set(map(id, model.parameters()))
    assert owned[1] - set(map(id, natural.optimisers["model"].params)) == {id(model.intrinsic.weight)}


def tuning(run, columns):
    """Rows and columns of the metrics that belong to the epochs of fine-tuning."""
    rows = run.metrics()
    return rows[rows.stage != "natural"].filter(regex=columns).dropna(axis=1, how="all")


def test_the_family_trains_alike(run_of):
    for name in FAMILY:
        run, vaft = run_of(name), run_of("vaft").metrics()
        rows = run.metrics()
        assert list(rows.stage) == ["natural"] * 2 + [name] * 3
        assert rows.clean_val[1] == rows.clean_val[2], "fine-tuning begins with the natural model"
        assert run.params()["model"] == ({"disentangled": True} if name == "afd" else {})
        assert tuning(run, "^probe/h/(relative_l2|cosine|linf)$").notna().all().all()
        assert len(tuning(run, "^probe/").columns) == (6 if name == "afd" else 3)
        assert rows.filter(like="probe/h")[:2].isna().all().all()
        one_teacher = ["clean_val", "robust_val", "robust_loss_val"]
        assert rows[one_teacher].iloc[1].equals(vaft[one_teacher].iloc[1])
    assert run_of("arrest").metrics().replayed[3:].between(0, 1).all()
    model, eye = run_of("afd").model("last"), torch.eye(128)
    assert not any(torch.equal(branch.weight, eye) for branch in (model.intrinsic, model.confused))


def test_averaging_leaves_the_trajectory_alone(run_of):
    plain, averaged = run_of("afd", ema=0.0), run_of("afd")
    raw = "^(model/|confused/)(loss|ce|gap|cosine|agreement)$"
    assert len(tuning(plain, raw).columns) == 6
    assert tuning(plain, raw).equals(tuning(averaged, raw))  # the losses of the raw weights, epoch for epoch
    assert not same_state(plain.model("last"), averaged.model("last"))


def test_the_deployed_branch_changes_no_weight(few, run_of):
    deployed, latent = both = run_of("afd"), run_of("afd", classify="latent")
    assert latent.params()["model"] == {"disentangled": True, "classify": "latent"}
    f1, h = (run.model("last").eval() for run in both)
    assert same_state(f1, h)
    assert tuning(deployed, "^(model|confused)/").equals(tuning(latent, "^(model|confused)/"))
    assert [len(tuning(run, "^probe/f1/").columns) for run in both] == [3, 0]
    assert len({run.metrics().robust_loss_val.iloc[-1] for run in both}) == 2  # validation sees what is deployed
    x = few.val.images.float() / 255
    assert torch.equal(f1(x), h.branches(x).logits)
    assert torch.equal(h(x), f1.head(f1.latent(x)))
    assert not torch.equal(f1(x), h(x))
    assert torch.equal(h.features(x), f1.latent(x))


def test_the_monitored_gap_is_that_of_the_features(digits):
    model, _, stage = tuned(digits, "afd")
    model.intrinsic.weight.data += 0.1 * torch.randn_like(model.intrinsic.weight)
    batch = probe_batch(digits.val)
    (found,) = [probe(model, batch) for probe in stage.probes.values()]
    split, wanted, attack = digits.val.sample(len(batch.y)), {}, probe_attack(digits.threat)
    for layer, name in (("encoder", "h"), ("intrinsic", "f1")):
        tables = [features(model, split, layers=layer, **kw)[layer] for kw in ({}, {"attack": attack})]
        for measure in ("relative_l2", "cosine", "linf"):
            pair = (table[:: len(split) // 128] for table in tables)
            wanted[f"{name}/{measure}"] = feature_gap(*pair, measure).mean().item()
    assert found == pytest.approx(wanted, rel=0.02)
    assert model.training


def test_one_attack_serves_all_monitored_layers(digits):
    calls = []

    def attack(model, x, y, **settings):
        calls.append(y.tolist())
        return (x + 0.1).clamp(0, 1)

    model = build_model("small_cnn", digits)
    batch = next(iter(digits.val.select(digits.val.labels.argsort(stable=True)).batches(200)))
    found = gap_probe(attack, {"h": "features", "first": "stage1"}, images=10)(model, batch)
    assert calls == [batch.y[::20].tolist()]
    assert len(set(calls[0])) >= 8, "spread over a batch that is sorted by class"
    assert set(found) == {f"{layer}/{gap}" for layer in ("h", "first") for gap in ("relative_l2", "cosine", "linf")}


def begun(digits, name, pretrained):
    """A method's model after its only stage began from a run, and that stage."""
    model, (stage,) = staged(make_method(name, "digits", pretrained=str(pretrained)), digits)
    stage.begin()
    return model, stage


@pytest.mark.parametrize("name", FAMILY)
def test_fine_tuning_begins_with_the_weights_of_a_finished_run(digits, run_of, name):
    natural = run_of("standard")
    model, stage = begun(digits, name, natural.path)
    theirs, x, teacher = natural.model("last"), first_batch(digits).x, stage.modules["teacher"]
    assert torch.equal(model.eval()(x), theirs(x))
    assert torch.equal(teacher.features(x), theirs.features(x))
    assert not teacher.training


FACTS = (({"method": "trades"}, "trades .* on digits, done: give"), ({"dataset": "mnist"}, "standard .* on mnist"))


@pytest.mark.parametrize(("fact", "says"), FACTS)
def test_runs_that_do_not_fit_are_refused(digits, run_of, tmp_path, fact, says):
    path = altered(run_of("standard"), tmp_path, **fact).path
    with pytest.raises(InputError, match=f"afd: pretrained=.* is {says}.* run of standard on digits"):
        begun(digits, "afd", path)
