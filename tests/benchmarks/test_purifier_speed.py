import purifier_speed
import pytest
import torch

CPU = torch.device("cpu")


@pytest.mark.parametrize(("draws", "times", "whole"), [(1, 4, False), (4, 1, False), (4, 1, True)])
def test_gradients_look_at_as_many_images(draws, times, whole, monkeypatch):
    sizes, build = [], purifier_speed.build_model

    def built(*args, **options):
        model = build(*args, **options)
        model.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        return model

    monkeypatch.setattr(purifier_speed, "build_model", built)
    purifier_speed.gradients("digits", 3, CPU, draws, times, whole)()
    assert sizes == [1] + [3 * draws] * times  # the first is the attack's look at what kind of outputs there are
