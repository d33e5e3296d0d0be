"""The choice of a penalty's strength on validation images: accuracy first, then distance, both on shared images."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustlib.errors import InputError
from robustlib.evaluation import distances_over_seeds, select_strength
from robustlib.workbook import tables

N = 100


def t_interval(values: list[float]) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def frame(wrong: int, distance: float, start: int = 0) -> pd.DataFrame:
    """N images of which the first `wrong` are wrong; the others have distances about `distance`."""
    correct = np.arange(N) >= wrong
    far = np.where(correct, distance + 0.001 * (np.arange(N) - N / 2), 0.0)
    return pd.DataFrame({"index": np.arange(N) + start, "label": 0, "correct": correct, "distance": far, "queries": 7})


def seeds(*pairs: tuple[int, float]) -> dict[int, pd.DataFrame]:
    return {seed: frame(*pair) for seed, pair in enumerate(pairs)}


NONE = seeds((2, 0.50), (4, 0.52))  # 97 % on average
CELLS = {
    ("rep", 0.001): seeds((2, 0.51), (4, 0.53)),
    ("rep", 0.01): seeds((3, 0.58), (5, 0.60)),  # 96 %: just allowed
    ("rep", 0.1): seeds((4, 0.70), (5, 0.72)),  # 95.5 %: not allowed
    ("ll", 0.01): seeds((2, 0.49), (2, 0.50)),
}


def test_the_farthest_that_keeps_the_accuracy_is_chosen():
    grid = select_strength(NONE, CELLS)
    assert list(grid["variant"]) == ["none", "rep", "rep", "rep", "ll"]
    assert list(grid["strength"]) == [0.0, 0.001, 0.01, 0.1, 0.01]
    assert grid["accuracy"].tolist() == pytest.approx([0.97, 0.97, 0.96, 0.955, 0.98])
    assert grid["allowed"].tolist() == [True, True, True, False, True]
    assert grid["chosen"].tolist() == [False, False, True, False, True], "one of each variant, even if no better"
    stricter = select_strength(NONE, CELLS, slack=0.005)
    assert stricter["chosen"].tolist() == [False, True, False, False, True]


def test_distances_are_of_the_images_that_all_allowed_cells_have_right():
    grid = select_strength(NONE, CELLS).set_index(["variant", "strength"])
    assert grid["n"].tolist() == [95] * 5, "seed 1 loses five; the cell that is not allowed takes none from the others"
    by_hand = [CELLS["rep", 0.01][seed]["distance"][worst:].mean() for seed, worst in ((0, 3), (1, 5))]
    row = grid.loc[("rep", 0.01)]
    assert (row["distance"], row["low"], row["high"]) == pytest.approx((np.mean(by_hand), *t_interval(by_hand)))
    far = select_strength(NONE, {**CELLS, ("rep", 1.0): seeds((90, 3.0), (90, 3.0))})
    assert far["n"].tolist() == [95] * 4 + [95] + [10]


def test_one_seed_has_the_interval_of_its_images():
    one = select_strength({0: NONE[0]}, {cell: {0: frames[0]} for cell, frames in CELLS.items()})
    row = one.iloc[2]
    half = 1.96 * np.std(CELLS["rep", 0.01][0]["distance"].to_numpy()[3:]) / 97**0.5
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)


def test_the_gain_is_of_pairs_over_seeds_and_of_one_seed_over_images():
    several = {("rep", 0.01): seeds((3, 0.58), (5, 0.63))}
    row = select_strength(NONE, several).iloc[1]
    gains = [(several["rep", 0.01][k]["distance"] - NONE[k]["distance"])[3 + 2 * k :].mean() for k in (0, 1)]
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(t_interval(gains))
    rng = np.random.default_rng(0)
    noisy = frame(2, 0.5).assign(distance=lambda rows: np.where(rows["correct"], 0.5 + rng.normal(0.02, 0.1, N), 0.0))
    row = select_strength({0: frame(2, 0.5)}, {("rep", 0.01): {0: noisy}}).iloc[1]
    gain = (noisy["distance"] - frame(2, 0.5)["distance"])[2:]
    half = 1.96 * gain.std() / 98**0.5
    expected = (gain.mean() - half, gain.mean() + half)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(expected, abs=0.15 * half)
    grid = select_strength(NONE, CELLS)
    assert grid["gain_low"].isna().tolist() == [True, False, False, True, False], "none itself, and what costs too much"


@pytest.mark.parametrize(
    ("strengths", "said"),
    [
        ({0.1: 0.60, 0.01: 0.55, 0.001: 0.51}, "✓ chosen, largest of the grid"),
        ({0.1: 0.51, 0.01: 0.60, 0.001: 0.55}, "✓ chosen"),
        ({0.1: 0.40, 0.01: 0.41, 0.001: 0.45}, "✓ chosen, smallest of the grid, nearer than none"),
    ],
)
def test_an_edge_of_the_grid_and_a_gain_that_is_none_are_told(strengths, said):
    cells = {("rep", strength): seeds((2, far), (4, far + 0.02)) for strength, far in strengths.items()}
    table = tables.strength_grid(select_strength(NONE, cells))
    assert [word for word in table[""] if word] == [said]
    for frames in cells.values():
        frames[1]["distance"] *= 0.8
    (word,) = [word for word in tables.strength_grid(select_strength(NONE, cells))[""] if word]
    assert word.endswith("no different from none")


def test_distances_of_arms_are_means_over_the_seeds_that_all_have():
    variants = {"a": {**seeds((2, 0.5), (4, 0.6)), 7: frame(0, 9.0)}, "b": seeds((10, 0.7), (3, 0.9))}
    table = distances_over_seeds(variants).set_index("variant")
    assert table["seeds"].tolist() == [2, 2]
    assert table["n"].tolist() == [90, 90], "seed 0: ten are wrong in b"
    for variant, frames in variants.items():
        means = [frames[seed]["distance"].to_numpy()[worst:].mean() for seed, worst in ((0, 10), (1, 4))]
        low, high = t_interval(means)
        expected = (np.mean(means), max(low, 0), high)  # no distance is negative
        assert tuple(table.loc[variant, ["distance", "low", "high"]]) == pytest.approx(expected)
    assert distances_over_seeds({"a": {0: frame(2, 0.5)}, "b": {1: frame(2, 0.5)}}).empty
    assert distances_over_seeds({}).empty


def test_an_arm_without_a_distance_or_without_accuracy_is_not_chosen():
    lost = {seed: frame(2, 0.5).assign(distance=np.nan) for seed in NONE}
    grid = select_strength(NONE, {("rep", 0.1): seeds((60, 9.0), (60, 9.0)), ("lost", 0.1): lost})
    assert not grid["chosen"].any()
    assert grid["n"].tolist() == [0, 0, 0], "a failed search counts for nobody"
    assert grid["distance"].isna().all()


def test_unequal_seeds_are_a_sentence():
    with pytest.raises(InputError, match=r"rep at strength 0.01 has the seeds \[0\], none has \[0, 1\]"):
        select_strength(NONE, {("rep", 0.01): {0: NONE[0]}})
    with pytest.raises(InputError, match=r"none at strength 0 has the seeds \[\]"):
        select_strength({}, {})
    with pytest.raises(InputError, match="measured on different images"):
        select_strength(NONE, {("rep", 0.01): {0: NONE[0], 1: frame(2, 0.5, start=1)}})


def test_the_table_says_what_is_chosen_and_why_not():
    table = tables.strength_grid(select_strength(NONE, CELLS))
    last = "✓ chosen, the only one of the grid, no different from none"
    assert table[""].tolist() == ["", "", "✓ chosen", "✕ costs too much accuracy", last]
    assert table["strength"].tolist() == ["0", "0.001", "0.01", "0.1", "0.01"]
    assert table["accuracy"].iloc[3] == "95.5 %"
    assert table["mean distance"].iloc[0].startswith("0.512 (")


def test_the_table_of_distances_says_how_many_images_count():
    row = {"model": "A", "images": 100, "correct": 97, "failed": 0, "n": 95}
    row |= {"mean": 0.5, "mean_low": 0.45, "mean_high": 0.55}
    row |= dict.fromkeys(("median", "median_low", "median_high"), np.nan)
    table = tables.distances(pd.DataFrame([row, row | {"model": "B", "failed": 2}]))
    assert list(table) == ["model", "accuracy", "mean", "median", "images compared"]
    assert table.iloc[0].tolist() == ["A", "97.0 %", "0.500 (0.450–0.550)", "–", "95 of 100"]
    assert table.iloc[1]["images compared"] == "95 of 100 (2 failed)"


def test_rank_correlations_are_spearmans():
    family = pd.DataFrame({"title": ["a", "a", "b", "b"], "n": 90, "distance": [0.5, 0.6, 0.7, 0.9]})
    family = family.assign(jacobian=[4.0, 3.0, 1.0, 2.0], sigma=[1.0, 2.0, 3.0, 40.0])
    table = tables.correlations(family)
    rho = stats.spearmanr(family["jacobian"], family["distance"]).statistic
    assert table["rank correlation with distance"].tolist() == [f"−{-rho:.2f}", "+1.00"]
    assert table.iloc[0][["runs", "variants", "images"]].tolist() == [4, 2, 90]
    assert tables.correlations(family[:2]).empty
