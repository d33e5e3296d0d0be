"""The loop's promises: a resumed training equals an undisturbed one, stages and passes run as told, trouble is said."""

import os
from functools import partial
from itertools import count
from multiprocessing import get_context
from signal import SIGKILL

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.nn import init

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.methods.baselines import Standard, clean_updates
from robustlib.training import (
    Loss,
    OptimizerSpec,
    Pass,
    Stage,
    cosine,
    loop,
    one_cycle,
    piecewise,
    step,
    validation,
    warm_up_cosine,
)
from robustlib.training.loop import Training, moving_average
from tests.accelerator import Launches
from tests.conftest import hardly_validated
from tests.training_fixtures import interrupt, run_below, same_runs, same_state, tiny, train

OBSERVED = tiny("pgd_at", epochs=4, ema=0.9)
POINTS = {
    "a step": (loop.Training, "_step", 5),
    "between checkpoint and metrics": (loop, "write_atomic", 3),
    "between checkpoint and weights": (loop, "save_weights", 1),
}


def killed(root, precision, where):
    """For a process of its own: a training that ends at a point as by `kill -9`."""
    owner, name, at = POINTS[where]
    real, calls = getattr(owner, name), count(1)
    setattr(owner, name, lambda *a, **kw: os.kill(os.getpid(), SIGKILL) if next(calls) == at else real(*a, **kw))
    train(OBSERVED, hardly_validated(load_dataset("digits")), root, precision=precision)


@pytest.mark.parametrize(("precision", "points"), [("32-true", [*POINTS]), ("bf16-mixed", ["a step"])])
def test_killed_at_several_points_it_ends_as_if_undisturbed(tmp_path, few, precision, points):
    undisturbed, processes = train(OBSERVED, few, tmp_path / "a", precision=precision), get_context("forkserver")
    processes.set_forkserver_preload([__name__, "lightning_fabric", "sklearn.datasets"])  # slow imports, made once
    for where in points:
        child = processes.Process(target=killed, args=(tmp_path / "b", precision, where))
        child.start()
        child.join()
        assert child.exitcode == -SIGKILL
    run = run_below(tmp_path / "b")
    assert run.status()["state"] == "interrupted"
    assert len(run.metrics()) >= 2
    resumed = train(OBSERVED, few, tmp_path / "b", precision=precision)
    assert resumed.path.name == undisturbed.path.name
    assert same_runs(resumed, undisturbed)


def test_an_exception_is_recorded_and_the_same_call_resumes(tmp_path, few, monkeypatch):
    method, steps = tiny("trades", epochs=4), interrupt(monkeypatch, loop.Training, "_step", 8)
    with pytest.raises(KeyboardInterrupt):
        train(method, few, tmp_path)
    run = run_below(tmp_path)
    assert run.status()["state"] == "interrupted"
    assert not run.finished
    train(method, few, tmp_path)
    assert run.finished
    assert len(steps) == 4 * 3 + 2  # the two steps of the broken epoch were made twice, no other
    assert list(run.metrics().epoch) == [0, 1, 2, 3, 4]


def scripted(make):
    """A method with the stages that `make` gives for a model."""

    class Scripted(Standard):
        name = "scripted"

        def stages(self, dataset, model):
            return make(model)

    return Scripted(arch="mlp", batch_size=64, train_examples=128)


def test_stages_passes_probes_and_generators_run_as_told(tmp_path, few):
    log: list = []

    def note(what):
        return lambda *_: (log.append(what), torch.rand(()))[1]

    def stages(model):
        head, body = list(model.head.parameters()), list(model.encoder.parameters())

        def head_only(batch, context):
            log.append("head")
            yield "head", Loss(F.cross_entropy(model(batch.x), batch.y), {"half": 0.5})

        def both(batch, context):
            frozen = [p.clone() for p in body]
            try:
                yield "head", Loss(F.cross_entropy(model(batch.x), batch.y))
                assert all(torch.equal(a, b) for a, b in zip(frozen, body, strict=True))
                yield "body", Loss(F.cross_entropy(model(batch.x), batch.y))
                assert not torch.equal(frozen[0], body[0])
            finally:
                log.append(context.progress)

        optimisers = {
            "head": OptimizerSpec(head, 0.1, "adam", schedule=cosine(2)),
            "body": OptimizerSpec(body, 0.1, momentum=0.0, schedule=step((1,), 0.5)),
        }
        refresh = Pass(head_only, "refresh", repeats=2, reset_optimizers=("head",), begin=note("begin refresh"))
        last = Pass(both, augment="none", begin=note("begin both"), probes={"start": note("start")})
        first = Stage("first", 2, optimisers, (refresh, last), begin=note("begin"), probes={"end": note("end")})
        return [first, Stage("second", 1, {"model": OptimizerSpec(body, 0.01)}, (Pass(clean_updates(model)),))]

    def epoch(*progress):
        return ["begin refresh", *["head"] * 4, "begin both", "start", *progress, "end"]

    rows = train(scripted(stages), few, tmp_path).metrics()
    assert log == ["begin", "end", *epoch(0.125, 0.375), *epoch(0.625, 0.875)]
    assert list(rows.stage) == ["first"] * 3 + ["second"] * 2
    assert list(rows.epoch_total) == [0, 1, 2, 2, 3]
    assert rows["refresh/head/half"].iloc[1] == 0.5
    assert rows["probe/start"].notna().tolist() == [False, True, True, False, False]
    assert rows["probe/end"].notna().tolist() == [True] * 3 + [False] * 2
    assert rows["probe/start"][1] != rows["probe/start"][2], "each epoch draws its own numbers"
    assert train(scripted(stages), few, tmp_path / "again").metrics()["probe/start"].equals(rows["probe/start"])


