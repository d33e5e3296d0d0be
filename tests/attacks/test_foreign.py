"""Attacks from elsewhere keep to the threat and to our random numbers, and are refused in a sentence where they cannot."""

import random
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints, version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from robustlib.attacks import FGSM, PGD, Threat, count_passes, foreign_attack
from robustlib.attacks.foreign import AttackSpec, absolute_spec
from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, summarise, valid

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def net(digits) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = digits.train.images[:800].float() / 255, digits.train.labels[:800]
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def batch(digits) -> tuple[torch.Tensor, torch.Tensor]:
    return digits.test.images[:128].float() / 255, digits.test.labels[:128]


def right(net, x, y) -> float:
    return (net(x).argmax(1) == y).float().mean().item()


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_attack_of_another_library_agrees_with_ours(net, batch):
    x, y = batch
    ours, theirs = PGD(LINF, steps=20), foreign_attack("torchattacks:PGD(alpha=1/40, steps=20)", LINF)
    found = theirs(net, x, y, generator=generator())
    assert found.dtype == torch.float32
    assert valid(found, x, LINF).all()
    assert right(net, found, y) == pytest.approx(right(net, ours(net, x, y, generator=generator()), y), abs=0.03)
    exact = foreign_attack("torchattacks:FGSM", LINF)(net, x, y)
    assert (exact == FGSM(LINF)(net, x, y)).float().mean() > 0.99, "all but gradients that float32 takes for zero"
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("spec", "threat"),
    [
        ("torchattacks:PGDL2(alpha=0.1, steps=20)", L2),
        ("foolbox:LinfDeepFoolAttack(steps=50)", LINF),
        ("foolbox:LInfFMNAttack(steps=50)", LINF),
        ("foolbox:L2CarliniWagnerAttack(binary_search_steps=4, steps=100)", L2),
        ("foolbox:HopSkipJumpAttack(steps=1, initial_gradient_eval_steps=20)", LINF),
        ("foolbox:GaussianBlurAttack(steps=3)", LINF),
    ],
)
def test_libraries_search_within_the_threat(net, batch, spec: str, threat: Threat):
    x, y = batch[0][:48], batch[1][:48]
    with count_passes() as passes:
        found = foreign_attack(spec, threat)(net, x, y, generator=generator())
    assert valid(found, x, threat).all()
    assert (found != x).any()
    assert right(net, found, y) < right(net, x, y) or "Blur" in spec
    assert passes["forward"] >= 48


def test_a_min_norm_attack_of_foolbox_leaves_little_more_than_a_long_search(net, batch):
    x, y = batch
    weakest = right(net, PGD(LINF, steps=50, restarts=2)(net, x, y, generator=generator()), y)
    assert right(net, foreign_attack("foolbox:LInfFMNAttack()", LINF)(net, x, y), y) == pytest.approx(weakest, abs=0.05)


def test_the_same_call_gives_the_same_images_and_leaves_global_random_numbers_alone(net, batch):
    x, y = batch[0][:16], batch[1][:16]
    for spec, threat in (
        ("torchattacks:PGD(alpha=0.01)", LINF),
        ("torchattacks:AutoAttack(version='rand')", LINF),
        ("torchattacks:OnePixel(popsize=3, steps=1)", Threat("linf", 1.0)),
    ):
        attack, found = foreign_attack(spec, threat), []
        for _ in range(2):
            torch.rand(1), np.random.random(), random.random()  # so that the second call begins elsewhere
            before = torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()
            found.append(attack(net, x, y, generator=generator()))
            after = torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()
            assert torch.equal(before[0], after[0]), spec
            assert str(before[1:]) == str(after[1:]), spec
        assert torch.equal(*found), spec
        assert not torch.equal(found[0], x), spec
    pgd = foreign_attack("torchattacks:PGD(alpha=0.01)", LINF)
    once, other = (pgd(net, x, y, generator=generator(seed)) for seed in (1, 2))
    assert not torch.equal(once, other)


def test_its_name_says_all_that_decides_its_numbers():
    attack = foreign_attack(" torchattacks:AutoAttack (version='rand',eps = 1/20)", LINF)
    said = "torchattacks:AutoAttack(eps=0.05, norm='Linf', version='rand') within Linf 0.1, torchattacks "
    assert repr(attack) == said + torchattacks.__version__
    assert attack == foreign_attack("torchattacks:AutoAttack(eps=0.05, version='rand')", LINF)
    assert attack != foreign_attack("torchattacks:AutoAttack(version='rand')", LINF)
    assert " at 0x" not in repr(foreign_attack("foolbox:GaussianBlurAttack", LINF))
    assert (
        repr(foreign_attack("foolbox:L2PGD", L2))
        == f"foolbox:L2PGD(eps=0.5) within L2 0.5, foolbox {version('foolbox')}"
    )
    values = AttackSpec.parse("a.b:C(p=-1/4, q=(1, 'x:y()'), r=[True, None])").arguments
    assert values == {"p": -0.25, "q": (1, "x:y()"), "r": [True, None]}


