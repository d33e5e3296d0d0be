"""AFD: its losses and its update against the released loop written out, its stages, and the runs it starts from."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.losses import confusion_labels, mean_cosine
from robustlib.methods import load_preset, make_method, preset_names
from robustlib.models import Disentangled, build_model
from robustlib.runs import Run
from robustlib.training import fit, loop
from tests.training_fixtures import step_context

DECAY = 0.05  # of the weights: large enough that a decay applied once too little shows
WEIGHTS = {"alpha": 0.7, "beta": 0.5, "gamma": 2.0}
FAMILY = ("vaft", "afkd", "arrest", "afd")
SMALL = {"epochs": 2, "pretrain_epochs": 2, "train_examples": 130, "attack_steps": 2}


class LinearEncoder(nn.Module):
    """Features that are a linear map of the pixels."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.out_features, self.map = width, nn.Linear(64, width)

    def forward(self, x):
        return self.map(x.flatten(1))


def shaken(digits, seed=0) -> Disentangled:
    """A tiny model whose maps are not the identity: there, cos(f1, f2) = 1 has no gradient."""
    torch.manual_seed(seed)
    model = Disentangled(LinearEncoder(), digits)
    with torch.no_grad():
        for branch in (model.intrinsic, model.confused):
            branch.weight += 0.3 * torch.randn_like(branch.weight)
    return model


def tuned(digits, model, **settings):
    """The fine-tuning stage, with a teacher that is not the model; eps 0 by default, so that x' = x."""
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


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- the released loop, written out


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
    ours, theirs = shaken(digits), shaken(digits)
    start = weights(ours)
    stage = tuned(digits, ours, lr=lr, mode=mode, weight_decay=DECAY)
    data = batches(digits, steps)
    drive(stage, data)
    released(theirs, shaken(digits, 99), data, lr, **WEIGHTS)
    d2 = (ours.confused.weight - theirs.confused.weight).abs().max().item()
    return (weights(ours) - weights(theirs)).norm().item(), (weights(ours) - start).norm().item(), d2


@pytest.mark.parametrize("steps", [1, 3])
def test_repo_mode_is_the_released_update_to_first_order(digits, steps):
    wide, near = (compared(digits, lr, steps, "repo") for lr in (0.0025, 0.00125))
    assert wide[0] < 0.002 * wide[1]
    assert 3.7 < wide[0] / near[0] < 4.3  # half the learning rate, a quarter of the difference
    assert 1.9 < wide[1] / near[1] < 2.1  # and half the move
    if steps == 1:
        assert wide[2] < 1e-7  # D2 comes first: it is the same


def test_paper_mode_differs_from_the_released_update_in_first_order(digits):
    wide, near = (compared(digits, lr, 1, "paper") for lr in (0.0025, 0.00125))
    assert 1.9 < wide[0] / near[0] < 2.1
    assert wide[2] < 1e-7


# ---- the two losses


def losses(digits, **settings):
    model = shaken(digits)
    stage = tuned(digits, model, **settings)
    (batch,) = batches(digits, 1)
    updates = list(stage.passes[0].updates(batch, step_context()))
    assert [name for name, _ in updates] == list(stage.optimisers)
    return model, stage.modules["teacher"], batch, dict(updates)


def in_numpy(model, teacher, batch, x_adv):
    """CE(z1, y), CE(z2, c), 1 - cos(f1, f_T), cos(f1, f2) and whether z2 says c, example by example in float64."""
    with torch.no_grad():
        h, t = (m.encoder((x - m.mean) / m.std).double().numpy() for m, x in ((model, x_adv), (teacher, batch.x)))
    d1, d2, w, b = (
        p.detach().double().numpy()
        for p in (model.intrinsic.weight, model.confused.weight, model.head.weight, model.head.bias)
    )
    rows = []
    for n, y in enumerate(batch.y.tolist()):
        f1, f2 = d1 @ h[n], d2 @ h[n]
        z1, z2 = w @ f1 + b, w @ f2 + b
        c = max((k for k in range(len(z1)) if k != y), key=lambda k: z1[k])
        ce, neg = (np.log(np.exp(z).sum()) - z[k] for z, k in ((z1, y), (z2, c)))
        angle = [f1 @ v / np.linalg.norm(f1) / np.linalg.norm(v) for v in (t[n], f2)]
        rows.append([ce, neg, 1 - angle[0], angle[1], float(z2.argmax() == c)])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(("mode", "times", "leak"), [("repo", 2, 2), ("paper", 1, 0)])
