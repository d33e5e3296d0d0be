"""AFD's disentangler, projection heads and dual BatchNorm: plain models at first, and their formulas afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.attacks.fold_batchnorm import batchnorm_after, fold_batchnorm
from robustlib.models import build_model
from robustlib.models.branches import DualBatchNorm, clean_statistics

DUAL = {"projection": (16, 8), "projection_batchnorm": True, "dual_batchnorm": True}


def images(n=12):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet18", "preact_resnet18"])
@pytest.mark.parametrize("options", [{"disentangled": True}, {"projection": (16, 8)}, DUAL])
def test_a_fresh_model_deploys_the_plain_one_of_its_seed(digits, arch, options):
    pair = []
    for given in ({}, options):
        torch.manual_seed(1)
        pair.append(build_model(arch, digits, **given).eval())
    plain, model = pair
    assert torch.equal(model(images(4)), plain(images(4)))
    if "projection" in options:
        assert model.project(images(4)).shape == (4, 8)
    else:
        out = model.branches(images(4))
        assert all(torch.equal(out.latent, features) for features in (out.intrinsic, out.confused))
        assert torch.equal(out.logits, out.confused_logits)


def test_branches_equal_their_formula_and_the_confused_one_teaches_the_encoder_nothing(digits):
    model, x = build_model("small_cnn", digits, disentangled=True), images(3)
    with torch.no_grad():
        for branch in (model.intrinsic, model.confused):
            branch.weight += 0.1 * torch.randn_like(branch.weight)
    model.train()(torch.rand(32, 1, 8, 8))
    out, (w, b) = model.eval().branches(x), (model.head.weight.double(), model.head.bias.double())
    pairs = ((model.intrinsic, out.intrinsic, out.logits), (model.confused, out.confused, out.confused_logits))
    for branch, features, logits in pairs:
        f = torch.einsum("ij,nj->ni", branch.weight.double(), out.latent.double())
        assert torch.allclose(features.double(), f, atol=1e-5)
        assert torch.allclose(logits.double(), torch.einsum("ki,ni->nk", w, f) + b, atol=1e-5)
    assert torch.equal(model(x), out.logits)
    assert torch.equal(model.features(x), out.intrinsic)
    assert torch.equal(model.latent(x), out.latent)
    F.cross_entropy(out.confused_logits, torch.arange(3)).backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == {"confused", "head"}  # the shared classifier is reached; D1 and the encoder are not


def test_the_projector_is_maps_with_relu_between(digits):
    model, x = build_model("small_cnn", digits, projection=[16, 8]).eval(), images()
    first, _, second = model.projector
    assert torch.allclose(model.project(x), second(first(model.features(x)).clamp(min=0)), atol=1e-6)
    assert None not in (first.bias, second.bias)
    projector = build_model("small_cnn", digits, projection=(16, 8), projection_batchnorm=True).projector
    assert [type(m) for m in projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [m.bias is None for m in projector if isinstance(m, nn.Linear)] == [False, True]


@pytest.mark.parametrize("arch", ["small_cnn", "resnet18"])
def test_dual_batchnorm_keeps_two_sets_apart_and_deploys_the_attacked_one(digits, arch):
    dual = build_model(arch, digits, **DUAL).train()
    norms = [m for m in dual.modules() if isinstance(m, DualBatchNorm)]
    single = [m for m in dual.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(single) == 2 * len(norms) > 0, "every BatchNorm is half of a dual one"
    with clean_statistics(dual):
        dual.project(images())
    dual.project(1 - images())
    assert {int(norm.num_batches_tracked) for norm in single} == {1}
    dual.eval()
    with clean_statistics(dual):
        clean = dual(images())
    assert not torch.allclose(clean, dual(images()), atol=1e-4)
    with pytest.raises(KeyError), clean_statistics(dual):
        raise KeyError
    assert not any(norm.use_clean for norm in norms), "whatever happened"
    plain = copy.deepcopy(dual)
    for parent in plain.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, DualBatchNorm):
                setattr(parent, name, child.attacked)
    assert torch.equal(plain(images()), dual(images()))


@pytest.mark.parametrize("options", [{"projection": (16, 8)}, DUAL])
def test_the_folded_copy_projects_as_its_model_does(digits, options):
    model = build_model("small_cnn", digits, **options).train()
    model.project(2 * images())
    folded = fold_batchnorm(model.eval(), images(), "32-true")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) or options is DUAL
    assert len(batchnorm_after(model)) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert torch.allclose(folded.project(images()), model.project(images()), atol=1e-4)
