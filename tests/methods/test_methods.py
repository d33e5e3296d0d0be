"""Methods: their settings against bad input, and presets against both."""

import re
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.methods import METHODS, AdversarialMethod, make_method
from robustlib.methods.preset import load_preset, parse_overrides, preset_dataset, preset_names
from robustlib.models import build_model
from robustlib.workbook import tables
from tests.conftest import made_up
from tests.training_fixtures import staged, step_context


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_makes_every_method_and_sets_only_what_exists(preset):
    content = load_preset(preset)
    facts = {"title", "dataset", "test_examples", "precision", "report", "randomised", "unseen", "common"}
    assert set(content) - facts == set(METHODS), "each needs a section"
    assert set(content["common"]) <= {f.name for kind in METHODS.values() for f in fields(kind)}
    assert set(content["report"]) <= set(METHODS)
    assert content.get("precision", "auto") in ("auto", "32-true", "bf16-mixed")
    assert preset_dataset(preset)
    for name in METHODS:
        assert (make_method(name, preset).preset, make_method(name, preset).name) == (preset, name)
        for arch, values in (content[name] or {}).get("architectures", {}).items():
            method = make_method(name, preset, arch=arch)
            assert {key: getattr(method, key) for key in values} == values


def test_the_small_cifar_preset_gives_trainings_equally_many_attack_passes():
    passes = {name: make_method(name, "cifar10-small").attack_passes for name in METHODS}
    once = {"pgd_at", "trades", "mart", "vaft", "afkd", "arrest", "afd", "claf", "rocl"}
    others = {"ancra": 100, "acl": 100, "n_fgsm": 30, "fgsm_rs": 30, "atop": 5}
    assert {name: count for name, count in passes.items() if count} == dict.fromkeys(once, 50) | others


@cache
def random_images(preset):
    """A data set of as many classes as the preset's, which is not there, and of its shape; of imagenette half as wide."""
    kinds = {"cifar100": ((3, 32, 32), 100), "tiny-imagenet": ((3, 64, 64), 200), "imagenette": ((3, 80, 80), 10)}
    name = preset_dataset(preset)
    shape, classes = kinds[name]
    with pytest.MonkeyPatch.context() as patch:
        made_up(patch, name, shape, classes)
        return load_dataset(name)


def test_a_schedule_that_is_longer_than_the_training_is_named():
    said = "the {} schedule of the learning rate goes on to epoch {}, so it never falls as far as it should"
    (step,) = make_method("pgd_at", "cifar10-paper", epochs=30).advice("resnet18")
    assert step.startswith("epochs=30: " + said.format("step", 105))
    (points,) = make_method("n_fgsm", "cifar10-paper", epochs=15).advice("resnet18")
    assert said.format("piecewise", 30) in points
    for preset in preset_names():
        for name in METHODS:
            method = make_method(name, preset)
            assert method.advice(method.arch) == [], f"{preset} {name}"
    assert make_method("pgd_at", "cifar10-paper", epochs=30, schedule="cosine").advice("resnet18") == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("preset", ["cifar100-paper", "tiny-imagenet-paper", "imagenette-paper"])
def test_every_stage_of_a_paper_preset_takes_a_step(preset, name):
    dataset = random_images(preset)
    method = make_method(name, preset, **({"attack_steps": 1} if issubclass(METHODS[name], AdversarialMethod) else {}))
    assert str(method.threat(dataset)) == "Linf 8/255"
    model = build_model("small_cnn", dataset, **method.model_options()).train()
    batch = next(dataset.train.batches(2, augment=method.augment))
    for stage in method.stages(dataset, model):
        for key, loss in (update for part in stage.passes for update in part.updates(batch, step_context())):
            optimiser = stage.optimisers[key].build()
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            assert loss.total.isfinite()


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
        ("rep_spectral", "mlp", {}, "strength=0.1 lr=0.1 epochs=100 mlp_512,", "seed arch="),
        ("rep_spectral", "mlp", {"strength": 0.5}, "lr=0.1", "strength"),
        ("cross_lipschitz", "small_cnn", {}, "strength=0.01", "seed"),
        ("pgd_at", "mlp", {}, "lr=0.2 epochs=40 small_cnn,", "attack_steps ema"),
    ],
)
def test_values_chosen_for_another_architecture_are_named(name, arch, changes, named, silent):
    (said,) = make_method(name, "digits", arch=arch, **changes).advice(arch)
    assert all(text in said for text in [*named.split(), f"not for {arch}"])
    assert not any(text in said for text in silent.split())


