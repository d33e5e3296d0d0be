"""The fine-tuning family: vAFT, AFKD and ARREST against their formulas, AWP, the watched feature gap, AFD's deployed branch."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD, ExampleRNG, Threat
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.representation import feature_gap, features, gap_probe, probe_attack
from robustlib.training import StepContext, fit
from robustlib.training.validation import probe_batch

FAMILY = ("vaft", "afkd", "arrest", "afd")
SMALL = {"epochs": 2, "pretrain_epochs": 1, "train_examples": 130, "attack_steps": 2}


def tuned(digits, name, arch="small_cnn", seed=0, **settings):
    """Model, teacher and fine-tuning stage of a method; the teacher is another model than the student."""
    method = make_method(name, "digits", **{"attack_steps": 3, **settings})
    torch.manual_seed(seed)
    model = build_model(arch, digits, **method.model_options()).train()
    stage = method.stages(digits, model)[-1]
    torch.manual_seed(seed + 1)
    teacher = stage.modules["teacher"]
    teacher.load_state_dict(build_model(arch, digits, **method.model_options()).state_dict())
    return model, teacher, stage


def step_context(epoch=0, epochs=40):
    return StepContext(epoch, 0, (epoch + 0.5) / epochs, torch.Generator().manual_seed(5), "32-true")


def first_batch(digits, size=24):
    return next(digits.train.batches(size, augment="none"))


def updated(stage, batch, now=None):
    """The losses of one update."""
    return dict(stage.passes[0].updates(batch, now or step_context()))


def in_numpy(model, teacher, batch, x_adv):
    """CE and mean 1 - cos of penultimate features, example by example in float64."""
    with torch.no_grad():
        f, t = model.features(x_adv).double().numpy(), teacher.eval().features(batch.x).double().numpy()
    w, b = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))
    ce, gap = [], []
    for n, y in enumerate(batch.y.tolist()):
        z = w @ f[n] + b
        ce.append(np.log(np.exp(z).sum()) - z[y])
        gap.append(1 - f[n] @ t[n] / np.linalg.norm(f[n]) / np.linalg.norm(t[n]))
    return np.mean(ce), np.mean(gap)


@pytest.mark.parametrize(("name", "weight"), [("vaft", 0.0), ("afkd", 50.0), ("arrest", 50.0)])
def test_losses_equal_their_formula(digits, name, weight):
    model, teacher, stage = tuned(digits, name, **({"replay": 0.0} if name == "arrest" else {}))
    batch = first_batch(digits)
    x_adv = PGD(digits.threat, steps=3)(model, batch.x, batch.y, generator=step_context().generator)
    loss = updated(stage, batch)["model"]
    ce, gap = in_numpy(model, teacher, batch, x_adv)
    assert np.isclose(loss.total.item(), ce + weight * gap, rtol=1e-4)
    assert loss.parts["ce"].item() == pytest.approx(ce, rel=1e-4)
    assert loss.parts["gap"].item() == pytest.approx(gap, rel=1e-4)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_vaft_is_pgd_at_from_another_start(digits):
    model, _, stage = tuned(digits, "vaft")
    batch = first_batch(digits)
    plain = make_method("pgd_at", "digits", attack_steps=3).stages(digits, copy.deepcopy(model))[0]
    assert torch.equal(updated(stage, batch)["model"].total, updated(plain, batch)["model"].total)


# ---- ARREST's noisy replay


def strayed_by(model, teacher, batch):
    """The mean of 1 - cos(f_T(x), f(x)), both in eval mode."""
    with torch.no_grad():
        pair = [m.eval().features(batch.x).double() for m in (copy.deepcopy(model), teacher)]
    return float((1 - F.cosine_similarity(*pair)).mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_replayed_where_clean_features_strayed(digits, norm):
    batch = first_batch(digits)
    model, teacher, _ = tuned(digits, "arrest")
    limit = math.degrees(math.acos(1 - strayed_by(model, teacher, batch)))
    for angle, noisy in ((limit - 0.1, True), (limit + 0.1, False)):
        model, teacher, stage = tuned(digits, "arrest", angle=angle, norm=norm)
        before = copy.deepcopy(model)
        loss = updated(stage, batch)["model"]
        assert loss.parts["replayed"] == float(noisy)
        assert model.training
        assert model.encoder.stage1[1].num_batches_tracked == 1  # neither the distance nor the attack leaves a trace
        threat = Threat(norm, digits.threat.eps)
        if noisy:  # where the attack would have started
            rng = ExampleRNG.from_generator(step_context().generator, len(batch.x), batch.x.device)
            shape = batch.x.shape[1:]
            x = threat.random_start(batch.x, rng.fold_in(0).uniform(*shape), rng.fold_in(0).fold_in(0).normal(*shape))
        else:
            x = PGD(threat, steps=3)(before, batch.x, batch.y, generator=step_context().generator)
        ce, gap = in_numpy(model, teacher, batch, x)
        assert np.isclose(loss.total.item(), ce + 50 * gap, rtol=1e-4)


def test_noise_is_replayed_in_the_first_half_only(digits):
    batch = first_batch(digits)
    for epochs, last in ((20, 9), (40, 19)):  # published: epochs 1 to 10 of 20
        _, _, stage = tuned(digits, "arrest", angle=0.0, epochs=epochs)
        found = [updated(stage, batch, step_context(e, epochs))["model"].parts["replayed"] for e in (0, last, last + 1)]
        assert found == [1.0, 1.0, 0.0]
    _, _, stage = tuned(digits, "arrest", angle=180.0)
    assert updated(stage, batch)["model"].parts["replayed"] == 0.0


# ---- adversarial weight perturbation


@pytest.mark.parametrize("name", FAMILY)
def test_awp_takes_the_step_at_the_perturbed_weights(digits, name):
    settings = {"replay": 0.0} if name == "arrest" else {}
    settings["eps"] = 0.0  # the attack is tested elsewhere: x' = x
    batch = first_batch(digits)
    model, _, _ = tuned(digits, name, **settings)
    start = copy.deepcopy(model.state_dict())

    def losses_at(weights):
        """Losses of the method without AWP at some weights, BatchNorm's statistics fresh."""
        other, _, stage = tuned(digits, name, **settings)
        other.load_state_dict({**start, **{n: p.detach() for n, p in weights.named_parameters()}})
        return other, updated(stage, batch)

    weights, plain = losses_at(model)
    named = {n: w for n, w in weights.named_parameters() if "weight" in n and w.ndim > 1}
    gradients = torch.autograd.grad(plain["model"].total, list(named.values()), allow_unused=True)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for (n, w), g in zip(named.items(), gradients, strict=True):
            assert (g is None) == (n == "confused.weight")
            if g is not None:
                moved.get_parameter(n).add_(0.02 * w.norm() / g.norm() * g)
    expected = losses_at(moved)[1]

    model, _, stage = tuned(digits, name, awp_gamma=0.02, **settings)
    seen = {}
    for key, loss in stage.passes[0].updates(batch, step_context()):
        seen[key] = loss.total.item()
        for n, w in model.named_parameters():
            assert torch.allclose(w, moved.get_parameter(n), atol=1e-6), n
        loss.total.backward(retain_graph=True)
    assert seen == pytest.approx({key: loss.total.item() for key, loss in expected.items()}, rel=1e-4)
    assert seen["model"] > plain["model"].total.item()
    for n, w in model.named_parameters():
        assert torch.allclose(w, start[n], atol=1e-6), n
    assert model.encoder.stage1[1].num_batches_tracked == 1


