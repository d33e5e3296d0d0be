"""The queue for a GPU, rehearsed on the CPU: its commands parse, its products appear, and what is stopped goes on as if it had not been."""

import argparse
import os
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path

import attack_speed
import gpu
import gpu_slices
import gpu_training
import numpy as np
import packing
import pytest
import readme_tables
import side_by_side
import torch

from robustlib.methods import METHODS, make_method
from robustlib.runs import Run, find_runs, write_json
from robustlib.training.fit import run_params
from tests import ROOT
from tests.training_fixtures import altered, broken_off, same_runs, tiny, train


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Parsed(Exception):
    """What a command makes of its options; it goes no further."""


@pytest.mark.parametrize("rehearse", [False, True])
def test_every_real_command_is_understood_by_its_own_parser(rehearse, monkeypatch):
    """The real parser of each script reads the real options, and those that a rehearsal adds."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser, *arguments):
        raise Parsed(parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    found = {}
    for part in gpu_slices.slices("data", Path("runs"), rehearse):
        if part.command[1] == "-m":
            assert Path(part.command[-1]).is_file()
            continue
        monkeypatch.setattr(sys, "argv", part.command[1:])
        with pytest.raises(Parsed) as end:
            runpy.run_path(part.command[1], run_name="__main__")
        (found[part.name],) = end.value.args
    assert {str(found[name].device) for name in gpu_slices.TABLES} == {"cpu" if rehearse else "cuda"}
    assert found["autoattack_speed"].dataset == ("digits" if rehearse else "cifar10")
    assert [found[name].method for name in gpu_slices.TRAININGS] == list(gpu_slices.TRAININGS)
    assert set(gpu_slices.TRAININGS) <= set(METHODS)
    assert {found[name].rehearse for name in gpu_slices.TRAININGS} == {rehearse}


def table(folder, name, code, file):
    """A slice whose command writes a table by `write_report`, or only says something."""
    words = f"from side_by_side import *; print('said'); t = torch.device('cpu'); write_report('{file}', 't', 'c', t, [], {{}})"
    command = [sys.executable, "-c", f"{words if file else 'print(1)'}; raise SystemExit({code})"]
    return gpu_slices.Slice(name, 1.0, "a test", command)


def queue(root, parts, minutes=60.0, out="out", runs="runs", **options):
    return gpu.Queue(parts, root / runs, root / out, gpu.clock() + 60 * minutes, changed=True, **options)


def called(queue):
    """A call of the script, less its options."""
    queue.arrive()
    queue.work()
    queue.leave()
    return queue


def test_tables_and_outputs_go_to_the_folder_and_are_made_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'benchmarks'}")
    parts = [table(tmp_path, "good", 0, "good_cuda.md"), table(tmp_path, "bad", 3, "")]
    first, second = (called(queue(tmp_path, parts)) for _ in range(2))
    assert {file.name for file in (tmp_path / "out" / "gpu").iterdir()} == {"good_cuda.md", "bad.txt"}
    assert "exit code 3" in (tmp_path / "out" / "gpu" / "bad.txt").read_text()
    assert (first.failed, second.failed) == (["bad"], [])
    assert capfd.readouterr().out.count("# good") == 1
    other = queue(tmp_path, parts, out="elsewhere", known=[tmp_path / "out"])
    assert all(map(other.done, parts)), "what was brought home is not made again"
    assert not (ROOT / "benchmarks" / "good_cuda.md").exists()


def test_what_does_not_fit_is_passed_over_but_for_the_first(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(gpu.Queue, "check", lambda self, part: begun.append(part.name) or True)
    parts = [gpu_slices.Slice(name, minutes, "", []) for name, minutes in (("a", 50), ("b", 8), ("c", 20), ("d", 9))]
    queue(tmp_path, parts, minutes=11).work()
    assert begun == ["a", "b", "d"]
    queue(tmp_path, parts, minutes=0).work()
    assert begun == ["a", "b", "d"]


def test_a_table_that_is_stopped_comes_last_until_it_is_there(tmp_path, monkeypatch):
    """What is stopped twice comes after what is stopped once, and both after a training; a note from elsewhere counts."""
    words = f"import pathlib, time; pathlib.Path('{tmp_path}/on').touch(); time.sleep(60)"
    slow = gpu_slices.Slice("slow", 1.0, "", [sys.executable, "-c", words])
    others = [gpu_slices.Slice("other", 1.0, "", []), gpu_slices.Slice("trades", 1.0, "", [], True)]
    with monkeypatch.context() as patch:
        up_at(patch, (tmp_path / "on").exists)
        called(queue(tmp_path, [slow, *others]))
    (note,) = (tmp_path / "out" / "gpu").iterdir()
    (tmp_path / "known" / "gpu").mkdir(parents=True)
    (tmp_path / "known" / "gpu" / "other.stopped").write_text("Time was up.\n" * 2)
    call = queue(tmp_path, [slow, *others], known=[tmp_path / "known"])
    assert [part.name for part in call.slices] == ["trades", "slow", "other"]
    assert not any(map(call.done, call.slices))
    done = replace(slow, command=[sys.executable, "-c", "print('done')"])
    assert called(queue(tmp_path, [done])).done(slow)
    assert not note.exists()


def test_pieces_leave_only_while_a_call_made_few_files(tmp_path):
    """Four of all methods together, and fewer where others were made or overwritten."""
    parts = [gpu_slices.Slice(name, 1.0, "", [], True) for name in ("trades", "afd")]
    out, leaving = tmp_path / "out", tmp_path / "runs" / "leaving"
    named = [*(f"trades-7-{k}of3" for k in (1, 2, 3)), *(f"afd-7-{k}of5" for k in range(1, 6))]
    for folder, names in ((out / "gpu", "abcdef"), (leaving, named)):
        folder.mkdir(parents=True)
        [(folder / f"{name}.part").write_bytes(b"1") for name in names]
    queue(tmp_path, parts).leave()
    assert (len(list(leaving.iterdir())), len(list((out / "unfinished").iterdir()))) == (4, 4)
    call = queue(tmp_path, parts)
    [packing.write_atomic(path, b"2") for path in (out / "gpu").iterdir()]
    call.leave()
    assert len(list(leaving.iterdir())) == 2
    call.leave()
    assert len(list(leaving.iterdir())) == 2


def begun(runs, dataset, seed=0, precision="bf16-mixed", more=(), **changes):
    """A run of standard training on the preset's network and data, of which only the parameters are there."""
    params = run_params(make_method("standard", gpu.PRESET, **changes), dataset, "resnet18", seed, precision)
    run = Run.of(params | dict(more), runs)
    write_json(run.path / "params.json", params | dict(more))
    return run


