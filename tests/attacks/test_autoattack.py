"""AutoAttack's parts against their published definitions, restated here, and the cascade on models whose answer is known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from robustlib.attacks import APGD, FAB, PGD, PGDEOT, AutoAttack, ExampleRNG, Square, SurrogateModel, Threat
from robustlib.attacks.apgd import checkpoints
from robustlib.attacks.fab import to_hyperplane
from robustlib.attacks.objectives import dlr
from robustlib.attacks.square import square_share, square_side
from robustlib.errors import InputError
from tests.conftest import ConvNet, Linear

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
QUICK = (APGD(LINF, 5), APGD(LINF, 5, targets=2, objective="margin"), FAB(LINF, 5, 2), Square(LINF, 20))
ALL = [replace(attack, threat=threat) for threat in (LINF, L2) for attack in QUICK]


def name(attack: object) -> str:
    return f"{type(attack).__name__}-{attack.threat.norm}{'-t' if getattr(attack, 'targets', 0) else ''}"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(classes: int = 5, n: int = 24, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, *shape), torch.randint(classes, (n,))


# --- the parts, as published


def test_dlr_is_the_published_formula():
    z, y = torch.randn(50, 7), torch.randint(7, (50,))
    target = (y + 1 + torch.randint(6, (50,))) % 7
    for i in range(50):
        row = z[i].numpy()
        down = np.sort(row)[::-1]
        other = max(row[k] for k in range(7) if k != y[i])
        assert dlr(z, y)[i].item() == pytest.approx(-(row[y[i]] - other) / (down[0] - down[2]), rel=1e-5)
        spread = down[0] - (down[2] + down[3]) / 2
        assert dlr(z, y, target)[i].item() == pytest.approx(-(row[y[i]] - row[target[i]]) / spread, rel=1e-5)


def test_apgd_checks_its_step_at_the_published_checkpoints():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    assert sorted(checkpoints(1000)) == [round(1000 * share) for share in p[1:] if share <= 1]
    assert max(checkpoints(3)) <= 3


@pytest.mark.parametrize(
    ("query", "halvings"), [(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (201, 3), (501, 4), (1001, 5)]
)
def test_square_halves_its_share_on_schedule(query, halvings):
    assert square_share(query, 0.8) == 0.8 / 2**halvings
    assert square_share(4500, 0.8) == 0.8 / 128


def test_squares_have_the_published_size():
    assert [square_side(share, 32, 32) for share in (0.8, 0.4, 0.1, 0.8 / 128, 1e-6)] == [29, 20, 10, 3, 1]
    assert square_side(1e-6, 32, 32, least=3) == 3
    assert square_side(1.0, 8, 6) == 6


@pytest.mark.parametrize("seed", range(12))
def test_fab_projects_as_a_linear_programme_does(seed):
    rng, n = np.random.default_rng(seed), 9
    x, w = rng.random(n), rng.standard_normal(n) * (rng.random(n) > 0.2)
    offset = float(w @ rng.random(n))
    d = to_hyperplane(*map(torch.from_numpy, (x[None], w[None], np.array([offset]))), "linf")[0].numpy()
    # minimise r subject to |d_i| <= r, w . (x + d) = offset and x + d in [0, 1]
    side = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
    best = linprog(
        np.r_[np.zeros(n), 1],
        A_ub=side,
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, 0][None],
        b_eq=[offset - w @ x],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-9)
    assert w @ (x + d) == pytest.approx(offset, abs=1e-9)
    assert ((x + d) >= -1e-12).all()
    assert ((x + d) <= 1 + 1e-12).all()


@pytest.mark.parametrize("seed", range(4))
def test_fab_projects_in_l2_as_a_solver_does(seed):
    rng, n = np.random.default_rng(seed), 6
    x, w = rng.random(n), rng.standard_normal(n)
    offset = float(w @ rng.random(n))
    d = to_hyperplane(*map(torch.from_numpy, (x[None], w[None], np.array([offset]))), "l2")[0].numpy()
    plane = {"type": "eq", "fun": lambda d: w @ (x + d) - offset}
    box = list(zip(-x, 1 - x, strict=True))
    best = minimize(lambda d: d @ d, np.zeros(n), constraints=[plane], bounds=box, options={"ftol": 1e-14})
    assert np.linalg.norm(d) == pytest.approx(np.sqrt(best.fun), abs=1e-5)
    assert w @ (x + d) == pytest.approx(offset, abs=1e-9)


def test_fab_goes_to_the_corner_where_the_box_ends_before_the_plane():
    x, w = torch.rand(3, 4), torch.tensor([[1.0, -1, 2, 0.0]]).expand(3, 4)
    d = to_hyperplane(x, w, torch.full((3,), 50.0), "linf")
    assert torch.allclose((x + d)[:, :3], torch.tensor([1.0, 0, 1]).expand(3, 3))
    assert (d[:, 3] == 0).all()


# --- every attack


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_stays_in_the_ball_and_leaves_the_model_alone(attack, conv_net):
    conv_net.train()
    before = {key: value.clone() for key, value in conv_net.state_dict().items()}
    x, y = batch()
    x[0], x[1] = 0.0, 1.0
    x_adv = attack(conv_net, x, y, generator=generator())
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert attack.threat.distance(x_adv, x).max() <= attack.threat.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert all(torch.equal(before[key], value) for key, value in conv_net.state_dict().items())
    assert conv_net.training
    assert all(p.grad is None and p.requires_grad for p in conv_net.parameters())


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_draws_belong_to_examples(attack, conv_net):
    x, y = batch(n=17)
    y = conv_net(x).argmax(1)
    rng = ExampleRNG.for_examples(3, torch.arange(17))
    whole = attack(conv_net, x, y, rng=rng)
    parts = [attack(conv_net, x[i : i + 5], y[i : i + 5], rng=rng[i : i + 5]) for i in range(0, 17, 5)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)
    again = attack(conv_net, x, y, rng=ExampleRNG.for_examples(4, torch.arange(17)))
    assert isinstance(attack, FAB) or not torch.equal(whole, again)


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_breaks_exactly_what_a_linear_model_allows(attack):
    """Of two classes with margin m, the ball flips those with m < eps * ||w||_dual (images far from the box's sides)."""
    strong = replace(attack, **({"queries": 600} if isinstance(attack, Square) else {"steps": 30}))
    model, (x, _) = Linear(2, (1, 4, 4), scale=2.0), batch(n=200, shape=(1, 4, 4))
    x = 0.5 + (x - 0.5) * 0.2
    threat = replace(attack.threat, eps=0.1 if attack.threat.norm == "l2" else 0.05)
    w = model.map.weight[1] - model.map.weight[0]
    with torch.no_grad():
        model.map.bias.copy_(torch.tensor([w.sum() / 2, 0]))  # the boundary passes through the grey image
    logits = model(x).detach()
    y, gap = logits.argmax(1), (logits[:, 1] - logits[:, 0]).abs()
    reach = threat.eps * (w.abs().sum() if threat.norm == "linf" else w.norm()).item()
    x_adv = replace(strong, threat=threat)(model, x, y, generator=generator())
    broken = model(x_adv).argmax(1) != y
    assert not broken[gap > reach].any()
    sure = 0.3 if isinstance(attack, Square) and threat.norm == "l2" else 0.97
    assert broken[gap < sure * reach].all()
    assert 0 < broken.sum() < 200


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_no_radius_means_no_change_and_wrong_images_are_kept(attack, conv_net):
    x, y = batch()
    assert torch.equal(replace(attack, threat=Threat(attack.threat.norm, 0.0))(conv_net, x, y), x)
    wrong = conv_net(x).argmax(1) != y
    assert torch.equal(attack(conv_net, x, y, generator=generator())[wrong], x[wrong])


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_a_model_without_numbers_is_broken(attack):
    class Mute(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * torch.nan

    x, y = batch(3, 4)
    assert torch.equal(attack(Mute(), x, y), x)


@pytest.mark.parametrize("attack", [*ALL[:4], AutoAttack(LINF)], ids=lambda a: type(a).__name__)
def test_bad_input_is_a_sentence(attack):
    x, y = batch()
    with pytest.raises(InputError, match="at least 2 classes"):
        attack(Linear(1, (3, 8, 8)), x, 0 * y)
    with pytest.raises(InputError, match="do not fit"):
        attack(Linear(3, (3, 8, 8)), x, y)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        attack(Linear(5, (3, 8, 8)), 3 * x, y)
    assert attack(Linear(5, (3, 8, 8)), x[:0], y[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(LINF, steps=0), "steps=0"),
        (lambda: APGD(LINF, objective="kl"), "objective 'kl'"),
        (lambda: FAB(LINF, targets=0), "targets=0"),
        (lambda: Square(LINF, p_init=1.5), "p_init=1.5"),
        (lambda: Square(LINF, precision="16"), "precision '16'"),
        (lambda: AutoAttack(LINF, "fast"), "version 'fast'"),
        (lambda: AutoAttack(LINF, "custom"), "Give `attacks`"),
        (lambda: AutoAttack(LINF, attacks=(("apgd-ce", QUICK[0]),)), "Give `attacks`"),
    ],
)
def test_bad_settings_are_sentences(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("attack", QUICK, ids=name)
def test_a_bf16_search_is_verified_in_float32(attack):
    class Jumpy(ConvNet):
        """Right in float32, wrong in bf16."""

        def forward(self, x):
            logits = super().forward(x).float()
            sure = nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 5) * 1e3
            return -sure + logits if torch.is_autocast_enabled("cpu") else sure + logits

    model, (x, _) = Jumpy().eval(), batch()
    model(x)
    x_adv = replace(attack, precision="bf16-mixed")(model, x, torch.zeros(24, dtype=torch.int64))
    assert (model(x_adv).argmax(1) == 0).all()
    assert not torch.equal(x_adv, x) or isinstance(attack, FAB)


# --- surrogates, randomness, the cascade


class Blind(nn.Module):
    """The same decisions as `inner`, without gradients."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.no_grad():
            return 100.0 * nn.functional.one_hot(self.inner(x).argmax(1), 5).float()


@pytest.mark.parametrize("attack", [PGD(LINF, 5, early_stop=True), *QUICK], ids=lambda a: type(a).__name__)
def test_a_view_is_searched_and_the_deployed_model_judges(attack):
    inner = Linear(5, (3, 8, 8), scale=3.0)
    deployed, (x, _) = Blind(inner).eval(), batch()
    y = inner(x).argmax(1)

    def left(model):
        return int((deployed(attack(model, x, y, generator=generator())).argmax(1) == y).sum())

    assert left(SurrogateModel(inner, deployed)) <= left(deployed)
    if not isinstance(attack, Square):  # which needs no gradient
        assert left(SurrogateModel(inner, deployed)) < left(deployed)

    other = Linear(5, (3, 8, 8))  # fooling this one proves nothing about the deployed model
    x_adv = attack(
        SurrogateModel(Linear(5, (3, 8, 8), scale=100.0), other), x, other(x).argmax(1), generator=generator()
    )
    assert attack.threat.distance(x_adv, x).max() > 0


class Noisy(Linear):
    """Right on average, wrong in one draw of ten."""

    stochastic = True

    def forward(self, x):
        flipped = torch.rand(len(x), 1) < 0.1
        logits = super().forward(x)
        return torch.where(flipped, -logits, logits)


def test_one_lucky_draw_is_no_success():
    model, (x, _) = Noisy(5, (3, 8, 8)), batch()
    y = Linear.forward(model, x).argmax(1)
    for attack in (PGDEOT(Threat("linf", 1e-4), 10, 4, early_stop=True), APGD(Threat("linf", 1e-4), 10, eot=4)):
        x_adv = attack(model, x, y, generator=generator())
        right = torch.stack([model(x_adv).argmax(1) == y for _ in range(40)]).float().mean(0)
        assert right.mean() > 0.8


def test_eot_finds_what_single_draws_miss():
    class Shaken(nn.Module):
        """The gradient of one draw is mostly noise; the mean over draws is not."""

        stochastic = True

        def __init__(self):
            super().__init__()
            self.inner = Linear(2, (1, 4, 4))

        def forward(self, x):
            return self.inner(x + 5 * torch.randn_like(x) * (x - x.detach()))

    model, x = Shaken(), 0.4 + 0.2 * torch.rand(60, 1, 4, 4)
    y = model.inner(x).argmax(1)
    threat = Threat("linf", 0.3)

    def gap(eot):
        z = model.inner(APGD(threat, 10, eot=eot)(model, x, y, generator=generator())).detach()
        return float((z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]).mean())

    assert gap(64) < gap(1)


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_any_number_of_classes(classes):
    parts = AutoAttack(LINF).components(classes)
    assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert parts["apgd-t"].objective == ("dlr" if classes >= 4 else "margin")
    shortened = tuple(
        (name, replace(part, **({"queries": 5} if name == "square" else {"steps": 4}))) for name, part in parts.items()
    )
    model, (x, y) = Linear(classes, (3, 8, 8)), batch(classes)
    y = model(x).argmax(1)
    x_adv = AutoAttack(LINF, "custom", shortened)(model, x, y, generator=generator())
    assert (model(x_adv).argmax(1) != y).any()
    assert next(iter(AutoAttack(LINF, "rand").components(classes))) == "apgd-ce"


def test_the_cascade_attacks_only_what_stands():
    given, wide = [], Threat("linf", 0.61)

    class Spy:
        threat = wide

        def __init__(self, flip):
            self.flip = flip

        def __call__(self, model, x, y, *, generator=None, rng=None):
            given.append(len(x))
            x_adv = x.clone()
            x_adv[: self.flip] = 1 - x[: self.flip]
            return x_adv

    class Sign(nn.Module):
        def forward(self, x):
            value = x.flatten(1).mean(1, keepdim=True) - 0.5
            return torch.cat([-value, value], 1)

    x = torch.full((20, 1, 2, 2), 0.8)
    y = torch.ones(20, dtype=torch.int64)
    y[:3] = 0  # wrong from the start
    attack = AutoAttack(wide, "custom", (("a", Spy(4)), ("b", Spy(0)), ("c", Spy(13)), ("d", Spy(1))))
    x_adv = attack(Sign(), x, y)
    assert given == [17, 13, 13]
    assert (Sign()(x_adv).argmax(1) != y).all()
    assert torch.equal(x_adv[:3], x[:3])


def test_as_strong_as_the_authors_package(digits):
    """A small cut of benchmarks/autoattack_agreement.py: the same verdicts on a quickly trained model."""
    import pyautoattack as reference

    from robustlib.models import build_model

    model = build_model("mlp", digits)
    x, y = digits.train.images.float() / 255, digits.train.labels
    optimiser, threat = torch.optim.Adam(model.parameters(), 3e-3), Threat("linf", 0.08)
    for _ in range(40):
        nn.functional.cross_entropy(model(PGD(threat, 2)(model, x, y, generator=generator())), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    few = digits.test.sample(40)
    x, y = few.images.float() / 255, few.labels
    authors = reference.AutoAttack(model, norm="Linf", eps=threat.eps, seed=0)
    authors.attacks_to_run = ["apgd-ce", "apgd-t"]
    found = authors.run_standard_evaluation(x, y, batch_size=40)
    theirs = model(found[0] if isinstance(found, tuple) else found).argmax(1) == y
    mine = (("apgd-ce", APGD(threat)), ("apgd-t", APGD(threat, objective="dlr", targets=9)))
    mine = model(AutoAttack(threat, "custom", mine)(model, x, y, generator=generator())).argmax(1) == y
    assert 5 < theirs.sum() < 35
    assert (mine & ~theirs).sum() <= 1
    assert (theirs & ~mine).sum() <= 1


@pytest.mark.parametrize("attack", [PGD(L2, 3), APGD(L2, 3), FAB(L2, 3, 2), Square(L2, 10)], ids=name)
@pytest.mark.parametrize("eps", [3.0, 10.0])
def test_large_images_stay_inside_large_l2_balls(attack, eps):
    from robustlib.evaluation import valid

    x, model = torch.full((6, 3, 160, 160), 0.5) + 0.01 * torch.rand(6, 3, 160, 160), Linear(3, (3, 160, 160))
    threat = Threat("l2", eps)
    x_adv = replace(attack, threat=threat)(model, x, model(x).argmax(1), generator=generator())
    assert valid(x_adv, x, threat).all()
    assert not valid(x + 1.001 * (x_adv - x), x, threat)[threat.distance(x_adv, x) > 0.9999 * eps].any()


def test_one_confident_draw_does_not_hide_the_gradient_of_the_others():
    class Switching(nn.Module):
        """Far too confident in the first draw, ordinary in the others."""

        stochastic = True

        def __init__(self):
            super().__init__()
            self.inner, self.asked = Linear(3, (1, 4, 4)), 0

        def forward(self, x):
            self.asked += 1
            logits = self.inner(x)
            return logits * (1e4 if self.asked % 4 == 2 else 1)

    model, x = Switching(), torch.rand(30, 1, 4, 4)
    y = model.inner(x).argmax(1)
    model.asked = 0
    x_adv = PGD(LINF, 1, start="zero", eot=4)(model, x, y)
    assert ((x_adv - x).abs() > 0).flatten(1).any(1).all()
    assert (model.inner(x_adv).gather(1, y[:, None]) < model.inner(x).gather(1, y[:, None])).float().mean() > 0.9


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_more_restarts_lose_no_success(attack, conv_net):
    x = batch()[0]
    y = conv_net(x).argmax(1)
    left = [conv_net(replace(attack, restarts=n)(conv_net, x, y, generator=generator())).argmax(1) == y for n in (1, 3)]
    assert not (left[1] & ~left[0]).any()


def test_a_cascade_never_leaves_its_ball():
    @dataclass(frozen=True)
    class Far:
        def __call__(self, model, x, y, *, generator=None, rng=None):
            return 1 - x

    model, (x, _) = Linear(5, (3, 8, 8), scale=20.0), batch()
    y = model(x).argmax(1)
    x_adv = AutoAttack(LINF, "custom", (("far", Far()),))(model, x, y)
    assert LINF.distance(x_adv, x).max() <= LINF.eps + 1e-6
    for attacks in (
        (("a", APGD(L2)),),
        (("a", QUICK[0]), ("a", QUICK[1])),
        (("clean", QUICK[0]),),
        (("a@b", QUICK[0]),),
    ):
        with pytest.raises(InputError, match=r"component|another threat"):
            AutoAttack(LINF, "custom", attacks)


def test_models_in_double_precision_are_attacked_as_they_are():
    model, (x, _) = ConvNet(), batch()
    model(x)
    model = model.double().eval()
    x = x.double()
    y = model(x).argmax(1)
    for attack in (PGD(LINF, 5), *QUICK):
        x_adv = attack(model, x, y, generator=generator())
        assert x_adv.dtype == torch.float64
        assert LINF.distance(x_adv, x).max() <= LINF.eps + 1e-9
