"""Models with a projection head and dual BatchNorm."""

import copy

import pytest
import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.attacks.fold_batchnorm import batchnorm_after, fold_batchnorm
from robustlib.errors import InputError
from robustlib.models import Projected, build_model
from robustlib.models.branches import DualBatchNorm, clean_statistics
from robustlib.runs import load_weights, save_weights

DUAL = {"projection": (16, 8), "projection_batchnorm": True, "dual_batchnorm": True}


def images(n=12, shape=(1, 8, 8)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet18", "preact_resnet18"])
@pytest.mark.parametrize("options", [{"projection": (16, 8)}, DUAL])
def test_a_fresh_model_deploys_the_plain_one_of_its_seed(digits, arch, options):
    torch.manual_seed(1)
    plain = build_model(arch, digits).eval()
    torch.manual_seed(1)
    model = build_model(arch, digits, **options).eval()
    assert isinstance(model, Projected)
    assert torch.equal(model(images(4)), plain(images(4)))
    assert model.project(images(4)).shape == (4, 8)


def test_the_projector_is_maps_with_relu_between(digits):
    model, x = build_model("small_cnn", digits, projection=[16, 8]).eval(), images()
    first, _, second = model.projector
    expected = second(first(model.features(x)).clamp(min=0))
    assert torch.allclose(model.project(x), expected, atol=1e-6)
    kinds = [type(m) for m in build_model("small_cnn", digits, projection=(16, 8), projection_batchnorm=True).projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]


@pytest.mark.parametrize("arch", ["small_cnn", "resnet18"])
def test_dual_batchnorm_keeps_two_sets_apart(digits, arch, tmp_path):
    model, x = build_model(arch, digits, **DUAL).train(), images()
    norms = [m for m in model.modules() if isinstance(m, DualBatchNorm)]
    single = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(single) == 2 * len(norms) > 0, "every BatchNorm is half of a dual one"

    def tracked():
        return {(int(norm.clean.num_batches_tracked), int(norm.attacked.num_batches_tracked)) for norm in norms}

    with clean_statistics(model):
        model.project(x)
    assert tracked() == {(1, 0)}
    model.project(1 - x)
    assert tracked() == {(1, 1)}
    model.eval()
    with clean_statistics(model):
        clean = model(x)
    assert not torch.allclose(clean, model(x), atol=1e-4)
    with pytest.raises(KeyError), clean_statistics(model):
        raise KeyError
    assert not any(norm.use_clean for norm in norms), "what is deployed is the attacked set, whatever happened"
    save_weights(model, tmp_path / "dual.safetensors")
    again = build_model(arch, digits, **DUAL).eval()
    load_weights(again, tmp_path / "dual.safetensors")
    assert torch.equal(again(x), model(x))


def test_attacks_see_what_a_dual_model_deploys(digits):
    model, x, y = build_model("small_cnn", digits, **DUAL).train(), images(), torch.arange(12) % 10
    with clean_statistics(model):
        model.project(x)
    model.project(1 - x)
    model.eval()
    plain = copy.deepcopy(model)
    for parent in plain.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, DualBatchNorm):
                setattr(parent, name, child.attacked)
    found = [PGD(digits.threat, steps=3)(m, x, y, generator=torch.Generator().manual_seed(0)) for m in (model, plain)]
    assert (found[0] - found[1]).abs().gt(1e-4).float().mean() < 0.02  # a sign may flip where a gradient is nearly 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"projection": (16, 0)}, "give positive widths"),
        ({"projection": (16,), "disentangled": True}, "choose one"),
        ({"dual_batchnorm": True}, "give projection"),
    ],
)
def test_bad_options_are_sentences(digits, options, says):
    with pytest.raises(InputError, match=says):
        build_model("small_cnn", digits, **options)


@pytest.mark.parametrize("dual", [False, True])
def test_the_folded_copy_projects_as_its_model_does(digits, dual):
    model = build_model("small_cnn", digits, **(DUAL if dual else {"projection": (16, 8)})).train()
    model.project(2 * images())
    model.eval()
    folded = fold_batchnorm(model, images(), "32-true")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) or dual
    assert len(batchnorm_after(model)) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert torch.allclose(folded.project(images()), model.project(images()), atol=1e-4)
