"""The paths that only a GPU takes, on a pretend one: no tensors of two devices, and how often an attack waits for it."""

import pickle
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from robustlib.attacks import APGD, FAB, PGD, BatchPGD, ExampleRNG, Square, StAdv, Tangent
from robustlib.audit import audit
from robustlib.evaluation import evaluate
from robustlib.methods import METHODS, make_method
from robustlib.models import build_model
from robustlib.threat import Threat
from robustlib.training import fit
from robustlib.training.validation import gradient_alignment
from tests.pretend_gpu import NAME, Device, pretend_gpu
from tests.training_fixtures import TINY, run_below

SMALL = TINY | {
    "train_examples": 20,
    "batch_size": 10,
    "epochs": 1,
    "attack_steps": 1,
    "final_steps": 1,
    "burn_in": 0.0,
}
OWN = {"claf": {"epochs": 2}, "ancra": {"negatives": "hard", "mining_from": 0}, "atop": {"warm_up": 0}}
CONVOLUTIONS = ("pgd_at", "ancra", "atop", "acl")  # on networks of which others are slow on a pretended device
AUDITED = ("afd", "pgd_at")  # a plain model, and one with parts of its own; a stochastic one would take a minute


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(sys.modules[fit.__module__], "DEVICES", ["cpu", NAME])
    with pretend_gpu() as device:
        yield device


@pytest.fixture
def apple(monkeypatch):
    """A GPU without float64."""
    monkeypatch.setattr(sys.modules[fit.__module__], "DEVICES", ["cpu", NAME])
    monkeypatch.setattr("robustlib.threat.NO_FLOAT64", [NAME])
    with pretend_gpu(refuse_float64=True) as device:
        yield device


@pytest.fixture
def short_attacks(monkeypatch):
    """One step of each, however many are asked for."""
    pgd, apgd = PGD._ascend, APGD._ascend
    monkeypatch.setattr(PGD, "_ascend", lambda self, *rest: pgd(self, *rest[:3], 1))
    monkeypatch.setattr(APGD, "_ascend", lambda self, *rest: apgd(replace(self, steps=1), *rest))


def small(name):
    known = make_method(name).hyperparameters()
    settings = {key: v for key, v in {**SMALL, **OWN.get(name, {})}.items() if key in known}
    return make_method(name, "digits", **settings, arch="small_cnn" if name in CONVOLUTIONS else "mlp_8")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_is_evaluated_and_audited(gpu, short_attacks, digits, tmp_path, monkeypatch, name):
    for limit in ("MAX_L1_SHARE", "MAX_L1_SHARE_RT3", "MAX_HIDDEN_SHARE"):
        monkeypatch.setattr(f"robustlib.methods.atop.{limit}", 100.0)
    few = replace(digits, val=digits.val.sample(10))
    model = fit(small(name), few, root=tmp_path, device=NAME, progress=False).model().to(NAME)
    assert run_below(tmp_path).metrics().clean_val.notna().any()
    attacks = {"pgd": PGD(digits.threat, early_stop=True), "square": Square(digits.threat, 2)}
    views = {} if model.stochastic else None  # a randomised model's surrogates would take a minute
    records = evaluate(model, digits.test.sample(5), attacks, draws=2, adaptive=views)
    assert set(records.attack) == {"clean", *attacks}
    if name in AUDITED:
        checks = audit(model, digits.test, digits.threat, n=5, queries=2, targets=1, readouts=1, noise=2)
        assert len(checks) == 13


@pytest.mark.parametrize("name", ["trades", "standard"])
def test_a_gpu_without_float64_trains_evaluates_and_audits(apple, short_attacks, digits, tmp_path, name):
    few = replace(digits, val=digits.val.sample(10))
    method, l2 = small(name), Threat("l2", 0.3)
    model = fit(method, few, root=tmp_path, device=NAME, progress=False).model().to(NAME)
    attacks = {"pgd": PGD(l2, eot=2), "fab": FAB(l2, 2, 1), "tangent": Tangent(l2, 400), "square": Square(l2, 2)}
    records = evaluate(model, digits.test.sample(3), attacks)
    assert set(records.attack) == {"clean", *attacks}
    if name == "standard":
        assert len(audit(model, digits.test, digits.threat, n=5, queries=2, targets=1, readouts=1, noise=2)) == 13
        assert gradient_alignment(model, *on_device(digits, 3), l2, ExampleRNG(torch.arange(3).to(NAME))) <= 1


def test_without_float64_an_attack_is_as_strong_on_confident_examples(apple, digits):
    """Of which the cross-entropy has no gradient in float32."""
    (x, y), found = on_device(digits, 6), []
    model = build_model("small_cnn", digits).to(NAME).eval()
    with torch.no_grad():
        model.head.weight.mul_(1000)
        model.head.bias.mul_(1000)
    y = model(x).argmax(1)
    for device in (NAME, "cpu"):
        rng = ExampleRNG(torch.arange(6).to(device))
        found.append(PGD(Threat("linf", 0.1), 3)(model.to(device), x.to(device), y.to(device), rng=rng).cpu())
    assert torch.equal(*found)
    assert (found[0] != x.cpu()).flatten(1).any(1).all()


