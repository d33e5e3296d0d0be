"""The disentangler of AFD: identity at its start, and branches as the paper draws them."""

import numpy as np
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
    torch.manual_seed(1)
    plain = build_model(arch, digits).eval()
    torch.manual_seed(1)
    model = build_model(arch, digits, disentangled=True).eval()
    x = images(digits)
    assert isinstance(model, Disentangled)
    assert torch.equal(model(x), plain(x))
    out = model.branches(x)
    assert torch.equal(out.latent, out.intrinsic)
    assert torch.equal(out.latent, out.confused)
    assert torch.equal(out.logits, out.confused_logits)
    assert {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "intrinsic.weight",  # and no bias
        "confused.weight",
    }
    assert type(plain) is Classifier


def test_branches_equal_their_formula_written_as_loops(digits):
    model, x = shaken("mlp", digits), images(digits, 3)
    out = model.branches(x)
    h, w, b = (t.detach().double().numpy() for t in (out.latent, model.head.weight, model.head.bias))
    pairs = ((model.intrinsic, out.intrinsic, out.logits), (model.confused, out.confused, out.confused_logits))
    for branch, features, logits in pairs:
        matrix = branch.weight.detach().double().numpy()
        f, z = np.zeros(h.shape), np.zeros((len(h), len(w)))
        for n in range(len(h)):
            for i in range(h.shape[1]):
                f[n, i] = sum(matrix[i, j] * h[n, j] for j in range(h.shape[1]))
            for k in range(len(w)):
                z[n, k] = b[k] + sum(w[k, i] * f[n, i] for i in range(h.shape[1]))
        assert np.allclose(features.detach().numpy(), f, atol=1e-5)
        assert np.allclose(logits.detach().numpy(), z, atol=1e-5)
    assert torch.equal(model(x), out.logits)
    assert torch.equal(model.features(x), out.intrinsic)
    assert torch.equal(model.latent(x), out.latent)


def test_the_confused_branch_teaches_the_encoder_nothing(digits):
    model, y = shaken("small_cnn", digits), torch.arange(6)
    F.cross_entropy(model.branches(images(digits)).confused_logits, y).backward()
    moved = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moved == {"confused", "head"}  # the shared classifier is reached; D1 and the encoder are not


def test_plain_weights_are_refused(digits, tmp_path):
    save_weights(build_model("small_cnn", digits), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"another model: (intrinsic|confused)\.weight is missing there"):
        load_weights(build_model("small_cnn", digits, disentangled=True), tmp_path / "plain.safetensors")
