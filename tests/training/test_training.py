"""The loop's promises: resumed is the same as undisturbed, stages and passes run as told, trouble is said."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustlib.attacks import ExampleRNG
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.runs import Run, write_json
from robustlib.threat import Threat
from robustlib.training import Loss, OptimizerSpec, Pass, Stage, cosine, fit, one_cycle, piecewise, step
from robustlib.training.fit import resolve_device, run_params
from robustlib.training.loop import moving_average
from robustlib.training.validation import gradient_alignment, overfitting, torch_seed, validate
from robustlib.workbook.tables import warnings
from tests.conftest import Hidden

SMALL = {"epochs": 4, "train_examples": 130, "batch_size": 64, "attack_steps": 2}


def small(name="pgd_at", **changes):
    settings = {k: v for k, v in {**SMALL, **changes}.items() if name != "standard" or k != "attack_steps"}
    return make_method(name, preset="digits", **settings)


def train(method, dataset, root, **options):
    return fit(method, dataset, root=root, device="cpu", progress=False, **options)


def numbers(run):
    """Metrics without the time they took."""
    return run.metrics().drop(columns="seconds").to_json()


def weights(run, which="last"):
    return torch.cat([v.flatten().double() for v in run.model(which).state_dict().values()])


# ---- resuming

CHILD = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from robustlib.data import load_dataset
from robustlib.training import checkpoint, fit, loop
from tests.conftest import hardly_validated
from tests.training.test_training import small
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
if where == "step":
    loop.Training._step = deadly(loop.Training._step)
elif where == "between checkpoint and metrics":
    checkpoint.write_metrics = deadly(checkpoint.write_metrics)
elif where == "between weights and checkpoint":
    checkpoint.save = deadly(checkpoint.save)
few = hardly_validated(load_dataset("digits"))
fit(small(ema=0.9), few, root=root, device="cpu", precision=precision, threads=1, progress=False)
"""


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_killed_at_several_points_it_ends_as_if_undisturbed(tmp_path, few, precision):
    undisturbed = train(small(ema=0.9), few, tmp_path / "a", precision=precision, threads=1)
    kills = [("step", 5), ("between checkpoint and metrics", 2), ("between weights and checkpoint", 1)]
    for where, count in kills[: 3 if precision == "32-true" else 1]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "b"), precision, where, str(count)]
        child = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert child.returncode == -9, child.stderr
    broken_off = Run(next((tmp_path / "b").glob("digits/pgd_at/*")))
    assert broken_off.status()["state"] == "interrupted"
    done = len(broken_off.metrics())
    assert done >= 2
    resumed = train(small(ema=0.9), few, tmp_path / "b", precision=precision)
    assert resumed.path.name == undisturbed.path.name
    assert numbers(resumed) == numbers(undisturbed)
    for which in ("best", "last"):
        assert torch.equal(weights(resumed, which), weights(undisturbed, which))


