"""Draws of a randomised model in one batch: the same mean and scale as one by one, within memory, and only where that is sound."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from robustlib.attacks import APGD, PGD, StAdv, Threat
from robustlib.attacks.base import AttackBatch, attack_context

LINF = Threat("linf", 0.1)


class Recorded(nn.Module):
    """logits = W (x * noise) * confidence with a noise and a confidence of each image's own; it keeps what it has drawn."""

    stochastic = True
    draws_by_example = True

    def __init__(self, fits: int = 10**9, error: str = "out of memory"):
        super().__init__()
        self.map, self.fits, self.error = nn.Linear(12, 4), fits, error
        self.sizes: list[int] = []
        self.drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.fits:
            raise RuntimeError(self.error)
        noise, confidence = torch.rand_like(x), 10 ** (6 * torch.rand(len(x), 1) - 3)
        self.drawn.append((x.detach(), noise, confidence))
        return self.map((x * noise).flatten(1)) * confidence


def images(n: int = 5):
    return torch.rand(n, 3, 2, 2), torch.randint(0, 4, (n,))


def look(model, x, y, samples, batchnorm="eval", objective="ce"):
    """Gradient and logits of `samples` draws; what was drawn before it is forgotten."""
    with attack_context(model, x, (y,), batchnorm=batchnorm) as oracle:
        model.sizes, model.drawn = [], []
        return oracle.gradient(x, AttackBatch(x, y).objective(objective), samples)


def restated(model, x, y):
    """Of the draws that the model kept: for each image the sum over its draws of (d ce / d z) dz / dx, divided by the largest
    derivative by a logit and by the number of draws; and the mean logits."""
    gradients, means = [], []
    for image, label in zip(x, y.tolist(), strict=True):
        slopes, logits, steepest = [], [], 0.0
        for seen, noise, confidence in model.drawn:
            for place in (seen == image).flatten(1).all(1).nonzero()[:, 0].tolist():
                z = (model.map((image * noise[place]).flatten()) * confidence[place]).detach().double()
                upstream = z.softmax(0) - torch.eye(4)[label]
                steepest = max(steepest, float(upstream.abs().max()))
                jacobian = model.map.weight.double() * noise[place].flatten() * confidence[place]
                slopes.append((upstream @ jacobian).detach())
                logits.append(z)
        gradients.append((sum(slopes) / len(slopes) / steepest).view_as(image))
        means.append(sum(logits) / len(logits))
    return torch.stack(gradients).float(), torch.stack(means).float()


@pytest.mark.parametrize(("fits", "sizes"), [(10**9, [40]), (20, [40, 20, 20]), (12, [40, 20, 10, 10, 10, 10])])
def test_draws_in_one_batch_or_in_what_memory_holds(fits, sizes):
    model, (x, y) = Recorded(fits), images()
    if fits < 40:
        with pytest.warns(UserWarning, match="8 draws of 5 images") as said:
            gradient, logits = look(model, x, y, 8)
        assert len(said) == 1
    else:
        gradient, logits = look(model, x, y, 8)
    assert model.sizes == sizes
    wanted, mean = restated(model, x, y)
    assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert torch.allclose(logits, mean, rtol=1e-4, atol=1e-4)


def test_what_fits_is_remembered():
    model, (x, y) = Recorded(20), images()
    with attack_context(model, x, (y,)) as oracle:
        with pytest.warns(UserWarning, match="Out of memory"):
            oracle.gradient(x, AttackBatch(x, y).objective("ce"), 8)
        model.sizes = []
        oracle.gradient(x, AttackBatch(x, y).objective("ce"), 8)
        assert oracle.target_logits(x, 8).shape == (8, 5, 4)
    assert model.sizes == [20] * 4


def test_a_piece_of_the_cache_holds_draws_too(monkeypatch):
    monkeypatch.setattr("robustlib.attacks.base.PIECE", 12 * 20)
    model, (x, y) = Recorded(), images(25)
    gradient, _ = look(model, x, y, 5)
    assert model.sizes == [20] * 5 + [15, 10]  # one draw of 20 images at a time, then 3 and 2 of the last 5
    assert torch.allclose(gradient, restated(model, x, y)[0], rtol=1e-4, atol=1e-6)


def test_every_draw_of_every_image_is_its_own():
    model, (x, y) = Recorded(), images()
    with attack_context(model, x, (y,)) as oracle:
        verdicts = oracle.target_logits(x, 6)
        assert verdicts.shape == (6, 5, 4)
        assert len(verdicts.flatten(0, 1).unique(dim=0)) == 30
        torch.manual_seed(3)
        every = oracle.target_logits(x, 6)
        torch.manual_seed(3)
        assert torch.allclose(oracle.logits(x, 6), every.mean(0))


def test_a_model_that_does_not_draw_by_example_is_asked_draw_by_draw():
    class ByBatch(Recorded):
        draws_by_example = False

    model, (x, y) = ByBatch(), images()
    look(model, x, y, 8)
    assert model.sizes == [5] * 8


def test_batchnorm_in_train_mode_never_sees_an_image_twice():
    model, (x, y) = Recorded(), images()
    look(model, x, y, 8, batchnorm="train")
    assert model.sizes == [5] * 8


@pytest.mark.parametrize(
    ("fits", "error", "says"), [(4, "out of memory", "out of memory"), (20, "size mismatch", "size")]
)
def test_errors_that_smaller_batches_do_not_help(fits, error, says):
    model, (x, y) = Recorded(fits, error), images()
    expected = pytest.warns(UserWarning, match="Out of memory") if fits == 4 else nullcontext()
    with pytest.raises(RuntimeError, match=says), expected:
        look(model, x, y, 8)


@pytest.mark.parametrize("attack", [PGD(LINF, 2, eot=4), APGD(LINF, 2, eot=4), StAdv(0.5, 2, eot=4)], ids=str)
def test_attacks_take_their_draws_in_one_batch(attack):
    model, (x, y) = Recorded(), images()
    attack(model, x, y)
    assert 20 in model.sizes
    assert max(model.sizes) <= 40  # 8 votes
