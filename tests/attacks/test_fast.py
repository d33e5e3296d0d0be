"""AutoAttack's fast version: what it spends, on which images, and where it must not be believed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustlib.attacks import APGD, PGD, AutoAttack, Square, Threat, count_passes
from robustlib.attacks.autoattack import REACH
from robustlib.data import Split
from robustlib.evaluation import cascade_steps, evaluate
from robustlib.runs import attack_names
from tests.attacks.conftest import LINF, batch, generator
from tests.conftest import Linear


class Sides(nn.Module):
    """Two classes on either side of a grey level: an image of mean v lies |v - 0.5| in Linf from the boundary."""

    def forward(self, x):
        value = 10 * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([-value, value], 1)


def grey(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_what_a_linear_model_allows_and_no_more(norm):
    model, threat = Sides(), Threat(norm, 0.1 if norm == "linf" else 0.4)  # in l2 a level is 4 times as far
    x = grey(0.5 - 0.095, 0.5 + 0.095, 0.5 - 0.105, 0.5 + 0.105, 0.9, 0.6)
    y = torch.tensor([0, 1, 0, 1, 1, 0])  # the last is wrong from the start
    x_adv = AutoAttack(threat, "fast", steps=20, queries=100)(model, x, y, generator=generator())
    assert ((model(x_adv).argmax(1) == y) == torch.tensor([False, False, True, True, True, False])).all()
    assert torch.equal(x_adv[5], x[5])


def test_what_is_far_costs_a_look_and_what_is_near_the_whole_schedule():
    near = AutoAttack(Threat("linf", 0.1), "near", steps=10, queries=20)

    def passes(*levels):
        with count_passes() as counted:
            near(Sides(), grey(*levels), torch.ones(len(levels), dtype=torch.int64), generator=generator())
        return counted.total() / len(levels)

    reach = 0.1 * REACH
    look = 1 + 1 + 2  # the image's answer, its likeliest classes, and a gradient towards the only one
    assert passes(0.5 + reach + 0.01, 0.95) == look
    assert passes(0.5 + reach - 0.01) > look + 10 * 3 * 2
    assert passes(0.95, 0.2) == (look + 1) / 2, "the second is wrong already"
    assert passes(0.5 + reach + 0.01, 0.5 + reach - 0.01) == (look + passes(0.5 + reach - 0.01)) / 2


def test_the_costly_parts_meet_only_images_whose_margin_keeps_shrinking(monkeypatch):
    """A margin that levels off at a share of its clean value, whatever the attack does."""

    class Plateau(nn.Module):
        def __init__(self, share):
            super().__init__()
            self.share = share

        def forward(self, x):
            value = x.flatten(1).mean(1, keepdim=True)  # 0.6 clean; one radius away 0.5
            value = self.share + (1 - self.share) * nn.functional.softplus(400 * (value - 0.55)) / 20
            return torch.cat([-value, value], 1)

    met = []
    for part in ("apgd-t", "apgd-pma", "apgd-dlr-t", "square"):
        searches = AutoAttack.components(AutoAttack(Threat("linf", 0.1), "near", steps=10, queries=20), 2)
        with monkeypatch.context() as patch:
            kept = {name: (lambda *args, name=name, rng: met.append(name) or args[1]) for name in [part]}
            patch.setattr(AutoAttack, "components", lambda self, classes: searches | kept)  # noqa: B023
            for share in (0.02, 0.3, 0.6):
                AutoAttack(Threat("linf", 0.1), "near")(
                    Plateau(share), grey(0.6), torch.ones(1).long(), generator=generator()
                )
    assert {part: met.count(part) for part in met} == {"apgd-t": 3, "apgd-pma": 2, "apgd-dlr-t": 1, "square": 1}


@pytest.mark.parametrize("classes", [3, 12])
def test_it_fits_any_number_of_classes_and_evaluations_show_its_parts(classes):
    torch.manual_seed(0)
    model, images = Linear(classes, scale=4.0).eval(), torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    split = Split(images, model(images / 255).argmax(1), torch.arange(40))
    attack = AutoAttack(Threat("linf", 0.1), "fast", steps=5, queries=20)
    records = evaluate(model, split, {"autoattack": attack, "pgd": PGD(attack.threat, 20)})
    steps = cascade_steps(records).set_index("component")
    assert list(steps.index) == ["clean", *attack.components(classes)] == ["clean", "apgd-pma", "near"]
    assert steps.broken["apgd-pma"] > 0
    assert (steps.passes[["apgd-pma", "near"]] > 1).all()
    pgd = records[records.attack == "pgd"]
    assert steps.accuracy["near"] <= (pgd.prediction == pgd.label).mean()


def test_a_shorter_schedule_is_shorter_in_all_parts():
    first, near = AutoAttack(LINF, "fast", steps=10, precision="bf16-mixed").components(10).values()
    assert (first.steps, near.version, near.steps, near.threat) == (3, "near", 10, LINF)
    *searches, square = near.components(10).values()
    assert {(part.steps, part.precision, part.threat) for part in searches} == {(10, "bf16-mixed", LINF)}
    assert (square.queries, square.precision) == (5000, "bf16-mixed")
    objectives = [part.objective for part in AutoAttack(LINF, "near").components(3).values() if isinstance(part, APGD)]
    assert objectives == ["probability_margin", "probability_margin", "margin"], "too few classes for targeted DLR"
    assert attack_names([AutoAttack(LINF, "fast")]) == {f"attacks/{name}" for name in ("autoattack", "apgd", "square")}


def test_a_model_that_hides_its_gradients_is_for_the_standard_version():
    class Steps(Sides):
        """The same answers on 32 grey levels of the mean: no gradient anywhere."""

        def forward(self, x):
            return super().forward((32 * x.mean((1, 2, 3), keepdim=True)).round() / 32)

    x, y = grey(*[0.55] * 4), torch.ones(4, dtype=torch.int64)
    square = AutoAttack(Threat("linf", 0.1), "custom", (("square", Square(Threat("linf", 0.1), 50)),))
    kept, broken = (
        attack(Steps(), x, y, generator=generator()) for attack in (AutoAttack(square.threat, "fast"), square)
    )
    assert (Steps()(kept).argmax(1) == 1).all()
    assert (Steps()(broken).argmax(1) == 0).all()


def test_its_parts_are_parts_of_a_custom_cascade():
    model, (x, y) = Linear(5, (3, 8, 8), scale=3.0), batch()
    pma = APGD(LINF, 5, objective="probability_margin")
    parts = (
        ("pma", pma),
        ("malt", replace(pma, targets=2, ranking="malt")),
        ("near", AutoAttack(LINF, "near", steps=5, queries=20)),
    )
    x_adv = AutoAttack(LINF, "custom", parts)(model, x, y, generator=generator())
    assert (model(x_adv).argmax(1) != y).sum() > (model(x).argmax(1) != y).sum()
