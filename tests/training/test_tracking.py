"""Trackers: what they are told, as real event files, and that none of them stops a training."""

import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustlib.errors import InputError
from robustlib.workbook.experiments import Options, plan
from tests.training_fixtures import broken_off, tiny, train

METHOD = {"arch": "mlp_8", "train_examples": 40, "epochs": 3}


class Told:
    """As Lightning's loggers are; `fails` at the call of that number."""

    def __init__(self, fails=0):
        self.said, self.fails = [], fails

    def _note(self, *said):
        self.said.append(said)
        if len(self.said) == self.fails:
            raise OSError(28, "No space left on device")

    def log_metrics(self, metrics, step=None):
        self._note("metrics", metrics, step)

    def log_hyperparams(self, params):
        self._note("params", params)

    def finalize(self, status):
        self._note("end", status)


def test_tensorboard_has_what_the_metrics_have(few, tmp_path):
    run = train(tiny("standard", **METHOD), few, tmp_path, logger="tensorboard")
    (file,) = (run.path / "tensorboard").glob("events.*")
    events, rows = EventAccumulator(str(file)), run.metrics()
    events.Reload()
    for name in ("loss", "clean_val", "robust_val", "seconds"):
        told = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        known = rows.set_index("epoch_total")[name].dropna()
        assert told == pytest.approx(known.to_dict())
    best = rows.loc[rows.clean_val.where(rows.epoch > 0).idxmax()]
    assert events.Scalars("final/clean_val")[0].value == pytest.approx(best.clean_val)
    told = file.read_bytes()
    for name in (b"weight_decay", b"mlp_8", b"precision"):
        assert name in told
    run.clear()
    assert not (run.path / "tensorboard").exists()


def test_any_logger_is_told_each_row_once_also_after_an_interruption(few, tmp_path, monkeypatch):
    broken_off(tiny("standard", **METHOD), few, tmp_path, monkeypatch, 3, logger=(first := Told()))
    run = train(tiny("standard", **METHOD), few, tmp_path, logger=(then := Told()))
    assert [said[0] for said in first.said] == ["params", *["metrics"] * 3, "end"]
    assert [said[2] for said in [*first.said, *then.said] if said[0] == "metrics"] == [0, 1, 2, 3, 3]
    assert first.said[-1] == ("end", "failed")
    assert then.said[-1] == ("end", "success")
    assert then.said[0][1]["lr"] == run.params()["hyperparameters"]["lr"]
    assert set(then.said[-2][1]) == {"final/clean_val", "final/robust_val"}


@pytest.mark.parametrize("fails", [1, 2, 6])
def test_a_tracker_that_fails_is_one_warning(few, tmp_path, fails):
    with pytest.warns(UserWarning, match=r"tracker \(Told\) failed .*No space left") as warned:
        run = train(tiny("standard", **METHOD), few, tmp_path, logger=(told := Told(fails)))
    assert run.finished
    assert len(warned) == 1
    assert len(told.said) == fails, "it is told nothing more"


def test_a_tracker_that_is_not_installed_is_one_warning(few, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric.loggers", None)
    with pytest.warns(UserWarning, match=r"tracker \(tensorboard\) failed"):
        assert train(tiny("standard", **METHOD), few, tmp_path, logger="tensorboard").finished


@pytest.mark.parametrize(("logger", "said"), [("wandb", "Unknown logger 'wandb'"), (SimpleNamespace(), "is no logger")])
def test_what_is_no_logger_is_said_before_anything_is_written(few, tmp_path, logger, said):
    with pytest.raises(InputError, match=said):
        train(tiny("standard", **METHOD), few, tmp_path, logger=logger)
    assert not [*tmp_path.iterdir()]


def test_batches_pass_devices_and_logger_on(tmp_path):
    places = {"runs": tmp_path / "runs", "reports": tmp_path / "reports"}
    (usual,) = plan([("trades", {})], [0], Options(**places, device="cpu"))
    (job,) = plan([("trades", {})], [0], Options(**places, device="cpu", devices=2, logger="tensorboard"))
    assert {"devices": 2, "logger": "tensorboard"}.items() <= job.task.parameters.items()
    assert not {"devices", "logger"} & usual.task.parameters.keys(), "pages that were made without stay current"
    assert job.run.path != usual.run.path
    for wrong, said in (({"logger": "wandb"}, "Unknown logger"), ({"devices": 200}, "devices=200")):
        with pytest.raises(InputError, match=said):
            plan([("trades", {})], [0], Options(**places, device="cpu", **wrong))
