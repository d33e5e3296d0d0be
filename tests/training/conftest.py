"""Trained runs that tests of the training share; each test gets a copy of its own."""

import shutil

import pytest

from robustlib.runs import Run
from tests.training_fixtures import small, train


@pytest.fixture(scope="session")
def trained(few, tmp_path_factory):
    """A root with a finished run of standard training."""
    root = tmp_path_factory.mktemp("trained")
    train(small("standard", epochs=1), few, root)
    return root


@pytest.fixture
def finished(trained, tmp_path) -> Run:
    """A finished run of `small("standard", epochs=1)` below `tmp_path`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Run(next(tmp_path.glob("digits/standard/*")))
