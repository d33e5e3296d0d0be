import pytest
import torch

from robustlib.models import build_model
from robustlib.representation import embedding


@pytest.fixture
def clouds():
    """n -> features (n, 8) around 3 far centres, and their labels."""

    def make(n):
        generator, y = torch.Generator().manual_seed(1), torch.arange(n) % 3
        return torch.eye(8)[:3][y] * 2 + 0.1 * torch.randn(n, 8, generator=generator), y

    return make


@pytest.fixture
def on_circle():
    """Points of different lengths in given directions: only the directions may count."""

    def make(*degrees):
        angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
        return torch.stack((angles.cos(), angles.sin()), 1) * torch.arange(1, len(degrees) + 1)[:, None]

    return make


@pytest.fixture(scope="package")
def net(digits):
    torch.manual_seed(0)
    model = build_model("small_cnn", digits)
    model(digits.train.sample(64).images.float() / 255)
    return model.eval()


@pytest.fixture
def no_umap(monkeypatch):
    """UMAP takes ten seconds to compile; here only what is around it counts. Its calls."""
    calls = []

    def stand_in(u, start, parameters):
        calls.append(parameters)
        return start.copy()

    monkeypatch.setattr(embedding, "_umap", stand_in)
    return calls
