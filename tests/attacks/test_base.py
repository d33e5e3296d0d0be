"""What every attack promises, and how it sees a model: draws of a randomised one in one batch, as memory allows."""

import copy
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import hostile_attacks
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from robustlib.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    PGDEOT,
    AutoAttack,
    BatchPGD,
    ExampleRNG,
    Square,
    StAdv,
    Tangent,
    Threat,
)
from robustlib.attacks.base import AttackBatch, SurrogateModel, attack_context
from robustlib.errors import InputError
from robustlib.evaluation import valid
from tests.attacks.conftest import L2, LINF, QUICK, ROUNDS, batch, generator, name
from tests.conftest import Hidden, Linear

ALL = [
    *ROUNDS,
    *(PGD(LINF, 4, restarts=2, early_stop=True), PGD(L2, 4, objective="margin"), PGD(LINF, 4, objective="kl")),
    *(PGD(LINF, 4, start="gaussian", batchnorm="train"), StAdv(0.5, 6, lr=0.2), StAdv(None, 4, lr=0.2)),
    *(Tangent(L2, 300), AutoAttack(LINF, "custom", (("apgd", QUICK[0]), ("square", QUICK[3])))),
]
SEARCHES = [PGD(LINF, 5, early_stop=True), *QUICK, StAdv(0.5, 6, lr=0.2)]
FEW = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", torch.float64])
@pytest.mark.parametrize("attack", ALL, ids=name)
def test_stays_in_the_ball_and_leaves_all_as_it_was(attack, precision, conv_net):
    dtype, precision = (torch.float32, precision) if isinstance(precision, str) else (precision, "32-true")
    conv_net.train().to(dtype)
    conv_net[4 if getattr(attack, "batchnorm", "") == "train" else 1].eval()  # a frozen layer in a training model
    conv_net[0].weight.grad = torch.ones_like(conv_net[0].weight)
    conv_net[0].bias.requires_grad_(False)
    before, modes = copy.deepcopy(conv_net), [m.training for m in conv_net.modules()]
    x, y = (values.to(dtype) if values.is_floating_point() else values for values in batch())
    x[0], x[1] = 0.0, 1.0
    kept = x.clone()
    x_adv = replace(attack, precision=precision)(conv_net, x, y, generator=generator())
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
    assert valid(x_adv, x, getattr(attack, "threat", None)).all()
    assert torch.equal(x, kept)
    assert [m.training for m in conv_net.modules()] == modes
    for now, then in zip(conv_net.parameters(), before.parameters(), strict=True):
        assert (now.requires_grad, now.grad is None) == (then.requires_grad, now is not conv_net[0].weight)
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in conv_net.state_dict().items())
    assert attack(conv_net, x[:0], y[:0]).shape == (0, 3, 8, 8)


