"""AToP: its losses against their formulas, what its attack sees, what each stage may touch, its gate, and its rows."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.errors import InputError
from robustlib.methods import atop, make_method
from robustlib.methods.atop import l1_share
from robustlib.models import Randomness, RandomTransform
from robustlib.training.validation import probe_batch
from tests.training_fixtures import built, first_batch, same_state, staged, step_context, tiny, updated

ROWS = {
    "only the transform": {"purifier": "none", "fine_tune": False},
    "pre-trained": {"fine_tune": False},
    "AToP": {},
    "three masks": {"transform": "rt3", "attack_through": "pipeline"},
    "autoencoder without transform": {"purifier": "mae", "transform": "none", "recon_target": "clean"},
}


def made(digits, stage=-1, **settings):
    """Method, deployed model in train mode, and a stage of its training."""
    method = tiny("atop", **{"attack_steps": 1, **settings})
    model, stages = staged(method, digits)
    model.deploy()
    return method, model.train(), stages[stage]


@pytest.fixture
def batch(digits):
    return first_batch(digits, 12)


class Scores(nn.Module):
    """D(x, m): the scores s = sum_p w_p x_p + v m_p and 1 - 2 s of each image."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x, mask):
        score = x.flatten(1) @ self.w + self.v * mask.flatten(1).sum(1)
        return torch.stack([score, 1 - 2 * score], 1)


@pytest.mark.parametrize("passes", [1, 3])
def test_the_two_losses_equal_their_formulas(passes):
    d, target = Scores(), torch.rand(2, 1, 2, 2)
    _, fine = outputs = tuple(torch.rand(passes, 2, 1, 2, 2, requires_grad=True) for _ in range(2))
    masks = (torch.rand(passes, 2, 1, 2, 2) > 0.5).float()
    parts = {"ce": (0.2, torch.tensor(1.7))}
    steps = dict(tiny("atop", gan_weight=0.7).purifier_steps(d, target, outputs, Randomness(None, masks), parts))

    verdicts = [(d(target, m).flatten().tolist(), d(x, m).flatten().tolist()) for x, m in zip(fine, masks, strict=True)]
    real, made = map(np.array, zip(*verdicts, strict=True))
    hinge = np.maximum(0, 1 - real).mean() / 2 + np.maximum(0, 1 + made).mean() / 2
    l1, gan = sum((target - image).abs().mean().item() for image in outputs), -made.mean()
    assert list(steps) == ["discriminator", "model"]
    assert steps["discriminator"].total.item() == pytest.approx(hinge, rel=1e-5)
    half = (2 * l1 + 0.7 * gan + 0.2 * 1.7) / 2  # the release's L1 is of images in [-1, 1]
    assert steps["model"].total.item() == pytest.approx(half, rel=1e-5, abs=1e-6)
    said = {k: v.item() for k, v in steps["model"].parts.items()}
    assert said == pytest.approx({"l1": l1, "ce": 1.7, "gan": gan}, rel=1e-5, abs=1e-6)
    steps["discriminator"].total.backward()
    assert all(output.grad is None for output in outputs), "the discriminator's step is its own"


@pytest.mark.parametrize("kind", ["gan", "mae"])
@pytest.mark.parametrize("transform", ["rt1", "rt3"])
def test_each_term_reaches_every_weight_of_the_purifier(digits, batch, kind, transform):
    _, model, stage = made(digits, purifier=kind, transform=transform)
    parts = updated(stage, batch)["model"].parts
    assert set(parts) == ({"l1", "gan", "ce"} if kind == "gan" else {"l1", "ce"})
    names, weights = zip(*model.purifier.named_parameters(), strict=True)
    for name, value in parts.items():
        gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        assert not [key for key, g in zip(names, gradients, strict=True) if g is None or not g.any()], name


