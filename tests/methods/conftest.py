"""Small trainings that tests of methods share, each made once."""

from functools import cache

import pytest

from tests.training_fixtures import tiny, train, unchecked_purifier


@pytest.fixture(scope="session")
def run_of(few, tmp_path_factory):
    """Gives the run of `tiny(name, **settings)` on `few`; AToP's purifiers need not have learnt anything."""

    @cache
    def run(name, **settings):
        with unchecked_purifier():
            return train(tiny(name, **settings), few, tmp_path_factory.mktemp("runs"))

    return run
