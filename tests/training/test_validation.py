"""What is measured of a model after every epoch, and what it warns of."""

import numpy as np
import pytest
import torch

from robustlib.models import build_model
from robustlib.rng import ExampleRNG
from robustlib.threat import Threat
from robustlib.training.validation import gradient_alignment, overfitting, torch_seed, validate
from tests.conftest import Hidden
from tests.training_fixtures import tiny, train


def test_validation_attacks_the_view_and_judges_the_deployed_model(few, tmp_path):
    model = train(tiny("standard", arch="mlp", train_examples=0), few, tmp_path).model("last")
    nets = (model, Hidden(model, open=False), Hidden(model, open=True))
    results = [validate(net, few.train, few.val, few.threat, 0, "32-true") for net in nets]
    (plain, hidden, known), withstood, constant = zip(*results, strict=True)
    assert not any(constant)
    right = known.pop("robust_val")
    sure, wrong = (np.log(np.exp([3.0, *[0.0] * 9]).sum()) - top for top in (3.0, 0.0))
    deployed = right * sure + (1 - right) * wrong
    assert known.pop("robust_loss_val") == pytest.approx(deployed, rel=1e-5), "the loss of the deployed logits"
    assert known.items() <= plain.items()
    assert right == plain["robust_val"]
    assert torch.equal(withstood[2], withstood[0])
    assert hidden["robust_val"] > right + 0.3, "what the view is for"
    assert hidden["gradient_alignment"] == 0


@pytest.mark.parametrize(("logit", "constant"), [(0.0, True), (1e38, True), (torch.inf, True), (torch.nan, True)])
def test_a_model_of_one_answer_and_one_without_numbers_are_told(digits, logit, constant):
    class Stuck(torch.nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :10] + torch.tensor([1.0] * 9 + [logit])

    numbers, _, told = validate(Stuck(), digits.train, digits.val.sample(60), digits.threat, 0, "32-true")
    assert told is constant
    assert all(np.isfinite(numbers[name]) == np.isfinite(logit) for name in ("clean_val", "fgsm_val", "robust_val"))


class Noisy(torch.nn.Module):
    """A classifier behind noise from the global generator, which moves many of its decisions."""

    stochastic = True

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 2 * torch.randn_like(x))


def test_a_stochastic_model_is_scored_on_the_same_draws_each_time(digits):
    model, few, numbers = Noisy(build_model("mlp", digits)), digits.val.sample(60), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        numbers.append(validate(model, digits.train, few, digits.threat, 0, "32-true")[0])
    assert numbers[0]["clean_val"] == numbers[1]["clean_val"]
    assert numbers[0]["robust_loss_val"] != numbers[1]["robust_loss_val"], "the attack draws its own numbers"
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch_seed(0, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_both_gradients_of_an_alignment_are_of_one_draw(digits):
    """For a linear model behind noise the gradients' direction depends on the draw and hardly on a point of a tiny ball."""
    batch = next(digits.val.batches(30))
    model, rng = Noisy(build_model("mlp", digits)), ExampleRNG.for_examples(0, batch.index)
    assert gradient_alignment(model, batch.x, batch.y, Threat("linf", 1e-6), rng) > 0.999


def row(**changes):
    usual = {
        "epoch": 1,
        "robust_val": 0.5,
        "fgsm_val": 0.6,
        "clean_val": 0.8,
        "robust_train": 0.52,
        "robust_loss_val": 1.0,
    }
    return {**usual, "gradient_alignment": 0.8, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"robust_val": 0.2}, "fell from 50% to 20%"),
        ({"robust_val": 0.01, "fgsm_val": 0.1}, "was 50% and is 1%"),
        ({"fgsm_val": 0.79}, "29 points above PGD"),
        ({"fgsm_val": 0.85}, "above clean accuracy"),
        ({"gradient_alignment": 0.1}, "alignment"),
        ({"robust_train": 0.9}, "40 points above validation"),
    ],
)
def test_overfitting_is_noticed(changes, says):
    same = torch.ones(1000, dtype=torch.bool)
    assert any(says in text for text in overfitting([row(), row(**changes)], same, same))


def test_a_fall_is_told_over_the_epochs_that_lie_between():
    same = torch.ones(1000, dtype=torch.bool)
    for epoch, words in ((2, "in one epoch"), (5, "in 4 epochs")):
        (said,) = overfitting([row(), row(epoch=epoch, robust_val=0.2, fgsm_val=0.3, robust_train=0.2)], same, same)
        assert f"fell from 50% to 20% {words}" in said


def test_healthy_training_is_not_accused():
    same = torch.arange(1000) % 2 == 0
    assert overfitting([row(), row(robust_val=0.52)], same, same) == []
    assert overfitting([row()], same, torch.cat((~same[:8], same[8:]))) == []


def test_robust_overfitting_needs_a_significant_paired_loss():
    best, now = torch.arange(1000) < 500, torch.arange(1000) < 440
    assert any("6.0 points below" in text for text in overfitting([row()], best, now))
    for every in (1, 4):  # epochs between validations
        rising = [row(epoch=1 + every * i, robust_loss_val=1 + 0.1 * i) for i in range(6)]
        assert any(f"risen for {5 * every} epochs" in text for text in overfitting(rising, best, best))
