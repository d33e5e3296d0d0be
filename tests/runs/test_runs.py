"""Run directories: files that are old or new, never half; runs read back, in directories or archives; measurements made once."""

import contextlib
import errno
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from export_reference import write_archive
from safetensors.torch import save_file

from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.runs import Run, find_runs, measured, read_json, save_weights, transfer_sources, write_atomic, write_json
from robustlib.runs.files import merge_json
from robustlib.runs.run import parameter_hash
from tests import ROOT

PARAMS = {
    **{"method": "pgd_at", "dataset": "digits", "arch": "mlp", "seed": 3, "preset": "digits"},
    "hyperparameters": {"lr": 0.1, "preset": "digits"},
    "spec": {"num_classes": 3, "image_shape": [1, 4, 4], "mean": [0.5], "std": [0.2]},
}


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run.of(PARAMS, tmp_path)
    write_json(run.path / "params.json", PARAMS)
    return run


def test_write_atomic_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomic(file, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*untouched.*free some space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda path: write_atomic(path / "blocked" / "below a file", b"x"), "nothing was written"),
        (lambda path: merge_json(path / "blocked" / "file.json", "a", 1), "Cannot write .*choose a writable directory"),
        (lambda path: merge_json(path / "params.json", "a", 1), "not readable JSON"),
        (lambda path: Run(path).params(), "not readable JSON"),
        (lambda path: Run(path / "elsewhere").model(), "holds no run"),
    ],
)
def test_what_cannot_be_written_or_read_is_a_sentence_and_stays(tmp_path, call, said):
    for name in ("blocked", "params.json"):
        (tmp_path / name).write_text("{half")
    with pytest.raises(InputError, match=said):
        call(tmp_path)
    assert all((tmp_path / name).read_text() == "{half" for name in ("blocked", "params.json"))


def test_the_hash_sees_what_changes_numbers_and_nothing_else():
    same = {**PARAMS, "preset": "other", "hyperparameters": {"lr": 0.1, "preset": "x"}}
    others = PARAMS | {"seed": 4}, PARAMS | {"hyperparameters": {"lr": 0.2}}
    assert parameter_hash(same) == parameter_hash(PARAMS)
    assert parameter_hash(PARAMS) not in map(parameter_hash, others)


def test_runs_are_found_by_what_they_are(run, tmp_path):
    assert run.path.parent == tmp_path / "digits" / "pgd_at"
    assert find_runs(tmp_path) == []
    write_json(run.path / "status.json", {"state": "done"})
    assert find_runs(tmp_path, dataset="digits", method="pgd_at", preset="digits") == [run]
    assert find_runs(tmp_path, method="trades") == find_runs(tmp_path, preset="cifar10-short") == []
    assert run.name == "pgd_at · mlp · seed 3"
    assert (run.metrics().empty, run.records().empty, run.results()) == (True, True, {})


def test_runs_in_an_archive_are_runs(tmp_path):
    run, lines = Run.of(PARAMS, tmp_path), b'{"epoch": 0, "clean": 0.5}\n{"epoch": 1, "clean": 0.9}\n'
    files = {"params.json": json.dumps(PARAMS).encode(), "status.json": b'{"state": "done"}', "metrics.jsonl": lines}
    files = {f"{run.path.name}/{name}": data for name, data in files.items()}
    archive, written = run.path.parent.with_suffix(".zip"), []
    for some in (files, dict(reversed(files.items()))):
        write_archive(archive, some)
        written.append(archive.read_bytes())
    assert written[0] == written[1], "the same files, the same bytes"
    assert find_runs(tmp_path) == find_runs(tmp_path, method="pgd_at", preset="digits") == [run]
    assert find_runs(tmp_path, method="trades") == []
    assert (run.params(), run.metrics()["clean"].tolist(), run.results()) == (PARAMS, [0.5, 0.9], {})
    write_json(run.path / "params.json", {**PARAMS, "title": "nearer"})
    assert find_runs(tmp_path) == [run], "not twice"
    assert run.params()["title"] == "nearer"
    archive.write_bytes(written[0][:100])
    with pytest.raises(InputError, match=r"not readable.*restore"):
        find_runs(tmp_path)


def test_models_come_back_and_foreign_weights_do_not(run):
    model, file = build_model("mlp", SimpleNamespace(**PARAMS["spec"])), run.path / "model.safetensors"
    with pytest.raises(InputError, match="no weights"):
        run.model()
    save_weights(model, file)
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(run.model()(x), model.eval()(x))
    assert not run.model().training
    save_file({"w": torch.zeros(2)}, run.path / "last.safetensors")
    with pytest.raises(InputError, match="another model"):
        run.model("last")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated"):
        run.model()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("robustlib run trades --set 'milestones=(20, 30)'", "robustlib run trades --set 'milestones=(20, 30)'"),
        ("robustlib run trades; rm -rf ~ $(x)", "robustlib run 'trades;' rm -rf '~' '$(x)'"),
        ("curl x | sh", ""),
        ("robustlib 'run", ""),
        (3, ""),
    ],
)
def test_a_command_from_a_file_can_be_copied(tmp_path, stored, shown):
    write_json(tmp_path / "provenance.json", {"command": stored, "git": "x"})
    assert Run(tmp_path).provenance() == {"command": shown, "git": "x"}
    assert Run(Path("a b;c")).argument == "'a b;c'"


