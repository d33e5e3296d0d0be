"""Consistency of features under augmentation and attack, on models of which it is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import figures
from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.representation import consistency, displacement, image_copies
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
        assert row["alignment"] == pytest.approx(
            (F.normalize(a) - F.normalize(b)).square().sum(1).mean().item(), rel=1e-4
        )
        assert row["relative_l2"] == pytest.approx(((b - a).norm(dim=1) / a.norm(dim=1)).mean().item(), rel=1e-4)
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
    plain = image_copies(model, few, attack, augment="none")
    assert torch.equal(plain["augmented"]["features"], plain["clean"]["features"])
    with pytest.raises(InputError, match="Did you mean 'simclr'"):
        image_copies(model, few, attack, augment="simcl")
    with pytest.raises(InputError, match="no clean features among attacked: take those of image_copies"):
        displacement({"attacked": first["attacked"]})


def test_they_are_shown(digits, few, attack):
    copies = image_copies(build_model("mlp", digits), few, attack)
    table = tables.consistency(consistency({"MLP": copies}))
    assert list(table.columns) == ["model", "copy", "relative L2 gap", "alignment with the image", "same answer"]
    assert list(table["copy"]) == ["augmented", "attacked"]
    assert table["same answer"].str.endswith(" %").all()
    assert set(figures.pair_distances({"MLP": displacement(copies)}).data["pair"]) == {"augmented", "attacked"}
