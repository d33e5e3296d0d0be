"""CLAF's published protocol restated, and what is wrong with it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from robustlib.errors import InputError
from robustlib.evaluation import PublishedProtocol, accuracy, claf_published_protocol
from robustlib.models import build_model
from robustlib.workbook import tables


@pytest.fixture(scope="module")
def model(digits):
    """A classifier of some accuracy."""
    torch.manual_seed(0)
    model = build_model("mlp", digits)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        for batch in digits.train.batches(64):
            optimiser.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimiser.step()
    model.zero_grad()
    return model.train()


def test_it_is_pgd_on_normalised_images_clamped_there(digits, model):
    before = copy.deepcopy(model.state_dict())
    few = digits.test.sample(80)
    found = claf_published_protocol(model, few, eps=0.2, step_size=0.05)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def logits(z):
        return model.head(model.encoder(z))  # behind the normalisation

    z = (few.images / 255 - digits.mean[0]) / digits.std[0]
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    at = (z - 0.2 + 0.4 * noise).clamp(0, 1)
    for _ in range(10):
        at = at.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(logits(at), few.labels, reduction="sum"), at)
        step = torch.maximum(torch.minimum(at + 0.05 * g.sign(), z + 0.2), z - 0.2)
        at = step.clamp(0, 1).detach()
    right = [(logits(images).argmax(1) == few.labels).float().mean().item() for images in (at, z.clamp(0, 1))]
    assert (found.accuracy, found.clamped) == (pytest.approx(right[0], abs=1.5 / 80), pytest.approx(right[1]))
    moved = ((at - z).abs().flatten(1).amax(1) * digits.std[0]).mean().item()
    assert (found.moved, found.n) == (pytest.approx(moved, rel=1e-3), 80)


def test_it_says_what_is_wrong_with_it(digits, model):
    found = claf_published_protocol(model, digits.test.sample(80))
    assert "Invalid" in found.said
    assert found.budget == pytest.approx(8 / 255 * digits.std[0])
    assert found.budget < 8 / 255 < found.moved, "the attack has a smaller radius, the clamp a far larger one"
    assert claf_published_protocol(model, digits.test.sample(80)) == found


def test_its_table_labels_it_invalid():
    found = PublishedProtocol(0.6, 0.7, 0.01, 0.3, 80)
    published, clamp = found.rows
    assert (published["correct"], published["n"], published["valid"], clamp["accuracy"]) == (48, 80, False, 0.7)
    assert published["low"] < 0.6 < published["high"]
    counts = {"clean": 45, "pgd20": 20, "cw50": 19, "worst": 18}
    valid = [{"attack": name, **accuracy(k, 50)} for name, k in counts.items()]
    table = tables.published_protocol({"n": 50, "rows": valid}, found.rows)
    shown = ["clean", "PGD-20", "worst case", "published protocol", "its clamp alone, without an attack"]
    assert list(table["attack"]) == shown
    assert list(table["counts"]) == ["✓ valid"] * 3 + ["✕ invalid"] * 2
    assert list(table["images"]) == [50] * 3 + [80] * 2
    assert table["accuracy"][3].startswith("60.0 % (")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("eps", v) for v in (-1.0, float("nan"), float("inf"))),
        ("step_size", 0.0),
        ("step_size", float("inf")),
    ],
)
def test_bad_settings_are_sentences(digits, model, name, value):
    with pytest.raises(InputError, match=f"{name}={value!r}.*give a radius of at least 0"):
        claf_published_protocol(model, digits.test.sample(4), **{name: value})


def test_a_radius_of_zero_is_the_clamp_alone(digits, model):
    found = claf_published_protocol(model, digits.test.sample(40), eps=0.0)
    assert (found.accuracy, found.budget) == (found.clamped, 0.0)
