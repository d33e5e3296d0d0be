"""APGD and FAB point by point beside their authors' code (pyautoattack), and the settings of AutoAttack."""

from dataclasses import replace

import pyautoattack as reference
import pytest
import torch
from pyautoattack import autopgd_base, fab_pt
from torch import nn

from robustlib.attacks import APGD, FAB, AutoAttack, Square, Threat, apgd, square
from robustlib.attacks.square import _linf_step
from robustlib.rng import ExampleRNG

NORMS = {"linf": "Linf", "l2": "L2"}
STEPS = 60  # checkpoints at 13, 25, 36, 46, 55
N, ENOUGH = 24, 20  # images; those whose whole path must agree: where one converges, rounding decides what is a rise
RNG = ExampleRNG.for_examples(0, torch.arange(N))


class Wavy(nn.Module):
    """A steep, wavy function that nothing within the radius fools; it notes every image it is shown."""

    def __init__(self, sure: float = 3.0) -> None:
        super().__init__()
        self.inner, self.outer, self.sure = nn.Linear(48, 32), nn.Linear(32, 6), sure
        self.shown: list[torch.Tensor] = []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        z = 0.5 * self.outer(torch.sin(5 * self.inner(x.flatten(1))))
        return z + self.sure * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 6)


@pytest.fixture
def wavy():
    torch.manual_seed(0)
    return Wavy().double().eval()


@pytest.fixture
def images():
    return torch.rand(N, 3, 4, 4, dtype=torch.float64), torch.zeros(N, dtype=torch.int64)


@pytest.fixture(params=[Threat("linf", 0.06), Threat("l2", 0.4)], ids=str)
def threat(request):
    return request.param


@pytest.fixture
def start(threat, images, monkeypatch):
    point = apgd.surface_point(threat, images[0], RNG)
    monkeypatch.setattr(apgd, "surface_point", lambda *_: point)
    return point


def walked(model, start):
    first = next(i for i, x in enumerate(model.shown) if x.shape == start.shape and torch.equal(x, start))
    points, model.shown = model.shown[first:], []
    return torch.stack(points)


def agreeing(ours, theirs):
    """How many examples took the same path, point by point."""
    return int(((ours - theirs).abs().flatten(2).amax((0, 2)) < 1e-7).sum())


class FirstStep:
    """The authors' code compares the first step's objective with 0, an empty row; the algorithm with that of the start."""

    start: torch.Tensor

    def attack_single_run(self, x, y, x_init=None):
        torch.set_default_dtype(torch.float64)  # it keeps objectives in the default, and float32 makes near ones equal
        try:
            return super().attack_single_run(x, y, x_init)
        finally:
            torch.set_default_dtype(torch.float32)

    def check_oscillation(self, x, j, k, y5, k3=0.75):
        if j + 1 == k:
            x[-1] = self.start
        return super().check_oscillation(x, j, k, y5, k3)


Authors = type("Authors", (FirstStep, autopgd_base.APGDAttack), {})
AuthorsTargeted = type("AuthorsTargeted", (FirstStep, autopgd_base.APGDAttack_targeted), {})


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_goes_where_the_authors_goes(threat, loss, wavy, images, start):
    x, y = images
    theirs = Authors(wavy, n_iter=STEPS, norm=NORMS[threat.norm], eps=threat.eps, loss=loss)
    theirs.init_hyperparam(x)
    z = wavy(start).detach()
    theirs.start = nn.functional.cross_entropy(z, y, reduction="none") if loss == "ce" else theirs.dlr_loss(z, y)
    wavy.shown = []
    best, right, _, _ = theirs.attack_single_run(x, y, x_init=start)
    expected = walked(wavy, start)
    assert right.all(), "no example may leave, or the paths could not be compared"
    found = APGD(threat, STEPS, objective=loss)(wavy, x, y)
    path = walked(wavy, start)
    assert len(path) >= len(expected) == STEPS + 1
    assert agreeing(path[: STEPS + 1], expected) >= ENOUGH
    assert agreeing(found[None], best[None]) >= ENOUGH, "the best point is returned"


def test_targeted_apgd_aims_at_the_authors_classes(threat, wavy, images, start):
    """Each of the likeliest wrong classes in turn, as ranked on the clean image, from the same start."""
    x, y = images
    ranked, expected = wavy(x).sort(dim=1).indices, []
    for place in range(2, 5):
        theirs = AuthorsTargeted(wavy, n_iter=STEPS, norm=NORMS[threat.norm], eps=threat.eps)
        theirs.init_hyperparam(x)
        theirs.y_target = ranked[:, -place]
        theirs.start = theirs.dlr_loss_targeted(wavy(start).detach(), y)
        wavy.shown = []
        assert theirs.attack_single_run(x, y, x_init=start)[1].all()
        expected.append(walked(wavy, start)[: STEPS + 1])
    APGD(threat, STEPS, objective="dlr", targets=3)(wavy, x, y)
    path = walked(wavy, start)
    starts = [i for i, points in enumerate(path) if torch.equal(points, start)]
    assert len(starts) == 3
    for first, points in zip(starts, expected, strict=True):
        assert agreeing(path[first : first + STEPS + 1], points) >= ENOUGH
    assert agreeing(expected[0], expected[1]) == 0