def test_losses_equal_their_formula(digits, mode, times, leak):
    model, teacher, batch, found = losses(digits, mode=mode, eps=0.2, attack_steps=3)
    x_adv = PGD(Threat("linf", 0.2), steps=3)(model, batch.x, batch.y, generator=step_context().generator)
    ce, neg, gap, alike, agreement = in_numpy(model, teacher, batch, x_adv)
    assert np.isclose(found["confused"].total.item(), 0.7 * neg, rtol=1e-5)
    assert np.isclose(found["confused"].parts["agreement"].item(), agreement)
    total = ce + 2 * gap + times * 0.5 * alike + leak * 0.7 * neg
    assert np.isclose(found["model"].total.item(), total, rtol=1e-5)
    parts = {name: part.item() for name, part in found["model"].parts.items()}
    assert parts == pytest.approx({"ce": ce, "gap": gap, "cosine": alike}, rel=1e-4)


def test_which_weights_learn_from_what(digits):
    model, _, _, found = losses(digits, disentangle=False, align=False)
    head = torch.autograd.grad(found["model"].total, model.head.weight, retain_graph=True)[0]
    alone = torch.autograd.grad(found["model"].parts["ce"], model.head.weight)[0]
    assert torch.equal(head, alone)  # the paper's W learns nothing of the wrong class
    for mode in ("repo", "paper"):
        model, _, _, found = losses(digits, mode=mode)
        wanted = [model.confused.weight, model.encoder.map.weight, model.intrinsic.weight]
        d2, encoder, d1 = torch.autograd.grad(found["confused"].total, wanted, allow_unused=True)
        assert d2.abs().max() > 1e-3
        assert encoder is None
        assert d1 is None
        d2, *others = torch.autograd.grad(found["model"].total, wanted, allow_unused=True)
        assert d2 is None
        assert all(gradient.abs().max() > 1e-3 for gradient in others)


@pytest.mark.parametrize("mode", ["repo", "paper"])
@pytest.mark.parametrize(("disentangle", "align"), [(True, False), (False, True), (False, False)])
def test_switches_drop_their_terms_and_nothing_else(digits, mode, disentangle, align):
    model = shaken(digits)
    stage = tuned(digits, model, mode=mode, disentangle=disentangle, align=align, weight_decay=DECAY)
    (batch,) = batches(digits, 1)
    found = dict(stage.passes[0].updates(batch, step_context()))
    ce, neg, gap, alike, _ = in_numpy(model, stage.modules["teacher"], batch, batch.x)
    times, leak = (2, 2) if mode == "repo" else (1, 0)
    total = ce + align * 2 * gap + disentangle * (times * 0.5 * alike + leak * 0.7 * neg)
    assert np.isclose(found["model"].total.item(), total, rtol=1e-5)
    assert list(found) == list(stage.optimisers) == (["confused", "model"] if disentangle else ["model"])
    assert np.isclose(found["model"].parts["gap"].item(), gap, rtol=1e-4)  # watched in any case
    assert ("cosine" in found["model"].parts) == disentangle
    assert stage.optimisers["model"].weight_decay == times * DECAY


def test_without_its_terms_it_is_adversarial_training(digits):
    """vanilla fine-tuning: the first loss is that of PGD-AT on the same attack, bit for bit."""
    torch.manual_seed(1)
    model = build_model("small_cnn", digits, disentangled=True).train()
    torch.manual_seed(1)
    plain = build_model("small_cnn", digits).train()
    (batch,) = batches(digits, 1)
    stage = make_method("afd", "digits", disentangle=False, align=False).stages(digits, model)[-1]
    found = dict(stage.passes[0].updates(batch, step_context()))
    ((_, base),) = make_method("pgd_at", "digits").stages(digits, plain)[0].passes[0].updates(batch, step_context())
    assert torch.equal(found["model"].total, base.total)


def test_the_confusion_label_is_the_strongest_wrong_class():
    z, y = torch.randn(200, 4, requires_grad=True), torch.randint(0, 4, (200,))
    found = confusion_labels(z, y)
    assert found.dtype == torch.int64
    for n in range(200):
        order = sorted(range(4), key=lambda k: -z[n, k].item())
        assert found[n] == (order[0] if order[0] != y[n] else order[1])  # the two cases of the paper
    assert confusion_labels(torch.tensor([[3.0, -1e30]]), torch.tensor([0])) == 1  # two classes: always the other
    assert torch.isfinite(z).all()  # the logits themselves are left alone


