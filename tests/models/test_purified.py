"""A frozen classifier behind a purifier: what it computes, its gradients, randomness, views, and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import model_digest
from robustlib.models import Purified, build_model
from robustlib.models.purified import RandomTransform
from robustlib.runs import load_weights, save_weights
from tests.conftest import spec

SPEC = spec((1, 8, 8))


def purified(transform="rt2", purifier="gan", deploy=True, arch="small_cnn", **options) -> Purified:
    """A model whose BatchNorm statistics are not the initial ones, and whose purifier does something."""
    torch.manual_seed(0)
    options = {"transform": transform, "purifier": purifier, "grid": 4, "width": 4} | options
    model = build_model(arch, SPEC, purified=options)
    model.train()(torch.rand(32, *SPEC.image_shape))
    if deploy:
        model.deploy()
    return model.eval()


def images(n=4, seed=0):
    return torch.rand(n, *SPEC.image_shape, generator=torch.Generator().manual_seed(seed))


def seeded(function, *args, seed=3):
    torch.manual_seed(seed)
    return function(*args)


def bare(model):
    return lambda x: model.head(model.encoder((x - model.mean) / model.std))


def test_until_it_is_deployed_it_is_the_plain_classifier_of_its_seed():
    x, plain = images(), seeded(build_model, "small_cnn", SPEC)
    torch.manual_seed(3)
    options = {"transform": "rt3", "missing": 0.5, "sigma": 0.1, "grid": 2}
    model = build_model("small_cnn", SPEC, purified=options)
    assert model.transform == RandomTransform("rt3", sigma=0.1, missing=0.5, grid=2)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert torch.equal(model.purify(x), x)
    assert (model.stochastic, model.surrogates()) == (False, {})
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.train().encoder.training
    model.deploy()
    assert model.stochastic
    model.deploy(False)
    assert not model.stochastic
    assert model.head.weight.requires_grad
    assert model.encoder.training  # it is in train mode, and so is a classifier that can be trained


@pytest.mark.parametrize("purifier", ["none", "gan", "mae"])
@pytest.mark.parametrize("transform", ["none", "rt1", "rt2", "rt3"])
def test_it_is_the_classifier_after_the_purifier_after_the_transform(purifier, transform):
    model, x = purified(transform, purifier), images()
    randomness = model.transform.draw(x, torch.Generator().manual_seed(1))
    noisy = (x if randomness.noise is None else x + randomness.noise).clamp(0, 1)
    wanted = torch.zeros_like(x)
    for m in randomness.masks:
        image = model.purifier((1 - m) * noisy + 0.5 * m, m)
        wanted = wanted + m * image if transform == "rt3" else image
    pure = model.purify(x, randomness)
    assert torch.allclose(pure, wanted, atol=1e-6)
    assert torch.allclose(model.classify(pure), bare(model)(pure), atol=1e-6)
    assert torch.allclose(seeded(model, x), bare(model)(seeded(model.purify, x)), atol=1e-6)
    assert torch.equal(seeded(model, x), model.head(seeded(model.features, x)))
    if transform == "none":
        assert not model.stochastic
        assert torch.allclose(model(x), model.classify(x), atol=1e-3) == (purifier == "none")
    outputs = model.outputs(x, randomness)
    assert [part.shape for part in outputs] == [(len(randomness.masks), *x.shape)] * {"gan": 2}.get(purifier, 1)


@pytest.mark.parametrize(("purifier", "transform"), [("gan", "rt2"), ("mae", "rt3")])
def test_gradients_are_those_of_finite_differences(purifier, transform):
    model, x = purified(transform, purifier, arch="mlp").double(), images(1).double().requires_grad_(True)
    for view in (model.fixed(1), lambda x: seeded(model, x)):
        assert torch.autograd.gradcheck(view, x, fast_mode=True)


def test_training_it_changes_the_purifier_alone_and_reaches_all_of_that():
    model, x = purified(), images(8).requires_grad_(True)
    model.train()
    assert model.purifier.training
    assert not any(part.training for part in (*model.encoder.modules(), model.head))
    F.cross_entropy(model(x), torch.arange(8)).backward()
    assert x.grad.abs().sum() > 0
    learns = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert learns == {f"purifier.{name}" for name, _ in model.purifier.named_parameters()}
    assert learns == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_classifier_in_train_mode_is_refused():
    model, x = purified(), images()
    model.encoder.train()
    for ask in (model, model.features, model.classify):
        with pytest.raises(InputError, match=r"put into train mode.*train\(\) or eval\(\) of the whole model"):
            ask(x)
    assert torch.isfinite(model.train()(x)).all()


@pytest.mark.parametrize("deploy", [True, False])
def test_stored_weights_know_that_they_are_deployed(tmp_path, deploy):
    model, again, x = purified(deploy=deploy), purified(deploy=not deploy), images()
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(again, tmp_path / "model.safetensors")
    assert again.stochastic == copy.deepcopy(model).stochastic == deploy
    assert again.head.weight.requires_grad == again.train().encoder.training == (not deploy)
    assert torch.equal(seeded(again.eval(), x), seeded(model, x))
    save_weights(purified(width=8), tmp_path / "wider.safetensors")
    with pytest.raises(InputError, match=r"weights of another model: purifier\."):
        load_weights(again, tmp_path / "wider.safetensors")


@pytest.mark.parametrize("transform", ["rt1", "rt2", "rt3"])
def test_fixed_randomness_is_the_same_for_every_image_and_every_time(transform):
    model, x = purified(transform), images(5)
    same = images(1, 1).expand(4, -1, -1, -1)
    first, second = model.purify(same), model.purify(same)
    assert not any(torch.equal(first[0], other) for other in (second[0], first[1])), "unless fixed, each has its own"
    fixed, state = model.fixed(7), torch.get_rng_state()
    assert (fixed.stochastic, model.stochastic) == (False, True)
    assert torch.equal(fixed(x), model.fixed(7)(x))
    assert not torch.allclose(fixed(x), model.fixed(8)(x), atol=1e-4)
    assert torch.allclose(fixed(x), torch.cat([fixed(x[i : i + 1]) for i in range(5)]), atol=1e-5)
    assert fixed(x[:0]).shape == (0, 10)
    assert torch.equal(torch.get_rng_state(), state)  # it draws from nobody
    model.head.bias.data += 1
    assert torch.allclose(fixed(x), model.fixed(7)(x)), "it shares the weights"
    model.deploy(False)
    assert torch.equal(fixed(x), model.classify(x))


def test_bpda_answers_as_the_model_and_feels_the_classifier_at_the_purified_image():
    model, x = purified(), images().requires_grad_(True)
    bpda = model.surrogates()["bpda"]
    assert bpda.stochastic
    pure = seeded(model.purify, x).detach().requires_grad_(True)
    answers = [seeded(bpda, x), model.classify(pure), seeded(model, x)]
    assert torch.equal(answers[0], answers[2])
    pairs = zip(answers, (x, pure, x), strict=True)
    felt, wanted, exact = (torch.autograd.grad(logits, at, torch.ones(4, 10).tril())[0] for logits, at in pairs)
    assert torch.allclose(felt, wanted, atol=1e-6)
    assert not torch.allclose(felt, exact, atol=1e-3)


def test_the_other_surrogates():
    model, x = purified(sigma=0.6), images()
    views, randomness = model.surrogates(), seeded(model.transform.draw, x)
    assert torch.equal(views["classifier"](x), model.classify(x))
    assert not getattr(views["classifier"], "stochastic", False)
    hidden = (x + randomness.noise) * (1 - randomness.masks[0]) + 0.5 * randomness.masks[0]
    wanted = model.classify(model.purifier(hidden, randomness.masks[0]))
    assert torch.allclose(seeded(views["unclipped"], x), wanted, atol=1e-5)
    assert not torch.allclose(seeded(model, x), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("transform", "purifier", "sigma", "offered"),
    [("none", "none", 1, 0), ("none", "gan", 1, 2), ("rt1", "gan", 1, 2), ("rt3", "none", 1, 3), ("rt2", "gan", 0, 2)],
)
def test_only_surrogates_that_differ_are_offered(transform, purifier, sigma, offered):
    views = purified(transform, purifier, sigma=sigma).surrogates()
    assert list(views) == ["bpda", "classifier", "unclipped"][:offered]


def test_digests_tell_views_apart():
    model = purified()
    views = [model, model.fixed(0), model.fixed(1), *model.surrogates().values()]
    assert len({model_digest(view) for view in views}) == len(views)
    assert model_digest(model.fixed(0)) == model_digest(model.fixed(0))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_attacks_find_a_folded_twin_of_what_is_deterministic(precision):
    model, x = purified(), images()
    assert fold_batchnorm(model, x, precision) is None
    for view in (model.fixed(0), model.surrogates()["classifier"]):
        twin = fold_batchnorm(view, x, precision)
        assert not [part for part in twin.modules() if isinstance(part, nn.BatchNorm2d)]
        model.purifier.fine.last.bias.data += 0.5  # the purifier learns, and the twin is renewed
        assert twin is fold_batchnorm(view, x, precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            quick = twin(x).float()
        assert torch.allclose(quick, view(x), atol=1e-4 if precision == "32-true" else 0.05), view


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: purified(missing=1.0), r"missing=1.0: give a number"),
        (lambda: purified(purifier="vae"), "Unknown purifier 'vae'"),
        (lambda: purified(nois=0.1), "Unknown option of a purified model 'nois'"),
        *(
            (lambda s=s: purified().fixed(s), f"Purified seed={s!r}: give a whole number")
            for s in (None, "1", True, -1)
        ),
        (lambda: purified()(torch.rand(2, 1, 9, 8)), "images of 8x8 pixels, but got a batch of 9x8"),
    ],
)
def test_what_it_refuses(call, said):
    with pytest.raises(InputError, match=said):
        call()