def test_an_architecture_that_the_values_are_for_needs_no_word():
    for name in METHODS:
        assert make_method(name, "digits").advice(make_method(name, "digits").arch) == []
    assert make_method("pgd_at", "cifar10-paper", arch="wrn34_10").advice("wrn34_10") == [], "the paper's own values"
    assert make_method("pgd_at").advice("mlp") == []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_tells_readers_what_it_is(name):
    kind = METHODS[name]
    assert all((kind.title, kind.paper, kind.__doc__))
    assert kind.summary.endswith(".")
    table = tables.hyperparameters(make_method(name, "digits"))
    assert not list(table.index[table["meaning"] == ""]), "each field needs a comment, which the page shows"


NAN, INF = float("nan"), float("inf")
# method -> values outside the range of a field, each alone
OUTSIDE = {
    "pgd_at": {"attack_steps": [0, 2.5], "epochs": [True], "eps": [-0.1], "ema": [1.5], "momentum": [-0.9]}
    | {"awp_gamma": [-0.1, NAN], "awp_warmup": [-1], "batch_size": [1], "train_examples": [-1], "lr": [NAN, INF]},
    "trades": {"beta": [-1.0]},
    "mart": {"beta": [-1.0]},
    "fgsm_rs": {"step_factor": [0.0], "attack_step_size": [0.1]},
    "n_fgsm": {"noise": [-1.0, NAN]},
    "vaft": {"pretrain_lr": [-1.0], "pretrain_epochs": [0]},
    "arrest": {"weight": [NAN], "angle": [-1.0, 181.0], "replay": [1.5]},
    "afd": {"beta": [-0.1, INF], "gamma": [NAN], "pretrain_lr": [-1.0]},
    "ancra": {"zeta": [INF], "ra_weight": [-1.0], "alpha": [1.5], "beta": [-1.0], "mining_from": [-1]},
    "atop": {"missing": [-0.1], "sigma": [-0.1], "grid": [0], "cls_weight": [-1.0], "gan_weight": [NAN]}
    | {"purifier_lr": [-1.0], "classifier_lr": [-1.0], "classifier_epochs": [0], "purifier_epochs": [0], "repeats": [0]}
    | {"attack_steps": [0], "width": [0], "embed_dim": [0], "warm_up": [-1]},
    "simclr": {"head_epochs": [0], "head_lr": [-0.1], "tuning_epochs": [0], "tuning_lr": [-1.0], "final_steps": [0]},
    "supcon": {"projection": [()], "temperature": [0.0], "beta": [-1.0]},
    "claf": {"temperature": [0.0], "aug_epochs": [-1], "refresh_passes": [0], "adv_views": [-1], "refresh_lr": [-1.0]},
    "rep_spectral": {"strength": [-0.1, NAN], "burn_in": [-0.1, 1.0], "cadence": [0], "iterations": [0]},
    "cross_lipschitz": {"projections": [-1]},
    "barlow_spectral": {"off_diagonal": [-1.0], "projection": [()], "readout_c": [0.0], "readout_iterations": [0]},
    "simclr_spectral": {"temperature": [0.0], "strength": [-1.0]},
    "transfer": {"pretrain_epochs": [0]},
    "l2_sp": {"alpha": [-0.1], "beta": [NAN]},
    "bss": {"k": [0]},
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, field, value) for name, some in OUTSIDE.items() for field, values in some.items() for value in values],
)
def test_a_value_outside_its_range_is_named(name, field, value):
    with pytest.raises(InputError, match=re.escape(f"{field}={value!r}")):
        make_method(name, "digits", **{field: value})


