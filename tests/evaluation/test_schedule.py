"""An evaluation that is interrupted, starved of memory, or handed a state of something else; and who meets which attack."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import APGD, PGD, AutoAttack, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import Progress, evaluate
from robustlib.evaluation.protocols import StochasticProtocol, adaptive_attacks
from robustlib.evaluation.schedule import adapt, compatible_attacks, group_surrogates, select_views
from robustlib.rng import uniform_point
from tests.conftest import Linear

THREAT = Threat("linf", 0.2)


class Noisy(Linear):
    """Adds noise from torch's global generator to each answer."""

    stochastic = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


@dataclass(frozen=True)
class Shaky:
    """Random corners, partly from torch's global generator: what only seeding by position makes repeatable."""

    threat: Threat

    def __call__(self, model, x, y, *, generator=None, rng=None):
        start = uniform_point(self.threat, x, rng)
        return self.threat.project(start + 0.01 * torch.randn_like(x), x)


def case(stochastic: bool = False) -> tuple[nn.Module, Split]:
    source = torch.Generator().manual_seed(3)
    model = (Noisy if stochastic else Linear)(classes=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=source)
    with torch.no_grad():
        labels = Linear.forward(model, images / 255).argmax(1)
    labels[::6] = (labels[::6] + 1) % 4
    return model, Split(images, labels, torch.arange(100, 160))


def run(stochastic: bool, state: Path | None = None, **options) -> pd.DataFrame:
    shaky, draws = Shaky(THREAT), 4 if stochastic else None
    pair = AutoAttack(THREAT, version="custom", attacks=(("shaky", shaky), ("pgd", PGD(THREAT, steps=2))))
    attacks = {"shaky": shaky, "pair": pair}
    return evaluate(*case(stochastic), attacks, batch_size=8, state=state, draws=draws, **options)


@pytest.mark.parametrize("stochastic", [False, True])
def test_interrupted_twice_it_ends_with_the_records_of_an_uninterrupted_run(tmp_path, monkeypatch, stochastic):
    def interrupt(parts):
        if len(list(tmp_path.glob("part-*"))) >= parts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stochastic, tmp_path, progress=lambda _: interrupt(10))  # in the first attack
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths, move=os.replace: interrupt(18) or move(*paths))
        with pytest.raises(KeyboardInterrupt):
            run(stochastic, tmp_path)  # in the cascade, while a part is written
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    resumed = run(stochastic, tmp_path)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items()), "finished batches are not redone"
    pd.testing.assert_frame_equal(resumed, run(stochastic), check_exact=True)
    again: list[Progress] = []
    pd.testing.assert_frame_equal(run(stochastic, tmp_path, progress=again.append), resumed)
    assert all(p.done == p.total and p.eta is None for p in again), "nothing is left to do"


ATTACKS = {"pgd": PGD(THREAT, steps=2)}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    evaluate(*case(), ATTACKS, state=tmp_path / "state")
    return tmp_path / "state"


def test_a_state_of_something_else_is_refused_and_the_difference_named(state):
    (model, split), (other, _), (warmer, _), attacks = case(), case(), case(), ATTACKS
    with torch.no_grad():
        other.map.bias += 1e-3
    warmer.temperature = 2.0  # a plain attribute may change what a model does
    mislabelled = replace(split, labels=split.labels.flip(0))
    for sentence, given, options in (
        ("another model ", (other, split, attacks), {}),
        ("another model ", (warmer, split, attacks), {}),
        ("another split ", (model, mislabelled, attacks), {}),
        ("another split ", (model, split.select(torch.arange(9)), attacks), {}),
        (r"another attack pgd .*steps=2.*steps=3", (model, split, {"pgd": PGD(THREAT, steps=3)}), {}),
        (r"another attack b \(none there", (model, split, attacks | {"b": Shaky(THREAT)}), {}),
        (r"another attack pgd .*none now", (model, split, {}), {}),
        (r"another seed \(0 there, 1 now", (model, split, attacks), {"seed": 1}),
        ("another draws", (model, split, attacks), {"draws": 2}),
        ("another batch_size", (model, split, attacks), {"batch_size": 2}),
    ):
        with pytest.raises(InputError, match=f"{sentence}.*delete that directory"):
            evaluate(*given, state=state, **options)
    assert len(evaluate(model, split, attacks, state=state)) == 120


