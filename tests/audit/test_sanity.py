"""What is wrong with a network is said before it is attacked, each misuse in its own sentence."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustlib.attacks import PGD
from robustlib.audit import check_model
from robustlib.data import Dataset, load_dataset
from robustlib.models.external import External
from robustlib.threat import Threat


class Wrapped(nn.Module):
    """A good network, misused: `before` sees the images, `after` the logits."""

    def __init__(self, net: nn.Module, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def good(digits: Dataset) -> nn.Module:
    """A linear network, solved for: right for more than nine tenths of the test images; its images are centred and scaled by 10."""
    x = (digits.train.images.float() / 255 - 0.3).flatten(1) * 10
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)
    solved = torch.linalg.lstsq(
        ones.T @ ones + torch.eye(65), ones.T @ nn.functional.one_hot(digits.train.labels).float()
    ).solution
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(10 * solved[:-1].T)
        net[1].bias.copy_(10 * solved[-1])
    return net


def scaled(x: Tensor) -> Tensor:
    return (x - 0.3) * 10


def found(net: nn.Module, digits: Dataset, **settings) -> dict[str, tuple[str, str]]:
    findings = check_model(External(net, digits, **settings), digits.test, digits)
    return {finding.name: (finding.verdict, finding.text) for finding in findings}


def test_a_good_network_passes_everything(good, digits):
    every = found(Wrapped(good, scaled), digits)
    assert {verdict for verdict, _ in every.values()} == {"pass"}, every
    assert list(every) == ["clean accuracy", "logits", "determinism", "gradients", "modes"]
    every = found(good, digits, mean=(0.3,), std=(0.1,))
    assert {verdict for verdict, _ in every.values()} == {"pass"}, every


@pytest.mark.parametrize(
    ("before", "after", "settings", "question", "verdict", "said"),
    [
        (
            scaled,
            lambda z: z.roll(1, 1),
            {},
            "clean accuracy",
            "red",
            r"in another order: put right, 9\d.* \(its answer 0 means '9'",
        ),
        (lambda x: scaled(x / 255), lambda z: z, {}, "clean accuracy", "red", "On images of 0 to 255 9.*divide by 255"),
        (
            lambda x: scaled(0.5 + x / 2),
            lambda z: z,
            {},
            "clean accuracy",
            "red",
            "normalised to .-1, 1. 9.*--mean 0.5 --std 0.5",
        ),
        (
            scaled,
            lambda z: z,
            {"mean": (5.0,), "std": (0.1,)},
            "clean accuracy",
            "red",
            "On images in .0, 1. 9.*leave --mean and --std out",
        ),
        (scaled, lambda z: 0 * z, {}, "clean accuracy", "red", "no better than chance"),
        (scaled, lambda z: z.softmax(1), {}, "logits", "red", "probabilities"),
        (scaled, lambda z: z.log_softmax(1), {}, "logits", "pass", "log-probabilities"),
        (scaled, lambda z: z / 0, {}, "logits", "red", "500 of 500 answers are NaN or infinite"),
        (scaled, lambda z: 0 * z, {}, "logits", "red", "class 0 to every image"),
        (scaled, lambda z: z + torch.randn_like(z), {}, "determinism", "red", "give --stochastic"),
        (
            scaled,
            lambda z: z + torch.randn_like(z),
            {"stochastic": True},
            "determinism",
            "pass",
            "at random, as it was declared",
        ),
        (scaled, lambda z: z, {"stochastic": True}, "determinism", "amber", "two passes gave the same"),
        (lambda x: scaled(x - x.mean(0)), lambda z: z, {}, "determinism", "red", "in other company"),
        (lambda x: scaled(x.detach()), lambda z: z, {}, "gradients", "red", "No gradient reaches the images"),
        (
            lambda x: scaled(x.round()),
            lambda z: z,
            {},
            "gradients",
            "amber",
            "100.0 % of the images have a gradient of exactly 0",
        ),
    ],
)
def test_each_misuse_has_its_own_sentence(good, digits, before, after, settings, question, verdict, said):
    told, text = found(Wrapped(good, before, after), digits, **settings)[question]
    assert told == verdict, text
    assert re.search(said, text), text


def test_gradients_pass_checkpoints_of_torchs_old_way(good, digits):
    old, plain = (lambda x: checkpoint(scaled, x, use_reentrant=True)), scaled
    told, text = found(Wrapped(good, old), digits)["gradients"]
    assert told == "pass", text
    x, y = digits.test.images[:8].float() / 255, digits.test.labels[:8]
    both = [External(Wrapped(good, before), digits) for before in (old, plain)]
    attacked = [
        PGD(Threat("linf", 0.1), steps=3)(model, x, y, generator=torch.Generator().manual_seed(0)) for model in both
    ]
    assert torch.equal(*attacked)
    assert not torch.equal(attacked[0], x)
    images = x.clone().requires_grad_()
    both[0].encoder(images).sum().backward()
    assert images.grad is not None, "what others do with it stays as it was"


def test_layers_that_stay_in_train_mode_are_named(good, digits):
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    verdict, text = found(nn.Sequential(Wrapped(good, scaled), Stubborn(0.0)), digits)["modes"]
    assert (verdict, "such as encoder.1" in text) == ("red", True)
