import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from robustlib import runs
from robustlib.errors import InputError, unknown
from robustlib.models import build_model
from robustlib.runs import Run, find_runs, load_weights, save_weights, transfer_sources, write_atomic
from robustlib.runs.files import write_archive
from robustlib.runs.run import parameter_hash
from tests import ROOT

PARAMS = {
    "method": "pgd_at",
    "dataset": "digits",
    "arch": "mlp",
    "seed": 3,
    "preset": "digits",
    "hyperparameters": {"lr": 0.1, "preset": "digits"},
    "spec": {"num_classes": 3, "image_shape": [1, 4, 4], "mean": [0.5], "std": [0.2]},
}


def spec():
    return type("Spec", (), PARAMS["spec"])


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
    with pytest.raises(InputError, match="nothing was written"):
        write_atomic(file / "below a file", b"x")


def test_the_hash_sees_what_changes_numbers_and_nothing_else():
    same = {**PARAMS, "preset": "other", "hyperparameters": {"lr": 0.1, "preset": "x"}}
    assert parameter_hash(same) == parameter_hash(PARAMS)
    assert parameter_hash({**PARAMS, "seed": 4}) != parameter_hash(PARAMS)
    assert parameter_hash({**PARAMS, "hyperparameters": {"lr": 0.2}}) != parameter_hash(PARAMS)


def test_runs_are_found_by_what_they_are(tmp_path):
    run = Run.of(PARAMS, tmp_path)
    assert run.path.parent == tmp_path / "digits" / "pgd_at"
    runs.write_json(run.path / "params.json", PARAMS)
    assert find_runs(tmp_path) == []
    runs.write_json(run.path / "status.json", {"state": "done"})
    assert find_runs(tmp_path, dataset="digits", method="pgd_at", preset="digits") == [run]
    assert find_runs(tmp_path, method="trades") == find_runs(tmp_path, preset="cifar10-short") == []
    assert run.name == "pgd_at · mlp · seed 3"
    assert (run.metrics().empty, run.records().empty, run.results()) == (True, True, {})


def test_runs_in_an_archive_are_runs(tmp_path):
    run, lines = Run.of(PARAMS, tmp_path), b'{"epoch": 0, "clean": 0.5}\n{"epoch": 1, "clean": 0.9}\n'
    files = {"params.json": json.dumps(PARAMS).encode(), "status.json": b'{"state": "done"}', "metrics.jsonl": lines}
    archive = run.path.parent.with_suffix(".zip")
    for _ in range(2):
        write_archive(archive, {f"{run.path.name}/{name}": data for name, data in files.items()})
        written = archive.read_bytes()
    assert find_runs(tmp_path) == find_runs(tmp_path, method="pgd_at", preset="digits") == [run]
    assert find_runs(tmp_path, method="trades") == []
    assert run.params() == PARAMS
    assert run.metrics()["clean"].tolist() == [0.5, 0.9]
    assert run.results() == {}
    runs.write_json(run.path / "params.json", {**PARAMS, "title": "nearer"})
    assert find_runs(tmp_path) == [run], "not twice"
    assert run.params()["title"] == "nearer"
    later = dict(reversed(list(files.items())))
    write_archive(archive, {f"{run.path.name}/{name}": data for name, data in later.items()})
    assert archive.read_bytes() == written, "the same files, the same bytes"
    archive.write_bytes(written[:100])
    with pytest.raises(InputError, match=r"not readable.*restore"):
        find_runs(tmp_path)


def test_models_come_back_and_foreign_weights_do_not(tmp_path):
    run, model = Run.of(PARAMS, tmp_path), build_model("mlp", spec())
    runs.write_json(run.path / "params.json", PARAMS)
    with pytest.raises(InputError, match="no weights"):
        run.model()
    save_weights(model, run.path / "model.safetensors")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(run.model()(x), model.eval()(x))
    assert not run.model().training
    save_file({"w": torch.zeros(2)}, run.path / "last.safetensors")
    with pytest.raises(InputError, match="another model"):
        run.model("last")
    whole = (run.path / "model.safetensors").read_bytes()
    (run.path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_weights(model, run.path / "model.safetensors")


def test_a_directory_without_a_run_says_so(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Run(tmp_path).model()
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        Run(tmp_path).params()


def test_unknown_names_the_nearest():
    assert "Did you mean 'cifar10'?" in str(unknown("dataset", "cifar-10", ["cifar10", "mnist"]))
    assert "Did you mean 'pgd_at'?" in str(unknown("method", "PGD-AT", ["pgd_at", "trades"]))


def test_changes_from_the_preset_are_a_mapping(tmp_path):
    changes = {"milestones": (20, 30), "points": ((0, 0.5), (5, 1.0)), "augment": "none", "eps": None, "beta": 1.0}
    text = "milestones=(20, 30), points=((0, 0.5), (5, 1.0)), augment=none, eps=None, beta=1.0"
    for stored in ({"changes": changes}, {"changed": text}):  # version 0.1 wrote text
        run = Run(tmp_path / next(iter(stored)))
        runs.write_json(run.path / "params.json", {**PARAMS, **stored})
        assert (run.changes(), run.changed) == (changes, text)
        assert parameter_hash(run.params()) == parameter_hash(PARAMS)
    old = Run(tmp_path / "compiled")
    runs.write_json(old.path / "params.json", {**PARAMS, "compile": True, "changed": "lr=0.2, compiled"})
    assert (old.changes(), old.changed) == ({"lr": 0.2}, "lr=0.2, compiled")


def test_committed_runs_of_version_0_1_are_read_as_they_were_written():
    for run in find_runs(ROOT / "reports" / "reference"):
        params = run.params()
        assert run.changed == params.get("changed", run.changed)
        assert run.path.name == Run.of(params, "runs").path.name
        fields = run.params()["hyperparameters"]
        assert all(fields[name] == value for name, value in run.changes().items())


def test_the_source_is_the_run_of_the_preset_before_one_that_was_changed(tmp_path):
    def made(name, seed=0, arch="small_cnn", changed=""):
        run = Run(tmp_path / "digits" / "pgd_at" / name)
        facts = {"method": "pgd_at", "dataset": "digits", "threat": "t", "preset": "digits"}
        runs.write_json(run.path / "params.json", facts | {"seed": seed, "arch": arch, "changed": changed})
        runs.write_json(run.path / "status.json", {"state": "done"})
        write_atomic(run.path / "model.safetensors", b"weights")
        return run

    this = made("this")
    order = [made("a", arch="mlp"), made("b", changed="epochs=1"), made("c", seed=3), made("d")]
    for fittest in range(4):
        assert transfer_sources(this, ["pgd_at"])["pgd_at"].path == order[::-1][fittest].path
        shutil.rmtree(order[::-1][fittest].path)
    assert transfer_sources(this, ["pgd_at"]) == {}
