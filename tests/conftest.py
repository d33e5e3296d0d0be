"""What tests share: one thread, fixed seeds, and small things to attack and train."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, several workers: more threads only wait for each other

import gc
import tempfile

os.environ["XDG_STATE_HOME"] = (
    tempfile.mkdtemp()
)  # what a user trusts, and what is known of runs, is no business of tests

import signal
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustlib.workbook  # noqa: F401  before nbformat, which it spares a second and a half
from robustlib.attacks import AutoAttack
from robustlib.audit import audit
from robustlib.data import DATASETS, load_dataset
from robustlib.data.sources import Arrays

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job: children of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


FIRST = {"workbook", "test_devices.py", "test_pretend_gpu.py", "test_site.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long, or waits for kernels and browsers, begins first: the rest fills the time, and nothing long is left to the end."""
    items.sort(key=lambda item: FIRST.isdisjoint(item.path.parts))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage need look at it again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


class Linear(nn.Module):
    """logits = W x + b on flattened images; every attack's optimum on it can be written down."""

    def __init__(self, classes: int = 2, shape: tuple[int, ...] = (1, 4, 4), scale: float = 1.0) -> None:
        super().__init__()
        self.map = nn.Linear(int(torch.tensor(shape).prod()), classes)
        with torch.no_grad():
            self.map.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))


class ConvNet(nn.Sequential):
    def __init__(self, classes: int = 5, channels: int = 3) -> None:
        first = nn.Conv2d(channels, 8, 3, padding=1)
        super().__init__(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


class Hidden(nn.Module):
    """Deploys the decisions of a classifier without their gradient; `attack_view`, where open, is the classifier."""

    def __init__(self, model: nn.Module, open: bool) -> None:
        super().__init__()
        self.model, self.open = model, open

    def attack_view(self) -> nn.Module:
        return self.model if self.open else self

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]) * 3.0 + 0 * logits


def spec(shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> SimpleNamespace:
    return SimpleNamespace(num_classes=classes, image_shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])


def made_up(patch: pytest.MonkeyPatch, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """A data set that is not here becomes random images of that shape, five of each class."""
    labels = np.arange(5 * classes) % classes
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    arrays = Arrays((images, labels), (images[:classes], labels[:classes]), tuple(map(str, range(classes))))
    patch.setitem(DATASETS, name, replace(DATASETS[name], read=lambda *_: arrays, embedded=True))


@pytest.fixture
def linear() -> Linear:
    return Linear()


@pytest.fixture
def conv_net() -> nn.Module:
    """Its BatchNorm's statistics are not the initial ones."""
    model = ConvNet()
    for _ in range(5):
        model(torch.rand(64, 3, 8, 8) * 2)
    return model.eval()


@pytest.fixture
def brief_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations and audits of runs by short attacks, and curves of two points: what becomes of them counts, not how good they are."""
    monkeypatch.setattr("robustlib.evaluation.protocols.AutoAttack", partial(AutoAttack, steps=2, queries=4))
    for name in ("EPS_MULTIPLES", "STEPS"):
        monkeypatch.setattr(f"robustlib.evaluation.runs.{name}", (0, 1))
    judge = sys.modules["robustlib.audit.audit"]
    monkeypatch.setattr(judge, "audit", partial(audit, queries=4, noise=4, readouts=4, targets=1))
    monkeypatch.setattr("robustlib.audit.attacks.RESTARTS", 2)


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


def hardly_validated(dataset):
    return replace(dataset, val=dataset.val.sample(60))


@pytest.fixture(scope="session")
def few(digits):
    return hardly_validated(digits)