def test_modes_come_back_after_an_error(conv_net):
    with pytest.raises(InputError):
        PGD(LINF)(conv_net.train(), torch.rand(2, 4, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert conv_net.training
    assert all(p.requires_grad for p in conv_net.parameters())


@pytest.mark.parametrize(
    "attack", [a for a in ALL if getattr(a, "batchnorm", "") != "train" and type(a) is not Tangent], ids=name
)
def test_random_numbers_belong_to_examples_not_to_batches(attack, conv_net):
    x = batch(n=17)[0]
    y, rng = conv_net(x).argmax(1), ExampleRNG.for_examples(3, torch.arange(17))
    whole = attack(conv_net, x, y, rng=rng)
    parts = [attack(conv_net, x[i : i + 5], y[i : i + 5], rng=rng[i : i + 5]) for i in range(0, 17, 5)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)
    again = attack(conv_net, x, y, rng=ExampleRNG.for_examples(4, torch.arange(17)))
    assert isinstance(attack, FAB) or not torch.equal(whole, again)
    assert torch.equal(*(attack(conv_net, x, y, generator=generator()) for _ in range(2)))


@pytest.mark.parametrize("attack", ROUNDS, ids=name)
def test_no_radius_means_no_change_and_wrong_images_are_kept(attack, conv_net):
    x, y = batch()
    assert torch.equal(replace(attack, threat=Threat(attack.threat.norm, 0.0))(conv_net, x, y), x)
    wrong = conv_net(x).argmax(1) != y
    assert torch.equal(attack(conv_net, x, y, generator=generator())[wrong], x[wrong])
    assert torch.equal(attack(Linear(5, (3, 8, 8), scale=torch.nan), x, y), x), "no numbers, so all are wrong"


@pytest.mark.parametrize("attack", [*ROUNDS, PGD(LINF, 5, early_stop=True)], ids=name)
def test_restarts_and_early_stop_lose_no_success(attack, conv_net):
    x, rng = batch(n=100)[0], ExampleRNG.for_examples(0, torch.arange(100))
    y, weak = conv_net(x).argmax(1), replace(attack, threat=replace(attack.threat, eps=attack.threat.eps / 5))
    rising = [weak, replace(weak, restarts=4)]
    rising = [replace(weak, early_stop=False), *rising] if isinstance(attack, PGD) else rising
    x_advs = [one(conv_net, x, y, rng=rng) for one in rising]
    fooled = [conv_net(x_adv).argmax(1) != y for x_adv in x_advs]
    assert all((few <= more).all() for few, more in pairwise(fooled))
    assert 0 < fooled[0].sum() < 100
    assert not torch.equal(*x_advs[-2:]), "restarts start elsewhere"


@pytest.mark.parametrize("attack", [*SEARCHES, Tangent(L2, 300)], ids=name)
def test_a_bf16_search_is_verified_in_float32(attack, jumpy):
    x = batch()[0]
    jumpy(x)
    x_adv = replace(attack, precision="bf16-mixed")(jumpy, x, torch.zeros(24, dtype=torch.int64))
    assert (jumpy(x_adv).argmax(1) == 0).all()
    assert not torch.equal(x_adv, x) or isinstance(attack, FAB | Tangent)


@pytest.mark.parametrize("attack", [PGD(L2, 3), APGD(L2, 3), FAB(L2, 3, 2), Square(L2, 10)], ids=name)
@pytest.mark.parametrize("eps", [3.0, 10.0])
def test_large_images_stay_inside_large_l2_balls(attack, eps):
    x, model = torch.full((3, 3, 160, 160), 0.5) + 0.01 * torch.rand(3, 3, 160, 160), Linear(3, (3, 160, 160))
    threat = Threat("l2", eps)
    x_adv = replace(attack, threat=threat)(model, x, model(x).argmax(1), generator=generator())
    assert valid(x_adv, x, threat).all()
    assert not valid(x + 1.001 * (x_adv - x), x, threat)[threat.distance(x_adv, x) > 0.9999 * eps].any()


@pytest.mark.parametrize("attack", SEARCHES, ids=name)
def test_a_surrogate_is_searched_and_the_target_decides(attack):
    inner = Linear(5, (3, 8, 8), scale=3.0)
    deployed, x = Hidden(inner, open=False).eval(), batch()[0]
    y = inner(x).argmax(1)

    def right(model):
        return int((deployed(attack(model, x, y, generator=generator())).argmax(1) == y).sum())

    needs_gradients = not isinstance(attack, Square)
    assert right(SurrogateModel(inner, deployed)) <= right(deployed) - needs_gradients
    other = Linear(5, (3, 8, 8))  # fooling the surrogate proves nothing about the deployed model
    unrelated = SurrogateModel(Linear(5, (3, 8, 8), scale=100.0), other)
    assert not torch.equal(attack(unrelated, x, other(x).argmax(1), generator=generator()), x)


def test_success_by_chance_is_no_success():
    class Noisy(Linear):
        """Right on average, wrong in one draw of ten."""

        stochastic = True

        def forward(self, x):
            return torch.where(torch.rand(len(x), 1) < 0.1, -1, 1) * super().forward(x)

    model, x = Noisy(5, (3, 8, 8)), batch()[0]
    y = Linear.forward(model, x).argmax(1)
    for attack in (PGDEOT(Threat("linf", 1e-4), 10, 4, early_stop=True), APGD(Threat("linf", 1e-4), 10, eot=4)):
        x_adv = attack(model, x, y, generator=generator())
        right = torch.stack([model(x_adv).argmax(1) == y for _ in range(40)]).float().mean(0)
        assert right.mean() > 0.8


@pytest.mark.parametrize("attack", [*QUICK, AutoAttack(LINF), PGD(LINF), StAdv(), Tangent(L2, 300)], ids=name)
def test_bad_input_is_a_sentence(attack):
    x, y = batch()
    for classes, images, labels, says in (
        (1, x, 0 * y, "at least 2 classes"),
        (3, x, y, "do not fit a model of 3 classes"),
        (5, 255 * x, y, r"lie in \[0, 1\].*divide grey levels by 255"),
        (5, x * torch.nan, y, r"lie in \[0, 1\]"),
        (5, x.to(torch.uint8), y, r"float32 or float64 images .* got torch.uint8 \(24, 3, 8, 8\): divide"),
        (5, x.half(), y, r"got torch.float16.*give x.float\(\) for half precision"),
        (5, x.numpy(), y, "got a ndarray"),
        (5, x, y.float(), "labels int64"),
        (5, x, y.tolist(), r"labels int64 \(24,\), got a list"),
        (5, x[0], y[0], r"got one image torch.float32 \(3, 8, 8\) and one label: give x\[None\]"),
        (5, x[0], int(y[0]), r"got one image .*: give x\[None\], with labels as y\[None\]"),
    ):
        for call in (attack, getattr(attack, "nearest", attack)):
            with pytest.raises(InputError, match=says):
                call(Linear(classes, (3, 8, 8)), images, labels)


def test_softmax_outputs_warn(linear):
    with pytest.warns(UserWarning, match="softmax"):
        PGD(LINF)(nn.Sequential(linear, nn.Softmax(1)), *batch(2, 6, (1, 4, 4)))


TRIALS, SURVIVE = hostile_attacks.attacks(Path())


@pytest.mark.filterwarnings("ignore:.*softmax")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(TRIALS)
def test_fields_models_images_and_suites_are_of_use_or_a_sentence(trial):
    with suppress(InputError):
        SURVIVE(trial)


class Clamps(nn.Module):
    """Clamps what it gets, in place or not, and answers from one tensor that it writes anew each time."""

    def __init__(self, model, in_place):
        super().__init__()
        self.model, self.in_place, self.answer = model, in_place, torch.zeros(0)

    def forward(self, x):
        if not self.in_place:
            return self.model(x.clamp(0.1, 0.6))
        logits = self.model(x.clamp_(0.1, 0.6))
        if logits.requires_grad:
            return logits
        if len(logits) != len(self.answer):
            self.answer = torch.zeros_like(logits)
        return self.answer.copy_(logits)


def in_float64(attack, model, x, y):
    torch.set_default_dtype(torch.float64)
    try:
        return attack(model, x, y, generator=generator())
    finally:
        torch.set_default_dtype(torch.float32)


def in_inference_mode(attack, model, x, y):
    with torch.inference_mode():
        return attack(model, x * 1, y * 1, generator=generator())  # tensors of that mode


def with_graph(attack, model, x, y):
    x_adv = attack(model, (x * torch.ones((), requires_grad=True)), y, generator=generator())
    assert not x_adv.requires_grad
    return x_adv


@pytest.mark.parametrize("called", [in_float64, in_inference_mode, with_graph])
@pytest.mark.parametrize("attack", ALL, ids=name)
def test_images_do_not_depend_on_the_callers_modes(attack, called, conv_net):
    x, y = batch()
    got = called(attack, conv_net, x, y)  # first, so that what it leaves in the model would be met by the next
    assert torch.equal(got, attack(conv_net, x, y, generator=generator()))
    assert conv_net(x).requires_grad


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_a_model_that_changes_its_images_in_place_changes_nothing(attack):
    plain = Linear(5, (3, 8, 8))
    x, y = batch()
    kept = x.clone()
    got, wanted = (attack(Clamps(plain, in_place), x, y, generator=generator()) for in_place in (True, False))
    assert torch.equal(got, wanted)
    assert torch.equal(x, kept)


def test_no_step_keeps_the_graph_of_another():
    class Watched(Linear):
        def forward(self, x):
            graph = x.grad_fn and x.grad_fn.next_functions[0][0]
            assert graph is None or not graph.next_functions, "the copy of a leaf, no more"
            return super().forward(x)

    x, y = batch()
    for attack in (*ALL, BatchPGD(LINF, 3)):
        loss = (lambda m, v: m(v).sum(),) if isinstance(attack, BatchPGD) else (y,)
        assert not attack(Watched(5, (3, 8, 8)), x.requires_grad_(True), *loss).requires_grad


class Answers(Linear):
    """Says `change(logits)`."""

    def __init__(self, change):
        super().__init__(5, (3, 8, 8))
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


@pytest.mark.parametrize("attack", [*QUICK, AutoAttack(LINF), PGD(LINF), StAdv(), Tangent(L2, 300)], ids=name)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda z: (z, z), r"answers with a tuple.*model\(x\)\[0\]"),
        (lambda z: {"logits": z}, "answers with a dict, not with logits"),
        (lambda z: z.squeeze(0), r"1 image\(s\) with torch.float32 \(5,\), not with float logits \(1, K\).*squeeze"),
        (lambda z: z.amax(1), r"\(1,\), not with float logits"),
        (lambda z: z.mean(0, keepdim=True), r"24 image\(s\) with torch.float32 \(1, 5\)"),
        (lambda z: z.argmax(1, keepdim=True), "torch.int64"),
    ],
)
def test_answers_that_are_no_logits_are_a_sentence(attack, change, says):
    with pytest.raises(InputError, match=says):
        attack(Answers(change), *batch())


