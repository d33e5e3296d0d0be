"""The disentangler of AFD: identity at its start, and branches as the paper draws them."""

import pytest
import torch
import torch.nn.functional as F

from robustlib.errors import InputError
from robustlib.models import Classifier, Disentangled, build_model
from robustlib.runs import load_weights, save_weights


def shaken(arch, spec, seed=0) -> Disentangled:
    """A model whose two maps, and BatchNorm statistics, are not the initial ones."""
    torch.manual_seed(seed)
    model = build_model(arch, spec, disentangled=True)
    assert isinstance(model, Disentangled)
    with torch.no_grad():
        for branch in (model.intrinsic, model.confused):
            branch.weight += 0.1 * torch.randn_like(branch.weight)
    model.train()(torch.rand(32, *spec.image_shape))
    return model.eval()


def images(spec, n=6):
    return torch.rand(n, *spec.image_shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet18", "preact_resnet18"])
def test_a_fresh_model_is_the_plain_one_of_its_seed(digits, arch):
    pair = []
    for on in (False, True):
        torch.manual_seed(1)
        pair.append(build_model(arch, digits, disentangled=on).eval())
    (plain, model), x = pair, images(digits)
    assert torch.equal(model(x), plain(x))
    out = model.branches(x)
    assert all(torch.equal(out.latent, features) for features in (out.intrinsic, out.confused))
    assert torch.equal(out.logits, out.confused_logits)
    added = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert added == {"intrinsic.weight", "confused.weight"}  # and no bias
    assert (type(plain), type(model)) == (Classifier, Disentangled)


def test_branches_equal_their_formula(digits):
    model, x = shaken("mlp", digits), images(digits, 3)
    out, (w, b) = model.branches(x), (model.head.weight.double(), model.head.bias.double())
    pairs = ((model.intrinsic, out.intrinsic, out.logits), (model.confused, out.confused, out.confused_logits))
    for branch, features, logits in pairs:
        f = torch.einsum("ij,nj->ni", branch.weight.double(), out.latent.double())
        assert torch.allclose(features.double(), f, atol=1e-5)
        assert torch.allclose(logits.double(), torch.einsum("ki,ni->nk", w, f) + b, atol=1e-5)
    assert torch.equal(model(x), out.logits)
    assert torch.equal(model.features(x), out.intrinsic)
    assert torch.equal(model.latent(x), out.latent)


def test_the_confused_branch_teaches_the_encoder_nothing(digits):
    model = shaken("small_cnn", digits)
    F.cross_entropy(model.branches(images(digits)).confused_logits, torch.arange(6)).backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"confused", "head"}  # the shared classifier is reached; D1 and the encoder are not


def test_plain_weights_are_refused(digits, tmp_path):
    save_weights(build_model("small_cnn", digits), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"another model: (intrinsic|confused)\.weight is missing there"):
        load_weights(build_model("small_cnn", digits, disentangled=True), tmp_path / "plain.safetensors")