def test_a_flipped_bit_of_the_weights_is_a_sentence_or_another_number(run):
    save_weights(build_model("mlp", SimpleNamespace(**PARAMS["spec"])), file := run.path / "model.safetensors")
    whole, generator = file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(min(len(whole), 1200))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        with contextlib.suppress(InputError):
            run.model()


def test_changes_from_the_preset_are_a_mapping(tmp_path):
    changes = {"milestones": (20, 30), "points": ((0, 0.5), (5, 1.0)), "augment": "none", "eps": None, "beta": 1.0}
    text = "milestones=(20, 30), points=((0, 0.5), (5, 1.0)), augment=none, eps=None, beta=1.0"
    compiled = {"compile": True, "changed": "lr=0.2, compiled"}
    for stored, values, words in (
        ({"changes": changes}, changes, text),
        ({"changed": text}, changes, text),  # version 0.1 wrote text
        (compiled, {"lr": 0.2}, "lr=0.2, compiled"),
    ):
        write_json(tmp_path / "params.json", {**PARAMS, **stored})
        assert (Run(tmp_path).changes(), Run(tmp_path).changed) == (values, words)
        assert (parameter_hash(Run(tmp_path).params()) == parameter_hash(PARAMS)) is (stored is not compiled)


def test_committed_runs_of_version_0_1_are_read_as_they_were_written():
    for run in find_runs(ROOT / "reports" / "reference"):
        params = run.params()
        assert run.changed == params.get("changed", run.changed)
        assert run.path.name == Run.of(params, "runs").path.name
        assert params["hyperparameters"].items() >= run.changes().items()


@pytest.mark.parametrize("key", ["", "a"])
def test_measured_once_for_the_same_facts(tmp_path, key):
    run, calls = Run(tmp_path), []

    def ask(**facts):
        return measured(run, "some.json", facts, lambda: calls.append(facts) or {"value": len(calls)}, key=key)

    first = ask(n=3, steps=[1, 2])
    assert first == ask(n=3, steps=[1, 2]) == {"n": 3, "steps": [1, 2], "value": 1}
    assert read_json(tmp_path / "some.json") == ({"a": first} if key else first)
    assert ask(n=4, steps=[1, 2])["value"] == 2, "an older measurement is replaced"
    assert ask(n=3, steps=[1, 2])["value"] == 3
    with pytest.raises(ZeroDivisionError):
        measured(run, "other.json", {}, lambda: 1 / 0, key=key)
    assert not (tmp_path / "other.json").exists()


def test_what_others_write_during_a_measurement_survives(tmp_path):
    file = tmp_path / "file.json"
    write_json(file, {"earlier": {"n": 1}, "key": {"n": 1}})

    def measure():
        merge_json(file, "meanwhile", {"n": 2})  # another page
        merge_json(file, "earlier", {"n": 3})
        return {"value": 4}

    measured(Run(tmp_path), "file.json", {"n": 4}, measure, key="key")
    assert file.read_text() == '{"meanwhile": {"n": 2}, "earlier": {"n": 3}, "key": {"n": 4, "value": 4}}\n'


def test_threads_and_processes_take_turns(tmp_path):
    file = tmp_path / "file.json"

    def write(name):
        for k in range(10):
            merge_json(file, f"{name} {k}", k)

    workers = [get_context("fork").Process(target=write, args=(name,)) for name in "xy"]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert read_json(file) == {f"{w} {k}": k for w in "abcxy" for k in range(10)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".merge.lock", "file.json"]


def test_the_source_is_the_run_of_the_preset_before_one_that_was_changed(tmp_path):
    def made(name, seed=0, arch="small_cnn", changed=""):
        run = Run(tmp_path / "digits" / "pgd_at" / name)
        facts = {"method": "pgd_at", "dataset": "digits", "threat": "t", "preset": "digits"}
        write_json(run.path / "params.json", facts | {"seed": seed, "arch": arch, "changed": changed})
        write_json(run.path / "status.json", {"state": "done"})
        write_atomic(run.path / "model.safetensors", b"weights")
        return run

    this = made("this")
    order = [made("a", arch="mlp"), made("b", changed="epochs=1"), made("c", seed=3), made("d")]
    for fittest in range(4):
        assert transfer_sources(this, ["pgd_at"])["pgd_at"].path == order[::-1][fittest].path
        shutil.rmtree(order[::-1][fittest].path)
    assert transfer_sources(this, ["pgd_at"]) == {}
