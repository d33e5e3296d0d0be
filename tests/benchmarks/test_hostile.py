"""Hostile files, inputs and models, a few of each kind; benchmarks/hostile.py tries as many as one likes."""

import pytest
from hostile import KINDS, tried


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_things_work_or_are_a_sentence(tmp_path, kind):
    tried(kind, tmp_path, trials=40)