@pytest.mark.parametrize("attack", [*QUICK, AutoAttack(LINF), PGD(LINF), StAdv(), Tangent(L2, 300)], ids=name)
def test_models_of_other_images_or_classes_are_a_sentence(attack):
    other = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    with torch.no_grad():
        other(torch.zeros(1, 1, 8, 8))
    says = r"cannot take images torch.float32 \(1, 3, 8, 8\) on cpu \(.*channels.*\): give it images of the shape"
    for model, said in ((other, says), (Linear(2, (3, 8, 8)), "do not fit a model of 2 classes")):
        with pytest.raises(InputError, match=said):
            attack(model, *batch())


def test_models_that_cannot_be_attacked_are_a_sentence():
    with torch.inference_mode():
        made = Linear(5, (3, 8, 8))
    for model, says in (
        (made, r"under torch.inference_mode\(\).*torch.no_grad\(\)"),
        (Linear, "Linear'> is no model: give a torch.nn.Module"),
        (lambda x: x, "is no model"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "layers without weights yet.*: call it on some images first"),
    ):
        for attack in (PGD(LINF), APGD(LINF), BatchPGD(LINF)):
            with pytest.raises(InputError, match=says):
                attack(model, *batch())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("attack", SEARCHES, ids=name)
def test_torchscript_models_are_attacked_as_others_are(attack, precision):
    model, (x, y) = Linear(5, (3, 8, 8)).eval(), batch()
    attack = replace(attack, precision=precision)
    for script in (torch.jit.script(model), torch.jit.trace(model, x), torch.jit.freeze(torch.jit.script(model))):
        got, wanted = (attack(one, x, y, generator=generator()) for one in (script, model))
        assert (script(got).argmax(1) == y).sum() <= (model(wanted).argmax(1) == y).sum() + 1


