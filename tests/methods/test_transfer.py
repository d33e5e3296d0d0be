"""Transfer, L2-SP and BSS: losses against restatements, what is frozen, where encoders come from, label sets, bad input."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation.measurements import images_of
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.runs import Run, save_weights, write_json
from robustlib.training.fit import run_params
from robustlib.workbook.experiments import read_study, variant_name
from tests.restated import true_norms
from tests.training_fixtures import changed, same_state, staged, train, updated

ROWS = ("transfer", "l2_sp", "bss")
SMALL = {"epochs": 2, "pretrain_epochs": 2, "train_examples": 300, "batch_size": 64, "lr": 0.02, "pretrain_lr": 0.05}


def made(name, **settings):
    return make_method(name, "digits", **{**SMALL, **settings})


def first_loss(method, digits):
    """The loss of a penalised step of a model whose encoder has moved since fine-tuning began, the model and the start."""
    model, stages = staged(method, digits)
    first, *later = (stage for stage in stages if not stage.name.startswith("pretraining"))
    head = model.head.weight.clone()
    first.begin()
    assert not torch.equal(model.head.weight, head), "a new head is fine-tuned"
    start = copy.deepcopy(model.encoder)
    for p in model.encoder.parameters():
        p.data.add_(0.01 * torch.randn_like(p))
    for stage in later:
        stage.begin()
    batch, twin = next(digits.train.batches(16)), copy.deepcopy(model)
    loss = updated([first, *later][-1], batch)["model"]
    ce = F.cross_entropy(twin(batch.x), batch.y).item()
    assert loss.parts["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert loss.total.item() == pytest.approx(ce + loss.parts["penalty"].item(), rel=1e-5)
    return loss, twin, start, batch


@pytest.mark.parametrize("arch", ["mlp_512", "small_cnn"])
def test_l2_sp_pulls_towards_the_start(digits, arch):
    loss, model, start, _ = first_loss(made("l2_sp", arch=arch, alpha=0.3, beta=0.02), digits)
    pairs = zip(model.encoder.parameters(), start.parameters(), strict=True)
    wanted = 0.3 * sum((p - q).detach().double().square().sum().item() for p, q in pairs)
    wanted += 0.02 * sum(p.detach().double().square().sum().item() for p in model.head.parameters())
    assert loss.parts["penalty"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("k", [1, 4])
def test_bss_shrinks_the_smallest_directions_of_the_batch(digits, k):
    loss, model, _, batch = first_loss(made("bss", strength=0.5, k=k), digits)
    values = np.linalg.svd(model.features(batch.x).detach().double().numpy(), compute_uv=False)
    assert loss.parts["penalty"].item() == pytest.approx(0.5 * float((values[-k:] ** 2).sum()), rel=1e-3)


@pytest.mark.parametrize("readout", [False, True])
def test_rep_spectral_and_ll_spectral_in_fine_tuning(digits, readout):
    method = made("transfer", strength=0.3, include_readout=readout, epochs=5)
    loss, model, _, _ = first_loss(method, digits)
    norms = true_norms(model, digits.image_shape)
    wanted = sum(value for name, value in norms.items() if readout or name != "head")
    assert loss.parts["penalty"].item() == pytest.approx(0.3 * wanted, rel=1e-5)


def test_pre_training_is_rep_spectral_on_the_source(digits):
    method = made("transfer", pretrain_epochs=10, epochs=5, strength=0.1, source=(1, 7), pretrain_strength=0.2)
    model, stages = staged(method, digits)
    names = [("pretraining-burn-in", 6), ("pretraining-regularised", 4), ("burn-in", 3), ("regularised", 2)]
    assert [(stage.name, stage.epochs) for stage in stages] == names
    assert method.all_epochs == 15
    for stage in stages[:2]:
        assert set(stage.dataset.train.labels.tolist()) == set(stage.dataset.val.labels.tolist()) == {1, 7}
    assert [stage.dataset for stage in stages[2:]] == [None, None]
    assert set(made("transfer").stages(digits, model)[0].dataset.train.labels.tolist()) == set(range(5))
    twin = make_method("rep_spectral", "digits", epochs=10, lr=0.05, strength=0.2, burn_in=0.6)
    batch = next(stages[0].dataset.train.batches(8))
    for pair in zip(stages, twin.stages(digits, model), strict=False):
        losses = []
        for stage in pair:
            if stage.begin:
                stage.begin()
            losses.append(updated(stage, batch)["model"].total.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_variants_share_their_pre_training(run_of):
    runs = {name: run_of(name, **SMALL) for name in ROWS} | {"none": run_of("transfer", pretrain_strength=0.0, **SMALL)}
    rows = {name: run.metrics().query("stage.str.startswith('pretraining')") for name, run in runs.items()}
    said = {name: frame["ce"].dropna().to_list() for name, frame in rows.items()}
    assert said["none"] == said["l2_sp"] == said["bss"]
    assert [a == b for a, b in zip(said["none"], said["transfer"], strict=True)] == [True, False], "burn-in, and after"
    assert rows["transfer"]["penalty"].iloc[-1] > 0 == rows["l2_sp"]["penalty"].iloc[-1]


def test_a_frozen_encoder_stays_bit_identical(digits):
    for freeze, moves in ((True, ({"head"}, set())), (False, ({"encoder", "head"}, {"encoder"}))):
        model, (*_, stage) = staged(made("transfer", arch="small_cnn", freeze=freeze), digits)
        assert changed(model, stage, stage.passes[0], next(digits.train.batches(16))) == moves


@pytest.mark.parametrize("name", ROWS)
def test_each_row_trains_and_tells_all_classes(run_of, few, name):
    run = run_of(name, **SMALL)
    rows = run.metrics()
    half = rows[rows.stage.str.startswith("pretraining")]
    assert half["clean_val"].iloc[-1] > 0.8, "judged on the classes that it sees"
    assert rows["clean_val"].iloc[-1] > 0.6
    assert len(images_of(run, few, 20)) == 20


def test_from_one_label_set_to_another(tmp_path):
    low, high = load_dataset("digits-0-4"), load_dataset("digits-5-9")
    source = train(make_method("rep_spectral", "digits", epochs=2, train_examples=150, batch_size=64), low, tmp_path)
    assert source.model().num_classes == 5
    method = made("transfer", pretrained=str(source.path), freeze=True, train_examples=200, epochs=5, lr=0.1)
    assert method.all_epochs == 5
    run = train(method, high, tmp_path)
    assert list(run.metrics().stage.unique()) == ["burn-in", "regularised"]
    assert same_state(run.model("last").encoder, source.model("last").encoder)
    assert run.metrics()["clean_val"].iloc[-1] > 0.6
    assert run.params()["dataset"] == "digits-5-9"


def test_a_self_supervised_encoder_and_its_statistics_are_taken_over(few, tmp_path):
    others = replace(few, mean=(0.1,), std=(2.0,))
    source = train(make_method("barlow_spectral", "digits", epochs=1, train_examples=100), others, tmp_path)
    run = train(made("l2_sp", pretrained=str(source.path), lr=0.0, epochs=1), few, tmp_path)
    mine, theirs, x = run.model("last"), source.model("last"), torch.rand(3, 1, 8, 8)
    assert torch.equal(mine.features(x), theirs.features(x))


def unfit(root, dataset, name="rep_spectral", arch="mlp_512", state="done"):
    method = make_method(name, "digits", arch=arch)
    run = Run.of(params := run_params(method, dataset, arch, 0, "32-true"), root)
    write_json(run.path / "params.json", params)
    write_json(run.path / "status.json", {"state": state})
    save_weights(build_model(arch, dataset, **method.model_options()), run.path / "last.safetensors")
    return run.path


@pytest.mark.parametrize(
    ("arch", "pixels", "facts", "says"),
    [
        ("mlp_512", 0, {"state": "failed"}, "is rep_spectral .* on digits, failed: give the directory of"),
        ("small_cnn", 0, {}, "is a 'mlp_512', whose weights do not fit: give --set arch=mlp_512"),
        ("small_cnn", 0, {"arch": "small_cnn", "name": "standard"}, "pad otherwise than circularly"),
        ("mlp_512", 4, {}, r"images of shape \(1, 12, 12\), not \(1, 8, 8\)"),
        ("mlp_512", 0, None, "is no run: give the directory of a finished run"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(digits, tmp_path, arch, pixels, facts, says):
    splits = {name: getattr(digits, name) for name in ("train", "val", "test")}
    padded = {n: replace(s, images=F.pad(s.images, (0, pixels, 0, pixels))) for n, s in splits.items()}
    wide = replace(digits, **padded)
    path = tmp_path / "none" if facts is None else unfit(tmp_path, wide, **facts)
    _, (stage, *_) = staged(made("transfer", arch=arch, pretrained=str(path)), digits)
    with pytest.raises(InputError, match=says):
        stage.begin()


def test_a_label_set_is_the_same_images_with_other_numbers(digits):
    high = load_dataset("digits-5-9")
    assert (high.name, high.class_names, high.num_classes) == ("digits-5-9", tuple("56789"), 5)
    assert (high.mean, high.std, high.threat) == (digits.mean, digits.std, digits.threat)
    for part in ("train", "val", "test"):
        few, kept = (getattr(dataset, part) for dataset in (high, digits))
        kept = kept.select(kept.labels >= 5)
        pairs = ((few.images, kept.images), (few.indices, kept.indices), (few.labels + 5, kept.labels))
        assert all(torch.equal(*pair) for pair in pairs)
    odd, named = digits.only((7, 1, 3, 3)), digits.only((7, 3), relabel=True)
    assert (odd.class_names, set(odd.test.labels.tolist())) == (digits.class_names, {1, 3, 7})
    assert named.class_names == ("3", "7")
    assert named.train.labels[0] == (digits.only((7, 3)).train.labels[0] == 7)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: d.only((3, 12)), r"digits has no classes \(3, 12\): give labels of 0 to 9"),
        (lambda d: d.only((-1, 3)), r"digits has no classes \(-1, 3\)"),
        (lambda d: d.only(()), r"No training image of digits shows any of the classes \(\)"),
        (lambda d: d.only((1, 2)).only((3, 4)), r"shows any of the classes \(3, 4\)"),
        (lambda d: load_dataset("digits-5-12"), "give labels of 0 to 9"),
        (lambda d: load_dataset("digitz-0-4"), "Unknown dataset 'digitz'"),
        (lambda d: staged(made("transfer", source=(11, 12)), d), "no classes"),
    ],
)
def test_classes_that_are_not_there_are_refused(digits, call, says):
    with pytest.raises(InputError, match=says):
        call(digits)


def test_k_is_compared_with_the_last_batch(digits):
    few = digits.subset(130)  # 64 + 64 + 2
    assert staged(made("bss", k=2), few)
    for k, dataset, most in ((3, few, "2 images"), (65, digits, ".* images and 512 features")):
        with pytest.raises(InputError, match=f"k={k}, but the smallest batch has {most}"):
            staged(made("bss", k=k), dataset)


def test_pre_training_follows_the_released_schedule(digits):
    """train_reg_transfer.py: one epoch of warm-up, MultiStepLR at 60, 120 and 160 by 0.2."""
    _, (before, after, *_) = staged(make_method("transfer", arch="mlp_512"), digits)
    schedule, rates = before.optimisers["model"].schedule, {0: 0, 0.5: 0.5, 1: 1, 59.9: 1, 60: 0.2, 119.9: 0.2}
    assert [schedule(epoch) for epoch in rates] == pytest.approx(list(rates.values()))
    assert [schedule(120), schedule(159.9)] == pytest.approx([0.04, 0.04])
    assert [after.optimisers["model"].schedule(epoch) for epoch in (0, 39.9)] == pytest.approx([0.008, 0.008])
    assert (before.epochs, after.epochs, before.optimisers["model"].lr) == (160, 40, 0.1)


def test_the_study_has_the_rows_of_both_tables():
    study = read_study("spectral-transfer")
    variants = {variant_name(variant, study.preset) for variant in study.variants}
    assert len(variants) == len(study.variants) == 13
    assert {"transfer", "transfer pretrain_strength=0.0", "barlow_spectral strength=0.0"} <= variants
