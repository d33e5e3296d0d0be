"""Passes are counted as a model sees them, whatever the attack and whatever the batching."""

from contextlib import suppress
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustlib.attacks import FAB, FGSM, PGD, AutoAttack, BatchPGD, SurrogateModel, Tangent, count_passes
from tests.attacks.conftest import L2, LINF, QUICK, batch, generator, name
from tests.attacks.test_base import ALL
from tests.conftest import Linear


class Asked(nn.Module):
    """Ten sharp logits; all of its instances count, in one place, the images that go forward and back."""

    seen: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen["forward"] += len(x)
        logits = x.flatten(1) @ self.weight
        if logits.requires_grad:
            logits.register_hook(lambda slope: self.seen.update(backward=self.seen["backward"] + len(slope)))
        return logits


@pytest.mark.parametrize("attack", [*ALL, FAB(LINF, 5, 2, restarts=2)], ids=name)
def test_counts_are_what_the_model_saw(attack):
    torch.manual_seed(0)
    model, (x, y) = Asked(), batch()
    y = model.weight.new_zeros(len(x)).long()
    Asked.seen |= {"forward": 0, "backward": 0}
    with count_passes() as outer, count_passes() as passes:
        attack(model, x, y, generator=generator())
    # an attack, each component of a cascade too, first looks at the model's answer to one image
    looks = Asked.seen["forward"] - passes["forward"]
    assert 0 < looks <= (3 if isinstance(attack, AutoAttack) else 1)
    assert passes["backward"] == Asked.seen["backward"]
    assert passes.total() == passes["forward"] + passes["backward"] > 0
    assert outer == passes, "all who count see the same"
    assert (passes["backward"] == 0) == (type(attack).__name__ in ("Square", "Tangent"))


def test_what_is_known_beforehand():
    model, (x, y) = Linear(3, (3, 8, 8)).eval(), batch(3, 8)

    def count(attack, *rest, **settings):
        with count_passes() as passes:
            attack(*rest, **settings)
        return passes["forward"], passes["backward"]

    assert count(FGSM(LINF), model, x, y) == (8, 8)
    assert count(PGD(LINF, 7, eot=3), model, x, y) == (8 * 21, 8 * 21)
    assert count(PGD(LINF, 7), SurrogateModel(model, Linear(3, (3, 8, 8))), x, y) == (56, 56)
    assert count(BatchPGD(LINF, 4), model, x, lambda net, images: net(images).square().sum()) == (32, 32)
    assert count(PGD(LINF, 7), model, x[:0], y[:0]) == (0, 0)


def test_nothing_is_counted_outside_nor_after_an_error():
    model, (x, y) = Linear(3, (3, 8, 8)).eval(), batch(3, 8)
    with count_passes() as passes, suppress(ZeroDivisionError):
        FGSM(LINF)(model, x, y)
        raise ZeroDivisionError
    FGSM(LINF)(model, x, y)
    assert passes.total() == 16


def test_images_that_leave_cost_nothing_more():
    model, x = Linear(3, (3, 8, 8)).eval(), batch(3, 8)[0]
    wrong = (model(x).argmax(1) + 1) % 3
    with count_passes() as passes:
        QUICK[0](model, x, wrong)
        Tangent(L2, 300)(model, x, wrong)
    assert (passes["forward"], passes["backward"]) == (16, 0), "one look at each"


def test_restarts_attack_what_still_stands():
    model, x = Linear(2, (1, 1, 2)), torch.tensor([[0.52, 0.48], [0.9, 0.1]]).view(2, 1, 1, 2)
    model.map.weight.data, model.map.bias.data = 9 * torch.eye(2), torch.zeros(2)
    attack, y = PGD(LINF, 3, restarts=4), torch.zeros(2, dtype=torch.int64)
    with count_passes() as passes:
        x_adv = attack(model, x, y, generator=torch.Generator().manual_seed(0))
    assert passes["backward"] == 3 * (2 + 3 * 1), "the image that falls at once meets no further start"
    assert model(x_adv).argmax(1).tolist() == [1, 0]
    with count_passes() as passes:
        attack(model, x[:1], y[:1], generator=torch.Generator().manual_seed(0))
    assert passes["backward"] == 3