@pytest.mark.parametrize(
    ("spec", "threat", "sentence"),
    [
        ("torchattacks:PGD(eps=8)", LINF, "searches farther than Linf 0.1, .*: leave eps out"),
        ("foolbox:LinfPGD(eps=0.2)", LINF, "searches farther than Linf 0.1"),
        ("torchattacks:PGD(eps='a')", LINF, "eps='a': give a number of at least 0"),
        (
            "torchattacks:PGD",
            L2,
            r"PGD\(\) searches in balls of linf, the threat is L2 0.5: name an attack of that norm",
        ),
        ("torchattacks:PGDL2", LINF, "searches in balls of l2, the threat is Linf 0.1"),
        ("torchattacks:AutoAttack(norm='L2')", LINF, "searches in balls of l2"),
        ("foolbox:L2CarliniWagnerAttack()", LINF, "searches in balls of l2"),
        ("foolbox:EADAttack()", L2, "searches in balls of l1"),
        ("torchattacks:PDG", LINF, "Unknown attack of torchattacks 'PDG'. Did you mean 'PGD'"),
        ("foolbox:LinfDeepFool", LINF, "Unknown attack of foolbox 'LinfDeepFool'. Did you mean 'LinfDeepFoolAttack'"),
        (
            "torchattacks:PGD(step=3)",
            LINF,
            r"step=3\) cannot be made \(got an .*: it takes eps, alpha, steps, random_start.",
        ),
        ("foolbox:LinfPGD(step=3)", LINF, "it takes rel_stepsize, abs_stepsize, steps, random_start."),
        ("torchattacks:LGV", LINF, "missing a required argument: 'trainloader'"),
        ("torchattacks:PGD(3)", LINF, "has arguments that are no numbers, words or lists by name"),
        ("torchattacks:PGD(steps=3, steps=4)", LINF, "has arguments that are"),
        ("torchattacks:PGD(eps=1/0)", LINF, "has arguments that are"),
        ("torchattacks:PGD(steps=open('x'))", LINF, "has arguments that are"),
        ("torchattacks:PGD(**{'steps': 3})", LINF, "has arguments that are"),
        ("torchattacks:PGD()(steps=3)", LINF, "has arguments that are|names no attack"),
        ("torchattacks:PGD(steps=" + "(" * 999 + "3)", LINF, "has arguments that are"),
        ("torchattacks:PGD(", LINF, "names no attack: write one such as torchattacks:PGD"),
        ("", LINF, "'' names no attack"),
        (3, LINF, "3 names no attack"),
        ("PGD(steps=3)", LINF, "No package offers an attack 'PGD'. For others write one such as torchattacks:PGD"),
        ("mine.py:Mine", LINF, "mine.py:Mine names code, which is not executed here"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec, threat: Threat, sentence: str):
    with pytest.raises(InputError, match=sentence):
        foreign_attack(spec, threat)


def test_a_library_that_is_not_there_or_fails_is_named(net, batch, monkeypatch):
    with pytest.raises(
        InputError, match=r"TIFGSM\(eps=0.1\) fails \(RuntimeError: .*; torchattacks 3.*: correct its arg"
    ):
        foreign_attack("torchattacks:TIFGSM", LINF)(net, *batch)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"foolbox cannot be imported \(.*\): pip install foolbox."):
        foreign_attack("foolbox:LinfPGD", LINF)


class Leaves(torchattacks.attack.Attack):
    """The corner of the ball against the true class, and then farther by a factor; `first` replaces the first image's values."""

    def __init__(self, model, eps=8 / 255, factor=1.0, first=None):
        super().__init__("Leaves", model)
        self.eps, self.factor, self.first = eps, factor, first

    def forward(self, x, y):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(self.model(x), y), x)
        found = (x + self.eps * self.factor * gradient.sign()).detach().double().clamp(0, 1)
        if self.first is not None:
            found[0] = self.first
        return found


@pytest.fixture
def leaves(monkeypatch):
    monkeypatch.setattr(torchattacks, "Leaves", Leaves, raising=False)


@pytest.mark.usefixtures("leaves")
def test_rounding_decides_nothing_and_what_is_far_outside_is_no_find(net, batch):
    x, y = batch
    kept, rounded, far = (foreign_attack(f"torchattacks:Leaves(factor={f})", LINF) for f in (1, 1.00005, 1.001))
    inside = kept(net, x, y)
    assert right(net, inside, y) < 0.7
    torch.testing.assert_close(rounded(net, x, y), inside, atol=1e-6, rtol=0)
    assert rounded.remark == kept.remark == ""
    assert torch.equal(far(net, x, y), x), "no image is better than an invalid one"
    assert far.remark == "; 128 of 128 images came back outside of the ball or of [0, 1] and count as withstood"
    for value in ("1e999", "1e999/1e999", "1.5", "-1"):  # infinity, NaN, and beyond [0, 1]
        odd = foreign_attack(f"torchattacks:Leaves(first={value})", LINF)
        found = odd(net, x, y)
        assert torch.equal(found[0], x[0])
        assert torch.equal(found[1:], inside[1:])
        assert odd.tally == {"met": 128, "outside": 1}


