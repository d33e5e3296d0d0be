"""What purifier_speed.py times is what it says."""

import sys

import pytest
import torch

from tests import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # its scripts import each other by name
CPU = torch.device("cpu")


def test_a_step_moves_the_purifier_and_leaves_the_classifier_alone():
    from purifier_speed import tuning

    model, work = tuning(16, 2, CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    work()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"purifier.{name}" for name, _ in model.purifier.named_parameters()}


@pytest.mark.parametrize(("draws", "times", "whole"), [(1, 4, False), (4, 1, False), (4, 1, True)])
def test_gradients_look_at_as_many_images(draws, times, whole, monkeypatch):
    import purifier_speed

    seen, build = [], purifier_speed.build_model

    def built(*args, **options):
        model = build(*args, **options)
        model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        return model

    monkeypatch.setattr(purifier_speed, "build_model", built)
    work = purifier_speed.gradients("digits", 3, CPU, draws, times, whole)
    work()
    assert seen == [1] + [3 * draws] * times  # the first is the attack's look at what kind of outputs there are
