"""Methods: their losses against the papers' formulas, their settings against bad input, presets against both."""

import copy
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from robustlib.attacks import PGD
from robustlib.data import DATASETS, load_dataset
from robustlib.data.sources import Arrays
from robustlib.errors import InputError
from robustlib.losses import trades_loss
from robustlib.methods import (
    METHODS,
    AdversarialMethod,
    load_preset,
    make_method,
    parse_overrides,
    preset_dataset,
    preset_names,
)
from robustlib.models import build_model
from robustlib.training import StepContext
from robustlib.workbook import tables
from robustlib.workbook.experiments import Options, plan


def first_update(name, dataset, seed=0, **settings):
    """The model as it was before a method's first update, the batch, and the loss of that update."""
    torch.manual_seed(seed)
    model = build_model("small_cnn", dataset).train()
    stage = make_method(name, preset="digits", **settings).stages(dataset, model)[0]
    batch = next(dataset.train.batches(16, augment="none"))
    before = copy.deepcopy(model)
    context = StepContext(0, 0, 0.0, torch.Generator().manual_seed(5), "32-true")
    (_, loss), *rest = list(stage.passes[0].updates(batch, context))
    assert rest == []
    assert model.training
    assert model.encoder.stage1[1].num_batches_tracked == (3 if name == "trades" else 1)  # attacks leave no trace
    return before, batch, loss