def test_only_the_queues_own_run_goes_on(tmp_path, few):
    dataset = replace(few, name="cifar10")
    own = begun(tmp_path / "runs", dataset)
    for other in ({"seed": 3}, {"precision": "32-true"}, {"epochs": 5}, {"more": {"compile": True}}):
        begun(tmp_path / "runs", dataset, **other)
    call = replace(queue(tmp_path, []), changed=False)
    assert call.unfinished("standard") == [own]
    (own.path / "params.json").write_text("{")
    assert call.unfinished("standard") == []


def test_a_method_is_done_only_with_its_audit(tmp_path):
    """A run that was evaluated and not audited does not leave with another method's."""
    runs, out = tmp_path / "runs", tmp_path / "out" / "cifar10-short"
    gpu_training.train("standard", "data", runs, rehearse=True)
    (run,) = find_runs(runs)
    (altered(run, method="pgd_at").path / "audit.json").unlink()
    parts = [
        gpu_slices.Slice(n, 1.0, "", [sys.executable, "-c", c], True) for n, c in (("pgd_at", "1/0"), ("standard", ""))
    ]
    assert called(queue(tmp_path, parts)).failed == ["pgd_at"]
    assert [file.stem for file in out.glob("*.zip")] == ["standard"]


def test_speed_tables_of_the_queue_are_read_too(tmp_path):
    for folder, title in (("here", "A CPU"), ("gpu", "A GPU")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "attack_speed_x.md").write_text(f"# {title}\n\n- holds: fast\n")
    text = readme_tables.speed([tmp_path / "here", tmp_path / "gpu", tmp_path / "none"])
    assert [f"## {title}\n\n1 of 1 claims hold." in text for title in ("A CPU", "A GPU")] == [True, True]


