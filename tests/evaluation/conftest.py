"""What tests of evaluations share: runs that are trained and attacked in no time."""

import pytest

from robustlib.attacks import APGD, AutoAttack, Square
from robustlib.methods import make_method
from robustlib.training import fit


@pytest.fixture
def train(tmp_path, few, monkeypatch):
    """train(method, seed): a barely trained run, evaluated with a short AutoAttack."""

    def quick(threat):
        parts = (("apgd-ce", APGD(threat, steps=5)), ("square", Square(threat, queries=20)))
        return AutoAttack(threat, version="custom", attacks=parts)

    def trained(name="standard", seed=0, epochs=1, examples=100):
        method = make_method(name, "digits", epochs=epochs, train_examples=examples)
        return fit(method, few, root=tmp_path, device="cpu", seed=seed, progress=False)

    monkeypatch.setattr("robustlib.evaluation.protocols.AutoAttack", quick)
    return trained
