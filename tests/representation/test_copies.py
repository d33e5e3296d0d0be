"""Images beside attacked, augmented, pulled and purified copies, on models whose features are known; what a purifier does and costs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import representation
from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.models.purified import RandomTransform
from robustlib.representation.copies import Pairs
from robustlib.workbook import tables


class Pixels(nn.Module):
    """Features are the pixels, or what is left of them."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.head = scale, nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.scale * x.flatten(1) + 1)


@pytest.fixture
def few(digits):
    return digits.test.sample(40)


@pytest.fixture
def attack(digits):
    return PGD(digits.threat, steps=3)


def test_a_model_blind_to_its_input_is_consistent_and_one_of_pixels_is_not(digits, few, attack):
    blind, seeing = (representation.image_copies(Pixels(scale), few, attack) for scale in (0.0, 1.0))
    assert list(seeing) == ["clean", "augmented", "attacked"]
    assert all(value.max() == 0 for value in representation.displacement(blind).values())
    pixels = few.images.flatten(1).float() / 255 + 1
    assert torch.allclose(seeing["clean"]["features"], pixels, atol=1e-6)
    shift = (seeing["attacked"]["features"] - pixels).abs()
    assert 0.9 * digits.threat.eps < shift.max() <= digits.threat.eps + 1e-6
    table = representation.consistency({"blind": blind, "seeing": seeing}).set_index(["model", "copy"])
    assert table.loc["blind"].drop_duplicates().to_numpy().tolist() == [[0, 0, 1]]
    for kind in ("augmented", "attacked"):
        other = seeing[kind]["features"]
        apart = (F.normalize(pixels) - F.normalize(other)).square().sum(1).mean().item()
        gap = ((other - pixels).norm(dim=1) / pixels.norm(dim=1)).mean().item()
        same = (seeing[kind].predictions == seeing["clean"].predictions).float().mean().item()
        row = table.loc[("seeing", kind), ["alignment", "relative_l2", "same answer"]]
        assert row.tolist() == pytest.approx([apart, gap, same], rel=1e-4)
        moved = 1 - F.cosine_similarity(pixels, other)
        assert torch.allclose(representation.displacement(seeing)[kind], moved, atol=1e-5)
    shown = tables.consistency(table.loc[["seeing"]].reset_index())
    assert list(shown.columns) == ["model", "copy", "relative L2 gap", "alignment with the image", "same answer"]
    assert shown["same answer"].str.endswith(" %").all()
    with pytest.raises(InputError, match="No clean features are among attacked: take those of image_copies"):
        representation.displacement({"attacked": seeing["attacked"]})


def test_copies_repeat_and_views_are_those_asked_for(digits, few, attack):
    model = build_model("mlp", digits)
    first, again, other = (representation.image_copies(model, few, attack, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[kind]["features"], again[kind]["features"]) for kind in first)
    assert torch.equal(first["clean"]["features"], other["clean"]["features"])
    assert not torch.equal(first["augmented"]["features"], other["augmented"]["features"])
    plain = representation.image_copies(model, few, attack, augment="none")
    assert torch.equal(plain["augmented"]["features"], plain["clean"]["features"])
    with pytest.raises(InputError, match="Did you mean 'simclr'"):
        representation.image_copies(model, few, attack, augment="simcl")


def test_pairs_have_distances_by_hand():
    copies, others = [[0.5, math.sqrt(0.75)], [3.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]]
    pairs = Pairs(*map(torch.tensor, ([[1.0, 0.0], [1.0, 0.0]], copies, others)))
    cosine, l2 = pairs.distances(), pairs.distances("l2")
    assert cosine["attacked copy"].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert cosine["another class, pulled"].tolist() == pytest.approx([2.0, 1.0], abs=1e-6)
    assert l2["attacked copy"].tolist() == pytest.approx([1.0, 2.0], abs=1e-6)
    with pytest.raises(InputError, match="'l1'"):
        pairs.distances("l1")


def test_pairs_are_an_image_its_copy_and_a_pulled_one_of_another_class(digits, net):
    split, threat = digits.test.sample(60), Threat("linf", 0.1)
    pairs = representation.attacked_pairs(net, split, threat, embed=lambda x: x.flatten(1))
    clean = split.images.flatten(1).float() / 255
    assert torch.equal(pairs.images, clean)
    assert 0 < float((pairs.copies - clean).abs().max()) <= 0.1 + 1e-6
    distances, origin = (pairs.others[:, None] - clean).abs().amax(2).min(1)
    assert float(distances.max()) <= 0.1 + 1e-6
    assert bool((split.labels[origin] != split.labels).all())
    logits = (net(x.view(-1, 1, 8, 8)) for x in (clean[origin], pairs.others))
    before, after = (some.log_softmax(1).gather(1, split.labels[:, None]) for some in logits)
    assert bool((after > before).all()), "pulled towards the class of its partner"
    deployed = representation.attacked_pairs(net, split, threat).images
    assert torch.allclose(deployed, net.features(clean.view(-1, 1, 8, 8)), atol=1e-5)
    with pytest.raises(InputError, match="are of class 3"):
        representation.attacked_pairs(net, split.select(split.labels == 3), threat)


PURIFIED = {"purifier": "gan", "transform": "rt2", "sigma": 0.1, "missing": 0.25, "grid": 4, "width": 4}
NAMES = ["image", "noise added", "blocks hidden", "holes filled", "purified"]


