"""An evaluation that is killed, starved of memory, or handed a state of something else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import PGD, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import Progress, evaluate
from tests import ROOT
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
    seconds: float = 0.0

    def __call__(self, model, x, y, *, generator=None, rng=None):
        time.sleep(self.seconds)
        start = self.threat.random_start(x, rng.uniform(*x.shape[1:]))
        return self.threat.project(start + 0.01 * torch.randn_like(x), x)


@dataclass(frozen=True)
class Pair:
    """A cascade of two."""

    threat: Threat
    seconds: float = 0.0

    def components(self, classes: int):
        return {"shaky": Shaky(self.threat, self.seconds), "pgd": PGD(self.threat, steps=2)}

    def __call__(self, model, x, y, *, generator=None, rng=None):
        raise AssertionError("a cascade is called component by component")


def case(stochastic: bool = False) -> tuple[nn.Module, Split]:
    """The same model and images in every process."""
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


def run(stochastic: bool, state: Path | str | None = None, seconds: float = 0.0, **options) -> pd.DataFrame:
    model, split = case(stochastic)
    attacks = {"shaky": Shaky(THREAT, seconds), "pair": Pair(THREAT, seconds)}
    return evaluate(model, split, attacks, batch_size=8, state=state, draws=4 if stochastic else None, **options)


SCRIPT = "import sys; from tests.evaluation.test_cache import run; run({stochastic}, sys.argv[1], 0.05)"


@pytest.mark.parametrize("stochastic", [False, True])
def test_killed_twice_it_ends_with_the_records_of_an_uninterrupted_run(tmp_path, stochastic):
    state, script = tmp_path / "state", SCRIPT.format(stochastic=stochastic)
    for parts in (10, 18):  # in the middle of the first attack, then of the cascade
        process = subprocess.Popen([sys.executable, "-c", script, str(state)], cwd=ROOT)
        end = time.monotonic() + 120
        while len(list(state.glob("part-*"))) < parts:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = {file: file.stat().st_mtime_ns for file in state.glob("part-*")}
    resumed = run(stochastic, state, seconds=0.05)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items()), "finished batches are not redone"
    pd.testing.assert_frame_equal(resumed, run(stochastic, seconds=0.05), check_exact=True)
    again: list[Progress] = []
    pd.testing.assert_frame_equal(run(stochastic, state, seconds=0.05, progress=again.append), resumed)
    assert all(p.done == p.total and p.eta is None for p in again), "nothing is left to do"


def state_of(tmp_path: Path) -> tuple[Path, nn.Module, Split, dict]:
    model, split = case()
    attacks = {"pgd": PGD(THREAT, steps=2)}
    evaluate(model, split, attacks, state=tmp_path / "state")
    return tmp_path / "state", model, split, attacks


def test_a_state_of_something_else_is_refused_and_the_difference_named(tmp_path):
    state, model, split, attacks = state_of(tmp_path)
    other, _ = case()
    with torch.no_grad():
        other.map.bias += 1e-3
    warmer, _ = case()
    warmer.temperature = 2.0  # a plain attribute may change what a model does
    mislabelled = Split(split.images, split.labels.flip(0), split.indices)
    changed = [
        ("another model ", lambda: evaluate(other, split, attacks, state=state)),
        ("another model ", lambda: evaluate(warmer, split, attacks, state=state)),
        ("another split ", lambda: evaluate(model, mislabelled, attacks, state=state)),
        ("another split ", lambda: evaluate(model, split.select(torch.arange(9)), attacks, state=state)),
        (r"another attack pgd .*steps=2.*steps=3", lambda: evaluate(model, split, {"pgd": PGD(THREAT, steps=3)}, state=state)),
        (r"another attack b \(none there", lambda: evaluate(model, split, attacks | {"b": Shaky(THREAT)}, state=state)),
        (r"another attack pgd .*none now", lambda: evaluate(model, split, {}, state=state)),
        (r"another seed \(0 there, 1 now", lambda: evaluate(model, split, attacks, seed=1, state=state)),
        ("another draws", lambda: evaluate(model, split, attacks, draws=2, state=state)),
        ("another batch_size", lambda: evaluate(model, split, attacks, batch_size=2, state=state)),
    ]  # fmt: skip
    for sentence, call in changed:
        with pytest.raises(InputError, match=f"{sentence}.*delete that directory"):
            call()
    assert len(evaluate(model, split, attacks, state=state)) == 120


def test_damaged_and_orphaned_states(tmp_path):
    state, model, split, attacks = state_of(tmp_path)
    (part,) = state.glob("part-000-*")
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InputError, match=r"part-000.*is damaged.*delete"):
        evaluate(model, split, attacks, state=state)
    (state / "protocol.json").unlink()  # now nobody knows what the parts are of
    pd.testing.assert_frame_equal(evaluate(model, split, attacks, state=state), evaluate(model, split, attacks))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory"):
        evaluate(model, split, attacks, state=tmp_path / "file" / "state")


def test_a_new_memory_address_is_no_new_attack(tmp_path):
    class Plain:
        def __call__(self, model, x, y, *, generator=None, rng=None):
            return x

    model, split = case()
    for attack in (Plain(), Plain()):
        assert len(evaluate(model, split, {"plain": attack}, state=tmp_path)) == 120


@dataclass(frozen=True)
class Hungry:
    """Needs memory for each image, and searches at random."""

    threat: Threat
    fits: int
    error: Callable[[], BaseException]

    def __call__(self, model, x, y, *, generator=None, rng=None):
        if len(x) > self.fits:
            raise self.error()
        return self.threat.random_start(x, rng.uniform(*x.shape[1:]))


ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "python": MemoryError,
}


@pytest.mark.parametrize("error", list(ERRORS))
def test_half_the_batch_when_memory_runs_out_changes_no_record(tmp_path, error):
    model, split = case()
    hungry, said = Hungry(THREAT, 8, ERRORS[error]), []
    records = evaluate(model, split, {"h": hungry}, batch_size=32, state=tmp_path / "state", progress=said.append)
    plenty = evaluate(model, split, {"h": replace(hungry, fits=99)}, batch_size=32)
    pd.testing.assert_frame_equal(records, plenty, rtol=1e-5, atol=1e-6)
    notes = [p.note for p in said if p.note]
    assert notes == [f"Out of memory with {n} images at a time: going on with {n // 2}." for n in (32, 16)]
    for part in (tmp_path / "state").glob("part-001-0000001*"):
        part.unlink()
    said.clear()
    evaluate(model, split, {"h": hungry}, batch_size=32, state=tmp_path / "state", progress=said.append)
    assert not [p for p in said if p.note], "what fits is remembered"


def test_no_memory_for_one_image_and_other_errors():
    model, split = case()
    with pytest.raises(InputError, match="h needs more memory than there is for a single image"):
        evaluate(model, split, {"h": Hungry(THREAT, 0, ERRORS["cuda"])})
    with pytest.raises(RuntimeError, match="size mismatch"):
        evaluate(model, split, {"h": Hungry(THREAT, 0, lambda: RuntimeError("size mismatch"))})


def test_progress_counts_examples_and_foresees_the_end():
    said: list[Progress] = []
    run(False, seconds=0.01, progress=said.append)
    steps = list(dict.fromkeys((p.attack, p.surrogate, p.component) for p in said))
    assert steps == [("clean", "", ""), ("shaky", "", ""), ("pair", "", "shaky"), ("pair", "", "pgd")]
    shaky = [p for p in said if p.attack == "shaky"]
    assert [p.done for p in shaky] == [0, 8, 16, 24, 32, 40, 48, 50]  # 10 of 60 are wrong without an attack
    assert shaky[0].eta is None
    assert (shaky[1].eta, shaky[-1].eta) == (pytest.approx(shaky[1].seconds * 42 / 8), 0)
    assert next(p.total for p in said if p.component == "pgd") < 50