def cut(model):
    """AutoAttack with a component that answers with images of a part of the batch."""
    return AutoAttack(LINF, "custom", (("a", hostile_attacks.part),))(model, FEW[0], model(FEW[0]).argmax(1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: PGD(LINF, step_size=-1.0),
            "PGD step_size=-1.0: give a number of at least 6e-08 and at most 1000, or None",
        ),
        (lambda: PGD(LINF, step_size=1e-300), "PGD step_size=1e-300: give a number of at least 6e-08"),
        (lambda: PGD(LINF, steps=2.5), "steps=2.5: give a whole number"),
        (lambda: PGD(0.03), "PGD threat=0.03: give a Threat"),
        (lambda: FGSM("linf"), "PGD threat='linf': give a Threat"),
        (lambda: PGD(LINF, objective="cee"), "Unknown PGD objective 'cee'. Did you mean 'ce'"),
        (lambda: APGD(LINF, rho=float("nan")), "APGD rho=nan: give a finite number"),
        (lambda: FAB(LINF, eta=0.0), "FAB eta=0.0: give a number of at least 1"),
        (lambda: PGD(LINF, targeted=True, objective="kl"), "no target"),
        (lambda: BatchPGD(LINF, step_size=0.0), "BatchPGD step_size=0.0"),
        (lambda: Square(LINF, p_init=1.5), "p_init=1.5"),
        (lambda: AutoAttack(LINF, "custom"), "Give `attacks`"),
        (lambda: AutoAttack(LINF, attacks=(("apgd-ce", QUICK[0]),)), "Give `attacks`"),
        (
            lambda: StAdv(0.0),
            "bound=0.0: give a number of at least 6e-08 and at most 1000, in pixels, or None for no bound",
        ),
        (lambda: StAdv(lr=0.0), "lr=0.0"),
        (lambda: StAdv(weight=-1.0), "weight=-1.0"),
        (lambda: Tangent(L2, 1000, restarts=6), "queries=1000: give a whole number of at least 1200"),
        (lambda: Tangent(L2, gamma=0.0), "gamma=0.0"),
        (lambda: Tangent(LINF), "give 'l2'"),
        (lambda: FAB(LINF).nearest(Linear(), *FEW, starts=FEW[0] - 2), r"\[0, 1\]"),
        (lambda: PGD(LINF, targeted=True)(Linear(), *FEW, target=torch.tensor([1, -1])), "model of 2 classes"),
        (lambda: PGD(LINF, targeted=True)(Linear(), *FEW, target=FEW[1].float()), "labels int64"),
        (lambda: PGD(LINF, objective="dlr")(Linear(), *FEW), "3 classes"),
        (lambda: AutoAttack(LINF, "custom", (("a", APGD(L2)),)), "another threat"),
        (lambda: AutoAttack(LINF, "custom", (("a", None),)), r"attacks\[0\]\[1\]=None: give an Attack"),
        (lambda: AutoAttack(LINF, "custom", (("a", PGD),)), "is no attack"),
        (lambda: cut(Linear()), r"The answer of 'a' is torch.float32 \(1, 1, 4, 4\)"),
        *(
            (lambda names=names: AutoAttack(LINF, "custom", tuple((n, QUICK[0]) for n in names)), "a component")
            for names in (("a", "a"), ("clean",), ("a@b",))
        ),
    ],
)
def test_bad_settings_are_sentences(make, says):
    with pytest.raises(InputError, match=says):
        make()