SENTENCES = (
    ("tradez", {}, "Did you mean 'trades'"),
    ("trades", {"betta": 1.0}, "Did you mean 'beta'"),
    ("standard", {"beta": 1.0}, "Unknown hyper-parameter of standard"),
    ("trades", {"beta": "six"}, r"trades beta='six': give a number of at least 0\."),
    ("trades", {"beta": 10**400}, r"trades beta=10+ \.\.\.: give a number of at least 0 and at most 3.4e\+38"),
    ("trades", {"lr": 1e308}, r"lr=1e\+308: give a number of at least 0 and at most 3.4e\+38"),
    ("trades", {"train_examples": 2**63}, "train_examples=9223372036854775808: give a whole number"),
    ("trades", {"awp_gamma": 1.0}, "trades awp_gamma=1.0: give a number of at least 0 and below 1"),
    ("trades", {"name": "x"}, "Unknown hyper-parameter of trades 'name'"),
    ("trades", {"cls": "x"}, "Unknown hyper-parameter of trades 'cls'"),
    ("pgd_at", {"epochs": 0}, "pgd_at epochs=0: give a whole number of at least 1"),
    (
        "pgd_at",
        {"attack_step_size": 0.0},
        "attack_step_size=0.0: give a number of at least 6e-08 and at most 1000, or null",
    ),
    ("pgd_at", {"milestones": ["a"]}, r"pgd_at milestones\[0\]='a': give a number of at least 0"),
    ("pgd_at", {"milestones": [3, NAN]}, r"milestones\[1\]=nan: give a finite number"),
    ("pgd_at", {"milestones": 3}, "milestones=3: give a list of numbers"),
    ("pgd_at", {"points": [[1]]}, r"points\[0\]=\[1\]: give a list of 2"),
    ("pgd_at", {"points": [[0, -1]]}, r"points\[0\]\[1\]=-1: give a number of at least 0"),
    ("pgd_at", {"arch": ["mlp"]}, r"pgd_at arch=\['mlp'\]: give a text"),
    ("supcon", {"projection": [8.5]}, r"projection\[0\]=8.5: give a whole number"),
    ("transfer", {"source": [-1, 0]}, r"source\[0\]=-1: give a whole number of at least 0"),
    ("transfer", {"pretrain_points": [[0, "a"]]}, r"pretrain_points\[0\]\[1\]='a'"),
    ("afd", {"alpha": NAN, "disentangle": False}, "afd alpha=nan: give a finite number"),
    ("pgd_at", {"eps": 8.0}, "8/255"),
    ("pgd_at", {"norm": "l1"}, "Unknown pgd_at norm 'l1'"),
    ("pgd_at", {"schedule": "piecewise"}, "needs points"),
    ("pgd_at", {"milestones": (5, 3)}, "sort it"),
    ("afd", {"points": ((5, 1), (0, 1))}, "must rise: sort it"),
    ("fgsm_rs", {"attack_steps": 10}, "it takes 1; for more train pgd_at"),
    ("n_fgsm", {"attack_step_size": 0.1}, "n_fgsm attack_step_size=0.1: give step_factor"),
    ("afkd", {"weight": 0.0}, "give a number above 0, or train vaft"),
    ("afd", {"alpha": 0.0}, "alpha=0.0: give a number above 0, or set disentangle=false"),
    ("afd", {"gamma": 0.0, "disentangle": False}, "gamma=0.0: give a number above 0, or set align=false"),
    ("ancra", {"zeta": 0.0}, "or set negative_contrast=false"),
    ("ancra", {"ra_weight": 0.0}, "or set reverse_attention=false"),
    ("atop", {"missing": 1.0}, "atop missing=1.0: give a number of at least 0 and below 1"),
    ("atop", {"purifier": "none"}, "nothing to fine-tune: set fine_tune=false"),
    ("atop", {"purifier": "none", "transform": "none", "fine_tune": False}, "train standard"),
    ("atop", {"purifier": "none", "transform": "rt3", "fine_tune": False}, "without one every image is grey"),
    ("atop", {"transform": "rt1", "missing": 0.0}, "'rt1' with missing=0, .* changes nothing: set transform=none"),
    ("atop", {"warm_up": 50, "epochs": 50}, "warm_up=50 of epochs=50 leaves none"),
    ("atop", {"embed_dim": 6}, "give a multiple of 4"),
    ("atop", {"awp_gamma": 0.01}, "atop awp_gamma=0.01: this method does not perturb weights: leave"),
    ("acl", {"awp_gamma": 0.01}, "acl awp_gamma=0.01: this method does not perturb weights: leave"),
    ("rocl", {"regulariser": 0.0}, "inf drops the term"),
    ("claf", {"aug_epochs": 40}, "leaves no adversarial stage"),
    ("claf", {"new_head": False, "pretrained": "runs/x"}, "leave new_head at true"),
    ("transfer", {"source": (3, 3)}, "at least two labels"),
    ("transfer", {"source": (3, 4), "pretrained": "x"}, "pretrained skips it"),
    ("transfer", {"freeze": True, "strength": 0.1}, "strength=0.1 penalises an encoder that freeze holds"),
    ("l2_sp", {"freeze": True}, "set strength to 0"),
    ("transfer", {"pretrain_strength": -1.0}, r"transfer, its pre-training \(pretrain_...\): .*strength=-1.0"),
    ("transfer", {"pretrain_burn_in": 1.0}, "burn_in=1.0"),
)


@pytest.mark.parametrize(("name", "settings", "says"), SENTENCES)
def test_bad_settings_are_sentences(name, settings, says):
    with pytest.raises(InputError, match=says):
        make_method(name, "digits", **settings)


