"""A trained run that tests of the training share; each test gets a copy of its own."""

import shutil

import pytest

from robustlib.runs import Run
from tests.training_fixtures import tiny, train


@pytest.fixture(scope="session")
def trained(few, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    train(tiny("standard", epochs=1), few, root)
    return root


@pytest.fixture
def finished(trained, tmp_path) -> Run:
    """A finished run of `tiny("standard", epochs=1)` below `tmp_path`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Run(next(tmp_path.glob("digits/standard/*")))