def built(digits, deployed=True, **changes):
    model = build_model("mlp", digits, purified=PURIFIED | changes).eval()
    model.deploy(deployed)
    return model


@pytest.fixture
def pair(digits):
    x = digits.test.images[:5].float() / 255
    return x, (x + 0.2 * torch.sign(torch.randn_like(x))).clamp(0, 1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, NAMES),
        ({"transform": "rt3"}, NAMES),
        ({"transform": "rt1"}, [NAMES[0], *NAMES[2:]]),
        ({"missing": 0.0}, ["image", "noise added", "purified"]),
        ({"transform": "none"}, ["image", "purified"]),
        ({"deployed": False}, ["image", "purified"]),
    ],
)
def test_only_steps_that_are_taken_are_shown(digits, pair, changes, names):
    steps = representation.purification_steps(built(digits, **changes), *pair)
    assert list(steps.clean) == list(steps.adversarial) == names
    for side in (steps.clean, steps.adversarial):
        assert all(x.shape == pair[0].shape and x.min() >= 0 and x.max() <= 1 for x in side.values())


def test_steps_follow_each_other(digits, pair):
    """Both images meet one draw; a hole is the purifier's, what lies around it the noisy image's."""
    model = built(digits)
    steps = representation.purification_steps(model, *pair, seed=3)
    drawn = model.transform.draw(pair[0], torch.Generator().manual_seed(3))
    hidden = drawn.masks[0].expand_as(pair[0]) == 1
    for k, (side, x) in enumerate(zip((steps.clean, steps.adversarial), pair, strict=True)):
        assert torch.equal(side["image"], x)
        assert torch.equal(side["noise added"], (x + drawn.noise).clamp(0, 1))
        assert torch.equal(side["blocks hidden"][~hidden], side["noise added"][~hidden])
        assert (side["blocks hidden"][hidden] == 0.5).all()
        with torch.no_grad():
            pure = model.purify(x, drawn)
        assert torch.equal(side["purified"], pure)
        assert torch.equal(side["holes filled"], torch.where(hidden, pure, side["noise added"]))
        for name, image in (("purified", pure), ("image", x)):
            assert torch.equal(steps.answers[name][k], model.classify(image).argmax(1))
    again = representation.purification_steps(model, *pair, seed=3)
    assert all(torch.equal(again.clean[name], steps.clean[name]) for name in NAMES)
    with pytest.raises(InputError, match="must be the same images"):
        representation.purification_steps(model, pair[0], pair[1][:2])


def test_the_surface_is_that_of_a_loop():
    """Against NumPy, image by image, draw by draw; and masks alone shrink the attack, to 1 - rate."""
    x, other = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    transform = RandomTransform("rt2", grid=4, sigma=0.1)
    table = representation.transform_surface(transform, x, other, seed=5).set_index(["missing", "mixes"])
    assert len(table) == 6 * 5
    fresh = torch.Generator().manual_seed(5)
    draws = [transform.draw(x, fresh) for _ in range(4)]
    draws = [(drawn.masks[0].numpy(), drawn.noise.numpy()) for drawn in draws]
    for mixes in (1, 4):
        apart, changed = [], []
        for k, (one, two) in enumerate(zip(x.numpy(), other.numpy(), strict=True)):
            sides = [[np.where(m[k] == 1, 0.5, (v + z[k]).clip(0, 1)) for m, z in draws[:mixes]] for v in (one, two)]
            clean, attacked = (sum(side) / mixes for side in sides)
            apart.append(np.abs(attacked - clean).mean())
            changed.append(np.abs(attacked - two).mean())
        assert table.loc[(0.25, mixes)].tolist() == pytest.approx([np.mean(apart), np.mean(changed)], rel=1e-5)
    coarse = representation.transform_surface(RandomTransform("rt1", grid=2), x, x + 0.1).set_index("missing")
    assert set(coarse.index) == {0.0, 0.25, 0.5, 0.75}, "the rates that a grid can have"
    assert coarse["apart"].tolist() == pytest.approx((0.1 * (1 - coarse.index)).tolist(), abs=1e-6)


def test_features_with_and_without_the_purifier(digits):
    model, split = built(digits), digits.test.sample(20)
    copies = representation.purified_copies(model, split, PGD(digits.threat, steps=2, eot=2))
    assert list(copies) == ["clean", "purified", "attacked", "attacked, purified"]
    x = split.images.float() / 255
    with torch.no_grad():
        bare = model.encoder(model.normalise(x))
        assert torch.allclose(copies["clean"]["features"], bare, atol=1e-6)
        assert torch.equal(copies["clean"].predictions, model.classify(x).argmax(1))
        torch.manual_seed(0)
        assert torch.allclose(copies["purified"]["features"], model.features(x), atol=1e-6)
    assert (copies["attacked"]["features"] - bare).abs().max() > 1e-3


def test_a_purifier_costs_more_than_none(digits):
    model = built(digits, width=12)
    table = representation.forward_cost(model, torch.rand(8, 1, 8, 8)).set_index("pass")
    assert list(table.index) == ["forward", "forward and gradient"]
    assert table["ratio"].tolist() == pytest.approx((table["purified"] / table["classifier"]).tolist())
    assert table["ratio"].min() > 1
    assert table.loc["forward and gradient", "purified"] > table.loc["forward", "purified"] > 0
    assert all(p.grad is None for p in model.parameters())
