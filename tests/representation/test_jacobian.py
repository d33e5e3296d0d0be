import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.representation import Plane, feature_jacobian_norm, metric_over_plane, pullback_metric
from tests.conftest import ConvNet, Linear


def model_of(arch, dataset) -> nn.Module:
    torch.manual_seed(0)
    return build_model(arch, dataset).eval()


def by_differences(f, x: Tensor, h: float = 1e-5) -> np.ndarray:
    """df/dx (D, d) at one image (1, C, H, W) of an f in float64, by central differences."""
    steps = h * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return torch.stack([((f(x + s) - f(x - s)) / (2 * h)).flatten().detach() for s in steps], 1).numpy()


def test_feature_jacobian_norm_of_a_linear_map_is_its_frobenius_norm():
    model, x = Linear(12), torch.rand(200, 1, 4, 4)
    frobenius = float(model.map.weight.detach().norm())
    assert feature_jacobian_norm(model, x[:5], layer="logits", projections=0).tolist() == pytest.approx([frobenius] * 5)
    generator = torch.Generator().manual_seed(0)
    estimate = feature_jacobian_norm(model, x, layer="logits", projections=8, generator=generator)
    assert float(estimate.square().mean().sqrt()) == pytest.approx(frobenius, rel=0.05)
    assert float(estimate.std()) / frobenius < math.sqrt(1 / 16)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("classes", [3, 40])
def test_a_linear_map_has_one_metric_everywhere(classes):
    """Fewer outputs than pixels are differentiated backwards, more of them forwards."""
    model = Linear(classes)
    top, volume = pullback_metric(model, torch.randn(5, 1, 4, 4), layer="logits")
    sigma = np.linalg.svd(model.map.weight.detach().double().numpy(), compute_uv=False)
    assert top.tolist() == pytest.approx([sigma[0] ** 2] * 5, rel=1e-5)
    assert volume.tolist() == pytest.approx([np.log(sigma).sum()] * 5, rel=1e-5)
    if classes == 3:
        model.map.weight.data[2] = 0
        top, volume = pullback_metric(model, torch.rand(2, 1, 4, 4), layer="logits")
        assert bool((top > 0).all())
        assert volume.tolist() == [-math.inf] * 2, "flat along a direction"


@pytest.mark.parametrize("arch", ["mlp_8", "mlp_8_8_8", None])
def test_the_metric_of_a_network_is_that_of_its_differences(arch):
    """Two pixels and more features; many pixels and fewer outputs, through convolutions."""
    if arch:
        model, layer, x = model_of(arch, load_dataset("sinusoid")), "features", torch.rand(6, 1, 1, 2)
    else:
        model, layer, x = ConvNet().eval(), "logits", torch.rand(3, 3, 8, 8)
    model(x)
    top, volume = pullback_metric(model.train(), x, layer=layer)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    exact = copy.deepcopy(model).eval().double()
    for k in range(len(x)):
        jacobian = by_differences(exact.features if arch else exact, x[k : k + 1].double())
        sigma = np.linalg.svd(jacobian, compute_uv=False)
        assert top[k].item() == pytest.approx(sigma[0] ** 2, rel=1e-3)
        assert volume[k].item() == pytest.approx(np.log(sigma).sum(), rel=1e-3, abs=1e-3)


def test_pieces_change_nothing(digits, monkeypatch):
    model, x = model_of("mlp_512", digits), digits.test.images[:7].float() / 255
    whole = pullback_metric(model, x)
    monkeypatch.setattr("robustlib.representation.jacobian.ENTRIES", 1)
    pieces = pullback_metric(model, x)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(whole, pieces, strict=True))


def test_a_plane_keeps_its_three_images_and_their_distances():
    images = torch.rand(3, 1, 8, 8)
    plane = Plane.through(images)
    places = plane.of(images)
    assert torch.cat((places[0], places[1, 1:])).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert min(places[1, 0], places[2, 1]) > 0
    assert torch.allclose(plane.at(places), images, atol=1e-5)
    assert torch.allclose(torch.pdist(places), torch.pdist(images.flatten(1)), rtol=1e-5)
    beside = torch.randn(1, 8, 8)  # of an image off the plane, the nearest point: what is left is orthogonal to it
    foot = plane.at(plane.of(beside[None]))[0]
    assert abs(((beside - foot) * (images[1] - images[0])).sum().item()) < 1e-4
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    points = torch.rand(20, 1, 1, 2)
    assert torch.allclose(Plane.through(corners).of(points), points.view(20, 2)), "of two pixels: the data themselves"


def test_the_metric_over_a_plane_is_that_at_its_points(digits):
    models = {"A": model_of("mlp_512", digits), "B": model_of("small_cnn", digits)}
    images = digits.test.images[:3].float() / 255
    plane = Plane.through(images)
    table = metric_over_plane(models, plane, images, steps=4, margin=0.5)
    assert table["model"].value_counts().to_dict() == {"A": 16, "B": 16}
    extent = 2 * np.ptp(plane.of(images).numpy(), axis=0)
    assert np.ptp(table[["across", "up"]].to_numpy(), axis=0) == pytest.approx(extent, rel=1e-5)
    for name, model in models.items():
        rows = table[table["model"] == name]
        x = plane.at(torch.tensor(rows[["across", "up"]].to_numpy()))
        top, volume = pullback_metric(model, x)
        assert np.allclose(rows["top_eigenvalue"], top, rtol=1e-4)
        assert np.allclose(rows["log_volume"], volume, rtol=1e-4, atol=1e-3)
        with torch.no_grad():
            wanted = model(x).numpy()
        assert np.allclose(rows[[f"logit {k}" for k in range(10)]], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Plane.through(torch.rand(2, 1, 8, 8)), r"three images \(3, C, H, W\), not \(2, 1, 8, 8\)"),
        (lambda: Plane.through(torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)), "on one line"),
        (lambda: Plane.through(torch.tensor([0.0, 0.5, 0.9])[:, None, None, None].expand(3, 1, 8, 8)), "on one line"),
        (lambda: metric_over_plane({}, None, None), "0 models"),
        (lambda: metric_over_plane({"A": Linear()}, None, None, steps=1), "steps=1"),
        (lambda: metric_over_plane({"A": Linear()}, None, None, margin=-1.0), "margin=-1.0"),
        (lambda: pullback_metric(Linear(), torch.rand(2, 1, 4, 4), layer="maps"), "no layer 'maps'"),
        (lambda: feature_jacobian_norm(Linear(), torch.rand(2, 1, 4, 4), projections=-1), "projections=-1"),
    ],
)
def test_what_cannot_be_is_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
