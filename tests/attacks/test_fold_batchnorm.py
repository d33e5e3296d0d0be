"""The folded copy computes what the model does, follows its weights, and is refused where folding is not exact."""

import pytest
import torch
from torch import nn

from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.models import build_model
from tests.accelerator import Launches
from tests.conftest import ConvNet


def test_the_folded_copy_equals_the_model_and_follows_its_weights(conv_net):
    x = torch.rand(8, 3, 8, 8)
    with torch.no_grad():
        folded = fold_batchnorm(conv_net, x, "32-true")
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        assert torch.allclose(folded(x), conv_net(x), atol=1e-5)
        conv_net[0].weight.mul_(1.3)
        conv_net[1].running_var.mul_(2)
        assert fold_batchnorm(conv_net, x, "32-true") is folded
        assert torch.allclose(folded(x), conv_net(x), atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_are_folded_in_place_and_in_few_launches(digits, precision):
    model, x = build_model("resnet18", digits).eval(), digits.test.images[:4].float() / 255
    folded = fold_batchnorm(model, x, precision)
    addresses = [tensor.data_ptr() for tensor in folded.state_dict().values()]
    assert not {tensor.data_ptr() for tensor in model.state_dict().values()} & set(addresses), "nothing is shared"
    with Launches() as launches, torch.no_grad():
        fold_batchnorm(model, x, precision)
    assert launches.total() <= 30
    assert [tensor.data_ptr() for tensor in folded.state_dict().values()] == addresses


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2)], ids=["not next", "first"])
@pytest.mark.parametrize("fresh", [False, True])  # a fresh BatchNorm nearly is the identity, and hides a wrong order
def test_no_copy_where_batchnorm_does_not_follow_the_convolution(order, fresh):
    class Lies(nn.Sequential):
        def forward(self, x):
            for place in (*order, 3, 4):
                x = self[place](x)
            return x

    model = Lies(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    for _ in range(0 if fresh else 3):
        model(torch.rand(32, 8, 8, 8) * 3)
    assert fold_batchnorm(model.eval(), torch.rand(4, 8, 8, 8), "32-true") is None


@pytest.mark.parametrize("change", ["setting", "tensor", "hook"])
def test_whatever_changes_the_function_is_noticed(change):
    class Switch(ConvNet):
        flipped = False
        gain = torch.ones(())

        def forward(self, x):
            return super().forward(x) * (-1 if self.flipped else 1) * self.gain

    model, x = Switch(), torch.rand(8, 3, 8, 8)
    model(x)
    model.eval()
    model.gain = torch.ones(())
    with torch.no_grad():
        assert torch.allclose(fold_batchnorm(model, x, "32-true")(x), model(x), atol=1e-5)
        if change == "setting":
            model.flipped = True
        elif change == "tensor":
            model.gain.mul_(3)
        else:
            model.register_forward_hook(lambda module, inputs, output: 2 * output)
        assert torch.allclose(fold_batchnorm(model, x, "32-true")(x), model(x), atol=1e-5)
