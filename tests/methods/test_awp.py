"""Adversarial weight perturbation: each method's step is taken on its whole loss where that is larger, after the attacks."""

import copy

import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.methods.base import perturbed_weights
from tests.training_fixtures import built, first_batch, staged, step_context, tiny, updated

PASSES = {"trades": 3, "mart": 2, "ancra": 3}  # forward passes in train mode; 1 for the others
CASES = (
    *((name, {}) for name in ("pgd_at", "trades", "mart", "n_fgsm", "vaft", "afkd", "afd")),
    *(("ancra", {"base": base}) for base in ("trades", "pgd_at", "mart")),
    ("arrest", {"replay": 0.0}),
)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_is_taken_on_the_whole_loss_at_weights_perturbed_after_the_attacks(digits, monkeypatch, name, settings):
    batch, attacked = first_batch(digits, 24), []

    def attack(self, view, x, *_, **options):
        attacked.append(model.head.weight.detach().clone())
        return (x + 0.1).clamp(0, 1)

    def made(**changes):
        """A model whose maps are not the identity, and its stage with another model as teacher."""
        method = make_method(name, "digits", **settings, **changes)
        model = built(method, digits)
        for p in model.parameters():
            p.data.add_(0.01 * torch.randn_like(p))
        stage = method.stages(digits, model)[-1]
        if "teacher" in stage.modules:
            stage.modules["teacher"].load_state_dict(built(method, digits, seed=1).state_dict())
        return model, stage

    monkeypatch.setattr(PGD, "__call__", attack)
    model, stage = made()
    start, plain = copy.deepcopy(model.state_dict()), updated(stage, batch)["model"].total
    weights = {n: w for n, w in model.named_parameters() if "weight" in n and w.ndim > 1 and n != "confused.weight"}
    gradients = zip(weights.items(), torch.autograd.grad(plain, list(weights.values())), strict=True)
    shifted = {n: (w + 0.02 * w.norm() / g.norm() * g).detach() for (n, w), g in gradients}
    model, stage = made()
    model.load_state_dict({**start, **shifted})
    other, expected = model, updated(stage, batch)
    for loss in expected.values():
        loss.total.backward(retain_graph=True)

    attacked.clear()
    model, stage = made(awp_gamma=0.02)
    losses = {}
    for key, loss in stage.passes[0].updates(batch, step_context()):
        losses[key] = loss.total.item()
        assert all(torch.allclose(w, shifted.get(n, start[n]), atol=1e-6) for n, w in model.named_parameters())
        loss.total.backward(retain_graph=True)
    assert losses == pytest.approx({key: loss.total.item() for key, loss in expected.items()}, rel=1e-4)
    assert losses["model"] > plain.item()
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5) for p, q in pairs)
    assert all(torch.allclose(w, start[n], atol=1e-6) for n, w in model.named_parameters())
    assert all(torch.equal(head, start["head.weight"]) for head in attacked)
    buffers = zip(model.buffers(), other.buffers(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in buffers), "the search for the perturbation leaves no trace"
    assert model.encoder.stage1[1].num_batches_tracked == PASSES.get(name, 1)


@pytest.mark.parametrize("name", ["pgd_at", "afd"])
@pytest.mark.parametrize(("epoch", "warmup", "perturbs"), [(0, 0, True), (0, 1, True), (8, 10, False), (9, 10, True)])
def test_it_starts_with_its_epoch(digits, name, epoch, warmup, perturbs):
    model, (*_, stage) = staged(tiny(name, awp_gamma=0.01, awp_warmup=warmup), digits)
    before = model.head.weight.clone()
    updates = stage.passes[0].updates(first_batch(digits), step_context(epoch))
    next(updates)
    assert torch.equal(model.head.weight, before) != perturbs
    updates.close()


def test_perturbed_weights_have_the_stated_length_and_come_back(digits):
    model, batch = built(tiny("pgd_at"), digits).double(), first_batch(digits)
    model.encoder.stage1[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def interrupted():
        for name, w in model.named_parameters():
            length = (w - before[name]).norm() / before[name].norm().clamp_min(1e-9)
            assert length.item() == pytest.approx(0.02 if w.ndim > 1 and w.requires_grad else 0.0), name
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        raise KeyError("stop")

    inside = perturbed_weights(model, lambda: F.cross_entropy(model(batch.x.double()), batch.y), 0.02)
    with pytest.raises(KeyError, match="stop"), inside:
        interrupted()
    assert all(torch.allclose(w, before[name], rtol=0, atol=1e-12) for name, w in model.named_parameters())


@pytest.mark.parametrize("term", [lambda w: 0 * w.sum(), lambda w: 0], ids=["gradient of 0", "no gradient"])
def test_a_weight_without_gradient_stays(term):
    model = torch.nn.Linear(3, 2)
    before = model.weight.clone()
    with perturbed_weights(model, lambda: term(model.weight) + model.bias.sum(), 0.5):
        assert torch.equal(model.weight, before)


def test_autocast_uses_the_perturbed_weights(digits):
    """Autocast keeps bf16 copies of weights while a generator runs; those from before the perturbation must not be used."""
    model, batch = built(tiny("pgd_at"), digits), first_batch(digits)
    with torch.autocast("cpu", torch.bfloat16):
        with perturbed_weights(model, lambda: F.cross_entropy(model(batch.x).float(), batch.y), 0.3):
            inside, shifted = model(batch.x), copy.deepcopy(model)
        torch.clear_autocast_cache()
        assert torch.equal(shifted.train()(batch.x), inside)


def test_it_is_never_ignored_in_silence(digits):
    method = make_method("pgd_at", "digits", awp_gamma=0.01)
    with pytest.raises(InputError, match="pgd_at: this method does not perturb weights: leave awp_gamma at 0"):
        method.single_stage(built(method, digits), print, adversarial=True)
