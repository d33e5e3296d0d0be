"""What the comparison of AutoAttack's fast version with its standard one says of numbers that are known."""

import autoattack_fast
import pandas as pd
import pytest
from autoattack_fast import Pair


def pair(method: str, fast: list[bool], passes: tuple[float, float]) -> Pair:
    standard = [True, True, False, False]
    right = pd.DataFrame({"standard": standard, "fast": fast})
    shares = {"clean": 1.0, **right.mean()}
    rows = pd.DataFrame({"accuracy": shares, "passes": {"clean": 0.0, "standard": passes[0], "fast": passes[1]}})
    return Pair(method, 0, rows, right)


def test_a_weaker_or_dearer_version_does_not_hold():
    same = pair("trades", [True, False, True, False], (1000.0, 100.0))
    assert (same.difference, same.fewer) == (0.0, pytest.approx(10.0))
    row = same.row()
    assert (row["images only standard broke"], row["images only fast broke"]) == (1, 1)
    assert (row["passes per image, fast"], row["fewer by"]) == ("100", "10.0x")
    assert all(autoattack_fast.claims([same]).values())
    weak, dear = pair("trades", [True] * 4, (1000.0, 100.0)), pair("standard", [False] * 4, (8.0, 8.0))
    assert list(autoattack_fast.claims([same, weak]).values()) == [False, True, True]
    assert list(autoattack_fast.claims([same, dear]).values()) == [True, True, False, True]
