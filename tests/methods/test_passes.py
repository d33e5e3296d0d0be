"""The attack passes of a training, counted where gradients are taken, against what methods say of themselves."""

from typing import Any

import pytest

from robustlib.attacks import BatchPGD
from robustlib.attacks.base import GradientOracle
from robustlib.methods import METHODS, AdversarialMethod, make_method
from tests.training_fixtures import built, first_batch, step_context

# Small numbers that differ from each other, so that a mistaken factor shows.
SMALL = {"attack_steps": 2, "final_steps": 3, "tuning_epochs": 2, "head_epochs": 4, "epochs": 5, "pretrain_epochs": 1}
SMALL |= {"repeats": 3, "classifier_epochs": 1, "purifier_epochs": 1}
OWN = {name: {"attack_steps": 1} for name in ("fgsm_rs", "n_fgsm")} | {
    "arrest": {"replay": 0.0},
    "claf": {"aug_epochs": 2},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, kind in METHODS.items() if issubclass(kind, AdversarialMethod)),
    *(("pgd_at", {"attack_steps": 3}), ("ancra", {"attack_negatives": False}), ("ancra", {"negative_contrast": False})),
    *(("supcon", {"final": "alf"}), ("acl", {"final": "aff"}), ("claf", {"refresh_passes": 3, "adv_views": 2})),
    *(("claf", {"refresh": kind}) for kind in ("clean", "reinit", "never")),
    ("claf", {"adv_views": 0, "aug_epochs": 0, "final": "alf"}),
    *(("atop", {"attack_through": "pipeline", "transform": "rt3"}), ("atop", {"fine_tune": False})),
]


@pytest.fixture
def counted(monkeypatch):
    """How many images' gradients attacks have taken."""
    count = [0]
    gradient, climb = GradientOracle.gradient, BatchPGD.__call__

    def counting(self, x, *args, **kwargs):
        count[0] += len(x)
        return gradient(self, x, *args, **kwargs)

    def climbing(self, model, x, *args, **kwargs):
        count[0] += self.steps * len(x)
        return climb(self, model, x, *args, **kwargs)

    monkeypatch.setattr(GradientOracle, "gradient", counting)
    monkeypatch.setattr(BatchPGD, "__call__", climbing)
    return count


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda part: part if isinstance(part, str) else str(part))
def test_a_method_says_how_often_it_attacks(digits, counted, name, changes):
    usual = make_method(name, "digits")
    small = {key: value for key, value in {**SMALL, **OWN.get(name, {})}.items() if hasattr(usual, key)}
    method = make_method(name, "digits", **{**small, **changes})
    model, batch, passes = built(method, digits), first_batch(digits), 0.0
    for stage in method.stages(digits, model):
        if stage.begin is not None:
            stage.begin()
        for part in stage.passes:
            counted[0] = 0
            list(part.updates(batch, step_context()))
            passes += stage.epochs * part.repeats * counted[0] / len(batch)
    assert method.attack_passes == passes


def test_what_another_run_did_is_counted():
    there = make_method("claf", "digits", final="alf", pretrained="runs/x")
    assert there.all_epochs < make_method("claf", "digits", final="alf").all_epochs
    assert there.attack_passes == make_method("claf", "digits", final="alf").attack_passes


def test_who_does_not_attack_has_none():
    others = [name for name, kind in METHODS.items() if not issubclass(kind, AdversarialMethod)]
    assert {make_method(name, "digits").attack_passes for name in others} == {0}


def test_the_counts_on_digits():
    names = ("standard", "supcon", "claf", "rocl", "pgd_at", "trades", "acl", "ancra")
    counts = {name: make_method(name, "digits").attack_passes for name in names}
    assert list(counts.values()) == [0, 0, 250, 280, 400, 400, 400, 800]
