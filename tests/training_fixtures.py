"""What tests of methods share: fresh models, a place in a training, small trainings, and one that breaks off."""

import pytest
import torch

from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.training import StepContext, fit
from robustlib.training.loop import Training


def built(method, dataset):
    """The method's model, always with the same weights, in train mode."""
    torch.manual_seed(0)
    return build_model(method.arch, dataset, **method.model_options()).train()


def step_context(epoch=0, step=0):
    """A place in a training, always with the same random numbers."""
    return StepContext(epoch, step, 0.0, torch.Generator().manual_seed(5), "32-true")


SMALL = {"epochs": 4, "train_examples": 130, "batch_size": 64, "attack_steps": 2}


def small(name="pgd_at", **changes):
    """A method for the digits that trains for a moment."""
    settings = {k: v for k, v in {**SMALL, **changes}.items() if name != "standard" or k != "attack_steps"}
    return make_method(name, preset="digits", **settings)


def train(method, dataset, root, **options):
    """A finished run below `root`."""
    return fit(method, dataset, root=root, device="cpu", threads=1, progress=False, **options)


def broken_off(method, dataset, root, monkeypatch, stop):
    """Trains until the `stop`-th epoch begins."""
    real, calls = Training._epoch, []

    def dying(self, epoch):
        calls.append(epoch)
        if len(calls) == stop:
            raise KeyboardInterrupt
        real(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_epoch", dying)
        with pytest.raises(KeyboardInterrupt):
            train(method, dataset, root)
