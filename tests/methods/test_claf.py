"""CLAF and the contrastive family: losses against formulas, what is frozen when, stages, heads, bad input, small trainings."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import PGD, BatchPGD
from robustlib.errors import InputError
from robustlib.losses import nt_xent, supcon_loss
from robustlib.methods.claf import head_probe
from robustlib.methods.contrastive import project_views
from robustlib.models.branches import clean_statistics
from robustlib.training import loop
from robustlib.training.validation import probe_batch
from tests.accelerator import Held
from tests.restated import supcon
from tests.training_fixtures import changed, first_batch, same_state, staged, step_context, tiny, train


def made(digits, name, **settings):
    """A model of some training in train mode, and the stages of its training."""
    model, stages = staged(tiny(name, **settings), digits)
    model.project(torch.rand(64, 1, 8, 8))
    return model, stages


def two_views(batch):
    return [batch.view("simclr"), batch.view("simclr")]


def supcon_of(model, views, labels=None, temperature=0.5):
    return supcon(model.project(torch.cat(views)).reshape(len(views), 16, -1), labels, temperature)


def loss_of(part, batch):
    *_, (_, loss) = part.updates(batch, step_context())
    return loss


def at_once(name, model, views, x_adv):
    """The loss of RoCL with lambda 8, or of ACL, as one graph."""
    if name == "rocl":
        short, long = (project_views(model, some) for some in ((x_adv, views[1]), (*views, x_adv)))
        return 2 * supcon_loss(long, None, 0.5, one_sided=True) + supcon_loss(short, None, 0.5, one_sided=True) / 8
    with clean_statistics(model):
        clean = nt_xent(*model.project(torch.cat(views)).chunk(2))
    return (clean + nt_xent(*model.project(x_adv).chunk(2))) / 2


@pytest.mark.parametrize(("name", "settings", "share"), [("rocl", {"regulariser": 8.0}, 0.65), ("acl", {}, 0.55)])
def test_parts_of_a_loss_sum_to_its_gradient_and_are_held_one_after_another(digits, name, settings, share, monkeypatch):
    model, stages = made(digits, name, **settings)
    twin, found, attack = copy.deepcopy(model), [], BatchPGD.__call__
    monkeypatch.setattr(BatchPGD, "__call__", lambda *a, **k: found.append(attack(*a, **k)) or found[0])
    with Held() as ours:
        for _, loss in stages[0].passes[0].updates(first_batch(digits), step_context()):
            loss.total.backward()
    with Held() as whole:
        at_once(name, twin, two_views(first_batch(digits)), found[0]).backward()
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6) for a, b in pairs if b.grad is not None)
    assert 0 < ours.peak <= share * whole.peak


@pytest.mark.parametrize(("name", "temperature"), [("supcon", 0.1), ("simclr", 0.5)])
def test_supcon_and_simclr_contrast_two_views(digits, name, temperature):
    model, stages = made(digits, name)
    batch, twin = first_batch(digits), copy.deepcopy(model)
    loss, views = loss_of(stages[0].passes[0], batch), two_views(first_batch(digits))
    assert not torch.equal(*views)
    wanted = supcon_of(twin, views, batch.y if name == "supcon" else None, temperature)
    assert np.isclose(loss.total.item(), wanted, rtol=1e-4)


def test_rocl_is_its_formula(digits):
    model, stages = made(digits, "rocl", regulariser=8.0)
    twin = copy.deepcopy(model)
    loss, (x1, x2) = loss_of(stages[0].passes[0], first_batch(digits)), two_views(first_batch(digits))

    def pair(seen, x):
        u = F.normalize(torch.cat((seen.project(x), twin.project(x2))), dim=1)
        s = (u @ u.detach().t() / 0.5).fill_diagonal_(-torch.inf)  # one side of the similarity is constant
        return F.cross_entropy(s, torch.arange(32).roll(16))

    x_adv = BatchPGD(digits.threat, 2)(twin, x1, pair, generator=step_context().generator)
    assert pair(twin, x_adv) > pair(twin, x1)
    short, long = (supcon_of(twin, views) for views in ((x_adv, x2), (x1, x2, x_adv)))
    assert np.isclose(loss.total.item(), 2 * long + short / 8, rtol=1e-4)
    assert np.isclose(loss.parts["pair"].item(), short, rtol=1e-4)


def test_acl_is_the_mean_of_two_streams_with_their_own_statistics(digits):
    model, stages = made(digits, "acl")
    twin = copy.deepcopy(model)
    loss, views = loss_of(stages[0].passes[0], first_batch(digits)), torch.cat(two_views(first_batch(digits)))
    with clean_statistics(twin):
        clean = supcon_of(twin, views.chunk(2))

    def stream(seen, x):
        u = F.normalize(seen.project(x), dim=1)
        return F.cross_entropy((u @ u.t() / 0.5).fill_diagonal_(-torch.inf), torch.arange(32).roll(16))

    x_adv = BatchPGD(digits.threat, 2)(twin, views, stream, generator=step_context().generator)
    assert (x_adv - views).flatten(1).abs().amax(1).min() > 0, "both views are perturbed"
    attacked = supcon_of(twin, x_adv.chunk(2))
    assert np.isclose(loss.total.item(), (clean + attacked) / 2, rtol=1e-3)
    assert attacked > clean
    # The clean pass moved one set of statistics, the attacked one the other, attacks neither.
    assert same_state(twin, model, atol=1e-4)


@pytest.mark.parametrize("augment", ["none", "weak"])
@pytest.mark.parametrize("adv_views", [0, 1, 2])
def test_claf_adds_adversarial_views_of_the_head(digits, augment, adv_views):
    """Each attack starts from a view of its own."""
    model, stages = made(digits, "claf", adv_views=adv_views, augment=augment)
    contrast, twin, now = stages[1].passes[-1], copy.deepcopy(model), step_context()
    assert contrast.augment == augment
    batch, other = (first_batch(digits, augment=augment) for _ in range(2))
    loss, views, attack = loss_of(contrast, batch), two_views(other), PGD(digits.threat, steps=2)
    for _ in range(adv_views):
        views.append(attack(twin, other.view(augment), batch.y, generator=now.generator))
    assert np.isclose(loss.total.item(), supcon_of(twin, views, batch.y, 0.07), rtol=1e-3)
    plain = loss_of(stages[0].passes[0], first_batch(digits))
    assert (plain.total.item() == pytest.approx(loss.total.item(), rel=1e-3)) == (adv_views == 0)


CONTRAST, HEAD, ALL = ({"encoder", "projector"}, {"encoder"}), ({"head"}, set()), ({"encoder", "head"}, {"encoder"})
FAMILY = ("supcon", "simclr", "rocl", "acl", "claf")


@pytest.mark.parametrize(
    ("name", "changes", "stage", "part", "moves"),
    [
        *(("claf", {}, *rest) for rest in ((0, 0, CONTRAST), (1, 0, HEAD), (1, 1, CONTRAST))),
        ("claf", {"refresh_batchnorm": "train"}, 1, 0, ({"head"}, {"encoder"})),
        ("claf", {"refresh": "never", "aug_epochs": 0}, 0, 0, HEAD),
        *((name, {"final": final}, -1, 0, HEAD) for name in FAMILY for final in ("slf", "alf")),
        *((name, {"final": "aff"}, -1, 0, ALL) for name in FAMILY),
    ],
)
def test_a_pass_moves_no_other_weights_and_statistics_than_its_own(digits, name, changes, stage, part, moves):
    model, stages = made(digits, name, **changes)
    assert changed(model, stages[stage], stages[stage].passes[part], first_batch(digits)) == moves
    if final := changes.get("final"):
        assert (stages[-1].name, stages[-1].adversarial) == (final, final != "slf")


@pytest.mark.parametrize(
    ("name", "changes", "stage", "steps"),
    [
        *(("claf", {"refresh": refresh}, 1, steps) for refresh, steps in (("full", 2), ("clean", 0), ("reinit", 2))),
        ("supcon", {"final": "alf", "final_steps": 3}, -1, 3),
    ],
)
def test_heads_are_fitted_on_frozen_features_of_clean_or_attacked_images(digits, name, changes, stage, steps):
    model, stages = made(digits, name, **changes)
    batch, twin = first_batch(digits), copy.deepcopy(model).eval()
    loss, attack = loss_of(stages[stage].passes[0], batch), PGD(digits.threat, steps=steps or 1)
    x = attack(twin, batch.x, batch.y, generator=step_context().generator) if steps else batch.x
    assert torch.isclose(loss.total, F.cross_entropy(twin(x), batch.y), rtol=1e-4)
    assert loss.parts["accuracy"] == (twin(x).argmax(1) == batch.y).float().mean()


def test_the_stages_of_claf(digits):
    settings = {"schedule": "cosine", "epochs": 6, "aug_epochs": 2, "refresh_passes": 3}
    augmented, adversarial, _ = stages = made(digits, "claf", **settings)[1]
    facts = [(s.name, s.epochs, s.adversarial, s.monitored) for s in stages]
    assert facts[:2] == [("augmented", 2, False, True), ("adversarial", 4, True, False)]
    assert facts[2][::2] == ("slf", False)
    refresh, contrast = adversarial.passes
    assert (refresh.repeats, refresh.reset_optimizers, refresh.begin) == (3, ("head",), None)
    assert (contrast.repeats, contrast.reset_optimizers, contrast.augment) == (1, (), "none")
    halves = ((augmented, (0, 1, 2)), (adversarial, (0, 1, 4)))
    rates = [stage.optimisers["encoder"].schedule(epoch) for stage, epochs in halves for epoch in epochs]
    assert np.allclose(rates, [0.001 + 0.999 * (1 + np.cos(np.pi * e / 6)) / 2 for e in (0, 1, 2, 2, 3, 6)])
    assert adversarial.optimisers["head"].kind == "adam"


def test_a_head_that_is_never_refreshed_comes_first(digits):
    settings = {"refresh": "never", "aug_epochs": 0, "head_epochs": 7}
    _, stages = made(digits, "claf", **settings)
    assert [(stage.name, stage.epochs) for stage in stages] == [("first-head", 7), ("adversarial", 2), ("slf", 7)]
    assert tiny("claf", **settings).all_epochs == 16
    (part,) = stages[0].passes
    assert (part.repeats, part.reset_optimizers) == (1, ())
    assert (len(stages[1].passes), set(stages[1].optimisers)) == (1, {"encoder"})


@pytest.mark.parametrize(("changes", "new"), [({"refresh": "reinit"}, True), ({}, True), ({"new_head": False}, False)])
def test_heads_begin_anew_where_told(digits, changes, new):
    model, stages = made(digits, "claf", **changes)
    before, begun = model.head.weight.clone(), stages[1].passes[0] if "refresh" in changes else stages[-1]
    if begun.begin:
        begun.begin()
    assert torch.equal(model.head.weight, before) != new


def test_aff_is_trades(digits):
    model, stages = made(digits, "supcon", final="aff", beta=2.0, final_steps=3)
    batch, twin = first_batch(digits), copy.deepcopy(model)
    loss = loss_of(stages[-1].passes[0], batch)
    attack = PGD(digits.threat, steps=3, objective="kl", start="gaussian")
    x_adv = attack(twin, batch.x, batch.y, generator=step_context().generator)
    p, q = twin(batch.x).log_softmax(1), twin(x_adv).log_softmax(1)
    expected = F.nll_loss(p, batch.y) + 2 * (p.exp() * (p - q)).sum(1).mean()
    assert torch.isclose(loss.total, expected, rtol=1e-3)
    loss.total.backward()
    twin(batch.x)  # TRADES' release forwards x, x' and x again
    assert same_state(twin, model, atol=1e-5)
    rates = [stages[-1].optimisers["model"].schedule(e) for e in (0.5, 0.7, 0.9)]
    assert np.allclose(rates, [1, 0.1, 0.01])


def test_the_dissociation_is_measured_at_both_ends_of_every_epoch(run_of):
    rows = run_of("claf").metrics().query("stage == 'adversarial' and epoch > 0")
    shares = [f"probe/head_{end}/{images}" for end in ("start", "end") for images in ("clean", "attacked")]
    assert rows[[*shares, "refresh/head/accuracy"]].apply(lambda share: share.between(0, 1)).all(axis=None)


def test_the_head_probe_is_the_heads_accuracy(digits):
    model, _ = made(digits, "claf")
    batch, attack = probe_batch(digits.val), PGD(digits.threat, steps=2)
    found = head_probe("head", attack)(model, batch)
    assert model.training
    x_adv = attack(model.eval(), batch.x, batch.y, generator=torch.Generator().manual_seed(0))
    accuracies = [(model(x).argmax(1) == batch.y).float().mean().item() for x in (batch.x, x_adv)]
    assert found == pytest.approx(dict(zip(("head/clean", "head/attacked"), accuracies, strict=True)))


def test_nothing_is_warned_of_a_head_that_is_thrown_away(few, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "overfitting", lambda *_: ["robust overfitting: it seems"])
    changes = {"refresh": "never", "aug_epochs": 0, "final": "alf", "epochs": 1}
    rows = train(tiny("claf", **changes), few, tmp_path).metrics()
    said = rows[rows.epoch > 0].set_index("stage")["warnings"].map(bool)
    assert said.to_dict() == {"first-head": False, "adversarial": False, "alf": True}  # the head that is deployed


@pytest.mark.parametrize("final", ["alf", "aff"])
def test_another_head_takes_over_the_encoder(run_of, few, tmp_path, final):
    source = run_of("claf")
    method = tiny("claf", final=final, pretrained=str(source.path))
    assert method.all_epochs == 1
    run = train(method, few, tmp_path, seed=1)
    assert list(dict.fromkeys(run.metrics().stage)) == [final]
    first, other = (r.model("last").encoder.state_dict() for r in (source, run))
    assert all(torch.equal(value, other[key]) for key, value in first.items()) == (final == "alf")


NEVER = {"refresh": "never", "head_epochs": 2, "epochs": 1, "aug_epochs": 0}  # its first head is part of pre-training


@pytest.mark.parametrize(
    ("name", "of", "settings", "changes", "says"),
    [
        ("claf", "claf", NEVER, {"head_epochs": 1}, "was pre-trained with head_epochs=2, not 1"),
        ("claf", "claf", NEVER, {"head_epochs": 1, "refresh": "full"}, "pre-trained with refresh='never', not 'full'"),
        ("claf", "claf", NEVER, {"refresh_lr": 0.5}, r"was pre-trained with refresh_lr=0\.01, not 0\.5"),
        ("claf", "claf", NEVER, {"temperature": 0.3}, "was pre-trained with temperature=0.07, not 0.3"),
        ("claf", "claf", NEVER, {"head_lr": 0.5, "tuning_epochs": 3}, ""),  # what the last head alone sees may differ
        ("supcon", "simclr", {}, {}, "a finished run of supcon"),
        ("supcon", "supcon", {"final": "aff"}, {}, "fine-tuned as a whole"),
    ],
)
def test_runs_of_another_pre_training_are_refused(digits, run_of, name, of, settings, changes, says):
    source = run_of(of, **settings)
    _, (stage,) = staged(tiny(name, **{**settings, "final": "alf", "pretrained": str(source.path), **changes}), digits)
    with pytest.raises(InputError, match=says) if says else nullcontext():
        stage.begin()