@pytest.mark.parametrize("target", ["adversarial", "clean"])
def test_tuning_equals_its_formula(digits, batch, target):
    weights = {"gan_weight": 0.0, "cls_weight": 0.4}
    _, model, stage = made(digits, recon_target=target, attack_through="classifier", **weights)
    loss, generator = updated(stage, batch, step_context(1))["model"], step_context().generator
    x = batch.x.clone().requires_grad_(True)
    ce = nn.functional.cross_entropy(model.classify(x), batch.y, reduction="sum")  # of the bare classifier
    x_adv = (x + digits.threat.eps * torch.autograd.grad(ce, x)[0].sign()).clamp(0, 1).detach()
    torch.randint(-(2**63), 2**63 - 1, (len(batch),), generator=generator)  # what the attack took
    randomness = model.transform.draw(x_adv, generator)
    noisy = (x_adv + randomness.noise).clamp(0, 1)
    seen = model.purifier.outputs(noisy * (1 - randomness.masks[0]) + 0.5 * randomness.masks[0], randomness.masks[0])
    ce = nn.functional.cross_entropy(model.head(model.encoder(model.normalise(seen[-1]))), batch.y)
    wanted, images = (batch.x, model.outputs(batch.x, randomness)) if target == "clean" else (x_adv, seen)
    l1 = sum((image.reshape(wanted.shape) - wanted).abs().mean() for image in images)
    found = [loss.parts["ce"].item(), loss.parts["l1"].item(), 2 * loss.total.item()]
    assert found == pytest.approx([ce.item(), l1.item(), (2 * l1 + 0.4 * ce).item()], rel=1e-4)


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.0), (1, 0.0), (2, 3.0)])
def test_lambda_waits_for_its_warm_up(digits, batch, epoch, weight):
    _, _, stage = made(digits, epochs=4, warm_up=2, cls_weight=3.0, gan_weight=0.0)
    loss = updated(stage, batch, step_context(epoch))["model"]
    assert 2 * (loss.total - loss.parts["l1"]).item() == pytest.approx(weight * loss.parts["ce"].item(), abs=1e-5)


