"""What `fit` promises: a run is trained once, named by its parameters, refused where numbers would mix, and recorded."""

import contextlib
import fcntl
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from robustlib.data import Dataset, dataset_of, load_images
from robustlib.errors import InputError
from robustlib.methods import load_preset, make_method
from robustlib.runs import Run, find_runs, write_json
from robustlib.threat import Threat
from robustlib.training import fit, loop
from robustlib.training.fit import run_params
from robustlib.training.loop import load_checkpoint
from robustlib.training.progress import Progress
from robustlib.workbook.tables import as_markdown, warnings
from tests.training_fixtures import tiny, train

ONCE = tiny("standard", epochs=1)  # what `finished` is a run of


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    return train(ONCE, few, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def finished(trained, tmp_path) -> Run:
    return Run(shutil.copytree(trained.path, tmp_path / "digits" / "standard" / trained.path.name))


def test_a_finished_run_is_returned_at_once_and_rerun_makes_it_anew(finished, tmp_path, few):
    stamp = (finished.path / "model.safetensors").stat().st_mtime_ns
    assert train(ONCE, few, tmp_path) == finished
    assert (finished.path / "model.safetensors").stat().st_mtime_ns == stamp
    train(ONCE, few, tmp_path, rerun=True)
    assert (finished.path / "model.safetensors").stat().st_mtime_ns > stamp


def test_auto_precision_is_the_presets_and_then_the_devices(few, tmp_path, monkeypatch):
    preset = load_preset("digits")
    for named, asked, used in (
        ("bf16-mixed", "auto", "bf16-mixed"),
        ("bf16-mixed", "32-true", "32-true"),
        ("", "auto", "32-true"),
    ):
        monkeypatch.setattr(
            "robustlib.methods.base.load_preset", lambda _, named=named: preset | {"precision": named or "auto"}
        )
        assert fit(ONCE, few, root=tmp_path, precision=asked, progress=False).params()["precision"] == used


@pytest.mark.parametrize(("gain", "said"), [(0.3, ["3.3 times as long as in float32"]), (0.95, []), (1.7, [])])
def test_bf16_that_costs_more_than_float32_is_said_and_goes_on(few, tmp_path, monkeypatch, gain, said):
    monkeypatch.setattr(loop, "bf16_gain", lambda model, x: gain)
    for precision, wanted in (("bf16-mixed", said), ("32-true", [])):
        run = train(ONCE, few, tmp_path, precision=precision)
        found = run.metrics()["warnings"].explode().dropna()
        assert [w for w in found if "bf16" in w] == [w for w in found if any(part in w for part in wanted)]
        assert (len([w for w in found if "bf16" in w]), run.finished) == (len(wanted), True)


@pytest.mark.parametrize("old", [{"changes": {"as": "the preset was then"}}, {"changed": "as=the preset was then"}])
def test_a_finished_run_tells_what_it_changed_from_the_preset_of_today(finished, tmp_path, few, old):
    told = finished.params()
    assert told["changes"]
    write_json(finished.path / "params.json", {name: v for name, v in told.items() if name != "changes"} | old)
    assert train(ONCE, few, tmp_path).params() == told


def test_other_numbers_make_a_run_stale_and_an_unfinished_one_is_not_resumed(finished, tmp_path, few):
    facts = finished.provenance()
    assert facts["numerics"] == {"methods/standard": 1}
    for changed, stale in (({"git": "older", "packages": {}}, False), ({"numerics": {"methods/standard": 0}}, True)):
        write_json(finished.path / "provenance.json", {**facts, **changed})
        assert finished.stale == stale, "other code may give the same numbers"
    (finished.path / "status.json").write_text('{"state": "running"}')
    (finished.path / "notes.txt").write_text("my own")
    with pytest.raises(InputError, match=r"another version .*, whose numbers differ in methods/standard 0 \(now 1\)"):
        train(ONCE, few, tmp_path)
    assert (finished.path / "checkpoint.pt").exists()
    train(ONCE, few, tmp_path, rerun=True)
    assert (finished.path / "notes.txt").exists()
    assert (finished.finished, finished.stale) == (True, False)


def test_seeds_and_parameters_make_other_runs_and_places_do_not(finished, tmp_path, few):
    again, other = (train(ONCE, few, tmp_path / "other", seed=seed) for seed in (0, 1))
    assert finished.path.name == again.path.name != other.path.name
    heads = [run.model("last").head.weight for run in (finished, again, other)]
    assert [torch.equal(heads[0], head) for head in heads] == [True, True, False]
    facts = finished.provenance()
    assert facts["threads"] == 1
    assert "robustlib run standard --preset digits --seeds 0" in facts["command"]
    assert train(tiny("standard", epochs=1, lr=0.01), few, tmp_path).path != finished.path


def test_the_recorded_command_names_the_same_run(tmp_path, few):
    run = train(ONCE, few, tmp_path, arch="mlp")
    assert "--set arch=mlp" in run.provenance()["command"]
    assert train(tiny("standard", epochs=1, arch="mlp"), few, tmp_path) == run


def test_resuming_with_another_number_of_threads_is_refused(tmp_path, few, monkeypatch):
    monkeypatch.setattr(Progress, "show", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(tiny("standard"), few, root=tmp_path, device="cpu", threads=1)
    with pytest.raises(InputError, match="begun with 1 CPU threads"):
        fit(tiny("standard"), few, root=tmp_path, device="cpu", threads=2)


def test_two_processes_cannot_train_one_run(finished, tmp_path, few, monkeypatch):
    monkeypatch.setattr("robustlib.runs.run.PATIENCE", 0.2)
    with open(finished.path / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            train(ONCE, few, tmp_path, rerun=True)


def test_learns_and_reports(tmp_path, digits, capsys):
    run = fit(tiny("standard", epochs=3, train_examples=0), digits, root=tmp_path, device="cpu")
    assert run.metrics().clean_val.iloc[-1] > 0.8 > run.metrics().clean_val.iloc[0]
    said = capsys.readouterr().out
    assert all(words in said for words in ("epoch 3/3", "left", "PGD-10", "done in"))


def test_a_run_says_whose_values_it_has(finished, tmp_path, few, capsys):
    run = fit(make_method("standard", "digits", arch="mlp", epochs=2), few, root=tmp_path, device="cpu")
    (said,), *rest = run.metrics().warnings
    assert "lr=0.2" in said
    assert not any(rest)
    assert f"warning: {said}" in capsys.readouterr().out
    assert f"- before training: {as_markdown(said)}" in warnings(run.metrics())
    assert not any(finished.metrics().warnings)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1.5}, "seed=1.5"),
        *(({"seed": seed}, f"seed={seed}: give a whole number") for seed in (-1, 2**63, 2**64 - 1)),
        *(({"threads": threads}, f"threads={threads}: give a whole number of at least 1") for threads in (0, -1)),
        ({"rerun": "false"}, "rerun='false': give true or false"),
        ({"root": 5}, "root=5: give"),
        ({"root": "a" * 256}, "is no path"),
        ({"arch": ["mlp"]}, r"Unknown architecture \['mlp'\]"),
        ({"device": None}, "device=None: give a text"),
        ({"precision": None}, "precision None"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"arch": "resnet19"}, "'resnet1"),
        ({"device": "gpu"}, "Unknown device"),
        ({"device": "cuda:99"}, "no such device"),
    ],
)
def test_bad_arguments(tmp_path, digits, options, says):
    with pytest.raises(InputError, match=says):
        fit(tiny("standard"), digits, **{"root": tmp_path, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 truncated", None])
def test_truncated_or_foreign_checkpoints(tmp_path, digits, content):
    method = tiny("standard")
    run = Run.of(run_params(method, digits, "small_cnn", 0, "32-true"), tmp_path)
    run.path.mkdir(parents=True)
    file = run.path / "checkpoint.pt"
    file.write_bytes(content or b"")
    if content is None:
        torch.save({"state": np.float64(1), "evil": print}, file)  # whose code would run
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"is no checkpoint of robustlib, or a truncated one: delete it"):
        train(method, digits, tmp_path)
    assert file.read_bytes() == before


def test_a_flipped_bit_of_a_checkpoint_is_a_sentence(finished, tmp_path):
    whole, generator = (finished.path / "checkpoint.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for at in (generator.randrange(len(whole)), generator.randrange(4000)):  # anywhere, and in the pickled part
            damaged[at] ^= 1 << generator.randrange(8)
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_checkpoint(tmp_path / "checkpoint.pt", finished.place)


def test_files_of_another_run_are_refused(finished, tmp_path, few):
    other = Run.of(finished.params() | {"seed": 1}, tmp_path)
    shutil.copytree(finished.path, other.path)
    with pytest.raises(InputError, match=f"holds the parameters of {finished.place}: it was copied"):
        train(ONCE, few, tmp_path, seed=1)
    shutil.rmtree(other.path)
    other.path.mkdir()
    shutil.copy(finished.path / "checkpoint.pt", other.path)
    with pytest.raises(InputError, match=f"checkpoint.pt is of another run, {finished.place}: delete it"):
        train(ONCE, few, tmp_path, seed=1)
    assert train(ONCE, few, tmp_path, seed=1, rerun=True).damage == ""


def test_a_finished_run_that_lost_its_parameters_or_was_killed_while_cleared_is_whole_again(
    finished, tmp_path, few, monkeypatch
):
    told = finished.params()
    (finished.path / "params.json").unlink()
    assert not finished.finished
    assert train(ONCE, few, tmp_path).params() == told
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", None)  # all files are gone when it fails
        with pytest.raises(TypeError):
            train(ONCE, few, tmp_path, rerun=True)
    assert train(ONCE, few, tmp_path).params() == told
    assert (finished.finished, finished.damage) == (True, "")


def test_a_training_that_diverged_is_not_done_and_keeps_what_was_finite(tmp_path, few):
    """Its loss is finite, and so is the accuracy of its weights, which are NaN or infinite."""
    with pytest.raises(
        FloatingPointError, match=r"became NaN or infinite in epoch 1 of .*lower the learning rate.* is kept"
    ):
        train(tiny("standard", epochs=1, lr=1e10), few, tmp_path)
    (run,) = find_runs(tmp_path, finished=False)
    assert (run.status()["state"], len(run.metrics())) == ("failed", 1)
    weights = loop.load_checkpoint(run.path / "checkpoint.pt", run.place)["modules"]["model"]
    assert all(bool(part.isfinite().all()) for part in weights.values())
    assert not (run.path / "model.safetensors").exists()


def test_killed_before_the_last_metrics_it_has_all_epochs(finished, tmp_path, few):
    whole = (finished.path / "metrics.jsonl").read_text()
    (finished.path / "metrics.jsonl").write_text(whole.splitlines(keepends=True)[0])
    (finished.path / "status.json").write_text('{"state": "running"}')
    train(ONCE, few, tmp_path)
    assert (finished.path / "metrics.jsonl").read_text() == whole


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path, few):
    content = torch.load(finished.path / "checkpoint.pt", weights_only=True)
    del content["modules"]["model"]["head.bias"]
    torch.save(content, finished.path / "checkpoint.pt")
    (finished.path / "status.json").write_text(json.dumps({"state": "interrupted"}))
    with pytest.raises(InputError, match=r"does not fit this run .*: use --rerun"):
        train(ONCE, few, tmp_path)


def test_runs_of_own_images_tell_where_these_are(tmp_path):
    for k in range(20):
        file = tmp_path / "own" / f"class {k % 2}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * k, np.uint8)).save(file)
    images = load_images(tmp_path / "own", threat=Threat("l2", 0.5))
    run = train(ONCE, images, tmp_path / "runs")
    assert run.finished
    assert run.path.parts[-3] == images.name
    again = dataset_of(run.params())
    assert (again.name, again.threat) == (images.name, Threat("l2", 0.5))
    assert torch.equal(again.test.images, images.test.images)
    with pytest.raises(InputError, match=r"own-8px-\w+ has no training images, only 20 to evaluate"):
        train(ONCE, load_images(tmp_path / "own", test=1.0), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    arrays = Dataset.of(images.train.images, images.train.labels)
    assert "images" not in run_params(ONCE, arrays, "mlp", 0, "32-true")
