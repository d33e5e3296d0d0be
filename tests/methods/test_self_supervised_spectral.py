"""Self-supervised rows of rep-spectral: loss and penalty, the readout against scikit-learn, no predictions before it, resuming."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.figures import training_curves
from robustlib.methods import make_method
from robustlib.methods.rep_spectral import logistic_regression
from robustlib.models import SelfSupervised, build_model
from robustlib.runs import Run, load_weights, save_weights
from robustlib.training import fit
from robustlib.workbook.claims import measure_of
from robustlib.workbook.console import activity
from tests.restated import barlow_twins, supcon, true_norms
from tests.training_fixtures import broken_off, built, first_batch, same_state, train, updated

ROWS = ("barlow_spectral", "simclr_spectral")
SMALL = {"epochs": 3, "train_examples": 200, "burn_in": 0.4, "lr": 0.05, "batch_size": 64, "readout_iterations": 20_000}


def made(name, **settings):
    return make_method(name, "digits", **{**SMALL, **settings})


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: train(made(name), few, root) for name in ROWS}


# ---- the loss of a step


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("arch", ["mlp_512", "small_cnn"])
def test_a_step_is_the_loss_of_two_views_and_the_encoders_norms(digits, name, arch):
    method = made(name, arch=arch, strength=0.3)
    model, batch = built(method, digits), first_batch(digits)
    stage = method.stages(digits, model)[1]
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
    method = made("barlow_spectral", arch="small_cnn", epochs=10, cadence=3, strength=0.1)
    model = built(method, digits)
    first, last, readout = method.stages(digits, model)
    assert [(s.name, s.epochs) for s in (first, last, readout)] == [("burn-in", 4), ("regularised", 6), ("readout", 1)]
    assert method.all_epochs == 11
    assert (readout.passes, dict(readout.optimisers)) == ((), {})
    assert not set(map(id, model.head.parameters())) & set(map(id, first.optimisers["model"].params))
    assert {m.padding_mode for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)} == {"circular"}


# ---- no predictions without a readout


def test_a_model_without_readout_refuses_to_predict(digits, tmp_path):
    method = made("simclr_spectral")
    model, x = built(method, digits).eval(), torch.rand(4, 1, 8, 8)
    for asked in (lambda: model(x), lambda: PGD(digits.threat)(model, x, torch.arange(4))):
        with pytest.raises(InputError, match="has no readout yet and cannot predict: finish its training"):
            asked()
    assert (model.features(x).shape, model.project(x).shape) == ((4, 512), (4, 128))
    save_weights(model, tmp_path / "before.safetensors")
    model.set_readout(torch.randn(10, 512), torch.randn(10))
    assert torch.allclose(model(x), model.head(model.features(x)), atol=1e-5)
    assert copy.deepcopy(model).predicts
    save_weights(model, tmp_path / "after.safetensors")
    again = built(method, digits).eval()
    for name in ("before", "after"):
        load_weights(again, tmp_path / f"{name}.safetensors")
        assert again.predicts == (name == "after")
    assert torch.equal(again(x), model(x))


def test_a_run_that_is_not_finished_has_no_model_and_no_accuracies(few, tmp_path, monkeypatch):
    broken_off(made("barlow_spectral"), few, tmp_path, monkeypatch, stop=2)
    (run,) = [Run(file.parent) for file in tmp_path.rglob("params.json")]
    with pytest.raises(InputError, match="There are no weights"):
        run.model()
    assert "clean_val" not in run.metrics()
    assert run.metrics()["barlow"].notna().any()


# ---- the readout


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


@pytest.mark.parametrize("name", ROWS)
def test_each_row_ends_as_an_ordinary_classifier(runs, few, name):
    run = runs[name]
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
    method = made("barlow_spectral", arch="small_cnn")
    model = built(method, digits)
    model.project(torch.rand(64, 1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    method.stages(digits.subset(200), model)[-1].begin()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head.weight", "head.bias", "_extra_state"}
    assert model.training


def test_training_says_what_it_can(few, tmp_path, capsys):
    fit(made("barlow_spectral", epochs=1), few, root=tmp_path, device="cpu", threads=1)
    first, last = capsys.readouterr().out.strip().splitlines()
    assert "epoch 1/2" in first
    assert "clean" not in first
    assert "clean" in last


@pytest.mark.parametrize(
    ("row", "says"), [({}, ""), ({"clean_val": 0.9, "robust_val": 0.5}, " · clean 90.0% · robust 50.0%")]
)
def test_the_console_tells_the_accuracies_that_there_are(tmp_path, row, says):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch_total": 2, **row}) + "\n")
    job = SimpleNamespace(run=SimpleNamespace(path=tmp_path, finished=False), epochs=5)
    assert activity(job, {"state": "running", "started": "2020-01-01T00:00:00+00:00"}) == f"epoch 2/5{says}"


def test_other_models_and_absent_classes_are_refused(digits):
    method = made("barlow_spectral")
    with pytest.raises(InputError, match="trains a SelfSupervised, not a Classifier"):
        method.stages(digits, build_model("mlp_512", digits, padding_mode="circular"))
    with pytest.raises(InputError, match="no training image shows the class '0'"):
        method.stages(digits.only(range(1, 10)), built(method, digits))
    with pytest.raises(InputError, match="give projection"):
        build_model("mlp", digits, self_supervised=True)