class Recorded(nn.Module):
    """logits = W (x * noise) * confidence, with both of each image's own; it keeps what it has drawn."""

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
    return batch(4, n, (3, 2, 2))


def look(model, x, y, samples, batchnorm="eval"):
    """Gradient and logits of `samples` draws; what was drawn before it is forgotten."""
    with attack_context(model, x, (y,), batchnorm=batchnorm) as oracle:
        model.sizes, model.drawn = [], []
        return oracle.gradient(x, AttackBatch(x, y).objective("ce"), samples)


def restated(model, x, y):
    """Of the draws kept, each image's mean of (d ce / d z) dz / dx over the largest d ce / d z, and its mean logits."""
    seen, noise, confidence = (torch.cat(parts) for parts in zip(*model.drawn, strict=True))
    gradients, means = [], []
    for image, label in zip(x, y.tolist(), strict=True):
        draws = (seen == image).flatten(1).all(1)
        z = (model.map((image * noise[draws]).flatten(1)) * confidence[draws]).detach().double()
        upstream = z.softmax(1) - torch.eye(4)[label]
        slopes = upstream @ model.map.weight.detach().double() * noise[draws].flatten(1) * confidence[draws]
        gradients.append((slopes.mean(0) / upstream.abs().max()).view_as(image))
        means.append(z.mean(0))
    return torch.stack(gradients).float(), torch.stack(means).float()


