"""Small trainings: broken off and resumed bit for bit, and in mixed precision."""

import numpy as np
import pytest
import torch

from tests.training_fixtures import broken_off, same_runs, tiny, train, unchecked_purifier

RESUMED = (
    ("afd", {"pretrain_epochs": 2}, 4),  # within the fine-tuning
    ("atop", {}, 3),  # between pre-training and fine-tuning
    ("atop", {}, 4),
    ("claf", {"epochs": 3, "refresh": "reinit"}, 3),
    ("claf", {"epochs": 3, "refresh": "never"}, 3),
    *(("ll_spectral", {"epochs": 4, "operator": "power", "cadence": 2}, stop) for stop in (1, 2, 4)),
    *(("barlow_spectral", {"epochs": 3}, stop) for stop in (2, 3, 4)),  # the last between readout and its measurement
    *(("l2_sp", {"pretrain_epochs": 2}, stop) for stop in (2, 3, 4)),
    ("bss", {"pretrain_epochs": 2}, 3),
    ("transfer", {"pretrain_epochs": 2}, 2),
)


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    """The run of a method and settings that nothing broke off, trained once."""
    runs = {}

    def run(name, settings):
        key = name, str(settings)
        if key not in runs:
            runs[key] = train(tiny(name, **settings), few, tmp_path_factory.mktemp("whole"))
        return runs[key]

    return run


@pytest.fixture(autouse=True)
def _unchecked():
    with unchecked_purifier():
        yield


@pytest.mark.parametrize(("name", "settings", "stop"), RESUMED)
def test_a_broken_off_training_resumes_bit_for_bit(few, tmp_path, monkeypatch, undisturbed, name, settings, stop):
    whole = undisturbed(name, settings)
    broken_off(tiny(name, **settings), few, tmp_path, monkeypatch, stop)
    torch.manual_seed(99)
    torn = train(tiny(name, **settings), few, tmp_path)
    assert same_runs(torn, whole)


MIXED = (
    ("pgd_at", {"awp_gamma": 0.01, "ema": 0.9}),
    ("ancra", {"train_examples": 200}),
    ("ancra", {"base": "mart", "awp_gamma": 0.01, "train_examples": 200}),
    *((name, {}) for name in ("claf", "acl", "barlow_spectral", "transfer", "l2_sp", "bss")),
    *((name, {"cadence": 1}) for name in ("rep_spectral", "ll_spectral", "cross_lipschitz")),
)


@pytest.mark.parametrize(("name", "settings"), MIXED)
def test_mixed_precision_trains(few, tmp_path, name, settings):
    run = train(tiny(name, arch="small_cnn", **settings), few, tmp_path, precision="bf16-mixed")
    rows = run.metrics()
    assert run.finished
    assert np.isfinite(rows.filter(regex="loss$").dropna(how="all").to_numpy(float, na_value=0)).all()
    if "cadence" in settings:
        assert (rows["penalty"] > 0).any()