def test_fab_finds_the_authors_points(threat, images):
    torch.manual_seed(0)
    model, (x, y) = Wavy(sure=0.2).eval(), (images[0].float(), images[1])
    y = model(x).argmax(1)
    theirs = fab_pt.FABAttack_PT(
        model, norm=NORMS[threat.norm], n_restarts=1, n_iter=30, eps=threat.eps, targeted=True, seed=0, device="cpu"
    )
    theirs.target_class = 2
    expected = theirs.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
    found = FAB(threat, 30, targets=1).nearest(model, x, y).x_adv
    reached = (model(expected).argmax(1) != y) & (model(found).argmax(1) != y)
    assert reached.sum() >= N // 2
    far, wanted = (threat.distance(points, x)[reached] for points in (found, expected))
    assert ((far - wanted).abs() < 1e-4 * wanted).double().mean() >= 0.75


def test_fab_restarts_from_half_the_radius(threat, wavy, images):
    x, y = 0.3 + 0.4 * images[0], images[1]
    FAB(threat, 1, targets=1, restarts=2)(wavy, x, y, rng=RNG)
    far = [threat.distance(seen, x) for seen in wavy.shown if len(seen) == N]
    assert any(torch.allclose(one, torch.full_like(one, threat.eps / 2)) for one in far)


def test_square_asks_about_the_surface_of_the_ball(threat, wavy, images):
    """Algorithms 2 and 3: every linf query is a corner of the ball, and an l2 query uses all of its length."""
    x, y = 0.3 + 0.4 * images[0], images[1]
    wavy.shown = []
    Square(threat, queries=60)(wavy, x, y, rng=RNG)
    asked = [seen for seen in wavy.shown if len(seen) == N and not torch.equal(seen, x)]
    assert len(asked) > 20
    for seen in asked:
        used = (seen - x).abs() if threat.norm == "linf" else threat.distance(seen, x)
        assert torch.allclose(used, torch.full_like(used, threat.eps), atol=1e-6)


def test_square_spends_what_is_unused_in_its_window():
    """Algorithm 3: the new window takes what the ball has left, so nothing outside the two windows changes."""
    x = torch.full((4, 3, 12, 12), 0.5, dtype=torch.float64)
    best = x + 0.02 * torch.randn(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    threat = Threat("l2", 2 * float(Threat("l2", 1).distance(best, x).max()))
    candidates = square._l2_step(x, best, threat.eps, 9 / 144, RNG[:4])
    assert torch.allclose(threat.distance(candidates, x), torch.full((4,), threat.eps, dtype=x.dtype))
    changed = ((candidates - best).abs() > 1e-9).any(1).flatten(1).sum(1)
    assert ((changed > 0) & (changed <= 2 * 3 * 3)).all()
    start = square._tiles(x, threat.eps, RNG[:4]) - x  # a fifth of 12 pixels is 2: two-sided bumps of 2 x 2
    assert start.abs().min() > 1e-4 > 1e-9 > nn.functional.avg_pool2d(start, 2).abs().max()


def test_the_standard_version_is_the_published_one():
    """Croce and Hein 2020, section 5, and autoattack.py."""
    threat = Threat("linf", 8 / 255)
    parts = AutoAttack(threat).components(10)
    assert (parts["apgd-ce"].objective, parts["apgd-ce"].targets, parts["apgd-t"].objective) == ("ce", 0, "dlr")
    for part in parts.values():
        assert part == replace(part, threat=threat, restarts=1, precision="32-true")
        assert getattr(part, "eot", 1) == 1
    theirs = reference.AutoAttack(Wavy(), norm="Linf", eps=threat.eps, version="standard", device="cpu")
    assert theirs.attacks_to_run == list(parts)
    apgd = {"steps": "n_iter", "restarts": "n_restarts", "rho": "thr_decr"}
    fab = {"steps": "n_iter", "targets": "n_target_classes"} | {k: k for k in ("alpha_max", "eta", "beta")}
    for part, authors, fields in (
        ("apgd-ce", theirs.apgd, apgd),
        ("apgd-t", theirs.apgd_targeted, apgd | {"targets": "n_target_classes"}),
        ("fab-t", theirs.fab, fab),
        ("square", theirs.square, {"queries": "n_queries", "p_init": "p_init"}),
    ):
        for ours, name in fields.items():
            assert getattr(parts[part], ours) == getattr(authors, name), (part, ours)


def test_the_rand_version_is_the_published_one():
    """flags_doc.md of autoattack: APGD-CE and APGD-DLR, one restart, 100 steps, 20 gradient samples."""
    threat = Threat("linf", 8 / 255)
    assert AutoAttack(threat, "rand").components(10) == {
        "apgd-ce": APGD(threat, steps=100, objective="ce", eot=20),
        "apgd-dlr": APGD(threat, steps=100, objective="dlr", eot=20),
    }


@pytest.mark.parametrize("side", range(1, 13))
def test_a_square_is_one_and_each_channel_of_it_goes_to_a_corner(side):
    x, rng = torch.full((6, 2, 12, 12), 0.5), ExampleRNG.for_examples(0, torch.arange(6))
    moved = _linf_step(x, x, 0.1, (side / 12) ** 2, rng) - x
    for image in moved:
        there = image[0] != 0
        assert (int(there.any(0).sum()), int(there.any(1).sum()), int(there.sum())) == (side, side, side**2)
        assert torch.equal(image[1] != 0, there)
        for channel in image:
            assert (channel[there].abs() - 0.1).abs().max() < 1e-6
            assert len(channel[there].sign().unique()) == 1