def test_the_mean_cosine_of_known_vectors():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, -1.0], [4.0, -3.0], [1.0, 1.0]])
    assert torch.isclose(mean_cosine(a, b), torch.tensor(0.0), atol=1e-6)  # 1, -1, 0 and, of a zero vector, 0
    assert torch.isclose(mean_cosine(a[:1], b[:1]), torch.tensor(1.0))
    assert mean_cosine(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# ---- stages


def test_stages_are_natural_training_and_fine_tuning(digits):
    method = make_method("afd", "cifar10-paper")
    torch.manual_seed(0)
    model = build_model("small_cnn", digits, **method.model_options())
    natural, tuning = method.stages(digits, model)
    assert (natural.epochs, natural.adversarial, natural.ema) == (100, False, 0.0)
    assert (tuning.epochs, tuning.adversarial, tuning.ema) == (20, True, 0.999)
    assert method.all_epochs == 120
    assert make_method("afd", "cifar10-paper", pretrained="somewhere").all_epochs == 20
    decays = {name: spec.weight_decay for name, spec in tuning.optimisers.items()}
    assert decays == {"confused": 5e-4, "model": 1e-3}
    one = make_method("afd", "cifar10-paper", mode="paper").stages(digits, model)[-1]
    assert one.optimisers["model"].weight_decay == 5e-4
    owned = [set(map(id, spec.params)) for spec in tuning.optimisers.values()]
    assert not owned[0] & owned[1]
    assert owned[0] | owned[1] == set(map(id, model.parameters()))
    of_natural = set(map(id, natural.optimisers["model"].params))
    assert owned[1] - of_natural == {id(model.intrinsic.weight)}


def test_the_learning_rate_falls_as_published(digits):
    model = build_model("mlp", digits, disentangled=True)
    for preset in (None, *preset_names()):
        method = make_method("afd", preset)
        spec, stretch = method.stages(digits, model)[-1].optimisers["model"], method.epochs / 20
        rates = [round(spec.lr * spec.schedule(stretch * (e + part)), 8) for e in range(20) for part in (0.001, 0.999)]
        assert stretch == (2 if preset == "digits" else 1)
        assert rates == [0.025] * 20 + [r for r in (0.02, 0.01, 0.005, 0.0025, 0.00125) for _ in range(4)]


def test_the_released_defaults_are_the_methods_own():
    own, section = make_method("afd"), load_preset("cifar10-paper")["afd"]
    assert {name: getattr(own, name) for name in section} == section
    assert (own.alpha, own.beta, own.gamma, own.ema, own.batch_size) == (0.05, 0.25, 25.0, 0.999, 128)


def test_only_attacked_images_move_the_statistics(digits):
    model = build_model("small_cnn", digits, disentangled=True).train()
    stage = make_method("afd", "digits").stages(digits, model)[-1]
    stage.begin()
    before = copy.deepcopy(stage.modules["teacher"].state_dict())
    drive(stage, batches(digits, 1))
    assert model.encoder.stage1[1].num_batches_tracked == 1
    assert all(torch.equal(before[k], v) for k, v in stage.modules["teacher"].state_dict().items())
    assert not any(p.requires_grad for p in stage.modules["teacher"].parameters())


def train(few, root, **settings):
    return fit(make_method("afd", "digits", **{**SMALL, **settings}), few, root=root, device="cpu", progress=False)


def test_a_run_begins_from_its_natural_stage_and_resumes_exactly(tmp_path, few, monkeypatch):
    whole = train(few, tmp_path / "a")
    rows = whole.metrics()
    assert list(rows.stage) == ["natural"] * 3 + ["afd"] * 3
    natural, begun = rows[rows.epoch == 2].iloc[0], rows[rows.epoch == 0].iloc[1]
    assert natural.clean_val == begun.clean_val
    assert rows["model/cosine"].iloc[-1] < 1
    model = whole.model("last")
    assert isinstance(model, Disentangled)
    eye = torch.eye(128)
    assert not torch.equal(model.intrinsic.weight, eye)
    assert not torch.equal(model.confused.weight, eye)
    real, steps = loop.Training._step, []

    def interrupted(self, *args):
        steps.append(0)
        if len(steps) == 11:  # in the second epoch of fine-tuning, three steps each
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(loop.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(few, tmp_path / "b")
    again = train(few, tmp_path / "b")
    assert again.metrics().drop(columns="seconds").equals(rows.drop(columns="seconds"))
    assert all(torch.equal(v, again.model("last").state_dict()[k]) for k, v in model.state_dict().items())


# ---- starting from a finished run


@pytest.fixture(scope="module")
def natural(tmp_path_factory, few):
    method = make_method("standard", "digits", epochs=2, train_examples=130)
    return fit(method, few, root=tmp_path_factory.mktemp("natural"), device="cpu", progress=False)


@pytest.mark.parametrize("name", FAMILY)
def test_fine_tuning_begins_with_the_weights_of_a_finished_run(digits, natural, name):
    method = make_method(name, "digits", pretrained=str(natural.path))
    model = build_model("small_cnn", digits, **method.model_options())
    (stage,) = method.stages(digits, model)
    stage.begin()
    theirs, x = natural.model("last"), batches(digits, 1)[0].x
    teacher = stage.modules["teacher"]
    assert torch.equal(model.eval()(x), theirs(x))
    assert torch.equal(teacher.features(x), theirs.features(x))
    assert not teacher.training


def test_a_finished_run_is_fine_tuned(tmp_path, few, natural):
    run = train(few, tmp_path, pretrained=str(natural.path))
    assert list(run.metrics().stage) == ["afd"] * 3
    assert run.metrics().clean_val.iloc[0] == natural.metrics().clean_val.iloc[-1]


def other(natural, root, status=None, **params):
    """A copy of the run with some of its facts changed."""
    run = Run(root / "other")
    run.path.mkdir()
    for file in natural.path.iterdir():
        (run.path / file.name).write_bytes(file.read_bytes())
    (run.path / "params.json").write_text(json.dumps({**natural.params(), **params}))
    if status:
        (run.path / "status.json").write_text(json.dumps({"state": status}))
    return str(run.path)


def begin(digits, name, pretrained, arch="small_cnn"):
    method = make_method(name, "digits", pretrained=pretrained)
    method.stages(digits, build_model(arch, digits, **method.model_options()))[0].begin()


@pytest.mark.parametrize("name", FAMILY)
def test_runs_that_do_not_fit_are_refused(tmp_path, digits, natural, name):
    with pytest.raises(
        InputError,
        match=rf"{name}: pretrained=.* is no run: give the directory of a finished run of standard on digits",
    ):
        begin(digits, name, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"is a 'small_cnn', whose weights do not fit: give --set arch=small_cnn"):
        begin(digits, name, str(natural.path), "mlp")
    changed = {"method": {"method": "trades"}, "unfinished": {"status": "failed"}, "data": {"dataset": "mnist"}}
    says = {"method": "is trades · small_cnn · seed 0 on digits, done", "unfinished": "is standard .*, failed"}
    says["data"] = "is standard .* on mnist, done"
    for kind, facts in changed.items():
        (tmp_path / kind).mkdir()
        with pytest.raises(InputError, match=says[kind]):
            begin(digits, name, other(natural, tmp_path / kind, **facts))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "rep"}, "Did you mean 'repo'"),
        ({"alpha": 0.0}, "alpha=0.0: give a positive weight, or set disentangle=false"),
        ({"beta": -0.1}, "beta=-0.1: give a positive weight, or set disentangle=false"),
        ({"gamma": 0.0, "disentangle": False}, "gamma=0.0: give a positive weight, or set align=false"),
        ({"classify": "laten"}, "Did you mean 'latent'"),
        ({"beta": float("inf")}, "beta=inf"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"pretrain_lr": -1.0}, "pretrain_lr=-1.0"),
        ({"pretrain_epochs": 0}, "pretrain_epochs=0"),
        ({"points": ((5, 1), (0, 1))}, "must rise: sort it"),
    ],
)
def test_bad_settings_are_sentences(settings, says):
    with pytest.raises(InputError, match=says):
        make_method("afd", "digits", **settings)


@pytest.mark.parametrize("name", FAMILY)
def test_a_model_of_another_kind_is_refused(digits, name):
    with pytest.raises(InputError, match=r"not a ReverseAttention: build_model\('small_cnn', dataset"):
        make_method(name, "digits").stages(digits, build_model("small_cnn", digits, reverse_attention=True))
    other_kind = build_model("small_cnn", digits, disentangled=name != "afd")
    with pytest.raises(InputError, match="disentangled=True" if name == "afd" else "trains a Classifier, not"):
        make_method(name, "digits").stages(digits, other_kind)
