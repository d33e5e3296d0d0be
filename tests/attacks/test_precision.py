"""The precision of searches: the one that costs less, by enough, measured once."""

from dataclasses import replace

import pytest
import torch

from robustlib.attacks import PGD, AutoAttack, Threat, fastest_precision, in_precision
from robustlib.attacks import precision as module
from tests.attacks.conftest import QUICK, name
from tests.conftest import ConvNet, Linear


@pytest.mark.parametrize(
    ("half", "chosen"), [(0.5, "bf16-mixed"), (0.62, "bf16-mixed"), (0.63, "32-true"), (2.0, "32-true")]
)
def test_bf16_is_taken_where_it_wins_by_enough(monkeypatch, half, chosen):
    met = []

    def seconds(attack, model, x, y):
        met.append(attack.precision)
        slow = 9 if len(met) in (1, 2, 5, 6, 9) else 1  # the first of each warms up, and once the machine is busy
        return slow * (half if attack.precision == "bf16-mixed" else 1.0)

    monkeypatch.setattr(module, "_gains", {})
    monkeypatch.setattr(module, "_seconds", seconds)
    x = torch.rand(4, 3, 8, 8)
    assert fastest_precision(ConvNet().eval(), x) == chosen
    assert met[:4] == ["32-true", "bf16-mixed"] * 2
    count = len(met)
    assert (fastest_precision(ConvNet().eval(), x), len(met)) == (chosen, count), "measured once"
    fastest_precision(ConvNet().eval(), x[:2])
    assert len(met) == 2 * count, "other images may have another answer"


def test_where_bf16_is_emulated_a_look_at_few_images_decides(monkeypatch):
    """A whole measurement of a ResNet-18 took minutes there, before each evaluation."""
    met = []

    def seconds(attack, model, x, y):
        met.append((len(x), attack.steps))
        return 1.0 if attack.precision == "32-true" else slower

    monkeypatch.setattr(module, "_seconds", seconds)
    for slower, taken in ((2.5, [(8, 1)] * 4), (1.9, [(8, 1)] * 4 + [(32, 3)] * 8)):
        monkeypatch.setattr(module, "_gains", {})
        assert module.bf16_gain(ConvNet().eval(), torch.rand(32, 3, 8, 8)) == pytest.approx(1 / slower)
        assert met == taken
        met.clear()


def test_the_measurement_runs_and_draws_no_numbers_of_others(monkeypatch):
    monkeypatch.setattr(module, "_gains", {})
    model, x = ConvNet().eval(), torch.rand(4, 3, 8, 8)
    model(x)
    before = torch.get_rng_state()
    assert fastest_precision(model, x) in ("32-true", "bf16-mixed")
    assert torch.equal(before, torch.get_rng_state())


def test_attacks_change_their_precision_and_others_stay():
    threat, other = Threat("linf", 0.1), lambda model, x, y, *, rng=None: x
    assert in_precision(PGD(threat), "bf16-mixed") == PGD(threat, precision="bf16-mixed")
    assert in_precision(other, "bf16-mixed") is other
    parts = in_precision(AutoAttack(threat), "bf16-mixed").components(10)
    assert {part.precision for part in parts.values()} == {"bf16-mixed"}


@pytest.mark.parametrize("attack", QUICK, ids=name)
def test_what_bf16_cannot_tell_from_a_success_is_searched_again_in_float32(attack, monkeypatch):
    searched, whole = [], type(attack)._run

    def run(self, active_set):
        searched.append((self.precision, len(active_set.active)))
        if self.precision == "32-true":
            whole(self, active_set)

    monkeypatch.setattr(type(attack), "_run", run)
    model = Linear(2, (1, 1, 2)).requires_grad_(False)
    model.map.weight[:], model.map.bias[:] = 8 * torch.eye(2), 0
    x, y = torch.tensor([[0.8, 0.79], [0.8, 0.78], [0.9, 0.1]]).view(3, 1, 1, 2), torch.zeros(3, dtype=torch.int64)
    x_adv = replace(attack, precision="bf16-mixed", threat=Threat("linf", 0.1))(model, x, y)
    assert searched == [("bf16-mixed", 3), ("32-true", 1)], "margins of 1.25 %, 2.5 % and 89 % of the largest logit"
    assert (model(x_adv).argmax(1) == 0).tolist() == [False, True, True]


def test_pgd_that_stops_early_searches_again_too(monkeypatch):
    """Whatever of several starts: its last iterate decides."""
    searched, ascend = [], PGD._ascend

    def record(self, oracle, batch, start, steps):
        searched.append((self.precision, len(start)))
        return start if self.precision == "bf16-mixed" else ascend(self, oracle, batch, start, steps)

    monkeypatch.setattr(PGD, "_ascend", record)
    model = Linear(2, (1, 1, 2)).requires_grad_(False)
    model.map.weight[:], model.map.bias[:] = 8 * torch.eye(2), 0
    x, y = torch.tensor([[0.8, 0.79], [0.8, 0.78], [0.9, 0.1]]).view(3, 1, 1, 2), torch.zeros(3, dtype=torch.int64)
    attack = PGD(Threat("linf", 0.1), early_stop=True, start="zero", precision="bf16-mixed")
    assert (model(attack(model, x, y)).argmax(1) == 0).tolist() == [False, True, True]
    assert searched == [("bf16-mixed", 3), ("32-true", 1)]
    aim = 1 - y
    x_adv = replace(attack, targeted=True)(model, x, y, target=aim, start=x)
    assert (model(x_adv).argmax(1) == 0).tolist() == [False, True, True]
