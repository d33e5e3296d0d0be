"""Rep-spectral and its variants: the loss of a step against the dense operators, the stages, the probes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.methods.layer_norms import LayerNorms, input_sizes
from robustlib.models import build_model
from robustlib.training import loop
from tests.conftest import spec
from tests.restated import class_jacobians, squared_norm, true_norms
from tests.training_fixtures import built, step_context, tiny, train, updated

VARIANTS = ("rep_spectral", "ll_spectral", "cross_lipschitz")


def made(name, arch="mlp_512", **settings):
    return make_method(name, "digits", arch=arch, **settings)


def loss_of(method, dataset, model, n=16):
    """The batch and the loss of a step of the last stage."""
    stage = method.stages(dataset, model)[-1]
    stage.begin()
    batch = next(dataset.train.batches(n, augment="none"))
    return batch, updated(stage, batch)["model"]


@pytest.mark.parametrize("arch", ["mlp", "mlp_512", "small_cnn"])
@pytest.mark.parametrize(("operator", "close"), [("exact", 1e-5), ("power", 5e-3)])
@pytest.mark.parametrize("name", ["rep_spectral", "ll_spectral"])
def test_the_loss_is_cross_entropy_and_the_sum_of_squared_norms(digits, name, operator, close, arch):
    method = made(name, arch, strength=0.3, operator=operator)
    model = built(method, digits)
    wanted = true_norms(model, digits.image_shape)
    if name == "rep_spectral":
        del wanted["head"]
    batch, loss = loss_of(method, digits, model)
    assert loss.parts["penalty"].item() == pytest.approx(0.3 * sum(wanted.values()), rel=close)
    ce = F.cross_entropy(model(batch.x), batch.y)
    assert loss.total.item() == pytest.approx(ce.item() + loss.parts["penalty"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "penalised"),
    [
        ("rep_spectral", {}, [True, False]),
        ("ll_spectral", {}, [True, True]),
        ("ll_spectral", {"readout_only": True}, [False, True]),
    ],
)
def test_only_penalised_layers_get_a_gradient_from_the_penalty(digits, name, settings, penalised):
    method = made(name, **settings)
    model = built(method, digits)
    _, loss = loss_of(method, digits, model)
    weights = [model.encoder.layers[0].weight, model.head.weight]
    found = torch.autograd.grad(loss.parts["penalty"], weights, allow_unused=True)
    assert [g is not None for g in found] == penalised


def test_reshaped_kernels_are_another_norm(digits):
    method = made("rep_spectral", "small_cnn", operator="reshaped", strength=1.0)
    model = built(method, digits)
    kernels = [m.weight for m in model.encoder.modules() if isinstance(m, nn.Conv2d)]
    wanted = sum(squared_norm(kernel.detach().flatten(1).double().numpy()) for kernel in kernels)
    assert loss_of(method, digits, model)[1].parts["penalty"].item() == pytest.approx(wanted, rel=1e-5)


def test_folded_norms_are_those_of_the_convolution_with_batchnorm_in_eval_mode(digits):
    method = made("rep_spectral", "small_cnn", fold_batchnorm=True, strength=1.0)
    model = built(method, digits)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(64, *digits.image_shape))
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(-2, 2)
    _, loss = loss_of(method, digits, model)
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
    method = made("ll_spectral", arch, fold_batchnorm=True, **settings)
    with pytest.raises(InputError, match=r"nothing to fold.*Leave it at False, or take an architecture"):
        method.stages(digits, built(method, digits))


def test_folding_says_how_much_it_folded(digits):
    method = made("rep_spectral", "preact_resnet18", fold_batchnorm=True, operator="reshaped")
    model = built(method, digits)
    with pytest.warns(UserWarning, match="folded 8 of 20 convolutions.* such as encoder"):
        kept = method.penalty_state(digits, model)
    blocks = [block for k in range(1, 5) for block in model.encoder.get_submodule(f"layer{k}")]
    assert {model.get_submodule(name) for name in kept.batchnorms} == {b.conv1 for b in blocks}, (
        "bn2 follows them alone"
    )
    whole = made("ll_spectral", "small_cnn", fold_batchnorm=True)  # of 3, and no warning: a readout has no BatchNorm
    assert len(whole.penalty_state(digits, built(whole, digits)).batchnorms) == 3


@pytest.mark.parametrize("projections", [0, 500])
def test_cross_lipschitz_penalises_the_softmax(digits, projections):
    method = made("cross_lipschitz", strength=2.0, projections=projections)
    model = built(method, digits)
    batch, loss = loss_of(method, digits, model, n=4)
    jacobians = class_jacobians(lambda x: model(x).softmax(1), batch.x)
    differences = jacobians[:, :, None] - jacobians[:, None]
    wanted = 2.0 * (differences**2).sum() / (4 * 10**2)
    assert loss.parts["penalty"].item() == pytest.approx(wanted, rel=0.2 if projections else 1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_penalty_is_taken_every_so_many_steps_after_the_burn_in(digits, name):
    method = made(name, cadence=3, epochs=10, burn_in=0.6)
    model, batch = built(method, digits), next(digits.train.batches(8, augment="none"))
    stages = method.stages(digits, model)
    assert [(stage.name, stage.epochs) for stage in stages] == [("burn-in", 6), ("regularised", 4)]
    for stage, cadence in zip(stages, (None, 3), strict=True):
        penalties = [updated(stage, batch, step_context(step=k))["model"].parts["penalty"] for k in range(7)]
        assert [bool(p > 0) for p in penalties] == [cadence is not None and k % cadence == 0 for k in range(7)]
    alone = made(name, epochs=1, burn_in=0.9).stages(digits, model)
    assert [(stage.name, stage.epochs) for stage in alone] == [("regularised", 1)]


def test_the_schedule_goes_on(digits):
    method = made("rep_spectral", epochs=10, burn_in=0.6, schedule="cosine")
    (first, last), usual = method.stages(digits, built(method, digits)), method.lr_schedule()
    for epoch in (0.0, 2.5):
        assert first.optimisers["model"].schedule(epoch) == usual(epoch)
        assert last.optimisers["model"].schedule(epoch) == usual(epoch + 6)


def test_variants_share_their_burn_in_and_lower_what_they_penalise(digits, tmp_path):
    settings = {"epochs": 6, "train_examples": 400, "burn_in": 0.4, "lr": 0.05, "cadence": 1}
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
        numbers, withstood = real(*args)
        return {**numbers, "clean_val": next(falling) / 20}, withstood

    monkeypatch.setattr(loop, "validate", worse)
    run = train(tiny(name, arch="mlp_512", epochs=5, lr=0.05), few, tmp_path)
    best, last = (run.model(which).head.weight for which in ("best", "last"))
    assert torch.equal(best, last) == last_counts


def test_the_layers_of_a_resnet(digits):
    model = build_model("resnet18", load_dataset("digits"), padding_mode="circular")
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
    shape = (1, 7, 7)
    odd = build_model("small_cnn", spec(shape), padding_mode="circular")
    with pytest.raises(InputError, match="stride 2 on 7x7 pixels"):
        LayerNorms(odd, shape, operator="exact")
    assert LayerNorms(odd, shape).converge(odd)["encoder.stage2.0"] > 0  # power iteration takes any size
    method = made("rep_spectral", "small_cnn")
    zeros = build_model("small_cnn", digits)
    with pytest.raises(InputError, match="padding_mode='circular'"):
        method.stages(digits, zeros)
    grouped = built(method, digits)
    grouped.encoder.stage3[0] = nn.Conv2d(64, 128, 3, padding=1, groups=2, padding_mode="circular")
    with pytest.raises(InputError, match="Conv2d of 2 groups"):
        method.stages(digits, grouped)