# ---- trainings


@pytest.fixture(scope="module")
def few(digits):
    """Digits with 40 validation images: trainings are told apart, and validated in no time."""
    return replace(digits, val=digits.val.sample(40))


def train(few, root, name, **settings):
    return fit(make_method(name, "digits", **{**SMALL, **settings}), few, root=root, device="cpu", progress=False)


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    return {name: train(few, root, name) for name in FAMILY}


def tuning(run, columns):
    """Rows and columns of the metrics that belong to the epochs of fine-tuning."""
    rows = run.metrics()
    return rows[rows.stage != "natural"].filter(regex=columns).dropna(axis=1, how="all")


def test_the_family_trains_alike(runs):
    for name, run in runs.items():
        rows = run.metrics()
        assert list(rows.stage) == ["natural"] * 2 + [name] * 3
        assert run.params()["model"] == ({"disentangled": True} if name == "afd" else {})
        assert tuning(run, "^probe/h/(relative_l2|cosine|linf)$").notna().all().all()
        assert len(tuning(run, "^probe/").columns) == (6 if name == "afd" else 3)
        assert rows.filter(like="probe/h")[:2].isna().all().all()
        for column in ("clean_val", "robust_val", "robust_loss_val"):  # one seed, one teacher
            assert rows[column][1] == runs["vaft"].metrics()[column][1]
    assert runs["arrest"].metrics().replayed[3:].between(0, 1).all()


@pytest.mark.parametrize("name", ["vaft", "afd"])
def test_averaging_leaves_the_trajectory_alone(few, runs, tmp_path, name):
    plain, averaged = train(few, tmp_path, name, ema=0.0), runs[name]
    raw = "^(model/|confused/)?(loss|ce|gap|cosine|agreement)$"
    assert len(tuning(plain, raw).columns) == {"vaft": 3, "afd": 6}[name]
    assert tuning(plain, raw).equals(tuning(averaged, raw))  # the losses of the raw weights, epoch for epoch
    both = [run.model("last").state_dict() for run in (plain, averaged)]
    assert any(not torch.equal(value, both[1][key]) for key, value in both[0].items())


