"""The loop's promises: a resumed training equals an undisturbed one, stages and passes run as told, trouble is said."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn import init

from robustlib.errors import InputError
from robustlib.runs import Run
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, cosine, loop, step
from robustlib.training.loop import moving_average
from tests.training_fixtures import small, train


def same(one, other):
    """Whether two runs have the same weights, and the same metrics but for the time they took."""
    metrics = [run.metrics().drop(columns="seconds").to_json() for run in (one, other)]
    states = [[run.model(which).state_dict() for which in ("best", "last")] for run in (one, other)]
    return metrics[0] == metrics[1] and all(
        torch.equal(value, theirs[key]) for mine, theirs in zip(*states, strict=True) for key, value in mine.items()
    )


def run_below(root):
    """The one run that was begun there."""
    (params,) = root.rglob("params.json")
    return Run(params.parent)


def cross_entropy(model, optimiser="all"):
    """Updates by the loss of the model."""

    def updates(batch, context):
        yield optimiser, Loss(F.cross_entropy(model(batch.x), batch.y))

    return updates


def interrupt(monkeypatch, owner, name, at):
    """Breaks off at the `at`-th call of `owner.name`; returns the list that counts its calls."""
    real, calls = getattr(owner, name), []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    return calls


# ---- resuming

CHILD = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from robustlib.data import load_dataset
from robustlib.training import checkpoint, fit, loop
from tests.conftest import hardly_validated
from tests.training_fixtures import small
root, precision, where, count = sys.argv[1:]
left = int(count)
def deadly(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
owner, name = {
    "step": (loop.Training, "_step"),
    "between checkpoint and metrics": (checkpoint, "write_metrics"),
    "between weights and checkpoint": (checkpoint, "save"),
}[where]
setattr(owner, name, deadly(getattr(owner, name)))
few = hardly_validated(load_dataset("digits"))
fit(small(ema=0.9), few, root=root, device="cpu", precision=precision, threads=1, progress=False)
"""


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_killed_at_several_points_it_ends_as_if_undisturbed(tmp_path, few, precision):
    undisturbed = train(small(ema=0.9), few, tmp_path / "a", precision=precision)
    kills = [("step", 5), ("between checkpoint and metrics", 2), ("between weights and checkpoint", 1)]
    for where, count in kills[: 3 if precision == "32-true" else 1]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "b"), precision, where, str(count)]
        child = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert child.returncode == -9, child.stderr
    broken_off = run_below(tmp_path / "b")
    assert broken_off.status()["state"] == "interrupted"
    assert len(broken_off.metrics()) >= 2
    resumed = train(small(ema=0.9), few, tmp_path / "b", precision=precision)
    assert resumed.path.name == undisturbed.path.name
    assert same(resumed, undisturbed)


def test_an_exception_is_recorded_and_the_same_call_resumes(tmp_path, few, monkeypatch):
    method, steps = small("trades"), interrupt(monkeypatch, loop.Training, "_step", 8)
    with pytest.raises(KeyboardInterrupt):
        train(method, few, tmp_path)
    run = run_below(tmp_path)
    assert run.status()["state"] == "interrupted"
    assert not run.finished
    train(method, few, tmp_path)
    assert run.finished
    assert len(steps) == 4 * 3 + 2  # the two steps of the broken epoch were made twice, no other
    assert list(run.metrics().epoch) == [0, 1, 2, 3, 4]


# ---- stages, passes, generators


@dataclass(frozen=True)
class Scripted:
    """A method that writes down what the loop asks of it."""

    log: list
    name = title = "scripted"
    arch = "mlp"
    batch_size = 64
    train_examples = 128
    preset = "digits"
    numerics = ()

    def hyperparameters(self, *_) -> dict[str, Any]:
        return {}

    model_options = changes = advice = hyperparameters

    def threat(self, dataset):
        return dataset.threat

    def command(self, *_):
        return "none"

    def stages(self, dataset, model):
        head, body = list(model.head.parameters()), list(model.encoder.parameters())

        def head_only(batch, context):
            self.log.append(("head", context.epoch, context.step, id(batch.x)))
            yield "head", Loss(F.cross_entropy(model(batch.x), batch.y), {"half": 0.5})

        def both(batch, context):
            frozen = [p.clone() for p in body]
            try:
                yield "head", Loss(F.cross_entropy(model(batch.x), batch.y))
                assert all(torch.equal(a, b) for a, b in zip(frozen, body, strict=True))
                yield "body", Loss(F.cross_entropy(model(batch.x), batch.y))
                assert not torch.equal(frozen[0], body[0])
            finally:
                self.log.append(("closed", context.epoch, context.step, round(context.progress, 3)))

        optimisers = {
            "head": OptimizerSpec(head, 0.1, "adam", schedule=cosine(2)),
            "body": OptimizerSpec(body, 0.1, momentum=0.0, schedule=step((1,), 0.5)),
        }
        passes = (Pass(head_only, "refresh", repeats=2, reset_optimizers=("head",)), Pass(both, augment="none"))

        probes = {"norm": lambda model, batch: model(batch.x).norm()}
        return [
            Stage("first", 2, optimisers, passes, begin=lambda: self.log.append(("begin",)), probes=probes),
            Stage("second", 1, {"body": OptimizerSpec(body, 0.01)}, (Pass(cross_entropy(model, "body")),)),
        ]


