"""Rep-spectral, its variants and self-supervised rows: losses against dense operators, stages, probes, the readout, bad input."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.figures import training_curves
from robustlib.methods import make_method
from robustlib.methods.layer_norms import LayerNorms, input_sizes
from robustlib.methods.rep_spectral import logistic_regression
from robustlib.models import SelfSupervised, build_model
from robustlib.runs import load_weights, save_weights
from robustlib.training import fit, loop
from robustlib.workbook.claims import measure_of
from robustlib.workbook.console import activity
from tests.conftest import spec
from tests.restated import barlow_twins, class_jacobians, squared_norm, supcon, true_norms
from tests.training_fixtures import broken_off, first_batch, same_state, staged, step_context, tiny, train, updated

VARIANTS = ("rep_spectral", "ll_spectral", "cross_lipschitz")
SELF_SUPERVISED = ("barlow_spectral", "simclr_spectral")


def made(name, arch="mlp_512", **settings):
    return make_method(name, "digits", arch=arch, **settings)


def loss_of(stages, dataset, n=16):
    stages[-1].begin()
    batch = next(dataset.train.batches(n, augment="none"))
    return batch, updated(stages[-1], batch)["model"]


@pytest.mark.parametrize("arch", ["mlp", "mlp_512", "small_cnn"])
@pytest.mark.parametrize(("operator", "close"), [("exact", 1e-5), ("power", 5e-3)])
@pytest.mark.parametrize(
    ("name", "settings", "under"),
    [
        ("rep_spectral", {}, "encoder"),
        ("ll_spectral", {}, ("encoder", "head")),
        ("ll_spectral", {"readout_only": True}, "head"),
    ],
)
def test_the_loss_is_cross_entropy_and_the_sum_of_squared_norms(digits, name, settings, under, operator, close, arch):
    model, stages = staged(made(name, arch, strength=0.3, operator=operator, **settings), digits)
    norms = true_norms(model, digits.image_shape)
    wanted = {layer: value for layer, value in norms.items() if layer.startswith(under)}
    batch, loss = loss_of(stages, digits)
    assert loss.parts["penalty"].item() == pytest.approx(0.3 * sum(wanted.values()), rel=close)
    ce = F.cross_entropy(model(batch.x), batch.y)
    assert loss.total.item() == pytest.approx(ce.item() + loss.parts["penalty"].item(), rel=1e-5)
    weights = [model.get_submodule(layer).weight for layer in norms]
    gradients = torch.autograd.grad(loss.parts["penalty"], weights, allow_unused=True)
    assert {layer for layer, g in zip(norms, gradients, strict=True) if g is not None} == set(wanted)


def test_reshaped_kernels_are_another_norm(digits):
    model, stages = staged(made("rep_spectral", "small_cnn", operator="reshaped", strength=1.0), digits)
    kernels = [m.weight for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    wanted = sum(squared_norm(kernel.detach().flatten(1).double().numpy()) for kernel in kernels)
    assert loss_of(stages, digits)[1].parts["penalty"].item() == pytest.approx(wanted, rel=1e-5)


def test_folded_norms_are_those_of_the_convolution_with_batchnorm_in_eval_mode(digits):
    model, stages = staged(made("rep_spectral", "small_cnn", fold_batchnorm=True, strength=1.0), digits)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(64, *digits.image_shape))
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(-2, 2)
    _, loss = loss_of(stages, digits)
    wanted = 0.0  # with the statistics that this step's forward pass left
    for name, size in input_sizes(model, digits.image_shape).items():
        if name == "head":
            continue
        stage = model.get_submodule(name.rpartition(".")[0])
        # The columns of the linear part of norm(conv(.)), from unit images.
        x = torch.eye(stage[0].in_channels * math.prod(size)).view(-1, stage[0].in_channels, *size)
        stage.eval()
        with torch.no_grad():
            columns = (stage[1](stage[0](x)) - stage[1](stage[0](torch.zeros_like(x[:1])))).flatten(1)
        stage.train()
        wanted += squared_norm(columns.double().numpy())
    assert loss.parts["penalty"].item() == pytest.approx(wanted, rel=1e-4)
    norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss.parts["penalty"], norms))


@pytest.mark.parametrize(("arch", "settings"), [("mlp_512", {}), ("small_cnn", {"readout_only": True})])
def test_folding_where_there_is_nothing_to_fold_is_refused(digits, arch, settings):
    with pytest.raises(InputError, match=r"nothing to fold.*Leave it at False, or take an architecture"):
        staged(made("ll_spectral", arch, fold_batchnorm=True, **settings), digits)


def test_folding_says_how_much_it_folded(digits):
    method = made("rep_spectral", "preact_resnet18", fold_batchnorm=True, operator="reshaped")
    with pytest.warns(UserWarning, match="folded 8 of 20 convolutions.* such as encoder"):
        model, (stage, _) = staged(method, digits)
    firsts = {name for name, _ in model.named_modules() if name.endswith("conv1")}
    assert set(stage.modules["kept"].batchnorms) == firsts, "bn2 follows them alone"
    _, (stage, _) = staged(made("ll_spectral", "small_cnn", fold_batchnorm=True), digits)
    assert len(stage.modules["kept"].batchnorms) == 3, "of 3, and no warning: a readout has no BatchNorm"


@pytest.mark.parametrize("projections", [0, 500])
def test_cross_lipschitz_penalises_the_softmax(digits, projections):
    model, stages = staged(made("cross_lipschitz", strength=2.0, projections=projections), digits)
    batch, loss = loss_of(stages, digits, n=4)
    jacobians = class_jacobians(lambda x: model(x).softmax(1), batch.x)
    differences = jacobians[:, :, None] - jacobians[:, None]
    wanted = 2.0 * (differences**2).sum() / (4 * 10**2)
    assert loss.parts["penalty"].item() == pytest.approx(wanted, rel=0.2 if projections else 1e-4)
    released = 2.0 * 2 / (4 * 10**2) * ((jacobians**2).sum() - (jacobians.sum(1) ** 2).sum())
    assert wanted == pytest.approx(10 * released, rel=1e-4), "K times the release's: gradients of a softmax sum to 0"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_penalty_is_taken_every_so_many_steps_after_the_burn_in(digits, name):
    method = made(name, cadence=3, epochs=10, burn_in=0.6, schedule="cosine")
    (model, stages), batch = staged(method, digits), next(digits.train.batches(8, augment="none"))
    assert [(stage.name, stage.epochs) for stage in stages] == [("burn-in", 6), ("regularised", 4)]
    for stage, cadence in zip(stages, (None, 3), strict=True):
        penalties = [updated(stage, batch, step_context(step=k))["model"].parts["penalty"] for k in range(7)]
        assert [bool(p > 0) for p in penalties] == [cadence is not None and k % cadence == 0 for k in range(7)]
        start = 6 if cadence else 0  # the learning rate goes on
        rates = [stage.optimisers["model"].schedule(epoch) for epoch in (0.0, 2.5)]
        assert rates == [method.lr_schedule()(start + epoch) for epoch in (0.0, 2.5)]
    alone = made(name, epochs=1, burn_in=0.9).stages(digits, model)
    assert [(stage.name, stage.epochs) for stage in alone] == [("regularised", 1)]


def test_variants_share_their_burn_in_and_lower_what_they_penalise(digits, tmp_path):
    settings = {"epochs": 6, "train_examples": 400, "burn_in": 0.4, "lr": 0.05, "cadence": 1, "validate_every": 1}
    methods = {name: made(name, strength=0.2, **settings) for name in VARIANTS}
    methods["none"] = made("rep_spectral", strength=0.0, **settings)
    runs = {name: train(method, digits, tmp_path) for name, method in methods.items()}
    rows = {name: run.metrics() for name, run in runs.items()}
    burn_ins = [frame.query("stage == 'burn-in'").drop(columns="seconds").to_json() for frame in rows.values()]
    assert len(set(burn_ins)) == 1
    ends = {name: frame.filter(like="probe/sigma/").iloc[-1] for name, frame in rows.items()}
    first, head = (f"probe/sigma/{layer}" for layer in ("layers.0", "head"))
    assert ends["rep_spectral"][first] < 0.9 * ends["none"][first]
    assert ends["rep_spectral"][head] > 0.95 * ends["none"][head]
    assert (ends["ll_spectral"] < 0.9 * ends["none"]).all()
    assert rows["none"]["penalty"].dropna().eq(0).all()
    norms = true_norms(runs["rep_spectral"].model("last"), digits.image_shape)
    found = {layer: ends["rep_spectral"][f"probe/sigma/{layer.removeprefix('encoder.')}"] ** 2 for layer in norms}
    assert found == pytest.approx(norms, rel=2e-3)
    assert rows["rep_spectral"]["robust_val"].notna().all()


@pytest.mark.parametrize(("name", "last_counts"), [("rep_spectral", True), ("l2_sp", True), ("standard", False)])
def test_the_last_epoch_counts_whatever_validation_says(few, tmp_path, monkeypatch, name, last_counts):
    real, falling = loop.validate, iter(range(20, 0, -1))

    def worse(*args):
        numbers, *rest = real(*args)
        return {**numbers, "clean_val": next(falling) / 20}, *rest

    monkeypatch.setattr(loop, "validate", worse)
    run = train(tiny(name, arch="mlp_512", epochs=3, lr=0.05), few, tmp_path)
    best, last = (run.model(which).head.weight for which in ("best", "last"))
    assert torch.equal(best, last) == last_counts


def test_the_layers_of_a_resnet(digits):
    model = build_model("resnet18", digits, padding_mode="circular")
    norms = LayerNorms(model, digits.image_shape, ("encoder.",), operator="exact")
    assert len(norms.sizes) == 20
    assert sum("downsample" in name for name in norms.sizes) == 3
    assert norms.sizes["encoder.conv1"] == norms.sizes["encoder.layer2.0.conv1"] == (8, 8)
    assert norms.sizes["encoder.layer4.1.conv2"] == (1, 1)
    assert not norms.state_dict()
    assert model.training
    assert all(not m._forward_pre_hooks for m in model.modules())
    assert model.encoder.bn1.num_batches_tracked == 0


def test_models_without_a_norm_are_refused(digits):
    with pytest.raises(InputError, match="padding_mode='circular'"):
        made("rep_spectral", "small_cnn").stages(digits, build_model("small_cnn", digits))
    odd = build_model("small_cnn", spec((1, 7, 7)), padding_mode="circular")
    with pytest.raises(InputError, match="stride 2 on 7x7 pixels"):
        LayerNorms(odd, (1, 7, 7), operator="exact")


@pytest.mark.parametrize("name", SELF_SUPERVISED)
@pytest.mark.parametrize("arch", ["mlp_512", "small_cnn"])
def test_a_step_is_the_loss_of_two_views_and_the_encoders_norms(digits, name, arch):
    model, (_, stage, _) = staged(made(name, arch=arch, strength=0.3, projection=(48, 16)), digits)
    batch = first_batch(digits)
    stage.begin()
    twin, other = copy.deepcopy(model), first_batch(digits)
    loss, views = updated(stage, batch)["model"], [other.view("simclr"), other.view("simclr")]
    assert not torch.equal(*views)
    z = twin.project(torch.cat(views)).reshape(2, 16, -1)
    twin.predicts = True  # since the restatement of norms runs the whole model
    norms = [value for layer, value in true_norms(twin, digits.image_shape).items() if layer != "head"]
    if name == "barlow_spectral":
        wanted, said = barlow_twins(z[0], z[1], 0.005, 1e-5), "barlow"
    else:
        wanted, said = supcon(z, None, 0.5), "nt_xent"
    assert loss.parts[said].item() == pytest.approx(wanted, rel=1e-4)
    assert loss.parts["penalty"].item() == pytest.approx(0.3 * sum(norms), rel=1e-5)
    assert loss.total.item() == pytest.approx(wanted + loss.parts["penalty"].item(), rel=1e-4)
    grads = torch.autograd.grad(loss.parts["penalty"], list(model.projector.parameters()), allow_unused=True)
    assert set(grads) == {None}, "the projector is not penalised"


def test_stages_share_what_rep_spectral_has(digits):
    method = made("barlow_spectral", "small_cnn", epochs=10, burn_in=0.4)
    model, (first, last, readout) = staged(method, digits)
    assert [(s.name, s.epochs) for s in (first, last, readout)] == [("burn-in", 4), ("regularised", 6), ("readout", 1)]
    assert method.all_epochs == 11
    assert (readout.passes, dict(readout.optimisers)) == ((), {})
    assert not set(map(id, model.head.parameters())) & set(map(id, first.optimisers["model"].params))
    assert {m.padding_mode for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)} == {"circular"}


def test_a_model_without_readout_refuses_to_predict(digits, tmp_path):
    method = made("simclr_spectral")
    model, x = staged(method, digits)[0].eval(), torch.rand(4, 1, 8, 8)
    for asked in (lambda: model(x), lambda: PGD(digits.threat)(model, x, torch.arange(4))):
        with pytest.raises(InputError, match="has no readout yet and cannot predict: finish its training"):
            asked()
    assert (model.features(x).shape, model.project(x).shape) == ((4, 512), (4, 128))
    save_weights(model, tmp_path / "before.safetensors")
    model.set_readout(torch.randn(10, 512), torch.randn(10))
    assert torch.allclose(model(x), model.head(model.features(x)), atol=1e-5)
    assert copy.deepcopy(model).predicts
    save_weights(model, tmp_path / "after.safetensors")
    again = staged(method, digits)[0].eval()
    for name in ("before", "after"):
        load_weights(again, tmp_path / f"{name}.safetensors")
        assert again.predicts == (name == "after")
    assert torch.equal(again(x), model(x))


def test_a_run_that_is_not_finished_has_no_model_and_no_accuracies(few, tmp_path, monkeypatch):
    run = broken_off(tiny("barlow_spectral", epochs=3), few, tmp_path, monkeypatch, stop=2)
    with pytest.raises(InputError, match="There are no weights"):
        run.model()
    assert "clean_val" not in run.metrics()
    assert run.metrics()["barlow"].notna().any()


@pytest.mark.parametrize(("classes", "c"), [(3, 0.5), (2, 1.0)])
def test_the_readout_is_scikit_learns(classes, c):
    features, labels = torch.randn(200, 6), torch.arange(200) % 3
    features[:, 0] += labels
    labels = labels.clamp(max=classes - 1)
    weight, bias = logistic_regression(features, labels, c=c)
    theirs = LogisticRegression(C=c, max_iter=1000).fit(features.numpy(), labels.numpy())
    ours = (features @ weight.T + bias).softmax(1)
    assert np.allclose(ours.numpy(), theirs.predict_proba(features.numpy()), atol=1e-3)


def test_a_readout_that_has_not_converged_says_what_to_raise():
    features = torch.randn(60, 5) * 1e3
    with pytest.warns(RuntimeWarning, match="not converged after 2 iterations: raise readout_iterations") as said:
        logistic_regression(features, torch.arange(60) % 3, iterations=2)
    assert len(said) == 1


@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_each_row_ends_as_an_ordinary_classifier(run_of, few, name):
    run = run_of(name, epochs=3, train_examples=200, burn_in=0.4, lr=0.05)
    rows = run.metrics()
    assert list(rows.stage.unique()) == ["burn-in", "regularised", "readout"]
    before = rows[rows.stage != "readout"]
    assert before[["clean_val", "robust_val"]].isna().all(axis=None), "nothing predicts before the readout"
    assert rows[rows.stage == "readout"]["clean_val"].notna().all()
    sigma = rows["probe/sigma/layers.0"].to_numpy()
    assert measure_of(run, "metrics/probe/sigma/layers.0") == pytest.approx(sigma[len(before) - 1], rel=1e-2)
    assert "readout" in training_curves(rows).data["stage"].to_list()
    best, last = run.model(), run.model("last")
    assert isinstance(best, SelfSupervised)
    assert same_state(best, last)
    x, y = few.val.images.float() / 255, few.val.labels
    accuracy = rows["clean_val"].iloc[-1]
    assert float((best(x).argmax(1) == y).float().mean()) == pytest.approx(accuracy)
    assert accuracy > 0.6
    subset = few.subset(200).train
    refitted = logistic_regression(best.eval().features(subset.images.float() / 255).detach(), subset.labels)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(best.head.parameters(), refitted, strict=True))


def test_the_readout_moves_the_head_alone(digits):
    model, stages = staged(tiny("barlow_spectral", arch="small_cnn"), digits.subset(200))
    model.project(torch.rand(64, 1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    stages[-1].begin()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head.weight", "head.bias", "_extra_state"}
    assert model.training


def test_training_says_what_it_can(few, tmp_path, capsys):
    fit(tiny("barlow_spectral", epochs=1), few, root=tmp_path, device="cpu", threads=1)
    first, last = capsys.readouterr().out.strip().splitlines()
    assert "epoch 1/2" in first
    assert "clean" not in first
    assert "clean" in last


def test_the_console_tells_the_accuracies_that_there_are(tmp_path):
    job = SimpleNamespace(run=SimpleNamespace(path=tmp_path, finished=False, damage=""), epochs=5)
    for row, says in (({}, ""), ({"clean_val": 0.9, "robust_val": 0.5}, " · clean 90.0% · robust 50.0%")):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch_total": 2, **row}) + "\n")
        assert activity(job, {"state": "running", "started": "2020-01-01T00:00:00+00:00"}) == f"epoch 2/5{says}"