def test_the_deployed_branch_changes_no_weight(few, runs, tmp_path):
    deployed, latent = runs["afd"], train(few, tmp_path, "afd", classify="latent")
    assert latent.params()["model"] == {"disentangled": True, "classify": "latent"}
    models = [run.model("last").eval() for run in (deployed, latent)]
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[key]), key
    assert tuning(deployed, "^(model|confused)/").equals(tuning(latent, "^(model|confused)/"))
    assert [len(tuning(run, "^probe/f1/").columns) for run in (deployed, latent)] == [3, 0]
    losses = [run.metrics().robust_loss_val.iloc[-1] for run in (deployed, latent)]
    assert losses[0] != losses[1]  # validation sees what is deployed
    x = few.val.images.float() / 255
    z, h = (model(x) for model in models)
    assert torch.equal(z, models[1].branches(x).logits)
    assert torch.equal(h, models[0].head(models[0].latent(x)))
    assert not torch.equal(z, h)
    assert torch.equal(models[1].features(x), models[0].latent(x))


def test_the_attack_inside_climbs_the_intrinsic_logits(digits):
    batch, found = first_batch(digits), []
    for kind in ("intrinsic", "latent"):
        model, _, stage = tuned(digits, "afd", classify=kind)
        with torch.no_grad():
            model.intrinsic.weight += 0.1 * torch.randn(128, 128, generator=torch.Generator().manual_seed(3))
        found.append(updated(stage, batch)["model"].total)
    assert torch.equal(*found)


# ---- the watched gap


def test_the_watched_gap_is_that_of_the_features(digits):
    model, _, stage = tuned(digits, "afd")
    with torch.no_grad():
        model.intrinsic.weight += 0.1 * torch.randn_like(model.intrinsic.weight)
    batch = probe_batch(digits.val)
    (found,) = [probe(model, batch) for probe in stage.probes.values()]
    split = digits.val.sample(len(batch.y))
    for layer, name in (("encoder", "h"), ("intrinsic", "f1")):
        clean, here = features(model, split, layers=layer), slice(None, None, len(split) // 128)
        adversarial = features(model, split, layers=layer, attack=probe_attack(digits.threat))
        assert torch.equal(clean.indices, batch.index)
        for measure in ("relative_l2", "cosine", "linf"):
            gaps = feature_gap(clean[layer][here], adversarial[layer][here], measure)
            assert found[f"{name}/{measure}"] == pytest.approx(gaps.mean().item(), rel=0.02)
    assert len(found) == 6
    assert model.training


def test_one_attack_serves_all_watched_layers(digits):
    calls = []

    def attack(model, x, y, **settings):
        calls.append((len(x), y.tolist()))
        return (x + 0.1).clamp(0, 1)

    model = build_model("small_cnn", digits)
    probe = gap_probe(attack, {"h": "features", "first": "stage1"}, measures=("l2",), images=10)
    ordered = digits.val.labels.argsort(stable=True)
    batch = next(iter(digits.val.select(ordered).batches(200)))
    found = probe(model, batch)
    assert calls == [(10, batch.y[::20].tolist())]
    assert len(set(calls[0][1])) >= 8, "spread over a batch that is sorted by class"
    assert set(found) == {"h/l2", "first/l2"}
    with pytest.raises(InputError, match="There is no layer 'stage9'"):
        gap_probe(attack, {"h": "stage9"})(model, probe_batch(digits.val))
    with pytest.raises(InputError, match="Unknown measure"):
        gap_probe(attack, {"h": "features"}, measures=("l3",))(model, probe_batch(digits.val))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("afkd", {"weight": 0.0}, "weight=0.0: give a positive weight, or train vaft"),
        ("arrest", {"weight": float("nan")}, "weight=nan"),
        ("arrest", {"angle": -1.0}, "angle=-1.0: give degrees"),
        ("arrest", {"replay": 1.5}, "replay=1.5: give a share"),
        ("vaft", {"pretrain_lr": -1.0}, "vaft: pretrain_lr=-1.0"),
        ("vaft", {"pretrain_epochs": 0}, "pretrain_epochs=0"),
        ("vaft", {"weight": 1.0}, "Unknown hyper-parameter of vaft"),
    ],
)
def test_bad_settings_are_sentences(name, settings, says):
    with pytest.raises(InputError, match=says):
        make_method(name, "digits", **settings)


def test_a_deployed_branch_needs_a_disentangled_model(digits):
    for wrong in ({"classify": "latent"}, {"classify": "h", "disentangled": True}):
        with pytest.raises(InputError, match="for a disentangled model"):
            build_model("small_cnn", digits, **wrong)


@pytest.mark.parametrize("name", FAMILY)
def test_the_released_values_are_the_methods_own(name):
    own, preset = make_method(name), make_method(name, "cifar10-paper")
    assert {**own.hyperparameters(), "preset": "cifar10-paper"} == preset.hyperparameters()
    theirs = [make_method(name, papers).hyperparameters() for papers in ("cifar100-paper", "tiny-imagenet-paper")]
    weights = {"alpha": 0.1, "beta": 1.0, "gamma": 50.0} if name == "afd" else {}
    assert theirs[0] == {**own.hyperparameters(), **weights, "preset": "cifar100-paper"}
    assert theirs[1] == {**theirs[0], "eps": 8 / 255, "preset": "tiny-imagenet-paper"}