def test_stages_passes_and_generators_run_as_told(tmp_path, few):
    log: list = []
    rows = train(Scripted(log), few, tmp_path).metrics()
    assert [entry[0] for entry in log] == ["begin"] + (["head"] * 4 + ["closed"] * 2) * 2
    assert [e[3] for e in log if e[0] == "closed"] == [0.125, 0.375, 0.625, 0.875]
    assert list(rows.stage) == ["first"] * 3 + ["second"] * 2
    assert list(rows.epoch_total) == [0, 1, 2, 2, 3]
    assert rows["probe/norm"].notna().tolist() == [True] * 3 + [False] * 2
    assert rows["refresh/head/half"].iloc[1] == 0.5


def test_a_pass_begins_and_is_probed_before_its_first_repeat(tmp_path, few):
    log: list = []

    class Begun(Scripted):
        def stages(self, dataset, model):
            def note(what):
                return lambda *_: (log.append(what), float(torch.rand(())))[1]

            def learn(name):
                return lambda *args: (log.append(name), cross_entropy(model)(*args))[1]

            one = Pass(learn("one"), "one", repeats=2, begin=note("begin one"))
            two = Pass(learn("two"), "two", begin=note("begin two"), probes={"start": note("start")})
            optimisers = {"all": OptimizerSpec(model.parameters(), 0.0)}
            return [Stage("only", 2, optimisers, (one, two), probes={"end": note("end")})]

    rows = train(Begun([]), few, tmp_path).metrics()
    steps = log[2:].index("begin two") // 2  # of a pass
    epoch = ["begin one", *["one"] * (2 * steps), "begin two", "start", *["two"] * steps, "end"]
    assert log == ["end", *epoch, *epoch]
    assert rows["probe/start"].notna().tolist() == [False, True, True]
    assert rows["probe/end"].notna().all()
    assert rows["probe/start"][1] != rows["probe/start"][2], "each epoch draws its own numbers"
    assert train(Begun([]), few, tmp_path / "again").metrics()["probe/start"].equals(rows["probe/start"])


@dataclass(frozen=True)
class TwoStages(Scripted):
    """The second stage draws when it begins, and uses a module that the first one trained."""

    def stages(self, dataset, model):
        teacher = torch.nn.Linear(10, 10)
        both = OptimizerSpec([*model.parameters(), *teacher.parameters()], 0.1)
        learn = cross_entropy(lambda x: teacher(model(x)))
        make = {"optimisers": {"all": both}, "passes": (Pass(learn),), "modules": {"teacher": teacher}}
        return [Stage("first", 1, **make), Stage("second", 2, **make, begin=partial(init.normal_, model.head.weight))]


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    return train(TwoStages([]), few, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("broken", [1, 2, 3, 4])
def test_a_stage_change_resumes_exactly(tmp_path, few, undisturbed, monkeypatch, broken):
    """Broken off before the n-th validation: in the first stage, right after it, and within the second."""
    interrupt(monkeypatch, loop, "validate", broken)
    with pytest.raises(KeyboardInterrupt):
        train(TwoStages([]), few, tmp_path)
    torch.manual_seed(99)
    assert same(train(TwoStages([]), few, tmp_path), undisturbed)


@dataclass(frozen=True)
class Ending(Scripted):
    """Each stage looks at what it leaves; the second one is not content."""

    def stages(self, dataset, model):
        def end(which):
            def look(shown, batch):
                self.log.append((which, shown is model, len(batch)))
                if which == "second":
                    raise InputError("It has learnt nothing.")

            return look

        optimisers, passes = {"all": OptimizerSpec(model.parameters(), 0.1)}, (Pass(cross_entropy(model)),)
        return [Stage(name, 2, optimisers, passes, end=end(name)) for name in ("first", "second")]


def test_a_stage_can_fail_at_its_end(tmp_path, digits):
    log: list = []
    for _ in range(2):  # a resumed training fails again
        with pytest.raises(InputError, match="learnt nothing"):
            train(Ending(log), digits, tmp_path)
    assert log == [(which, True, min(len(digits.val), 256)) for which in ("first", "second", "second")]
    run = run_below(tmp_path)
    assert run.status()["state"] == "failed"
    assert "learnt nothing" in run.status()["reason"]
    assert not (run.path / "last.safetensors").exists()
    assert list(run.metrics().stage) == ["first"] * 3 + ["second"] * 3


def test_nan_losses_stop_the_training_with_a_sentence(tmp_path, few):
    with pytest.raises(FloatingPointError, match="NaN in epoch 1 of stage 'standard'"):
        train(small("standard", lr=1e30), few, tmp_path)
    assert "NaN" in run_below(tmp_path).status()["reason"]


def test_ema_averages_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema, start = moving_average(model, 0.9), model[0].weight.detach().clone()
    expected = start.clone()
    for t in range(50):
        with torch.no_grad():
            model[0].weight.add_(1)
            model[1].running_mean.add_(1)
        ema.update_parameters(model)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    assert torch.allclose(ema.module[0].weight, expected, rtol=1e-5)
    assert 35 < ema.module[1].running_mean[0] < 50