def rehearsed(runs, *names):
    """These slices of a rehearsal."""
    return [part for part in gpu_slices.slices("data", runs, rehearse=True) if part.name in names]


def up_at(monkeypatch, condition):
    """Time is up as soon as the condition holds."""
    real = gpu.clock
    monkeypatch.setattr(gpu, "clock", lambda: real() + (1e6 if condition() else 0.0))


def epochs(root):
    return sum(len(file.read_text().splitlines()) for file in root.rglob("metrics.jsonl"))


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_elsewhere_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    names = "pgd_at", "rep_spectral"
    monkeypatch.setattr(packing, "PIECE", 20_000)
    with monkeypatch.context() as patch:
        up_at(patch, lambda: epochs(tmp_path / "runs") >= 2)
        stopped = called(queue(tmp_path, rehearsed(tmp_path / "runs", *names)))
    pieces = sorted((tmp_path / "out" / "unfinished").iterdir())
    (begun,) = find_runs(tmp_path / "runs", finished=False)
    assert begun.status()["state"] == "interrupted"
    assert len(pieces) == gpu.AT_A_TIME
    assert not any(map(stopped.done, stopped.slices))
    while any((tmp_path / "runs" / "leaving").iterdir()):
        called(queue(tmp_path, stopped.slices, minutes=0))
    there = [tmp_path / "out"]
    elsewhere = rehearsed(tmp_path / "runs2", *names)
    resumed = called(queue(tmp_path, elsewhere, out="out2", runs="runs2", known=there))
    assert all(map(resumed.done, elsewhere))
    assert not resumed.failed
    assert not list(tmp_path.rglob("runs2/arriving/*.part"))
    assert "44.33" in (tmp_path / "out2" / "cifar10-short" / "README.md").read_text(), "what is published stands beside"
    gpu_training.train("pgd_at", "data", tmp_path / "whole", rehearse=True)
    (whole,), (other,) = (find_runs(tmp_path / runs, method="pgd_at") for runs in ("whole", "runs2"))
    assert same_runs(whole, other)
    assert (whole.path / "last.safetensors").read_bytes() == (other.path / "last.safetensors").read_bytes()
    assert whole.results()["rows"] == other.results()["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu_checks", *gpu_slices.TABLES, "trades", "afd", "ancra", "claf", "atop"])
def test_every_other_slice_is_rehearsed_to_its_product(tmp_path, name):
    """By its own command. What is claimed of speed need not hold at this size, but a table is there, or a training is exported."""
    call = called(queue(tmp_path, rehearsed(tmp_path / "runs", name)))
    (product,) = call.slices[0].products(tmp_path / "out")
    assert product.suffix == {"gpu_checks": ".txt"}.get(name, ".md" if name in gpu_slices.TABLES else ".zip")
    assert name in gpu_slices.TABLES or not call.failed


WEIGHTS = "model.safetensors", "last.safetensors"


def moved(run, root, monkeypatch):
    """The run after it was packed in small pieces and unpacked elsewhere, and the names of the parts it was packed in."""
    monkeypatch.setattr(packing, "PIECE", 100_000)
    names = [name for name, _ in packing._content(run)]
    parts = packing.pack(run, run.path.parents[2], root / "pieces")
    assert all(path.stat().st_size <= 100_000 for path in parts)
    assert packing.complete([root / "pieces"], run.path.parent.name) == parts
    broken = root / "back" / run.path.relative_to(run.path.parents[2]) / "params.json"  # a damaged run in its place
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    broken.with_name("stray.txt").write_text("")
    packing.unpack(parts, root / "back")
    parts[0].unlink()
    assert packing.complete([root / "pieces"], run.path.parent.name) == []
    return Run(root / "back" / run.path.relative_to(run.path.parents[2])), names