def test_an_exception_is_recorded_and_the_same_call_goes_on(tmp_path, few, monkeypatch):
    from robustlib.training import loop

    method, steps = small("trades"), []
    real = loop.Training._step

    def interrupted(self, *args):
        steps.append(0)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(loop.Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(method, few, tmp_path)
    run = Run(next(tmp_path.glob("digits/trades/*")))
    assert run.status()["state"] == "interrupted"
    assert not run.finished
    train(method, few, tmp_path)
    assert run.finished
    assert len(steps) == 4 * 3 + 2  # the two steps of the broken epoch were made twice, no other
    assert list(run.metrics().epoch) == [0, 1, 2, 3, 4]


def test_a_finished_run_is_returned_at_once_and_rerun_makes_it_anew(tmp_path, few):
    method = small("standard", epochs=1)
    run = train(method, few, tmp_path)
    stamp = (run.path / "model.safetensors").stat().st_mtime_ns
    assert train(method, few, tmp_path) == run
    assert (run.path / "model.safetensors").stat().st_mtime_ns == stamp
    train(method, few, tmp_path, rerun=True)
    assert (run.path / "model.safetensors").stat().st_mtime_ns > stamp


def test_a_finished_run_tells_what_it_changed_from_the_preset_of_today(tmp_path, digits):
    run = train(small("standard", epochs=1), digits, tmp_path)
    told = run.params()
    assert told["changes"] == run.changes() != {}
    old = {name: value for name, value in told.items() if name != "changes"}  # as version 0.1 wrote them
    for stale in ({**told, "changes": {"lr": 3}}, {**old, "changed": "milestones=(1, 2), lr=3"}):
        write_json(run.path / "params.json", stale)
        assert run.changes()["lr"] == 3
        assert train(small("standard", epochs=1), digits, tmp_path).params() == told


def test_other_numbers_make_a_run_stale_and_an_unfinished_one_is_not_gone_on_with(tmp_path, few):
    method = small("standard", epochs=1)
    run = train(method, few, tmp_path)
    assert not run.stale
    facts = run.provenance()
    assert facts["numerics"] == {"methods/standard": 1}
    (run.path / "provenance.json").write_text(json.dumps({**facts, "git": "older", "packages": {}}))
    assert not run.stale, "other code that gives the same numbers"
    (run.path / "provenance.json").write_text(json.dumps({**facts, "numerics": {"methods/standard": 0}}))
    assert run.stale
    (run.path / "status.json").write_text('{"state": "running"}')
    (run.path / "notes.txt").write_text("my own")
    with pytest.raises(
        InputError, match=r"another version of robustlib, whose numbers differ in methods/standard 0 \(now 1\)"
    ):
        train(method, few, tmp_path)
    assert (run.path / "checkpoint.pt").exists()
    train(method, few, tmp_path, rerun=True)
    assert (run.path / "notes.txt").exists()
    assert run.finished
    assert not run.stale


def test_seeds_and_parameters_make_other_runs_and_places_do_not(tmp_path, few):
    runs = [train(small("standard", epochs=1), few, tmp_path / str(s), seed=s) for s in (0, 0, 1)]
    assert runs[0].path.name == runs[1].path.name != runs[2].path.name
    assert not torch.equal(weights(runs[0]), weights(runs[2]))
    assert runs[0].provenance()["threads"] == 1
    assert "robustlib run standard --preset digits --seeds 0" in runs[0].provenance()["command"]
    other = train(small("standard", epochs=1, lr=0.01), few, tmp_path / "0")
    assert other.path != runs[0].path


def test_resuming_with_another_number_of_threads_is_refused(tmp_path, few, monkeypatch):
    from robustlib.training import loop

    method = small("standard")
    monkeypatch.setattr(loop, "epoch_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(method, few, root=tmp_path, device="cpu", threads=1)
    with pytest.raises(InputError, match="begun with 1 CPU threads"):
        fit(method, few, root=tmp_path, device="cpu", threads=2)


def test_the_recorded_command_names_the_same_run(tmp_path, few):
    run = train(small("standard", epochs=1), few, tmp_path, arch="mlp")
    assert "--set arch=mlp" in run.provenance()["command"]
    assert train(small("standard", epochs=1, arch="mlp"), few, tmp_path) == run


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
    fail = False

    def hyperparameters(self) -> dict[str, Any]:
        return {}

    model_options = hyperparameters

    def changes(self, arch):
        return {}

    def advice(self, arch):
        return []

    numerics = ()

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

        def begin():
            self.log.append(("begin",))

        def body_only(batch, context):
            yield "body", Loss(F.cross_entropy(model(batch.x), batch.y))

        probes = {"norm": lambda model, batch: model(batch.x).norm()}
        return [
            Stage("first", 2, optimisers, passes, begin=begin, probes=probes),
            Stage("second", 1, {"body": OptimizerSpec(body, 0.01)}, (Pass(body_only),)),
        ]


def test_stages_passes_and_generators_run_as_told(tmp_path, few):
    log: list = []
    run = train(Scripted(log), few, tmp_path)
    kinds = [entry[0] for entry in log]
    assert kinds == ["begin"] + (["head"] * 4 + ["closed"] * 2) * 2
    assert [e[3] for e in log if e[0] == "closed"] == [0.125, 0.375, 0.625, 0.875]
    rows = run.metrics()
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
                def updates(batch, context):
                    log.append(name)
                    yield "all", Loss(F.cross_entropy(model(batch.x), batch.y))

                return updates

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
    again = train(Begun([]), few, tmp_path / "again").metrics()
    assert again["probe/start"].equals(rows["probe/start"])


@dataclass(frozen=True)
class TwoStages(Scripted):
    """The second stage draws when it begins, and uses a module that the first one trained."""

    def stages(self, dataset, model):
        teacher = torch.nn.Linear(10, 10)

        def learn(batch, context):
            yield "all", Loss(F.cross_entropy(teacher(model(batch.x)), batch.y))

        def begin():
            torch.nn.init.normal_(model.head.weight)

        both = OptimizerSpec([*model.parameters(), *teacher.parameters()], 0.1)
        make = {"optimisers": {"all": both}, "passes": (Pass(learn),), "modules": {"teacher": teacher}}
        return [Stage("first", 1, **make), Stage("second", 2, **make, begin=begin)]


@pytest.mark.parametrize("broken", [1, 2, 3, 4])
def test_a_stage_change_resumes_exactly(tmp_path, few, monkeypatch, broken):
    """Broken off before the n-th validation: in the first stage, right after it, and within the second."""
    from robustlib.training import loop

    undisturbed, calls, real = train(TwoStages([]), few, tmp_path / "a"), [], loop.validate

    def interrupted(*args):
        calls.append(0)
        if len(calls) == broken:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(TwoStages([]), few, tmp_path / "b")
    torch.manual_seed(99)
    resumed = train(TwoStages([]), few, tmp_path / "b")
    assert numbers(resumed) == numbers(undisturbed)
    assert torch.equal(weights(resumed), weights(undisturbed))


@dataclass(frozen=True)
class Ending(Scripted):
    """Each stage looks at what it leaves; the second one is not content."""

    def stages(self, dataset, model):
        def learn(batch, context):
            yield "all", Loss(F.cross_entropy(model(batch.x), batch.y))

        def end(which):
            def look(shown, batch):
                self.log.append((which, shown is model, len(batch), int(shown.head.bias.argmax())))
                if which == "second":
                    raise InputError("It has learnt nothing.")

            return look

        optimisers = {"all": OptimizerSpec(model.parameters(), 0.1)}
        return [Stage(name, 2, optimisers, (Pass(learn),), end=end(name)) for name in ("first", "second")]


def test_a_stage_can_fail_at_its_end(tmp_path, digits):
    log: list = []
    for _ in range(2):  # a resumed training fails again
        with pytest.raises(InputError, match="learnt nothing"):
            train(Ending(log), digits, tmp_path)
    assert [entry[:2] for entry in log] == [("first", True), ("second", True), ("second", True)]
    assert log[0][2] == min(len(digits.val), 256)
    (run,) = (Run(file.parent) for file in tmp_path.rglob("params.json"))
    assert run.status()["state"] == "failed"
    assert "learnt nothing" in run.status()["reason"]
    assert not (run.path / "last.safetensors").exists()
    assert list(run.metrics().stage) == ["first"] * 3 + ["second"] * 3


def test_optimisers_can_be_built_more_than_once():
    optim = OptimizerSpec(torch.nn.Linear(2, 2).parameters(), 0.1)
    assert len(optim.build().param_groups[0]["params"]) == len(optim.build().param_groups[0]["params"]) == 2


def test_nan_losses_stop_the_training_with_a_sentence(tmp_path, few):
    with pytest.raises(FloatingPointError, match="NaN in epoch 1 of stage 'standard'"):
        train(small("standard", lr=1e30), few, tmp_path)
    run = Run(next(tmp_path.glob("digits/standard/*")))
    assert "NaN" in run.status()["reason"]


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


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (cosine(10, 0.1), {0: 1.0, 5: 0.55, 10: 0.1, 12: 0.1}),
        (step((4, 6), 0.1), {3.9: 1.0, 4: 0.1, 6.5: 0.01}),
        (one_cycle(10, 0.4), {0: 0.0, 2: 0.5, 4: 1.0, 7: 0.5, 10: 0.0}),
        (piecewise([(0, 1), (2, 1), (2, 0.5), (4, 0)]), {1: 1.0, 2: 0.5, 3: 0.25, 9: 0.0}),
    ],
)
def test_schedules(schedule, points):
    assert [schedule(epoch) for epoch in points] == pytest.approx(list(points.values()))