def restated_attack(model, batch, threat, objective, start):
    """The update written out: x' = clip(x + clip(x' + eps/4 sign(gradient) - x))."""
    model.eval()
    x, x_adv = batch.x, start
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(objective(model(x_adv)), x_adv)
        x_adv = (x + (x_adv + threat.eps / 4 * g.sign() - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    model.train()
    return x_adv.detach()


def test_standard_is_cross_entropy(digits):
    model, batch, loss = first_update("standard", digits)
    assert torch.isclose(loss.total, F.cross_entropy(model(batch.x), batch.y), atol=1e-5)


def test_pgd_at_is_cross_entropy_on_its_own_attack(digits):
    model, batch, loss = first_update("pgd_at", digits)
    attack = PGD(digits.threat, steps=10)
    x_adv = attack(model, batch.x, batch.y, generator=torch.Generator().manual_seed(5))
    assert torch.isclose(loss.total, F.cross_entropy(model(x_adv), batch.y), atol=1e-3)
    assert loss.total > F.cross_entropy(model(batch.x), batch.y) + 0.1


def test_trades_climbs_the_divergence_it_minimises(digits):
    model, batch, loss = first_update("trades", digits, beta=6.0)
    clean = model.eval()(batch.x).detach()
    start = batch.x + 0.001 * torch.randn_like(batch.x)
    x_adv = restated_attack(
        model, batch, digits.threat, lambda z: F.kl_div(z.log_softmax(1), clean.softmax(1), reduction="sum"), start
    )
    p, q = model(batch.x), model(x_adv)
    expected = F.cross_entropy(p, batch.y) + 6 * F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
    assert abs((loss.total / expected).item() - 1) < 0.05  # the same ascent from another random start
    assert set(loss.parts) == {"ce", "kl"}


def test_trades_loss_equals_its_formula_and_both_sides_carry_gradients():
    z, z_adv = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    y = torch.randint(0, 5, (8,))
    total, parts = trades_loss(z, z_adv, y, 3.0)
    p, q = (t.detach().softmax(1).numpy().astype(float) for t in (z, z_adv))
    ce = -np.log(p[np.arange(8), y]).mean()
    kl = np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert np.isclose(total.item(), ce + 3 * kl, rtol=1e-5)
    assert np.isclose(parts["kl"].item(), kl, rtol=1e-5)
    for side in (z, z_adv):
        (gradient,) = torch.autograd.grad(parts["kl"], side, retain_graph=True)
        assert gradient.abs().max() > 1e-4


def test_attacks_in_training_use_eval_statistics_unless_told():
    assert make_method("pgd_at").attack_settings()["batchnorm"] == "eval"
    assert make_method("pgd_at", attack_batchnorm="train").attack_settings()["batchnorm"] == "train"


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("name", METHODS)
def test_every_preset_makes_every_method(preset, name):
    method = make_method(name, preset)
    assert (method.preset, method.name) == (preset, name)
    assert preset_dataset(preset)
    assert name in load_preset(preset), f"presets/{preset}.yaml needs a section for {name}"


def made_up(preset):
    """Images of the shape and as many classes as the preset's data set has, which is not there."""
    kinds = {"cifar100": ((3, 32, 32), 100), "tiny-imagenet": ((3, 64, 64), 200), "imagenette": ((3, 160, 160), 10)}
    shape, classes = kinds[preset_dataset(preset)]
    labels = np.arange(5 * classes) % classes
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    return Arrays((images, labels), (images[:classes], labels[:classes]), tuple(map(str, range(classes))))


@pytest.fixture
def preset_data(monkeypatch):
    """Puts made-up images in place of a preset's data set."""

    def put(preset):
        source = replace(DATASETS[preset_dataset(preset)], read=lambda *_: made_up(preset), embedded=True)
        monkeypatch.setitem(DATASETS, preset_dataset(preset), source)

    return put


@cache
def loaded(preset):
    """The data set that `preset_data` has put there, cut into its splits once."""
    return load_dataset(preset_dataset(preset))


PAPERS = ("cifar100-paper", "tiny-imagenet-paper", "imagenette-paper")


@pytest.mark.parametrize("preset", PAPERS)
def test_presets_of_absent_data_are_planned(preset, preset_data, tmp_path):
    preset_data(preset)
    options = Options(preset, runs=tmp_path / "runs", reports=tmp_path / "reports")
    jobs = plan([(name, {}) for name in METHODS], [0], options)
    assert [job.name.split(" ")[0] for job in jobs] == list(METHODS)
    dataset = loaded(preset)
    threats = {make_method(name, preset).threat(dataset) for name in METHODS}
    assert {str(threat) for threat in threats} == {"Linf 8/255"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("preset", PAPERS)
def test_every_stage_of_a_paper_preset_takes_a_step(preset, name, preset_data):
    preset_data(preset)
    dataset = loaded(preset)
    method = make_method(name, preset, **({"attack_steps": 1} if issubclass(METHODS[name], AdversarialMethod) else {}))
    model = build_model("small_cnn", dataset, **method.model_options()).train()
    batch = next(dataset.train.batches(4, augment=method.augment))
    for stage in method.stages(dataset, model):
        for part in stage.passes:
            for key, loss in part.updates(batch, StepContext(0, 0, 0.0, torch.Generator().manual_seed(5), "32-true")):
                optimiser = stage.optimisers[key].build()
                optimiser.zero_grad()
                loss.total.backward()
                optimiser.step()
                assert loss.total.isfinite()


@pytest.mark.parametrize("preset", preset_names())
def test_presets_set_only_what_exists(preset):
    content = load_preset(preset)
    known = {f.name for kind in METHODS.values() for f in fields(kind)}
    assert set(content["common"]) <= known
    assert set(content) - {"title", "dataset", "test_examples", "report", "randomised", "unseen", "common"} <= set(
        METHODS
    )
    assert set(content["report"]) <= set(METHODS) & set(content)


@pytest.mark.parametrize("preset", preset_names())
def test_values_of_an_architecture_are_fields_of_the_method(preset):
    for name, section in load_preset(preset).items():
        for arch, values in (section.get("architectures", {}) if name in METHODS and section else {}).items():
            method = make_method(name, preset, arch=arch)
            assert {key: getattr(method, key) for key in values} == values


def test_a_preset_has_values_of_its_own_for_an_architecture():
    assert make_method("rep_spectral", "digits").strength == 0.1
    for name in ("rep_spectral", "ll_spectral"):
        method = make_method(name, "digits", arch="small_cnn")
        assert (method.strength, method.lr, method.advice("small_cnn")) == (0.001, 0.1, [])
        assert method.changes("small_cnn") == {"arch": "small_cnn", "strength": 0.001}
    assert make_method("rep_spectral", "digits", arch="small_cnn", strength=0.5).strength == 0.5
    (said,) = make_method("rep_spectral", "digits").advice("small_cnn")  # as by fit(..., arch="small_cnn")
    assert said.startswith("strength=0.1: chosen by the preset digits for mlp_512, not for small_cnn")


@pytest.mark.parametrize(
    ("name", "arch", "changes", "named", "silent"),
    [
        (
            "rep_spectral",
            "mlp",
            {},
            ["strength=0.1", "lr=0.1", "epochs=100", "for mlp_512, not for mlp"],
            ["seed", "arch="],
        ),
        ("rep_spectral", "mlp", {"strength": 0.5}, ["lr=0.1"], ["strength"]),
        ("cross_lipschitz", "small_cnn", {}, ["strength=0.01"], []),
        ("pgd_at", "mlp", {}, ["lr=0.2", "epochs=40", "for small_cnn, not for mlp"], ["attack_steps", "ema"]),
    ],
)
def test_values_chosen_for_another_architecture_are_named(name, arch, changes, named, silent):
    (said,) = make_method(name, "digits", arch=arch, **changes).advice(arch)
    for text in named:
        assert text in said
    for text in silent:
        assert text not in said


def test_an_architecture_that_the_values_are_for_needs_no_word():
    for name in METHODS:
        assert make_method(name, "digits").advice(make_method(name, "digits").arch) == []
    assert make_method("pgd_at", "cifar10-paper", arch="wrn34_10").advice("wrn34_10") == [], "the paper's own values"
    assert make_method("pgd_at").advice("mlp") == []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_tells_readers_what_it_is(name):
    kind = METHODS[name]
    assert kind.title
    assert kind.paper
    assert kind.summary.endswith(".")
    assert kind.__doc__
    table = tables.hyperparameters(make_method(name, "digits"))
    assert not list(table.index[table["meaning"] == ""]), "each field needs a comment, which the page shows"


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("tradez", {}, "Did you mean 'trades'"),
        ("trades", {"betta": 1.0}, "Did you mean 'beta'"),
        ("standard", {"beta": 1.0}, "Unknown hyper-parameter of standard"),
        ("trades", {"beta": "six"}, r"beta='six' should be of type float"),
        ("trades", {"beta": -1.0}, "beta=-1.0"),
        ("pgd_at", {"attack_steps": 0}, "attack_steps=0"),
        ("pgd_at", {"attack_steps": 2.5}, "attack_steps=2.5"),
        ("pgd_at", {"epochs": True}, "epochs=True"),
        ("pgd_at", {"eps": 8.0}, "8/255"),
        ("pgd_at", {"eps": -0.1}, "eps=-0.1"),
        ("pgd_at", {"norm": "l1"}, "Unknown norm 'l1'"),
        ("pgd_at", {"arch": "resnet-18"}, "Did you mean 'resnet18'"),
        ("pgd_at", {"schedule": "cosin"}, "Did you mean 'cosine'"),
        ("pgd_at", {"ema": 1.5}, "ema=1.5"),
        ("pgd_at", {"schedule": "piecewise"}, "needs points"),
        ("pgd_at", {"momentum": -0.9}, "momentum=-0.9"),
        ("pgd_at", {"milestones": (5, 3)}, "sort it"),
        ("pgd_at", {"preset": "digit"}, "Did you mean 'digits'"),
    ],
)
def test_bad_settings_are_sentences(name, settings, says):
    preset = settings.pop("preset", "digits") if "preset" in settings else "digits"
    with pytest.raises(InputError, match=says):
        make_method(name, preset, **settings)


def test_overrides_are_read_as_people_write_them():
    items = ["beta=3.0", "eps=8/255", "schedule=cosine", "milestones=(3, 4)", "norm=null", "epochs=2"]
    values = parse_overrides(items)
    assert values == {
        "beta": 3.0,
        "eps": 8 / 255,
        "schedule": "cosine",
        "milestones": (3, 4),
        "norm": None,
        "epochs": 2,
    }
    assert make_method("trades", "digits", **values).eps == 8 / 255
    with pytest.raises(InputError, match="name=value"):
        parse_overrides(["beta"])


def test_none_is_a_choice_where_there_is_no_null():
    values = parse_overrides(["transform=none", "augment=none", "width=none", "attack_step_size=none"])
    method = make_method("atop", "digits", **values)
    assert (method.transform, method.augment, method.width, method.attack_step_size) == ("none", "none", None, None)


def test_the_command_repeats_the_run():
    method = make_method("trades", "digits", beta=2.0)
    command = method.command("digits", "mlp", 3, "32-true")
    assert command == "robustlib run trades --preset digits --seeds 3 --set arch=mlp --set beta=2.0 --precision 32-true"