def files(run):
    return {str(file.relative_to(run.path)): file.read_bytes() for file in run.path.rglob("[!.]*") if file.is_file()}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_finished_training_comes_back_with_its_evaluation_but_its_checkpoint(keep, tmp_path, few, monkeypatch):
    run = train(tiny("standard", ema=0.5), few, tmp_path / "runs")
    if keep == "last":  # as where the best epoch is the last one
        head = packing._split((run.path / "last.safetensors").read_bytes())[0]
        best = packing._split((run.path / "model.safetensors").read_bytes())[1]
        (run.path / "last.safetensors").write_bytes(head + best)
    (run.evaluation / "best-1").mkdir(parents=True)
    (run.evaluation / "best-1" / "part-1.parquet").write_bytes(b"12345")
    other, names = moved(run, tmp_path, monkeypatch)
    before = files(run)
    assert before.pop("checkpoint.pt")
    assert files(other) == before
    assert ("last.safetensors.head" in names) == (len({packing._split(before[name])[1] for name in WEIGHTS}) == 1)
    assert keep == "best" or "last.safetensors.head" in names


@pytest.mark.parametrize(("best", "last"), [(True, False), (False, False), (True, True)])
def test_the_best_weights_are_left_out_where_a_resumed_training_writes_them(best, last, tmp_path, few, monkeypatch):
    """Also where it was stopped after its last weights were written, which are the best."""
    method = tiny("standard", epochs=3, ema=0.5)
    whole = train(method, few, tmp_path / "whole")
    run = broken_off(method, few, tmp_path / "runs", monkeypatch, stop=3)
    saved = torch.load(run.path / "checkpoint.pt", weights_only=True)
    saved["state"]["best"] = 2 if best else 1
    torch.save(saved, run.path / "checkpoint.pt")
    if last:
        (run.path / "last.safetensors").write_bytes((run.path / "model.safetensors").read_bytes())
    other, _ = moved(run, tmp_path, monkeypatch)
    assert files(other) == {
        name: data for name, data in files(run).items() if not (best and name == "model.safetensors")
    }
    if best:
        assert same_runs(train(method, few, tmp_path / "back"), whole)


def test_numbers_are_the_same_in_planes():
    numbers = np.array([0.0, -0.0, 1.5, -1e-40, np.inf, np.nan, 3e38], "<f4").tobytes() + b"end"
    planes, rest = packing.to_planes(numbers)
    assert rest == b"end"
    assert [len(plane) for plane in planes] == [7] * 4
    assert planes[3][2] == 127, "the exponent of 1.5"
    assert packing.from_planes(planes, rest) == numbers


def test_the_list_says_what_is_expected_and_done(tmp_path, capsys):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "attack_speed_cuda.md").write_text("")
    assert gpu.main(["--list", "--out", str(tmp_path)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:] if line]
    done = {row[0].removeprefix("| "): row[-1] for row in rows}
    assert list(done)[:3] == ["gpu_checks", "training_speed", "compiled_step"]
    assert list(done)[5] == "pgd_at"
    assert done["attack_speed"] == "yes |"
    assert {float(row[1]) > 0 for row in rows} == {True}


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    assert side_by_side.absent(["torch", "no_such_peer"]) == ["no_such_peer"]
    assert "no_such_peer" in side_by_side.left_out(["no_such_peer"])[0]
    assert side_by_side.left_out([]) == []
    monkeypatch.setattr("attack_speed.FOUND", [])
    assert attack_speed.claims({}, {}, {}) == {}


def test_a_step_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STOPPING", 0.5)
    deaf = f"import signal, pathlib, time; signal.signal(2, signal.SIG_IGN); pathlib.Path('{tmp_path}/on').touch(); time.sleep(60)"
    up_at(monkeypatch, (tmp_path / "on").exists)
    assert gpu.wait([sys.executable, "-c", deaf], gpu.clock() + 1e3) is None


def test_a_queue_that_is_told_to_end_leaves_no_step_behind(tmp_path, monkeypatch):
    on = tmp_path / "on"
    step = f"import os, pathlib, time; pathlib.Path('{on}').write_text(str(os.getpid())); time.sleep(60)"

    def told() -> float:
        if on.exists() and on.read_text():
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    monkeypatch.setattr(gpu, "clock", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        gpu.wait([sys.executable, "-c", step], 1.0)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(on.read_text()), 0)