def test_learns_and_reports(tmp_path, digits, capsys):
    run = fit(small("standard", epochs=3, train_examples=0), digits, root=tmp_path, device="cpu")
    assert run.metrics().clean_val.iloc[-1] > 0.8 > run.metrics().clean_val.iloc[0]
    said = capsys.readouterr().out
    assert "epoch 3/3" in said
    assert "left" in said
    assert "PGD-10" in said


def test_a_run_says_whose_values_it_has(tmp_path, few, capsys):
    run = fit(make_method("standard", "digits", arch="mlp", epochs=2), few, root=tmp_path, device="cpu")
    first, *rest = run.metrics().warnings
    assert len(first) == 1
    assert "lr=0.2" in first[0]
    assert "for small_cnn, not for mlp" in first[0]
    assert not any(rest)
    assert f"warning: {first[0]}" in capsys.readouterr().out
    assert f"- before training: {first[0]}" in warnings(run.metrics())
    usual = fit(small("standard"), few, root=tmp_path, device="cpu", progress=False)
    assert not any(usual.metrics().warnings)


# ---- validation


def test_validation_attacks_the_view_and_judges_the_deployed_model(digits):
    torch.manual_seed(0)
    model, generator = build_model("mlp", digits), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(4):
        for batch in digits.train.batches(64, shuffle=True, generator=generator):
            optimiser.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimiser.step()
    few = digits.val.sample(120)
    plain, hidden, known = (
        validate(net, digits.train, few, digits.threat, 0, "32-true")
        for net in (model, Hidden(model, open=False), Hidden(model, open=True))
    )
    for name in ("clean_val", "robust_val", "fgsm_val", "robust_train", "gradient_alignment"):
        assert known.numbers[name] == plain.numbers[name], name
    assert torch.equal(known.robust, plain.robust)
    assert hidden.numbers["robust_val"] > plain.numbers["robust_val"] + 0.3, "what the view is for"
    assert hidden.numbers["gradient_alignment"] == 0
    right = known.numbers["robust_val"]
    sure, wrong = (np.log(np.exp([3.0, *[0.0] * 9]).sum()) - top for top in (3.0, 0.0))
    deployed = right * sure + (1 - right) * wrong
    assert known.numbers["robust_loss_val"] == pytest.approx(deployed, rel=1e-5), "the loss of the deployed logits"