def test_examples_travel_to_a_device_once(gpu, digits):
    there = digits.val.to(NAME)
    assert (there.images.device.type, digits.val.to(torch.device(NAME))) == (NAME, there)
    assert there.to(there.labels.device) is there
    assert digits.val.to("cpu") is digits.val
    again = pickle.loads(pickle.dumps(digits.val))
    assert not again._elsewhere, "what another process may not have"
    assert torch.equal(again.images, digits.val.images)


def on_device(dataset, n):
    return (dataset.test.images[:n] / 255).to(NAME), dataset.test.labels[:n].to(NAME)


def test_tensors_generators_and_waits_are_told_apart(gpu):
    x, here = torch.rand(2, 3, device=NAME), torch.rand(2, 3)
    for mixed in (lambda: x + here, lambda: x @ here.T, lambda: here.add_(x.sum()), lambda: here[x[0].long()]):
        with pytest.raises(RuntimeError, match="two devices"):
            mixed()
    assert (x + torch.tensor(1.0)).device.type == NAME, "a number of the CPU is welcome"
    with pytest.raises(RuntimeError, match="generator of another device"):
        torch.rand(2, device=NAME, generator=torch.Generator())
    for waits, read in (
        (0, lambda: (x * 2).sum()),
        (1, lambda: float(x[0, 0])),
        (1, lambda: x[x > 0]),
        (1, lambda: x.cpu()),
        (1, lambda: here.to(NAME)),
    ):
        with gpu.counted() as found:
            read()
        assert found.total() == waits


LINF, L2 = Threat("linf", 1e-4), Threat("l2", 1e-4)  # at which nobody leaves
FROM = torch.Generator
WAITS = [
    *((partial(PGD, LINF, objective=objective, start="gaussian"), 0) for objective in ("ce", "kl")),
    *((partial(PGD, threat, early_stop=True), 1) for threat in (LINF, L2)),
    (partial(APGD, LINF), 1),
    (partial(StAdv, 1e-4), 1),
    *((partial(FAB, threat, targets=1), 3) for threat in (LINF, L2)),
    *((partial(Square, threat), 2) for threat in (LINF, L2)),
]


def waits_a_step(gpu: Device, search) -> float:
    """How often one more step of an attack, search(steps), waits; those of five steps, and of fifteen, are compared."""
    search(1)  # a model is folded once
    found = []
    for steps in (5, 15):
        with gpu.counted() as waits:
            search(steps)
        found.append(waits.total())
    return (found[1] - found[0]) / 10


@pytest.mark.parametrize(("attack", "most"), WAITS)
def test_an_attack_seldom_waits_while_nobody_leaves(gpu, digits, attack, most):
    steps = next(name for name in ("steps", "queries") if name in attack.func.__dataclass_fields__)
    model = build_model("small_cnn", digits).to(NAME).eval()
    x = (digits.test.images[:6] / 255).to(NAME)
    y = model(x).argmax(1)

    def search(count):
        attack(**{steps: count})(model, x, y, generator=torch.Generator(NAME).manual_seed(0))

    assert round(waits_a_step(gpu, search)) <= most, "one wait in ten steps may be for something else"


def test_attacks_on_a_loss_of_the_batch_never_wait(gpu, digits):
    model = build_model("small_cnn", digits).to(NAME).train()
    x, generator = (digits.test.images[:6] / 255).to(NAME), torch.Generator(NAME).manual_seed(0)

    def search(count):
        BatchPGD(LINF, count)(model, x, lambda seen, at: seen(at).square().mean(), generator=generator)

    assert waits_a_step(gpu, search) == 0


@pytest.mark.parametrize("purifier", ["gan", "mae"])
def test_a_purified_model_forwards_without_waiting(gpu, digits, purifier):
    method = make_method("atop", "digits", purifier=purifier, width=4, embed_dim=8, transform="rt3")
    model = build_model("small_cnn", digits, **method.model_options()).to(NAME).eval()
    model.deploy()
    x = (digits.test.images[:6] / 255).to(NAME)
    randomness = model.transform.draw(x, torch.Generator(NAME).manual_seed(0))
    with gpu.counted() as waits:
        model.classify(model.purify(x, randomness))
        model.transform.draw(x, torch.Generator(NAME).manual_seed(0))
    assert not waits


def test_mixed_devices_are_put_back_as_they_were():
    with pretend_gpu():
        assert torch.rand(2, device=NAME, generator=torch.Generator(NAME)).device.type == NAME
    assert torch.Generator().device.type == "cpu"
    assert torch.Generator is FROM
