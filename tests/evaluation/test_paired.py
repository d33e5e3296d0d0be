"""Runs on the same images: who withstands what, and by how much they differ."""

import math

import numpy as np
import pandas as pd
import pytest

from robustlib.errors import InputError
from robustlib.evaluation import agreement, paired_differences, withstood_by
from robustlib.evaluation.metrics import COLUMNS, paired_interval


class Evaluated:
    """Records without a run: index -> right without attack, and under it."""

    path = argument = "a-run"

    def __init__(self, **images: tuple[bool, bool]) -> None:
        rows = [
            (int(name[1:]), 0, attack, "", "", 0.1, 1.0, 0, 0 if right else 1, 0.0, True)
            for name, both in images.items()
            for attack, right in zip(("clean", "pgd20"), both, strict=True)
        ]
        self.frame = pd.DataFrame(rows, columns=COLUMNS)

    def records(self) -> pd.DataFrame:
        return self.frame


ONE = Evaluated(i1=(True, True), i2=(True, True), i3=(True, False), i4=(False, False), i9=(True, True))
OTHER = Evaluated(i1=(True, True), i2=(True, False), i3=(True, False), i4=(True, True))


def test_only_images_that_all_met_are_compared():
    table = withstood_by({"one": ONE, "other": OTHER})
    assert table.index.tolist() == [1, 2, 3, 4]
    assert table["one"].tolist() == [1, 1, 0, 0]
    assert withstood_by({"one": ONE, "other": OTHER}, "clean")["one"].tolist() == [1, 1, 1, 0]
    with pytest.raises(InputError, match=r"did not meet 'cw50'. It met clean, pgd20"):
        withstood_by({"one": ONE}, "cw50")
    with pytest.raises(InputError, match="different images"):
        withstood_by({"one": ONE, "other": Evaluated(i7=(True, True))})


def test_differences_are_paired_and_have_bonett_and_prices_interval():
    (row,) = paired_differences(withstood_by({"one": ONE, "other": OTHER})).to_dict("records")
    assert (row["one"], row["other"], row["n"], row["only_one"], row["only_other"]) == ("one", "other", 4, 1, 1)
    assert row["difference"] == 0
    error = 1.959963984540054 * math.sqrt(
        (1 + 1 + 1 + 1) / 6 / 6
    )  # p12 + p21 - (p12 - p21)^2 over n + 2, one added to each
    assert (row["low"], row["high"]) == pytest.approx((-error, error))
    many = paired_interval(np.r_[np.ones(30), np.zeros(70)])
    assert many == pytest.approx(
        tuple(30 / 102 + side * 1.95996398 * math.sqrt((32 / 102 - (30 / 102) ** 2) / 102) for side in (-1, 1))
    )
    against = paired_differences(withstood_by({"a": ONE, "b": OTHER, "c": OTHER}), "b")
    assert against[["one", "other"]].to_numpy().tolist() == [["b", "a"], ["b", "c"]]


def test_agreement_says_of_what_one_fails_on_how_much_the_other_withstands():
    shares = agreement(withstood_by({"one": ONE, "other": OTHER}))
    assert shares.loc["one", "other"] == 0.5  # of 3 and 4 the other withstands 4
    assert shares.loc["other", "one"] == 0.5  # of 2 and 3 the first withstands 2
    assert shares.loc["one", "one"] == 0
    assert math.isnan(agreement(pd.DataFrame({"all": [1.0, 1.0]})).loc["all", "all"])
