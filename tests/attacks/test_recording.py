"""An attack that is recorded as a CUDA graph answers as one that is not, and starts in a few launches."""

import copy

import pytest
import torch

from robustlib.attacks import PGD, Threat
from tests.accelerator import Launches, PretendGraph, pretend_cuda

LINF = Threat("linf", 0.1)


@pytest.fixture
def graphs(monkeypatch) -> list[PretendGraph]:
    return pretend_cuda(monkeypatch)


@pytest.fixture
def pair(conv_net):
    """A model that trains and is compiled, and a copy of it that is not compiled."""
    twin = copy.deepcopy(conv_net).train()
    conv_net.compile()
    return conv_net.train(), twin


def examples(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("settings", [{}, {"objective": "kl", "start": "gaussian"}, {"restarts": 2, "eot": 2}])
def test_a_recorded_attack_follows_images_labels_and_weights(graphs, pair, precision, settings):
    attack = PGD(LINF, 3, precision=precision, **settings)
    for seed in range(3):
        answers = [attack(model, *examples(seed), generator=seeded()) for model in pair]
        assert torch.equal(*answers)
        with torch.no_grad():
            for model in pair:
                model[0].weight.mul_(-1.5)
                model[1].running_mean.add_(0.3)
    (graph,) = graphs
    assert graph.replays == 3


def test_each_attack_and_shape_is_recorded_once(graphs, pair):
    model = pair[0]
    for _ in range(2):
        for attack, size in ((PGD(LINF, 2), 6), (PGD(LINF, 3), 6), (PGD(LINF, 3), 4)):
            attack(model, *examples(0, size))
    assert [graph.replays for graph in graphs] == [2, 2, 2]


def test_steps_cost_launches_only_when_they_are_recorded(graphs, pair):
    counts = []
    for steps in (2, 20):
        PGD(LINF, steps)(pair[0], *examples(0))
        with Launches() as launches:
            PGD(LINF, steps)(pair[0], *examples(1))
        counts.append(launches.total())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("why", ["early stop", "targeted", "evaluated", "not compiled", "batchnorm"])
def test_no_other_attack_is_recorded(graphs, pair, why):
    settings = {"early stop": {"early_stop": True}, "targeted": {"targeted": True}, "batchnorm": {"batchnorm": "train"}}
    model, (x, y) = pair[why == "not compiled"], examples(0)
    model.train(why != "evaluated")
    PGD(LINF, 2, **settings.get(why, {}))(model, x, y, **({"target": (y + 1) % 5} if why == "targeted" else {}))
    assert not graphs


def test_what_waits_for_the_device_cannot_be_recorded(graphs, pair, monkeypatch):
    monkeypatch.setattr(PGD, "_step", lambda self, now, gradient, x: now * float(gradient.abs().max()))
    with pytest.raises(RuntimeError, match="waits for the device"):
        PGD(LINF, 2)(pair[0], *examples(0))
