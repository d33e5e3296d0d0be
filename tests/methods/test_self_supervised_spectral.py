"""Self-supervised rows of rep-spectral: loss and penalty, the readout against scikit-learn, no predictions before it, resuming."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from robustlib.attacks import FAB, PGD, Threat
from robustlib.errors import InputError
from robustlib.evaluation import adversarial_distances
from robustlib.figures import training_curves
from robustlib.methods import make_method
from robustlib.methods.rep_spectral import features_of, logistic_regression
from robustlib.models import SelfSupervised, build_model
from robustlib.runs import Run, load_weights, save_weights
from robustlib.training import fit
from robustlib.workbook.claims import measure_of
from robustlib.workbook.cli.console import activity
from tests.restated import barlow_twins, supcon, true_norms
from tests.training_fixtures import broken_off, built, step_context, train

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
    model = built(method, digits)
    stage = method.stages(digits, model)[1]
    stage.begin()
    norms = {layer: value for layer, value in _norms(model, digits).items() if layer.startswith("encoder.")}
    assert norms
    twin, batch = copy.deepcopy(model), next(digits.train.batches(16, generator=torch.Generator().manual_seed(7)))
    ((key, loss),) = stage.passes[0].updates(batch, step_context())
    other = replace(batch, generator=torch.Generator().manual_seed(7))
    views = [other.view("simclr"), other.view("simclr")]
    assert not torch.equal(*views)
    z = twin.project(torch.cat(views)).reshape(2, 16, -1)
    if name == "barlow_spectral":
        wanted, said = barlow_twins(z[0], z[1], 0.005, 1e-5), "barlow"
    else:
        wanted, said = supcon(z, None, 0.5), "nt_xent"
    assert key == "model"
    assert loss.parts[said].item() == pytest.approx(wanted, rel=1e-4)
    assert loss.parts["penalty"].item() == pytest.approx(0.3 * sum(norms.values()), rel=1e-5)
    assert loss.total.item() == pytest.approx(wanted + loss.parts["penalty"].item(), rel=1e-4)
    grads = torch.autograd.grad(loss.parts["penalty"], list(model.projector.parameters()), allow_unused=True)
    assert set(grads) == {None}, "the projector is not penalised"


def _norms(model, dataset):
    """Of a twin that predicts, since the restatement runs the whole model."""
    twin = copy.deepcopy(model)
    twin.predicts = True
    return true_norms(twin, dataset.image_shape)


def test_stages_share_what_rep_spectral_has(digits):
    method = made("barlow_spectral", epochs=10, cadence=3, strength=0.1)
    model = built(method, digits)
    first, last, readout = method.stages(digits, model)
    assert [(s.name, s.epochs) for s in (first, last, readout)] == [("burn-in", 4), ("regularised", 6), ("readout", 1)]
    assert method.all_epochs == 11
    assert (readout.passes, dict(readout.optimisers)) == ((), {})
    batch = next(digits.train.batches(8))
    penalised = [
        bool(next(last.passes[0].updates(batch, step_context(step=k)))[1].parts["penalty"] > 0) for k in range(6)
    ]
    assert penalised == [k % 3 == 0 for k in range(6)]
    head = {id(p) for p in model.head.parameters()}
    assert not head & {id(p) for p in first.optimisers["model"].params}
    assert {m.padding_mode for m in built(made("barlow_spectral", arch="small_cnn"), digits).encoder.modules()
            if isinstance(m, torch.nn.Conv2d)} == {"circular"}  # fmt: skip


# ---- no predictions without a readout


def test_a_model_without_readout_refuses_to_predict(digits, tmp_path):
    method = made("simclr_spectral")
    model, x = built(method, digits).eval(), torch.rand(4, 1, 8, 8)
    for asked in (lambda: model(x), lambda: PGD(digits.threat)(model, x, torch.arange(4))):
        with pytest.raises(InputError, match="has no readout yet and cannot predict: finish its training"):
            asked()
    assert model.features(x).shape == (4, 512)
    assert model.project(x).shape == (4, 128)
    save_weights(model, tmp_path / "before.safetensors")
    model.set_readout(torch.randn(10, 512), torch.randn(10))
    logits = model(x)
    assert torch.allclose(logits, model.features(x) @ model.head.weight.T + model.head.bias, atol=1e-5)
    save_weights(model, tmp_path / "after.safetensors")
    for name, predicts in (("after", True), ("before", False)):
        again = built(method, digits).eval()
        load_weights(again, tmp_path / f"{name}.safetensors")
        assert again.predicts == predicts
        if predicts:
            assert torch.equal(again(x), logits)
    assert copy.deepcopy(model).predicts


def test_a_run_that_is_not_finished_has_no_model_and_no_accuracies(few, tmp_path, monkeypatch):
    broken_off(made("barlow_spectral"), few, tmp_path, monkeypatch, stop=2)
    (run,) = [Run(file.parent) for file in tmp_path.rglob("params.json")]
    with pytest.raises(InputError, match="There are no weights"):
        run.model()
    rows = run.metrics()
    assert len(rows) > 1
    assert "clean_val" not in rows
    assert rows["barlow"].notna().any()


# ---- the readout


def test_the_readout_is_scikit_learns(digits):
    features, labels = torch.randn(200, 6), torch.arange(200) % 3
    features[:, 0] += labels
    weight, bias = logistic_regression(features, labels, c=0.5)
    theirs = LogisticRegression(C=0.5, max_iter=1000).fit(features.numpy(), labels.numpy())
    ours = (features @ weight.T + bias).softmax(1)
    assert np.allclose(ours.numpy(), theirs.predict_proba(features.numpy()), atol=1e-3)
    # the gradient of c sum CE + |W|^2 / 2 vanishes there
    w, b = (t.double().requires_grad_() for t in (weight, bias))
    loss = 0.5 * torch.nn.functional.cross_entropy(features.double() @ w.T + b, labels, reduction="sum")
    gradients = torch.autograd.grad(loss + w.square().sum() / 2, (w, b))
    assert all(g.abs().max() < 0.02 for g in gradients)
    two = logistic_regression(features, (labels > 0).long())
    theirs = LogisticRegression().fit(features.numpy(), labels.numpy() > 0)
    ours = (features @ two[0].T + two[1]).softmax(1)
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
    assert all(torch.equal(v, last.state_dict()[k]) for k, v in best.state_dict().items())
    x, y = few.val.images.float() / 255, few.val.labels
    assert float((best(x).argmax(1) == y).float().mean()) == pytest.approx(rows["clean_val"].iloc[-1])
    assert rows["clean_val"].iloc[-1] > 0.6
    subset = few.subset(200).train
    weight, bias = logistic_regression(features_of(best, subset), subset.labels)
    assert torch.allclose(best.head.weight, weight, atol=1e-4)
    assert torch.allclose(best.head.bias, bias, atol=1e-4)
    attack = PGD(few.threat, steps=5)
    assert attack(best, x[:8], y[:8]).shape == (8, 1, 8, 8)
    frame = adversarial_distances(best, few.val.sample(8), FAB(Threat("l2", 1.0), steps=5))
    assert (frame["distance"] > 0).any()


def test_the_readout_moves_the_head_alone(digits):
    method = made("barlow_spectral", arch="small_cnn")
    model = built(method, digits)
    model.project(torch.rand(64, 1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    method.stages(digits.subset(200), model)[-1].begin()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"head.weight", "head.bias", "_extra_state"}
    assert model.training


def test_a_training_that_dies_in_the_readout_resumes(runs, few, tmp_path, monkeypatch):
    from robustlib.methods import rep_spectral

    def dying(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rep_spectral, "logistic_regression", dying)
        with pytest.raises(KeyboardInterrupt):
            train(made("barlow_spectral"), few, tmp_path)
    torn, whole = train(made("barlow_spectral"), few, tmp_path), runs["barlow_spectral"]
    assert torch.equal(torn.model().head.weight, whole.model().head.weight)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"strength": 0.0}, {"operator": "power", "arch": "small_cnn"}])
def test_variants_train(few, tmp_path, settings):
    run = train(made("simclr_spectral", **settings), few, tmp_path)
    assert run.model().predicts
    if settings.get("strength") == 0.0:
        assert run.metrics()["penalty"].dropna().eq(0).all()


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