@pytest.mark.usefixtures("leaves")
def test_an_evaluation_counts_only_what_is_within_the_threat(net, digits):
    split = digits.test.sample(64)
    attacks = {
        name: foreign_attack(f"torchattacks:Leaves(factor={f})", LINF) for name, f in (("near", 1.00005), ("far", 2))
    }
    records = evaluate(net, split, attacks)
    rows = summarise(records).set_index("attack")
    assert records["valid"].all()
    assert rows.accuracy["far"] == rows.accuracy["clean"] > rows.accuracy["near"] == rows.accuracy["worst"]
    assert rows.eps["near"] == 0.1


def test_memory_that_runs_out_in_a_library_halves_the_batch(net, digits, monkeypatch):
    class Greedy(Leaves):
        def forward(self, x, y):
            if len(x) > 8:
                raise RuntimeError("DefaultCPUAllocator: not enough memory")
            return super().forward(x, y)

    monkeypatch.setattr(torchattacks, "Leaves", Greedy, raising=False)
    split, said = digits.test.sample(20), []
    evaluate(net, split, {"greedy": foreign_attack("torchattacks:Leaves", LINF)}, progress=said.append)
    assert any("going on with" in one.note for one in said)


@dataclass(frozen=True)
class Mine:
    """As CONTRIBUTING.md writes an attack."""

    threat: Threat
    factor: float = 1.0

    def __call__(self, model, x, y, *, generator=None, rng=None):
        return x + self.factor * self.threat.eps * (2 * rng.uniform(*x.shape[1:]) - 1).sign().where(
            (x > 0.1) & (x < 0.9), 0
        )


def plain(model, x, y, generator=None, rng=None):
    return x.clone()


def loaded(made):
    return lambda spec: (made, f"code of {spec}")


def test_what_users_write_is_an_attack_or_makes_one(net, batch):
    x, y = batch
    attack = foreign_attack("some/mine.py:Mine(factor=1/2)", LINF, loaded(Mine))
    assert repr(attack) == "mine.py:Mine(factor=0.5) within Linf 0.1, code of some/mine.py:Mine"
    assert attack.asked.label == "mine Mine"
    found = attack(net, x, y, generator=generator())
    assert valid(found, x, LINF).all()
    inside = (x > 0.1) & (x < 0.9)
    torch.testing.assert_close((found - x).abs()[inside], torch.full_like(x, 0.05)[inside])
    for made in (plain, Mine(LINF)):
        foreign_attack("mine:made", LINF, loaded(made))(net, x, y)
        with pytest.raises(InputError, match=r"made\(a=1\) is an attack already, which takes no arguments"):
            foreign_attack("mine:made(a=1)", LINF, loaded(made))
    with pytest.raises(InputError, match=r"Mine\(factr=1\) cannot be made .*: it takes factor."):
        foreign_attack("mine:Mine(factr=1)", LINF, loaded(Mine))
    with pytest.raises(InputError, match="is no attack"):
        foreign_attack("mine:NUMBER", LINF, loaded(3))
    with pytest.raises(InputError, match=r"make\(\) fails \(KeyError: 'no'\): correct it"):
        foreign_attack("mine:make", LINF, loaded(lambda: {}["no"]))
    with pytest.raises(InputError, match=r"The answer of mine:f\(\) is torch.float32 \(\): it must be images"):
        foreign_attack("mine:f", LINF, loaded(lambda model, x, y, generator=None, rng=None: x.sum()))(net, x, y)


def test_packages_offer_attacks_as_entry_points(monkeypatch, net, batch):
    entry = EntryPoint("corners", f"{__name__}:Mine", "robustlib.attacks")
    vars(entry).update(dist=SimpleNamespace(name="corners-attack", version="1.2"))
    found = EntryPoints([entry])
    monkeypatch.setattr("robustlib.data.plugins.entry_points", lambda group: found.select(group=group))
    attack = foreign_attack("corners(factor=0.5)", LINF)
    assert repr(attack) == "corners(factor=0.5) within Linf 0.1, corners-attack 1.2"
    assert attack.asked.label == "corners"
    attack(net, *batch)
    with pytest.raises(InputError, match=r"Unknown attack 'corner'\. Did you mean 'corners'"):
        foreign_attack("corner", LINF)


def test_a_file_is_found_from_elsewhere_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    assert absolute_spec("mine.py:Mine(k=3)") == f"{tmp_path}/mine.py:Mine(k=3)"
    assert absolute_spec("torchattacks:PGD(steps=3)") == "torchattacks:PGD(steps=3)"