@pytest.mark.parametrize(("through", "draws"), [("classifier", 1), ("pipeline", 1 + 3 + 1)])
def test_what_the_attack_sees_and_draws(digits, batch, monkeypatch, through, draws):
    """Through the pipeline the look at one image and every gradient are of draws of their own, from the update's generator."""
    settings = {"attack_through": through, "attack_steps": 3}
    (_, model, stage), now, seen, real = made(digits, **settings), step_context(1), [], RandomTransform.draw

    def draw(self, x, generator=None):
        seen.append((generator is now.generator, real(self, x, generator)))
        return seen[-1][1]

    before = copy.deepcopy(model)
    twin = made(digits, **settings)[2]  # spectral norms take a step in each pass
    plain, state = updated(twin, batch, step_context(1))["model"].total, torch.get_rng_state()
    monkeypatch.setattr(RandomTransform, "draw", draw)
    assert torch.equal(updated(stage, batch, now)["model"].total, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(mine for mine, _ in seen)
    assert len({float(randomness.noise.sum()) for _, randomness in seen}) == len(seen) == draws
    assert same_state(model, before)
    assert [model.training, model.purifier.training, model.encoder.training] == [True, True, False]
    assert all(p.requires_grad for p in model.purifier.parameters())


def test_one_step_is_fgsm_and_more_are_pgd(digits):
    for steps, size, length, start in ((1, None, 0.2, "zero"), (3, None, 0.05, "uniform"), (1, 0.1, 0.1, "zero")):
        attack = make_method("atop", "digits", attack_steps=steps, attack_step_size=size).inner_attack(digits)
        assert (attack.steps, attack.start) == (steps, start)
        assert attack.length == pytest.approx(length)


FEW = {"train_examples": 64, "attack_steps": 1, "epochs": 1, "warm_up": 0}


@pytest.fixture
def runs(run_of):
    return {name: run_of("atop", **FEW, **settings) for name, settings in ROWS.items()}


def test_rows_train_what_they_say(runs):
    for row, run in runs.items():
        rows, settings = run.metrics(), ROWS[row]
        stages = ["classifier", "purifier", *(["tuning"] if settings.get("fine_tune", True) else [])]
        assert list(dict.fromkeys(rows.stage)) == stages
        assert ("discriminator/loss" in rows) == (settings.get("purifier", "gan") == "gan"), row
        assert rows.filter(like="ce").notna().any(axis=None) == ("tuning" in stages)
        model = run.model()
        assert bool(model.purifying)
        assert model.stochastic == (settings.get("transform") != "none"), row
        assert rows.filter(like="probe/l1_share").notna().sum().sum() == (0 if row == "only the transform" else 2)


def test_the_classifier_is_the_same_in_every_row(runs):
    """Paired comparisons rest on it; and no later stage moves its weights or its statistics."""
    first, *others = (run.model("last") for run in runs.values())
    for model in others:
        assert same_state(model.encoder, first.encoder)
        assert same_state(model.head, first.head)


def test_fine_tuning_goes_on_from_the_pre_trained_purifier(runs):
    before, after = (runs[row].metrics() for row in ("pre-trained", "AToP"))
    columns = ["clean_val", "robust_val", "fgsm_val", "gradient_alignment"]
    assert before[before.stage == "purifier"][columns].equals(after[after.stage == "purifier"][columns])
    begins = after[after.stage == "tuning"].clean_val.iloc[0]
    assert begins == before.clean_val.iloc[-1], "a model is scored on the same draws in every epoch"
    assert not same_state(*(runs[row].model("last").purifier for row in ("pre-trained", "AToP")))


@pytest.mark.parametrize(
    ("transform", "share", "hidden", "says"),
    [
        ("rt2", 0.71, 1.1, "over all pixels .* 0.7 is asked for"),
        ("rt2", float("nan"), float("nan"), "over all pixels"),
        ("rt1", 0.54, 1.2, "over hidden pixels .* is 1.20 .* 1.2 is asked for"),
        ("rt3", 1.0, 1.0, "over all pixels .* 1 is asked for"),
        *(("rt2", 0.69, 1.1, ""), ("rt3", 0.96, 0.96, ""), ("none", 0.2, float("nan"), "")),  # have learnt
    ],
)
def test_a_purifier_that_learnt_nothing_is_refused(transform, share, hidden, says):
    with pytest.raises(InputError, match=says) if says else nullcontext():
        tiny("atop", transform=transform).check_learnt(share, hidden)


def test_the_purifiers_of_a_comparison_are_of_one_size(digits):
    """By default on digits: a study that asks which purifier is better must not ask which is larger."""
    models = [built(make_method("atop", "digits", purifier=kind), digits) for kind in ("gan", "mae")]
    small, large = sorted(sum(p.numel() for p in model.purifier.parameters()) for model in models)
    assert large < 1.2 * small


class Answer(nn.Module):
    """A purifier that always answers with one image; None: with what it is shown."""

    def __init__(self, image=None):
        super().__init__()
        self.image = image

    def outputs(self, x, mask):
        return (x if self.image is None else self.image.expand_as(x),)


def test_the_share_of_the_constant_image(digits):
    """1 for the median image itself, 0 for a purifier that gives back what it is shown, and by hand for a grey one.

    A purifier that paints nothing passes over all pixels of rt1: three in four are shown to it as they are.
    """
    (_, model, stage), (_, masked, its) = (made(digits, stage=1, transform=transform) for transform in ("none", "rt1"))
    batch, median = probe_batch(digits.val), digits.train.sample(256).images.sort(0).values[127] / 255
    grey, constant = (batch.x - 0.5).abs(), (batch.x - median).abs()
    shares = (0.0, (grey.mean() / constant.mean()).item(), 1.0)
    for image, share in zip((None, torch.full((1, 8, 8), 0.5), median), shares, strict=True):
        model.purifier = Answer(image)
        assert l1_share(model, batch, median) == pytest.approx(share, abs=1e-5)
    assert math.isnan(l1_share(model, batch, median, hidden=True)), "nothing is hidden"
    with pytest.raises(InputError, match=r"learnt nothing: over all pixels .* is 1\.00 .* 0\.7 is asked for: raise"):
        stage.end(model, batch)
    masked.purifier = Answer()
    with pytest.raises(InputError, match="over hidden pixels"):
        its.end(masked, batch)
    hidden = masked.transform.draw(batch.x, torch.Generator().manual_seed(0)).masks[0] == 1
    expected = (grey[hidden].sum() / constant[hidden].sum()).item()
    assert l1_share(masked, batch, median) < atop.MAX_L1_SHARE
    assert l1_share(masked, batch, median, hidden=True) == pytest.approx(expected, abs=1e-5)
    assert expected > 1


def test_a_finished_run_is_the_classifier(digits, run_of):
    natural = run_of("standard")
    method = tiny("atop", pretrained=str(natural.path))
    assert method.all_epochs == 3
    model, (first, second) = staged(method, digits)
    assert [first.name, second.name] == ["purifier", "tuning"]
    assert first.keep == "last", "the best epoch's would be another than the one that is judged and fine-tuned"
    first.begin()
    x = digits.val.images[:20].float() / 255
    assert torch.equal(model.eval().classify(x), natural.model("last")(x))


def test_a_grid_finer_than_the_images_is_refused_at_once(digits):
    with pytest.raises(InputError, match="grid=9"):
        made(digits, grid=9)
