"""Whole trainings: broken off and resumed bit for bit, in mixed precision, and how often their attacks take gradients."""

import numpy as np
import pytest
import torch

from robustlib.attacks import BatchPGD
from robustlib.attacks.base import GradientOracle
from robustlib.methods import METHODS, AdversarialMethod, make_method
from tests.training_fixtures import broken_off, built, first_batch, same_runs, step_context, tiny, train

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


@pytest.mark.parametrize(("name", "settings", "stop"), RESUMED)
def test_a_broken_off_training_resumes_bit_for_bit(few, tmp_path, monkeypatch, run_of, name, settings, stop):
    whole = run_of(name, **settings)
    broken_off(tiny(name, **settings), few, tmp_path, monkeypatch, stop)
    torch.manual_seed(99)
    assert same_runs(train(tiny(name, **settings), few, tmp_path), whole)


MIXED = (
    ("pgd_at", {"awp_gamma": 0.01, "ema": 0.9}),
    ("ancra", {}),
    ("ancra", {"base": "mart", "awp_gamma": 0.01}),
    *((name, {}) for name in ("claf", "acl", "barlow_spectral", "l2_sp", "bss")),
    *((name, {"cadence": 1}) for name in ("ll_spectral", "cross_lipschitz")),
)


@pytest.mark.parametrize(("name", "settings"), MIXED)
def test_mixed_precision_trains(few, tmp_path, name, settings):
    run = train(tiny(name, arch="small_cnn", train_examples=200, **settings), few, tmp_path, precision="bf16-mixed")
    rows = run.metrics()
    assert run.finished
    assert np.isfinite(rows.filter(regex="loss$").dropna(how="all").to_numpy(float, na_value=0)).all()
    if "cadence" in settings:
        assert (rows["penalty"] > 0).any()


# Small numbers that differ from each other, so that a mistaken factor shows.
SMALL = {"attack_steps": 2, "final_steps": 3, "tuning_epochs": 2, "head_epochs": 4, "epochs": 5, "pretrain_epochs": 1}
SMALL |= {"repeats": 3, "classifier_epochs": 1, "purifier_epochs": 1}
OWN = {name: {"attack_steps": 1} for name in ("fgsm_rs", "n_fgsm")}
OWN |= {"arrest": {"replay": 0.0}, "claf": {"aug_epochs": 2}}
VARIANTS = [
    *((name, {}) for name, kind in METHODS.items() if issubclass(kind, AdversarialMethod)),
    *(("pgd_at", {"attack_steps": 3}), ("ancra", {"attack_negatives": False}), ("ancra", {"negative_contrast": False})),
    *(("supcon", {"final": "alf"}), ("acl", {"final": "aff"}), ("claf", {"refresh_passes": 3, "adv_views": 2})),
    *(("claf", {"refresh": kind}) for kind in ("clean", "reinit", "never")),
    ("claf", {"adv_views": 0, "aug_epochs": 0, "final": "alf"}),
    *(("atop", {"attack_through": "pipeline", "transform": "rt3"}), ("atop", {"fine_tune": False})),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_a_method_says_how_often_it_attacks(digits, monkeypatch, name, changes):
    gradient, climb, counts = GradientOracle.gradient, BatchPGD.__call__, []

    def counting(self, x, *args, **kwargs):
        counts.append(len(x))
        return gradient(self, x, *args, **kwargs)

    def climbing(self, model, x, *args, **kwargs):
        counts.append(self.steps * len(x))
        return climb(self, model, x, *args, **kwargs)

    monkeypatch.setattr(GradientOracle, "gradient", counting)
    monkeypatch.setattr(BatchPGD, "__call__", climbing)
    usual = make_method(name, "digits")
    small = {key: value for key, value in {**SMALL, **OWN.get(name, {})}.items() if hasattr(usual, key)}
    method = make_method(name, "digits", **{**small, **changes})
    model, batch, passes = built(method, digits), first_batch(digits), 0.0
    for stage in method.stages(digits, model):
        if stage.begin is not None:
            stage.begin()
        for part in stage.passes:
            counts.clear()
            list(part.updates(batch, step_context()))
            passes += stage.epochs * part.repeats * sum(counts) / len(batch)
    assert method.attack_passes == passes


def test_what_another_run_did_is_counted():
    there = make_method("claf", "digits", final="alf", pretrained="runs/x")
    assert there.all_epochs < make_method("claf", "digits", final="alf").all_epochs
    assert there.attack_passes == make_method("claf", "digits", final="alf").attack_passes


def test_the_counts_on_digits():
    names = ("standard", "supcon", "claf", "rocl", "pgd_at", "trades", "acl", "ancra")
    counts = {name: make_method(name, "digits").attack_passes for name in names}
    assert list(counts.values()) == [0, 0, 250, 280, 400, 400, 400, 800]
    others = [name for name, kind in METHODS.items() if not issubclass(kind, AdversarialMethod)]
    assert {make_method(name, "digits").attack_passes for name in others} == {0}
