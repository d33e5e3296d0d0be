"""Where memory runs out, half of the images at a time give the same numbers."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import PGD
from robustlib.attacks.memory import halving
from robustlib.audit.attacks import AuditAttacks
from robustlib.audit.checks import _margin_gradient
from robustlib.representation import features
from robustlib.training.validation import validate


class Hungry(nn.Module):
    """A classifier that has the memory for `fits` images at a time; `sizes` are those that it answered."""

    def __init__(self, model: nn.Module, fits: int) -> None:
        super().__init__()
        self.model, self.fits, self.sizes = model, fits, set[int]()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.add(len(x))
        return self.model(x)


@pytest.fixture
def pair() -> tuple[Hungry, Hungry]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    return Hungry(net, 10_000), Hungry(net, 24)


def test_pieces_shrink_once_and_leave_nothing_out():
    seen = []

    def compute(rows):
        if rows.stop - rows.start > 3:
            raise MemoryError
        seen.append(rows)
        return list(range(10))[rows]

    assert [*halving(compute, 10, 8)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [*halving(compute, 0, 8)] == []
    with pytest.raises(MemoryError):
        next(halving(lambda rows: (_ for _ in ()).throw(MemoryError), 1, 8))
    with pytest.raises(RuntimeError, match="size mismatch"):
        next(halving(lambda rows: (_ for _ in ()).throw(RuntimeError("size mismatch")), 4, 4))


def test_validation_audit_and_features_halve_their_batches(pair, digits):
    val, threat = digits.val.sample(100), digits.threat
    numbers, withstood, _ = zip(*(validate(m, digits.train, val, threat, 0, "32-true") for m in pair), strict=True)
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)
    assert torch.equal(*withstood)
    short = {"queries": 5, "noise": 5, "targets": 1, "readouts": 4, "transfer": {}, "draws": 1, "eot": 1}
    plenty, scarce = (AuditAttacks(model, val, threat, 0, **short) for model in pair)
    torch.testing.assert_close(scarce.logits, plenty.logits)
    gradients = [_margin_gradient(model, plenty.x, plenty.y, 1) for model in pair]
    torch.testing.assert_close(*gradients)
    attack = PGD(threat, steps=2)
    kept = [features(m, val, layers="model.2", attack=attack, batch_size=64, keep_images=True) for m in pair]
    torch.testing.assert_close(kept[0]["model.2"], kept[1]["model.2"])
    assert torch.equal(kept[0].images, kept[1].images)
    assert torch.equal(kept[0].predictions, kept[1].predictions)
    assert max(pair[1].sizes) <= 24 < max(pair[0].sizes)
