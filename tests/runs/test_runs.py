"""Run directories: files that are old or new, never half; runs read back, in directories or archives; measurements made once."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from export_reference import write_archive
from safetensors import safe_open
from safetensors.torch import save_file

from robustlib.errors import InputError
from robustlib.evaluation import incomplete
from robustlib.models import build_model
from robustlib.runs import Run, find_runs, measured, read_json, save_weights, transfer_sources, write_atomic, write_json
from robustlib.runs.files import merge_json, tidy
from robustlib.runs.run import FILES, parameter_hash
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
    later = PARAMS | {"hyperparameters": PARAMS["hyperparameters"] | {"validate_every": 1}}
    others = [PARAMS | {"seed": 4}, PARAMS | {"hyperparameters": {"lr": 0.2}}]
    others.append(PARAMS | {"hyperparameters": later["hyperparameters"] | {"validate_every": 2}})
    assert parameter_hash(same) == parameter_hash(later) == parameter_hash(PARAMS)
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
    run, lines = Run.of(PARAMS, tmp_path), b""
    for epoch, clean in ((0, 0.5), (1, 0.9)):
        lines += json.dumps({"epoch_total": epoch, "warnings": [], "clean": clean}).encode() + b"\n"
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
    write_json(run.path / "status.json", {"state": "done"})
    other = Run.of({**PARAMS, "seed": 4}, tmp_path)
    write_json(other.path / "params.json", {**PARAMS, "seed": 4})
    write_json(other.path / "status.json", {"state": "done"})
    for damaged in (written[0][:100], written[0][:200] + b"x" * 40 + written[0][240:]):
        archive.write_bytes(damaged)
        assert find_runs(tmp_path) == sorted([run, other], key=lambda r: r.path), "those in directories are served"
        (broken,) = set(find_runs(tmp_path, finished=False)) - {run, other}
        assert re.search(r"pgd_at.zip is not readable.*: delete it or restore it", broken.damage)
        assert broken.name == "digits/pgd_at/pgd_at.zip"
        assert "not readable" in incomplete([broken])["missing"][0]


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


# ---- whose files they are, and which belong together


ACCURACY = {"accuracy": 0.5, "low": 0.4, "high": 0.6}
RESULTS = {"n": 4, "threat": "Linf 0.2", "checkpoint": "best", "rows": [{"attack": "clean", **ACCURACY}]}
LOOK = {"attack": "Tangent()", "split": "test", "index": [1], "correct": [True], "distance": [0.5]}
DRAWN = dict.fromkeys(("expected", "single", "worst"), ACCURACY)
CONTENTS = {
    **{"status.json": {"state": "done"}, "provenance.json": {"wall_seconds": 1.0}, "results.json": RESULTS},
    **{"audit.json": {"badges": {"headline": {"verdict": "pass"}}}, "distances.json": {"look": LOOK}},
    "representation.json": {"look": {"attack": "PGD()", "measures": {"features": {"cka": 0.5}}}},
    "unseen.json": {"look": {"accuracies": {"clean": ACCURACY}}},
    "randomness.json": {
        "draws": 10,
        "clean": DRAWN,
        "attacked": DRAWN,
        "budget": {"bpda": [1, 2]},
        "eot": [],
        "fixed": [],
    },
}


@pytest.fixture
def stored(run) -> Run:
    """The run with one of each JSON file."""
    for name, content in CONTENTS.items():
        keyed = "look" in content
        write_json(
            run.path / name, {"look": {"run": run.place, **content["look"]}} if keyed else {"run": run.place, **content}
        )
    return run


def test_files_name_their_run_and_what_is_read_does_not(stored):
    assert {name: stored.read(name) for name in CONTENTS} == CONTENTS
    assert stored.damage == ""
    assert find_runs(stored.path.parents[2]) == [stored]


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_another_run_is_not_believed(stored, tmp_path, name):
    text = (stored.path / name).read_text()
    (stored.path / name).write_text(text.replace("seed3", "seed4"))
    with pytest.raises(
        InputError, match=rf"{name} is of another run, digits/pgd_at/mlp-seed4-.*: delete it, or restore"
    ):
        stored.read(name)
    assert (name in stored.damage, find_runs(tmp_path), find_runs(tmp_path, finished=False)) == (True, [], [stored])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("status.json", {"state": 1}, "it.state is '1'"),
        ("results.json", {"rows": [{"attack": "clean", "accuracy": True}]}, r"it.rows\[0\].accuracy is 'True'"),
        (
            "results.json",
            {"rows": [{"attack": "clean", "accuracy": 7}]},
            r"rows\[0\].accuracy is 7, not a number in \[0, 1\]",
        ),
        (
            "results.json",
            {"rows": [{"attack": "clean", "accuracy": 0.1, "low": -0.1}]},
            r"rows\[0\].low is -0.1, not a num",
        ),
        ("results.json", {"curve": [{"eps": 0.1, "accuracy": 1.01}]}, r"curve\[0\].accuracy is 1.01, not a number in"),
        ("results.json", {"rows": []}, "it has no 'rows'"),
        ("results.json", {"last": []}, r"it.last is '\[\]'"),
        ("results.json", {"last": {"rows": []}}, "it.last has no 'rows'"),
        ("results.json", {"last": {"rows": None}}, "it.last.rows is 'None'"),
        ("results.json", {"numerics": {"attacks/pgd": "1"}}, "it.numerics.attacks/pgd is '1'"),
        ("audit.json", {"badges": []}, r"it.badges is '\[\]'"),
        ("distances.json", {"look": {**LOOK, "index": []}}, "it.look has columns of different lengths"),
        ("distances.json", {"look": {"attack": "Tangent()"}}, "it.look has no 'split'"),
        ("randomness.json", {"budget": {"bpda": [8]}}, r"it.budget.bpda is '\[8\]'"),
        ("params.json", {"method": None}, "it.method is 'None'"),
        (
            "params.json",
            {"seed": 4},
            "holds the parameters of digits/pgd_at/mlp-seed4-.*: it was copied, renamed or altered",
        ),
    ],
)
def test_a_file_of_another_shape_is_a_sentence(stored, name, change, said):
    write_json(stored.path / name, read_json(stored.path / name) | change)
    with pytest.raises(InputError, match=said):
        stored.params() if name == "params.json" else stored.read(name)
    assert str(stored.path) in stored.damage
    (stored.path / name).unlink()
    assert stored.damage == "", "as soon as it is gone"


def test_copies_links_and_renamed_runs_are_damaged_and_count_nowhere(stored, tmp_path):
    copy, link = (stored.path.with_name(f"mlp-seed{k}-{'0' * 8}") for k in (4, 5))
    shutil.copytree(stored.path, copy)
    link.symlink_to(stored.path)
    shutil.copytree(tmp_path / "digits", tmp_path / "other")
    assert find_runs(tmp_path) == [stored]
    for run in set(find_runs(tmp_path, finished=False)) - {stored}:
        assert f"{run.path} holds the parameters of {stored.place}" in run.damage
        assert run.name == run.place
    shutil.copytree(tmp_path / "digits", tmp_path / "backup" / "digits")
    assert find_runs(tmp_path / "backup") == [Run.of(PARAMS, tmp_path / "backup")], "runs may be kept anywhere"


def test_what_belongs_together_is_told_from_what_does_not(run):
    model = build_model("mlp", SimpleNamespace(**PARAMS["spec"]))
    for name in ("model", "last"):
        save_weights(model, run.path / f"{name}.safetensors", {"run": run.place})
    write_atomic(run.path / "metrics.jsonl", '{"epoch_total": 0, "warnings": []}\n')
    run.finish()
    records = pd.DataFrame({"index": [1], "checkpoint": ["best"]})
    run.write_frame("records.parquet", records)
    run.write("results.json", {**RESULTS, "files": run.digests("model.safetensors", "records.parquet")})
    run.write("audit.json", {"badges": {}, "results": {"files": run.results()["files"]}})
    assert (len(run.metrics()), len(run.records()), run.audit()["badges"], run.damage) == (1, 1, {}, "")
    run.model(), run.model("last")
    run.write_frame("records.parquet", pd.concat([records, records]))
    (run.path / "metrics.jsonl").write_text("")
    for which in ("best", "last"):
        file = run.path / f"{'model' if which == 'best' else which}.safetensors"
        save_weights(model, file, {"run": run.place, "epoch": "9"})
        with pytest.raises(InputError, match=f"{file} is not the one that belongs to this run's other files"):
            run.model(which)
    for read, name in ((run.metrics, "metrics.jsonl"), (run.records, "records.parquet")):
        with pytest.raises(InputError, match=f"{name} is not the one that belongs to this run's other files"):
            read()
    run.finish()
    with pytest.raises(InputError, match=r"results\.json judges other weights: delete it and evaluate again"):
        run.results()
    run.write("results.json", {**RESULTS, "files": {"records.parquet": "0"}})
    with pytest.raises(InputError, match=r"audit\.json judges another evaluation: delete it and audit again"):
        run.audit()


def test_weights_of_another_run_or_of_a_training_that_diverged_are_refused(run):
    model = build_model("mlp", SimpleNamespace(**PARAMS["spec"]))
    save_weights(model, run.path / "model.safetensors", {"run": "digits/pgd_at/mlp-seed4-00000000"})
    with pytest.raises(InputError, match="is of another run, digits/pgd_at/mlp-seed4"):
        run.model()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    save_weights(model, run.path / "model.safetensors")
    with pytest.raises(InputError, match=r"holds a training that diverged \(.* is not finite\)"):
        run.model()


def test_the_same_weights_are_the_same_bytes_and_any_reader_finds_them_and_their_facts(tmp_path):
    model, facts = build_model("mlp", SimpleNamespace(**PARAMS["spec"])), {"epoch": "3", "run": "digits/one", "a": "b"}
    for number in range(8):  # eight orders of three facts are the same once in 200 000
        save_weights(model, tmp_path / f"{number}.safetensors", dict(sorted(facts.items(), reverse=number % 2 > 0)))
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == facts
        for name, value in model.state_dict().items():
            assert torch.equal(file.get_tensor(name), value), name


@pytest.mark.parametrize("kills", range(1, 15))
def test_killed_while_it_clears_a_run_has_nothing_that_was_measured_on_another_training(stored, monkeypatch, kills):
    for name in FILES:
        (stored.path / name).touch()
    real, calls = type(stored.path).unlink, []

    def unlink(path, missing_ok=False):
        calls.append(path)
        if len(calls) == kills:
            raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(type(stored.path), "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        stored.clear()
    left = [name for name in FILES if (stored.path / name).exists()]
    measured_on = {"results.json", "audit.json", "records.parquet", *(name for name in CONTENTS if name[0] in "rdu")}
    assert kills == 1 or not stored.finished
    assert "checkpoint.pt" in left or not measured_on & set(left), "a new training would inherit them"
    assert "provenance.json" in left or "checkpoint.pt" not in left, "versions are known as long as epochs are"


def test_what_killed_writers_leave_is_tidied_and_nothing_else(run):
    mine = [".notes.k3v_9x0a", ".results.json.backup", "results.json.k3v_9x0a", ".merge.lock", ".lock"]
    theirs = [".status.json.k3v_9x0a", ".checkpoint.pt.abcdefgh", "features/.a1b2.npz.00000000"]
    for name in (*mine, *theirs):
        write_atomic(run.path / name, b"")
    tidy(run.path.parents[2])
    assert all((run.path / name).exists() for name in theirs), "they may be under way"
    with run.lock():
        assert not any((run.path / name).exists() for name in theirs), "a training is the only writer"
    tidy(run.path.parents[2], older=-1)
    assert not (run.path / theirs[-1]).exists()
    assert all((run.path / name).exists() for name in mine)


def test_changes_from_the_preset_are_a_mapping(tmp_path):
    changes = {"milestones": (20, 30), "points": ((0, 0.5), (5, 1.0)), "augment": "none", "eps": None, "beta": 1.0}
    text = "milestones=(20, 30), points=((0, 0.5), (5, 1.0)), augment=none, eps=None, beta=1.0"
    compiled = {"compile": True, "changed": "lr=0.2, compiled"}
    for stored, values, words in (
        ({"changes": changes}, changes, text),
        ({"changed": text}, changes, text),  # version 0.1 wrote text
        (compiled, {"lr": 0.2}, "lr=0.2, compiled"),
    ):
        run = Run.of(params := {**PARAMS, **stored}, tmp_path)
        write_json(run.path / "params.json", params)
        assert (run.changes(), run.changed) == (values, words)
        assert (run.path == Run.of(PARAMS, tmp_path).path) is (stored is not compiled)


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
    named = {"run": run.place, **first}
    assert read_json(tmp_path / "some.json") == ({"a": named} if key else named)
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

    run = Run(tmp_path)
    measured(run, "file.json", {"n": 4}, measure, key="key")
    key = {"run": run.place, "n": 4, "value": 4}
    assert file.read_text() == json.dumps({"meanwhile": {"n": 2}, "earlier": {"n": 3}, "key": key}) + "\n"


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
        facts = {"method": "pgd_at", "dataset": "digits", "threat": "t", "preset": "digits", "precision": name}
        run = Run.of(facts := facts | {"seed": seed, "arch": arch, "changed": changed}, tmp_path)
        write_json(run.path / "params.json", facts)
        write_json(run.path / "status.json", {"state": "done"})
        write_atomic(run.path / "model.safetensors", b"weights")
        return run

    this = made("this")
    order = [made("a", arch="mlp"), made("b", changed="epochs=1"), made("c", seed=3), made("d")]
    for fittest in range(4):
        assert transfer_sources(this, ["pgd_at"])["pgd_at"].path == order[::-1][fittest].path
        shutil.rmtree(order[::-1][fittest].path)
    assert transfer_sources(this, ["pgd_at"]) == {}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_a_file_system_has_no_locks_nothing_is_held_by_another_process(run, monkeypatch, number):
    def none(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", none)
    with run.lock():
        run.write("status.json", {"state": "running"})
        assert run.status()["state"] == "running"
    merge_json(run.path / "unseen.json", "a", 1)
    assert read_json(run.path / "unseen.json") == {"a": 1}
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(InputError, match=r"Cannot lock .* \(broken\)"), run.lock():
        pass