@pytest.mark.parametrize(
    ("fits", "sizes", "then"),
    [(10**9, [40], [40]), (20, [40, 20, 20], [20] * 2), (12, [40, 20, 10, 10, 10, 10], [10] * 4)],
)
def test_draws_in_one_batch_or_in_what_memory_is_known_to_hold(fits, sizes, then):
    model, (x, y) = Recorded(fits), images()
    with attack_context(model, x, (y,)) as oracle:
        model.sizes, model.drawn = [], []
        with pytest.warns(UserWarning, match="8 draws of 5 images") if fits < 40 else nullcontext([0]) as said:
            gradient, logits = oracle.gradient(x, AttackBatch(x, y).objective("ce"), 8)
        assert (len(said), model.sizes) == (1, sizes)
        wanted, mean = restated(model, x, y)
        assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        assert torch.allclose(logits, mean, rtol=1e-4, atol=1e-4)
        torch.manual_seed(3)
        every = oracle.deployed_logits(x, 8)
        assert model.sizes == sizes + then
        assert (every.shape, len(every.flatten(0, 1).unique(dim=0))) == ((8, 5, 4), 40)
        torch.manual_seed(3)
        assert torch.allclose(oracle.logits(x, 8), every.mean(0))


def test_a_piece_of_the_cache_holds_draws_too(monkeypatch):
    monkeypatch.setattr("robustlib.attacks.base.PIECE", 12 * 20)
    model, (x, y) = Recorded(), images(25)
    gradient, _ = look(model, x, y, 5)
    assert model.sizes == [20] * 5 + [15, 10]  # one draw of 20 images at a time, then 3 and 2 of the last 5
    assert torch.allclose(gradient, restated(model, x, y)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("by_example", "batchnorm"), [(False, "eval"), (True, "train")])
def test_batches_that_hold_an_image_once(by_example, batchnorm):
    """Of a model that does not draw by example, and of BatchNorm in train mode."""
    model, (x, y) = Recorded(), images()
    model.draws_by_example = by_example
    look(model, x, y, 8, batchnorm=batchnorm)
    assert model.sizes == [5] * 8


@pytest.mark.parametrize(
    ("fits", "error", "says"), [(4, "out of memory", "out of memory"), (20, "size mismatch", "size")]
)
def test_errors_that_smaller_batches_do_not_help(fits, error, says):
    model, (x, y) = Recorded(fits, error), images()
    expected = pytest.warns(UserWarning, match="Out of memory") if fits == 4 else nullcontext()
    with pytest.raises(RuntimeError, match=says), expected:
        look(model, x, y, 8)


@pytest.mark.parametrize(
    "attack",
    [PGD(LINF, 2, eot=4), APGD(LINF, 2, eot=4), FAB(LINF, 2, eot=4), Square(LINF, 4, votes=4), StAdv(0.5, 2, eot=4)],
    ids=name,
)
def test_attacks_take_their_draws_in_one_batch(attack):
    model, (x, y) = Recorded(), images()
    attack(model, x, y)
    assert 20 in model.sizes
    assert max(model.sizes) <= 40  # 8 votes


def test_a_search_aimed_through_a_view_ends_at_any_wrong_answer_of_the_judge():
    class Judge(torch.nn.Module):  # class 1 far out, class 2 further
        def forward(self, x):
            mean = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([0 * mean, 4 * mean - 2.4, 8 * mean - 6.4], 1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    aim = PGD(Threat("linf", 0.25), 20, 0.05, start="zero", early_stop=True, objective="margin", targeted=True)
    judge, view, target = Judge(), Judge(), torch.full((3,), 2)
    x_adv = aim(SurrogateModel(view, judge), x, y, target=target)
    assert judge(x_adv).argmax(1).tolist() == [1, 1, 1]
    assert x_adv.max() < 0.7, "and goes no farther"