def test_damaged_and_orphaned_states(state):
    (part,) = state.glob("part-000-*")
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InputError, match=r"part-000.*is damaged.*delete"):
        evaluate(*case(), ATTACKS, state=state)
    (state / "protocol.json").unlink()  # now nobody knows what the parts are of
    pd.testing.assert_frame_equal(evaluate(*case(), ATTACKS, state=state), evaluate(*case(), ATTACKS))
    with pytest.raises(InputError, match="Not a directory"):
        evaluate(*case(), ATTACKS, state=state / "protocol.json" / "state")


def test_a_new_memory_address_is_no_new_attack(tmp_path):
    for attack in [lambda model, x, y, **_: x for _ in range(2)]:
        assert len(evaluate(*case(), {"plain": attack}, state=tmp_path)) == 120


@dataclass(frozen=True)
class Hungry:
    """Needs memory for each image, and searches at random."""

    threat: Threat
    fits: int
    error: Callable[[], BaseException]

    def __call__(self, model, x, y, *, generator=None, rng=None):
        if len(x) > self.fits:
            raise self.error()
        return uniform_point(self.threat, x, rng)


ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "python": MemoryError,
}


@pytest.mark.parametrize("error", list(ERRORS))
def test_half_the_batch_when_memory_runs_out_changes_no_record(tmp_path, error):
    hungry, said = Hungry(THREAT, 8, ERRORS[error]), []
    records = evaluate(*case(), {"h": hungry}, batch_size=32, state=tmp_path, progress=said.append)
    plenty = evaluate(*case(), {"h": replace(hungry, fits=99)}, batch_size=32)
    pd.testing.assert_frame_equal(records, plenty, rtol=1e-5, atol=1e-6)
    notes = [p.note for p in said if p.note]
    assert notes == [f"Out of memory with {n} images at a time: going on with {n // 2}." for n in (32, 16)]
    for part in tmp_path.glob("part-001-0000001*"):
        part.unlink()
    said.clear()
    evaluate(*case(), {"h": hungry}, batch_size=32, state=tmp_path, progress=said.append)
    assert not [p for p in said if p.note], "what fits is remembered"


def test_no_memory_for_one_image_and_other_errors():
    with pytest.raises(InputError, match="h needs more memory than there is for a single image"):
        evaluate(*case(), {"h": Hungry(THREAT, 0, ERRORS["cuda"])})
    with pytest.raises(RuntimeError, match="size mismatch"):
        evaluate(*case(), {"h": Hungry(THREAT, 0, lambda: RuntimeError("size mismatch"))})


def test_progress_counts_examples_and_foresees_the_end():
    said: list[Progress] = []
    run(False, progress=said.append)
    steps = list(dict.fromkeys((p.attack, p.surrogate, p.component) for p in said))
    assert steps == [("clean", "", ""), ("shaky", "", ""), ("pair", "", "shaky"), ("pair", "", "pgd")]
    shaky = [p for p in said if p.attack == "shaky"]
    assert [p.done for p in shaky] == [0, 8, 16, 24, 32, 40, 48, 50]  # 10 of 60 are wrong without an attack
    assert (shaky[0].eta, shaky[1].eta, shaky[-1].eta) == (None, pytest.approx(shaky[1].seconds * 42 / 8), 0)
    assert next(p.total for p in said if p.component == "pgd") < 50


def view(**wishes):
    """A view that asks to be attacked in its own way."""
    model = Linear()
    vars(model).update(wishes)
    return model


def test_a_view_has_its_own_objective():
    plain, wish, pgd = view(), view(objective="nll"), PGD(THREAT)
    assert adapt(pgd, wish).objective == adapt(APGD(THREAT), wish).objective == "nll"
    assert adapt(replace(pgd, objective="margin"), wish).objective == "margin"
    assert adapt(pgd, plain) is pgd
    assert adapt(pgd, view(target=2)).targeted
    views = {"a": plain, "joint": wish, "gate 0": view(target=0)}
    many, cascade = replace(pgd, restarts=2), AutoAttack(THREAT)
    for attack, given, met in ((many, views, "joint"), (cascade, views, "a"), (many, {"a": plain}, "a")):
        assert [*select_views(attack, group_surrogates(given))] == [met]


def test_random_views_meet_what_averages_and_others_what_does_not():
    attacks = adaptive_attacks(THREAT, True, StochasticProtocol(pgd_eot=(2, 2), autoattack=(1, 2)))
    assert list(compatible_attacks(attacks, view(stochastic=True))) == ["pgd_eot"]
    assert list(compatible_attacks(attacks, view(stochastic=False))) == ["pgd20", "aa_standard"]
    alone = {"pgd": PGD(THREAT)}
    assert compatible_attacks(alone, view(stochastic=True)) == alone, "better than nothing"
