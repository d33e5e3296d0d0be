"""What a purifier does to images, features and the clock, against restatements by hand."""

import math

import numpy as np
import pytest
import torch

from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.models import Purified, build_model
from robustlib.models.purified import RandomTransform
from robustlib.representation import forward_cost, purification_steps, purified_copies, transform_surface


def built(digits, deployed: bool = True, **changes) -> Purified:
    """A purified classifier of digits with random weights."""
    settings = {"purifier": "gan", "transform": "rt2", "sigma": 0.1, "missing": 0.25, "grid": 4, "width": 4}
    model = build_model("mlp", digits, purified={**settings, **changes}).eval()
    assert isinstance(model, Purified)
    model.deploy(deployed)
    return model


@pytest.fixture
def pair(digits):
    x = digits.test.images[:5].float() / 255
    return x, (x + 0.2 * torch.sign(torch.randn_like(x))).clamp(0, 1)


NAMES = ["image", "noise added", "blocks hidden", "holes filled", "purified"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, NAMES),
        ({"transform": "rt3"}, NAMES),
        ({"transform": "rt1"}, [name for name in NAMES if name != "noise added"]),
        ({"missing": 0.0}, ["image", "noise added", "purified"]),
        ({"transform": "none"}, ["image", "purified"]),
        ({"deployed": False}, ["image", "purified"]),
    ],
)
def test_only_steps_that_are_taken_are_shown(digits, pair, changes, names):
    found = purification_steps(built(digits, **changes), *pair)
    assert list(found.clean) == list(found.adversarial) == names
    for side in (found.clean, found.adversarial):
        assert all(x.shape == pair[0].shape and x.min() >= 0 and x.max() <= 1 for x in side.values())


def test_steps_follow_each_other(digits, pair):
    """Both images meet one draw; a hole is the purifier's, what lies around it the noisy image's."""
    model = built(digits)
    found = purification_steps(model, *pair, seed=3)
    drawn = model.transform.draw(pair[0], torch.Generator().manual_seed(3))
    hidden = drawn.masks[0].expand_as(pair[0]) == 1
    for k, (side, x) in enumerate(zip((found.clean, found.adversarial), pair, strict=True)):
        assert torch.equal(side["image"], x)
        assert torch.equal(side["noise added"], (x + drawn.noise).clamp(0, 1))
        assert torch.equal(side["blocks hidden"][~hidden], side["noise added"][~hidden])
        assert (side["blocks hidden"][hidden] == 0.5).all()
        with torch.no_grad():
            pure = model.purify(x, drawn)
        assert torch.equal(side["purified"], pure)
        assert torch.equal(side["holes filled"], torch.where(hidden, pure, side["noise added"]))
        for name, image in (("purified", pure), ("image", x)):
            assert torch.equal(found.answers[name][k], model.classify(image).argmax(1))
    again = purification_steps(model, *pair, seed=3)
    assert all(torch.equal(again.clean[name], found.clean[name]) for name in NAMES)
    with pytest.raises(InputError, match="must be the same images"):
        purification_steps(model, pair[0], pair[1][:2])


def test_masks_shrink_the_attack_and_mixing_averages_the_noise(digits):
    """Analytic: |T(x') - T(x)| is (1 - rate) eps without clipping, |T(x) - x| is sigma sqrt(2 / pi n) without masks."""
    x = torch.full((64, 1, 8, 8), 0.45)
    transform = RandomTransform("rt2", sigma=0.04, grid=4, missing=0.5)
    table = transform_surface(transform, x, x + 0.1).set_index(["missing", "mixes"])
    assert len(table) == 6 * 5
    for rate, mixes in table.index:
        assert table.loc[(rate, mixes), "apart"] == pytest.approx(0.1 * (1 - rate), abs=1e-6)
    for mixes in (1, 4):
        expected = 0.04 * math.sqrt(2 / math.pi / mixes)
        assert table.loc[(0.0, mixes), "changed"] == pytest.approx(expected, rel=0.05)


def test_the_surface_is_that_of_a_loop():
    """Against NumPy, image by image, draw by draw, for masks of several copies."""
    generator = torch.Generator().manual_seed(1)
    x, other = torch.rand(2, 3, 3, 8, 8, generator=generator)
    transform = RandomTransform("rt1", grid=4)
    found = transform_surface(transform, x, other, seed=5).query("missing == 0.25").set_index("mixes")
    fresh = torch.Generator().manual_seed(5)
    masks = [transform.draw(x, fresh).masks[0].numpy() for _ in range(4)]
    for mixes in (1, 4):
        apart, changed = [], []
        for k in range(len(x)):
            copies = [[np.where(m[k] == 1, 0.5, v[k].numpy()) for m in masks[:mixes]] for v in (x, other)]
            one, two = (sum(side) / mixes for side in copies)
            apart.append(np.abs(two - one).mean())
            changed.append(np.abs(two - other[k].numpy()).mean())
        assert found.loc[mixes, "apart"] == pytest.approx(np.mean(apart), rel=1e-5)
        assert found.loc[mixes, "changed"] == pytest.approx(np.mean(changed), rel=1e-5)


@pytest.mark.parametrize(("grid", "rates"), [(2, {0.0, 0.25, 0.5, 0.75}), (4, {0.0, 0.125, 0.25, 0.375, 0.5, 0.75})])
def test_rates_are_those_that_a_grid_can_have(grid, rates):
    x = torch.rand(2, 1, 8, 8)
    assert set(transform_surface(RandomTransform("rt1", grid=grid, missing=0.25), x, x)["missing"]) == rates


def test_features_with_and_without_the_purifier(digits):
    model, split = built(digits), digits.test.sample(20)
    found = purified_copies(model, split, PGD(digits.threat, steps=2, eot=2))
    assert list(found) == ["clean", "purified", "attacked", "attacked, purified"]
    x = split.images.float() / 255
    with torch.no_grad():
        bare = model.encoder(model.normalise(x))
        assert torch.allclose(found["clean"]["features"], bare, atol=1e-6)
        assert torch.equal(found["clean"].predictions, model.classify(x).argmax(1))
        torch.manual_seed(0)
        assert torch.allclose(found["purified"]["features"], model.features(x), atol=1e-6)
    assert (found["attacked"]["features"] - bare).abs().max() > 1e-3
    assert not model.training
    assert bool(model.purifying)


def test_a_purifier_costs_more_than_none(digits):
    model = built(digits, purifier="gan", width=12)
    table = forward_cost(model, torch.rand(8, 1, 8, 8)).set_index("pass")
    assert list(table.index) == ["forward", "forward and gradient"]
    assert (table["ratio"] > 1).all()
    assert table["ratio"].tolist() == pytest.approx((table["purified"] / table["classifier"]).tolist())
    assert table.loc["forward and gradient", "purified"] > table.loc["forward", "purified"] > 0
    assert all(p.grad is None for p in model.parameters())