def two_stages(model):
    """The second stage draws when it begins, and uses a module that the first one trained."""
    teacher = torch.nn.Linear(10, 10)
    both = OptimizerSpec([*model.parameters(), *teacher.parameters()], 0.1)
    learn = clean_updates(lambda x: teacher(model(x)))
    make = {"optimisers": {"model": both}, "passes": (Pass(learn),), "modules": {"teacher": teacher}}
    return [Stage("first", 1, **make), Stage("second", 2, **make, begin=partial(init.normal_, model.head.weight))]


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    return train(scripted(two_stages), few, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_stage_change_resumes_exactly(tmp_path, few, undisturbed, monkeypatch, at):
    """Interrupted before the n-th validation: in the first stage, right after it, and within the second."""
    interrupt(monkeypatch, loop, "validate", at)
    with pytest.raises(KeyboardInterrupt):
        train(scripted(two_stages), few, tmp_path)
    torch.manual_seed(99)
    assert same_runs(train(scripted(two_stages), few, tmp_path), undisturbed)


def test_a_stage_can_fail_at_its_end(tmp_path, digits):
    log: list = []

    def stages(model):
        def end(which, shown, batch):
            log.append((which, shown is model, len(batch)))
            if which == "second":
                raise InputError("It has learnt nothing.")

        optimisers, passes = {"model": OptimizerSpec(model.parameters(), 0.1)}, (Pass(clean_updates(model)),)
        return [Stage(name, 2, optimisers, passes, end=partial(end, name)) for name in ("first", "second")]

    for _ in range(2):  # a resumed training fails again
        with pytest.raises(InputError, match="learnt nothing"):
            train(scripted(stages), digits, tmp_path)
    assert log == [(which, True, min(len(digits.val), 256)) for which in ("first", "second", "second")]
    run = run_below(tmp_path)
    assert run.status()["state"] == "failed"
    assert "learnt nothing" in run.status()["reason"]
    assert not (run.path / "last.safetensors").exists()
    assert list(run.metrics().stage) == ["first"] * 3 + ["second"] * 3


def test_nan_losses_stop_the_training_with_a_sentence(tmp_path, few):
    with pytest.raises(FloatingPointError, match="loss became NaN or infinite in epoch 1 of stage 'standard'"):
        train(tiny("standard", lr=1e30), few, tmp_path)
    assert "NaN" in run_below(tmp_path).status()["reason"]


@pytest.mark.parametrize(("name", "at", "said"), [("_logits", 5, "logits on validation images"), ("_step", 1, "loss")])
def test_weights_without_finite_answers_are_no_trained_model(tmp_path, few, monkeypatch, name, at, said):
    """Finite weights, but infinite logits after the first epoch; or an infinite loss."""
    owner, calls = (validation if name == "_logits" else Training), count(1)
    real, worse = (
        getattr(owner, name),
        {"_logits": lambda z: z * torch.inf, "_step": lambda parts: {"loss": torch.tensor(torch.inf)}},
    )
    monkeypatch.setattr(owner, name, lambda *args: (worse[name] if next(calls) >= at else lambda x: x)(real(*args)))
    with pytest.raises(FloatingPointError, match=f"The {said} became NaN or infinite in epoch 1"):
        train(tiny("standard"), few, tmp_path)
    run = run_below(tmp_path)
    assert run.status()["state"] == "failed"
    assert not (run.path / "model.safetensors").exists()


def test_constant_predictions_are_a_warning(tmp_path, few):
    run = train(tiny("standard", lr=1e4, epochs=1), few, tmp_path)
    assert run.finished
    assert "constant predictions" in run.metrics()["warnings"].iloc[-1][0]


def test_weights_are_those_of_the_epochs_that_the_checkpoint_has_seen(tmp_path, few, monkeypatch):
    """On a device that repeats no number, an epoch that is trained again is another one, whose score the lost one must not have."""
    method = tiny("standard", arch="mlp_8", epochs=2, lr=0.05)
    whole = train(method, few, tmp_path / "whole")
    assert whole.metrics()["clean_val"].is_monotonic_increasing
    for owner, name, at in ((Training, "_save", 3), (loop, "save_weights", 2)):
        with monkeypatch.context() as patch:
            interrupt(patch, owner, name, at)
            with pytest.raises(KeyboardInterrupt):
                train(method, few, tmp_path / name)
            patch.undo()
            patch.setattr(Training, "_step", lambda *args: {})  # learns nothing any more
            resumed = train(method, few, tmp_path / name)
        assert same_state(resumed.model(), resumed.model("last"))
        assert same_state(resumed.model(), whole.model()) == (name == "save_weights"), "its last epoch was done"


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


def test_a_loss_that_does_not_step_adds_its_gradient_to_the_next_one(tmp_path, few):
    starts, ends = [], []

    def stages(model):
        def updates(batch, context):
            starts.append(model.head.bias.detach().clone())
            yield "model", Loss(3 * model.head.bias.sum(), step=False)
            assert torch.equal(model.head.bias, starts[-1])
            yield "model", Loss(4 * model.head.bias.sum() + 7)
            ends.append(model.head.bias.detach().clone())

        optimisers = {"model": OptimizerSpec(model.head.parameters(), 0.125, momentum=0.0)}
        return [Stage("only", 1, optimisers, (Pass(updates),))]

    rows = train(scripted(stages), few, tmp_path).metrics()
    assert all(torch.allclose(start - end, torch.tensor(7 / 8)) for start, end in zip(starts, ends, strict=True))
    assert rows["loss"].iloc[1] == pytest.approx(np.mean([4 * bias.sum().item() + 7 for bias in starts]), rel=1e-4)


def test_ema_takes_as_few_launches_for_many_tensors_as_for_one():
    model = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for _ in range(9))
    )
    ema = moving_average(model, 0.9)
    with Launches() as launches:
        ema.update_parameters(model)
    assert launches.total() <= 12


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_tries_its_algorithms_in_passes_and_not_in_validation(tmp_path, few, monkeypatch, deterministic):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    seen: dict = {"pass": set(), "probe": set()}

    def stages(model):
        def updates(batch, context):
            seen["pass"].add(torch.backends.cudnn.benchmark)
            yield "model", Loss(F.cross_entropy(model(batch.x), batch.y))

        def probe(*_):
            seen["probe"].add(torch.backends.cudnn.benchmark)
            return 0.0

        optimisers = {"model": OptimizerSpec(model.parameters(), 0.1)}
        return [Stage("only", 1, optimisers, (Pass(updates),), probes={"at": probe})]

    train(scripted(stages), few, tmp_path)
    assert seen == {"pass": {not deterministic}, "probe": {False}}


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (cosine(10, 0.1), {0: 1.0, 5: 0.55, 10: 0.1, 12: 0.1}),
        (step((4, 6), 0.1), {3.9: 1.0, 4: 0.1, 6.5: 0.01}),
        (warm_up_cosine(1000), {0: 0.0, 5: 0.5 * 0.99993832, 10: 0.99975328, 500: 0.5, 1000: 0.0}),
        (warm_up_cosine(40), {0: 0.0, 2: 0.5 * 0.99384417, 4: 0.97552826, 20: 0.5, 40: 0.0}),
        (one_cycle(10, 0.4), {0: 0.0, 2: 0.5, 4: 1.0, 7: 0.5, 10: 0.0}),
        (piecewise([(0, 1), (2, 1), (2, 0.5), (4, 0)]), {1: 1.0, 2: 0.5, 3: 0.25, 9: 0.0}),
    ],
)
def test_schedules(schedule, points):
    assert [schedule(epoch) for epoch in points] == pytest.approx(list(points.values()))


def test_optimisers_can_be_built_more_than_once():
    spec = OptimizerSpec(torch.nn.Linear(2, 2).parameters(), 0.1)
    assert len(spec.build().param_groups[0]["params"]) == len(spec.build().param_groups[0]["params"]) == 2


def test_validation_between_epochs_changes_no_weights_and_best_is_among_the_validated(tmp_path, few):
    every, third = (
        train(tiny("pgd_at", arch="mlp", epochs=5, validate_every=k), few, tmp_path / str(k)) for k in (1, 3)
    )
    validated = third.metrics()
    assert validated.loc[validated["robust_val"].notna(), "epoch"].tolist() == [0, 3, 5]
    assert validated["loss"].equals(every.metrics()["loss"])
    weights = [run.model("last").state_dict() for run in (every, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    scores = {row.epoch: (row.robust_val, row.clean_val) for row in validated.itertuples() if row.epoch in (3, 5)}
    best = max(scores, key=lambda epoch: (*scores[epoch], -epoch))
    with safe_open(third.path / "model.safetensors", "pt") as file:
        assert int(file.metadata()["epoch"]) == best
