"""Slurm, imitated by submitit's local executor: jobs that are stopped before their limit, fail, or are killed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from robustlib.errors import InputError
from robustlib.runs import read_json
from robustlib.workbook.engines import device_type, run_all, slurm
from robustlib.workbook.engines.settings import Settings
from tests.workbook.notebooks import Notebook, maker, outputs

pytest.importorskip("submitit", reason="the extra `slurm` is not installed")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    return maker(tmp_path)


# Counts epochs in a file, as a training keeps a checkpoint; the first session waits after the second one.
EPOCHS = """
import pathlib, time
mark = pathlib.Path(word)
for epoch in range(4):
    done = mark.read_text() if mark.exists() else ""
    if len(done) <= epoch:
        mark.write_text(done + str(seed))
    if len(done) == 1:
        (mark.parent / "waits").touch()
        time.sleep(3600)
print(mark.read_text())
"""


def test_stopped_before_its_limit_a_job_is_queued_again_and_goes_on(
    make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_defence.py").write_text("NAME = 'mixed_at'\n")
    monkeypatch.chdir(tmp_path)
    good = make(EPOCHS, word=str(tmp_path / "mark"))
    bad = make("from my_defence import NAME\nraise ValueError(NAME)", name="bad")
    seen = list[tuple[str, str]]()

    def follow(statuses: list[dict[str, Any]]) -> None:
        seen.append((statuses[0]["state"], statuses[0]["reason"]))
        if (tmp_path / "waits").exists():
            (tmp_path / "waits").unlink()
            os.kill(read_json(good.status_path)["pid"], signal.SIGUSR2)  # as Slurm does before it kills

    statuses = run_all([good, bad], 2, follow, engine="slurm")
    assert [status["state"] for status in statuses] == ["done", "failed"]
    assert statuses[1]["reason"] == "ValueError: mixed_at"
    assert ("queued", slurm.REQUEUED) in seen
    assert outputs(good) == "0000\n"


def test_what_slurm_cannot_do_is_a_sentence(make: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [device_type("slurm", "auto", gpus_per_task=gpus) for gpus in (None, 0, 2)] == ["cpu", "cpu", "cuda"]
    for device, options, sentence in (
        ("cuda", {}, "--device cuda on Slurm needs a GPU: add --gpus-per-task 1"),
        ("auto", {"gpus_per_task": 0.5}, r"gpus_per_task=0\.5: Slurm gives whole GPUs"),
        ("auto", {"slurm": ("partition",)}, "'partition' sets nothing: write name=value"),
    ):
        with pytest.raises(InputError, match=sentence):
            device_type("slurm", device, **options)
    task = make("1")
    with pytest.raises(InputError, match=r"Unknown option of sbatch 'partitoin'\. Did you mean 'partition'"):
        run_all([task], engine="slurm", slurm=("partitoin=gpu",))
    assert slurm._options(Settings(slurm=("--mem=16GB", "time=60"))) == {"mem": "16GB", "time": 60, "cpus_per_task": 1}
    monkeypatch.setattr(slurm, "CLUSTER", "slurm")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="There is no sbatch here"):
        device_type("slurm", "auto")


def test_a_batch_is_one_array_that_a_later_call_follows_and_slurms_word_counts(
    make: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "CLUSTER", "slurm")
    for name, says in {
        "sbatch": f'cp "$1" {tmp_path}/submitted; echo Submitted batch job 12',
        "sacct": f"cat {tmp_path}/states",
        "scancel": "true",
        "srun": "true",
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{says}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("submitit.SlurmJob.watcher._delay_s", 0)
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    (tmp_path / "states").write_text("JobID|State\n12_0|RUNNING\n12_1|PENDING\n")
    tasks = [make("1", name=name) for name in ("a", "b")]

    def end(statuses: list[dict[str, Any]]) -> None:
        (tmp_path / "states").write_text("JobID|State\n12_0|NODE_FAIL\n12_1|OUT_OF_MEMORY\n")

    class Killed(BaseException):
        pass

    def die(statuses: list[dict[str, Any]]) -> None:
        raise Killed

    monkeypatch.setattr(slurm, "_stop", lambda *_: None)  # as by kill -9
    with pytest.raises(Killed):
        run_all(tasks, 2, die, engine="slurm", gpus_per_task=1, slurm=("partition=long",))
    batch = (tmp_path / "submitted").read_text()
    for line in ("--array=0-1%2", "--partition=long", "--time=240", "--gpus-per-node=1", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in batch
    (tmp_path / "submitted").unlink()
    statuses = run_all(tasks, 2, end, engine="slurm")
    assert not (tmp_path / "submitted").exists()
    assert [status["state"] for status in statuses] == ["killed", "killed"]
    assert "Slurm's job 12_0 ended as NODE_FAIL." in statuses[0]["reason"]
