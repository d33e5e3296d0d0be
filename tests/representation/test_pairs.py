"""Images beside their copies and beside other classes, on models whose features are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import figures
from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.representation import Pairs, attacked_pairs, consistency, displacement, image_copies
from robustlib.workbook import tables


@pytest.fixture
def few(digits):
    return digits.test.sample(40)


@pytest.fixture
def attack(digits):
    return PGD(digits.threat, steps=3)


def test_a_model_blind_to_its_input_is_consistent_and_one_of_pixels_is_not(digits, few, attack):
    class Pixels(nn.Module):
        """Features are the pixels, or what is left of them."""

        def __init__(self, scale):
            super().__init__()
            self.scale, self.head = scale, nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.features(x))

        def features(self, x):
            return self.scale * x.flatten(1) + 1

    blind, seeing = image_copies(Pixels(0.0), few, attack), image_copies(Pixels(1.0), few, attack)
    assert list(seeing) == ["clean", "augmented", "attacked"]
    assert all(value.max() == 0 for value in displacement(blind).values())
    pixels = few.images.flatten(1).float() / 255 + 1
    assert torch.allclose(seeing["clean"]["features"], pixels, atol=1e-6)
    inside = (seeing["attacked"]["features"] - pixels).abs()
    assert (inside <= digits.threat.eps + 1e-6).all()
    assert inside.max() > 0.9 * digits.threat.eps
    table = consistency({"blind": blind, "seeing": seeing}).set_index(["model", "copy"])
    assert (table.loc["blind", ["alignment", "relative_l2"]] == 0).all().all()
    assert (table.loc["blind", "same answer"] == 1).all()
    for kind in ("augmented", "attacked"):
        a, b = pixels, seeing[kind]["features"]
        row = table.loc[("seeing", kind)]
        apart = (F.normalize(a) - F.normalize(b)).square().sum(1).mean().item()
        gap = ((b - a).norm(dim=1) / a.norm(dim=1)).mean().item()
        assert row[["alignment", "relative_l2"]].tolist() == pytest.approx([apart, gap], rel=1e-4)
        assert displacement(seeing)[kind].numpy() == pytest.approx(1 - F.cosine_similarity(a, b).numpy(), abs=1e-5)
    same = (seeing["attacked"].predictions == seeing["clean"].predictions).float().mean()
    assert table.loc[("seeing", "attacked"), "same answer"] == pytest.approx(same.item())


def test_copies_repeat_and_views_are_those_asked_for(digits, few, attack):
    model = build_model("mlp", digits)
    first, again = (image_copies(model, few, attack, seed=3) for _ in range(2))
    assert all(torch.equal(first[kind]["features"], again[kind]["features"]) for kind in first)
    other = image_copies(model, few, attack, seed=4)
    assert torch.equal(first["clean"]["features"], other["clean"]["features"])
    assert not torch.equal(first["augmented"]["features"], other["augmented"]["features"])
    shown = tables.consistency(consistency({"MLP": first}))
    assert list(shown.columns) == ["model", "copy", "relative L2 gap", "alignment with the image", "same answer"]
    assert list(shown["copy"]) == ["augmented", "attacked"]
    assert shown["same answer"].str.endswith(" %").all()
    assert set(figures.pair_distances({"MLP": displacement(first)}).data["pair"]) == {"augmented", "attacked"}
    plain = image_copies(model, few, attack, augment="none")
    assert torch.equal(plain["augmented"]["features"], plain["clean"]["features"])
    with pytest.raises(InputError, match="Did you mean 'simclr'"):
        image_copies(model, few, attack, augment="simcl")
    with pytest.raises(InputError, match="no clean features among attacked: take those of image_copies"):
        displacement({"attacked": first["attacked"]})


def test_pairs_have_distances_by_hand():
    pairs = Pairs(
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.5, math.sqrt(0.75)], [3.0, 0.0]]),
        torch.tensor([[-1.0, 0.0], [0.0, 1.0]]),
    )
    cosine, l2 = pairs.distances(), pairs.distances("l2")
    assert cosine["attacked copy"].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert cosine["another class, pulled"].tolist() == pytest.approx([2.0, 1.0], abs=1e-6)
    assert l2["attacked copy"].tolist() == pytest.approx([1.0, 2.0], abs=1e-6)
    with pytest.raises(InputError, match="'l1'"):
        pairs.distances("l1")


def test_pairs_are_an_image_its_copy_and_a_pulled_one_of_another_class(digits, net):
    split, threat = digits.test.sample(60), Threat("linf", 0.1)
    pairs = attacked_pairs(net, split, threat, embed=lambda x: x.flatten(1))
    clean = split.images.flatten(1).float() / 255
    assert torch.equal(pairs.images, clean)
    assert 0 < float((pairs.copies - clean).abs().max()) <= 0.1 + 1e-6
    apart = (pairs.others[:, None] - clean).abs().amax(2)
    origin = apart.argmin(1)
    assert float(apart.amin(1).max()) <= 0.1 + 1e-6
    assert bool((split.labels[origin] != split.labels).all())
    before, after = (
        net(x.view(-1, 1, 8, 8)).log_softmax(1).gather(1, split.labels[:, None]) for x in (clean[origin], pairs.others)
    )
    assert bool((after > before).all()), "pulled towards the class of its partner"
    with torch.no_grad():
        expected = net.features(clean.view(-1, 1, 8, 8))
    assert torch.allclose(attacked_pairs(net, split, threat).images, expected, atol=1e-5)
    with pytest.raises(InputError, match="are of class 3"):
        attacked_pairs(net, split.select(split.labels == 3), threat)