class Noisy(torch.nn.Module):
    """A classifier behind noise from the global generator, which moves many of its decisions."""

    stochastic = True

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 2 * torch.randn_like(x))


def test_a_stochastic_model_is_scored_on_the_same_draws_each_time(digits):
    model, few, numbers = Noisy(build_model("mlp", digits)), digits.val.sample(60), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        numbers.append(validate(model, digits.train, few, digits.threat, 0, "32-true").numbers)
    assert numbers[0]["clean_val"] == numbers[1]["clean_val"]
    assert numbers[0]["robust_loss_val"] != numbers[1]["robust_loss_val"], "the attack draws its own numbers"
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch_seed(0, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_both_gradients_of_an_alignment_are_of_one_draw(digits):
    """For a linear model behind noise the gradients' direction depends on the draw and hardly on a point of a tiny ball."""
    batch = next(digits.val.batches(30))
    model, rng = Noisy(build_model("mlp", digits)), ExampleRNG.for_examples(0, batch.index)
    assert gradient_alignment(model, batch.x, batch.y, Threat("linf", 1e-6), rng) > 0.999


# ---- overfitting


def row(**changes):
    usual = {"robust_val": 0.5, "fgsm_val": 0.6, "clean_val": 0.8, "robust_train": 0.52, "robust_loss_val": 1.0}
    return {**usual, "gradient_alignment": 0.8, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"robust_val": 0.2}, "fell from 50% to 20%"),
        ({"robust_val": 0.01, "fgsm_val": 0.1}, "was 50% and is 1%"),
        ({"fgsm_val": 0.79}, "29 points above PGD"),
        ({"fgsm_val": 0.85}, "above clean accuracy"),
        ({"gradient_alignment": 0.1}, "alignment"),
        ({"robust_train": 0.9}, "40 points above validation"),
    ],
)
def test_overfitting_is_noticed(changes, says):
    same = torch.ones(1000, dtype=torch.bool)
    assert any(says in text for text in overfitting([row(), row(**changes)], same, same))


def test_healthy_training_is_not_accused():
    same = torch.arange(1000) % 2 == 0
    assert overfitting([row(), row(robust_val=0.52)], same, same) == []
    noisy = same.clone()
    noisy[:8] = ~noisy[:8]
    assert overfitting([row()], same, noisy) == []


def test_robust_overfitting_needs_a_significant_paired_loss():
    best, now = torch.arange(1000) < 500, torch.arange(1000) < 440
    assert any("6.0 points below" in text for text in overfitting([row()], best, now))
    rising = [row(robust_loss_val=1 + 0.1 * i) for i in range(6)]
    assert any("risen for 5 epochs" in text for text in overfitting(rising, best, best))


# ---- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"arch": "resnet19"}, "'resnet1"),
    ],
)
def test_bad_arguments(tmp_path, digits, options, says):
    with pytest.raises(InputError, match=says):
        train(small("standard"), digits, tmp_path, **options)


def test_absent_and_unknown_devices():
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no such device"):
            resolve_device("cuda")
    with pytest.raises(InputError, match="Unknown device"):
        resolve_device("gpu")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 truncated"])
def test_truncated_or_foreign_checkpoints(tmp_path, digits, content):
    method = small("standard")
    run = Run.of(run_params(method, digits, "small_cnn", 0, "32-true"), tmp_path)
    run.path.mkdir(parents=True)
    (run.path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="no checkpoint of robustlib"):
        train(method, digits, tmp_path)
    assert (run.path / "checkpoint.pt").read_bytes() == content


def test_a_checkpoint_never_runs_code(tmp_path):
    from robustlib.training import checkpoint

    torch.save({"state": np.float64(1), "evil": print}, tmp_path / "c.pt")
    with pytest.raises(InputError):
        checkpoint.load(tmp_path / "c.pt")


def test_two_processes_cannot_train_one_run(tmp_path, few):
    import fcntl

    method = small("standard", epochs=1)
    run = train(method, few, tmp_path)
    with open(run.path / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            train(method, few, tmp_path, rerun=True)