@pytest.mark.parametrize("name", METHODS)
def test_a_word_that_is_no_choice_is_refused(name):
    words = {key: word for key, word in make_method(name, "digits").hyperparameters().items() if isinstance(word, str)}
    for field in words.keys() - {"preset", "pretrained"}:
        with pytest.raises(InputError, match=rf"Unknown [a-z_0-9 ]+ '{words[field]}r'\. Did you mean '{words[field]}'"):
            make_method(name, "digits", **{field: f"{words[field]}r"})


@pytest.mark.parametrize(
    ("name", "settings", "options", "says"),
    [
        ("vaft", {}, {"reverse_attention": True}, r"not a ReverseAttention: build_model\('small_cnn', dataset\)"),
        *((n, {}, {"disentangled": True}, "trains a Classifier") for n in ("vaft", "afkd", "arrest", "l2_sp", "bss")),
        ("afd", {}, {}, r"dataset, disentangled=True\)"),
        ("ancra", {}, {}, "ancra trains a ReverseAttention, not a Classifier"),
        ("ancra", {"reverse_attention": False}, {"reverse_attention": True}, "a Classifier, not a ReverseAttention"),
        ("atop", {}, {}, "atop trains a Purified, not a Classifier"),
        ("claf", {}, {}, "claf trains a Projected, not a Classifier"),
        ("barlow_spectral", {}, {"padding_mode": "circular"}, "trains a SelfSupervised, not a Classifier"),
    ],
)
def test_a_model_of_another_kind_is_refused(digits, name, settings, options, says):
    with pytest.raises(InputError, match=says):
        make_method(name, "digits", **settings).stages(digits, build_model("small_cnn", digits, **options))


@pytest.mark.parametrize("name", ["claf", "barlow_spectral"])
def test_a_class_that_no_image_shows_is_refused(digits, name):
    with pytest.raises(InputError, match="no training image shows the class '9'"):
        staged(make_method(name, "digits"), digits.only(range(9)))


def test_overrides_are_read_as_people_write_them():
    values = parse_overrides(["beta=3.0", "eps=8/255", "schedule=cosine", "milestones=(3, 4)", "norm=null", "epochs=2"])
    assert values == {
        "beta": 3.0,
        "eps": 8 / 255,
        "schedule": "cosine",
        "milestones": (3, 4),
        "norm": None,
        "epochs": 2,
    }
    assert make_method("trades", "digits", **values).eps == 8 / 255
    for name, preset in (("pgd_at", "digit"), ("pgd_at", ["digits"]), (["pgd_at"], "digits"), (None, None)):
        with pytest.raises(InputError, match=r"Unknown (preset|method) "):
            make_method(name, preset)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        *((items, "write name=value") for items in (["beta"], ["=3"], [3], [None])),
        *((items, "give a list, such as") for items in (None, "beta=3", {"beta": 3}, 3)),
        (["beta=1", "lr=0.1", "beta = 2"], "'beta' is set twice"),
        (["preset=cifar10-paper"], "A preset is no hyper-parameter: give it as --preset"),
    ],
)
def test_overrides_that_say_nothing_clear_are_sentences(items, says):
    with pytest.raises(InputError, match=says):
        parse_overrides(items)


@pytest.mark.parametrize(
    "text", ["0x" + "f" * 5000, "9" * 5001, "1e400", "1e400/1e400", "(" * 5000, "-" * 5000 + "1", "{[]: 1}"]
)
def test_no_value_of_an_override_breaks_the_reader(text):
    with pytest.raises(InputError, match="beta="):
        make_method("trades", "digits", **parse_overrides([f"beta={text}"]))


def test_fields_are_plain_values_of_their_types_and_tuples_keep_whole_numbers():
    given = {"epochs": np.int64(3), "lr": 1, "milestones": [1, np.float32(2.5)], "awp_warmup": np.array(0)}
    method = make_method("pgd_at", "digits", **given)
    assert repr([getattr(method, name) for name in given]) == "[3, 1.0, (1, 2.5), 0]", "they are in the hash of a run"
    assert METHODS["pgd_at"](milestones=[5]).milestones == (5,), "also without a preset"
    with pytest.raises(InputError, match="pgd_at arch=tensor"):
        make_method("pgd_at", "digits", arch=torch.ones(3))


def test_none_is_a_choice_where_there_is_no_null():
    values = parse_overrides(["transform=none", "augment=none", "width=none", "attack_step_size=none"])
    method = make_method("atop", "digits", **values)  # "none" is a choice where there is no null
    assert (method.transform, method.augment, method.width, method.attack_step_size) == ("none", "none", None, None)


def test_the_command_repeats_the_run():
    method = make_method("trades", "digits", beta=2.0)
    command = method.command("digits", "mlp", 3, "32-true")
    assert command == "robustlib run trades --preset digits --seeds 3 --set arch=mlp --set beta=2.0 --precision 32-true"
