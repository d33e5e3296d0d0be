"""What only a GPU can show: tests that `python benchmarks/gpu.py` runs where one is at hand, and `make test` does not collect."""

import copy
import itertools

import pytest
import torch

from robustlib.attacks import PGD, AutoAttack, ExampleRNG, Threat, recording
from robustlib.data import VIEWS, Policy, Split, load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, summarise
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.training import OptimizerSpec, fit, loop
from tests.conftest import Linear
from tests.training_fixtures import interrupt

no_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
pytestmark = [pytest.mark.gpu, no_device]


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


def train(root, dataset, name="pgd_at", **options):
    settings = {key: options.pop(key) for key in ("precision", "compile") if key in options}
    return fit(make_method(name, "digits", **options), dataset, root=root, device="cuda", **settings)


def test_draws_are_the_same_numbers_on_both_devices():
    seeds = torch.arange(100)
    here, there = ExampleRNG.for_examples(3, seeds), ExampleRNG.for_examples(3, seeds.cuda())
    assert torch.equal(here.uniform(3, 8, 8), there.uniform(3, 8, 8).cpu())
    assert torch.allclose(here.normal(3, 8, 8), there.normal(3, 8, 8).cpu(), atol=1e-5)


def test_a_model_trained_on_the_gpu_has_the_same_records_on_the_cpu(tmp_path, digits):
    run = train(tmp_path, digits, epochs=3, precision="32-true")
    attacks = {"pgd": PGD(digits.threat, steps=10, early_stop=True)}
    tables = [evaluate(run.model().to(device), digits.test, attacks) for device in ("cpu", "cuda")]
    assert (tables[0].prediction != tables[1].prediction).mean() <= 0.01


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_learns_and_a_bf16_search_is_as_strong(tmp_path, digits, precision):
    run = train(tmp_path, digits, epochs=8, ema=0.9, precision=precision)
    assert run.provenance()["device"] == "cuda"
    assert run.metrics().clean_val.iloc[-1] > 0.7
    pgd = PGD(digits.threat, steps=20, early_stop=True)
    fast = PGD(digits.threat, steps=20, early_stop=True, precision="bf16-mixed")
    table = summarise(evaluate(run.model().cuda(), digits.test, {"fp32": pgd, "bf16": fast}))
    robust = table.set_index("attack").accuracy
    assert abs(robust["fp32"] - robust["bf16"]) <= 0.02


def test_autoattack_and_the_audit_say_the_same_on_both_devices(tmp_path, digits):
    from robustlib.audit import audit

    run = train(tmp_path, digits, epochs=8, precision="32-true")
    few, attacks = digits.test.sample(60), {"autoattack": AutoAttack(digits.threat)}
    tables = [summarise(evaluate(run.model().to(device), few, attacks)) for device in ("cpu", "cuda")]
    assert abs(tables[0].accuracy.iloc[-1] - tables[1].accuracy.iloc[-1]) <= 1 / 60
    assert "red" not in {check.verdict for check in audit(run.model().cuda(), digits.test, digits.threat, n=60)}


@pytest.mark.parametrize("name", ["standard", "pgd_at", "trades"])
def test_compiled_training_ends_near_the_plain_one(tmp_path, digits, name):
    runs = [train(tmp_path / str(on), digits, name, epochs=3, precision="32-true", compile=on) for on in (False, True)]
    assert all(run.metrics().clean_val.iloc[-1] > (0.8 if name == "standard" else 0.3) for run in runs)
    losses = [run.metrics().loss.iloc[1:].to_numpy() for run in runs]
    assert abs(losses[0] / losses[1] - 1).max() < 0.05


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_recorded_attack_follows_images_and_weights(digits, precision):
    torch.manual_seed(0)
    plain = build_model("small_cnn", digits).cuda().train()
    recorded, attack = copy.deepcopy(plain), PGD(digits.threat, 5, precision=precision)
    recorded.encoder.compile(dynamic=False)
    for batch in itertools.islice(digits.train.to("cuda").batches(64), 3):
        x, other = (
            attack(model, batch.x, batch.y, generator=torch.Generator("cuda").manual_seed(3))
            for model in (plain, recorded)
        )
        assert ((x - other).abs() < 1e-6).float().mean() > 0.9  # a sign in doubt may go either way
        with torch.no_grad():
            for model in (plain, recorded):
                model.encoder.stage1[0].weight.mul_(-1.2)
    (known,) = recording._recordings.values()
    assert len(known) == 1


def test_optimisers_are_fused(digits):
    weights = list(build_model("mlp", digits).cuda().parameters())
    for kind in ("sgd", "adam"):
        assert OptimizerSpec(weights, 0.1, kind).build().param_groups[0]["fused"]


def test_labels_are_checked_before_the_device_asserts():
    model, x = Linear().cuda(), torch.rand(2, 1, 4, 4, device="cuda")
    with pytest.raises(InputError, match="2 classes"):
        PGD(Threat("linf", 0.1))(model, x, torch.tensor([0, 5]).cuda())


def test_an_interrupted_training_goes_on(tmp_path, digits, monkeypatch):
    settings = {"epochs": 5, "optimiser": "adam", "lr": 0.003, "ema": 0.9}
    interrupt(monkeypatch, loop, "epoch_line", 2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, digits, **settings)
    run = train(tmp_path, digits, **settings)
    assert run.finished
    assert list(run.metrics().epoch) == list(range(6))


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_drawn_on_the_gpu(digits, name):
    images = torch.randint(0, 256, (len(digits.val), 3, 32, 32), dtype=torch.uint8)
    for split in (digits.val, Split(images, digits.val.labels, digits.val.indices, Policy(4, True))):
        seeded = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
        one, two = (list(split.to("cuda").batches(100, shuffle=True, augment=name, generator=g)) for g in seeded)
        assert all(torch.equal(a.x, b.x) and a.x.is_cuda and a.y.is_cuda for a, b in zip(one, two, strict=True))
        assert all(a.x.min() >= 0 and a.x.max() <= 1 for a in one)
        plain = one[0].view("none").cpu()
        assert torch.equal(plain, one[0].images.cpu() / 255)
