"""Small trainings that tests of methods share, each made once."""

from functools import cache

import pytest

from tests.training_fixtures import tiny, train


@pytest.fixture(scope="session")
def run_of(few, tmp_path_factory):
    return cache(lambda name, **settings: train(tiny(name, **settings), few, tmp_path_factory.mktemp("runs")))
