"""Adversarial distances: measured by the deployed model, compared on shared images, no failure counts as robustness; strengths."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from robustlib.attacks import FAB, MinNormResult, Tangent, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import (
    adversarial_distances,
    bootstrap,
    compare_distances,
    distances_over_seeds,
    select_strength,
    shared_distances,
)
from robustlib.evaluation.metrics import t_interval
from tests.conftest import Linear

L2 = Threat("l2", 0.5)
NAN = float("nan")


def split(n: int = 20, shape: tuple[int, ...] = (1, 4, 4), model: nn.Module | None = None) -> Split:
    images = torch.randint(256, (n, *shape), dtype=torch.uint8)
    labels = model(images.float() / 255).argmax(1) if model else torch.zeros(n, dtype=torch.int64)
    return Split(images, labels, torch.arange(n) + 100)


def frame(correct: list[int], distance: list[float], index: list[int] | None = None) -> pd.DataFrame:
    index = range(len(correct)) if index is None else index
    columns = {"index": index, "label": 0, "correct": np.array(correct, dtype=bool)}
    return pd.DataFrame(columns | {"distance": distance, "queries": 7})


class Margin(nn.Module):
    """Class 1 where the mean of the image exceeds 0.5; its distance to the boundary is known."""

    def forward(self, x):
        over = 4 * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([-over, over], 1)


@pytest.mark.parametrize("attack", [Tangent(L2, queries=4000), FAB(L2, steps=20)], ids=lambda a: type(a).__name__)
def test_measures_what_is_known(attack):
    model = Margin()
    few = split(12, model=model)
    few.labels[3] = 1 - few.labels[3]
    table = adversarial_distances(model, few, attack)
    true = ((few.images.double() / 255).mean((1, 2, 3)) - 0.5).abs().numpy() * 4  # |mean - 0.5| * 16 / sqrt 16
    assert list(table) == ["index", "label", "correct", "distance", "queries"]
    assert (table["index"].tolist(), list(table.index[~table.correct])) == (list(range(100, 112)), [3])
    true[3] = 0
    assert table.distance.between(true * (1 - 1e-4), true * 1.06 + 1e-4 * (true > 0)).all()
    assert (table.queries[table.correct] > 0).all()


def test_batches_change_no_draw(monkeypatch):
    model = Linear(3, scale=5.0)
    few, attack = split(11, model=model), Tangent(L2, queries=800)
    whole, other = (adversarial_distances(model, few, attack, seed=seed) for seed in (0, 1))
    assert not np.allclose(whole.distance, other.distance)
    monkeypatch.setattr("robustlib.evaluation.distances.BATCH", 4)
    parts = adversarial_distances(model, few, attack)
    pd.testing.assert_frame_equal(whole.drop(columns="queries"), parts.drop(columns="queries"), rtol=0.01)


def test_where_noise_finds_nothing_another_image_is_the_start():
    class Narrow(nn.Module):
        """Class 1 within a small ball around white, class 0 elsewhere."""

        def forward(self, x):
            near = 1 - (1 - x).flatten(1).norm(dim=1, keepdim=True)
            return torch.cat([-near, near], 1)

    images = torch.tensor([50, 50, 50, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    few = Split(images, torch.tensor([0, 0, 0, 1]), torch.arange(4))
    table = adversarial_distances(Narrow(), few, Tangent(L2, queries=1000))
    assert table.distance[:3].to_numpy() == pytest.approx(4 * (1 - 50 / 255) - 1, rel=0.01)
    assert (table.queries[:3] > 100).all()  # those of both searches
    alone = adversarial_distances(Narrow(), few.select(torch.arange(3)), Tangent(L2, queries=1000))
    assert alone.distance.isna().all()
    assert (alone.queries == 100).all()


@dataclass(frozen=True)
class Liar:
    """Claims what is no adversarial image, or lies outside the box."""

    beyond: float
    threat: Threat = L2

    def nearest(self, model, x, y, *, starts=None, generator=None, rng=None):
        return MinNormResult(x + self.beyond, torch.full((len(x),), 9.0), torch.ones_like(y))


@pytest.mark.parametrize("attack", [Liar(0.0), Liar(5.0)])
def test_an_attack_is_not_believed(attack):
    assert adversarial_distances(Margin(), split(8, model=Margin()), attack).distance.isna().all()


def test_a_stochastic_model_is_refused_and_no_image_is_no_row():
    few, noisy = split(4), Linear()
    noisy.stochastic = True
    with pytest.raises(InputError, match="stochastic"):
        adversarial_distances(noisy, few, Tangent(L2))
    assert len(adversarial_distances(Linear(), few.select(torch.arange(0)), Tangent(L2))) == 0


def test_only_images_that_all_have_right_count_and_failures_count_for_nobody():
    a = frame([1, 1, 1, 0, 1, 1], [1.0, 2.0, 3.0, 0.0, 5.0, NAN])
    b = frame([1, 1, 0, 1, 1, 1], [2.0, NAN, 0.0, 9.0, 4.0, NAN]).sample(frac=1, random_state=0)
    table = compare_distances({"a": a, "b": b}).set_index("model")
    counts = {"images": [6, 6], "correct": [5, 5], "failed": [1, 2], "n": [2, 2]}  # the first and the fifth
    assert table[[*counts]].to_dict("list") == counts
    assert table[["mean", "median"]].to_numpy().tolist() == [[3.0, 3.0]] * 2
    assert table["mean"].between(table.mean_low, table.mean_high).all()
    shared = shared_distances({"a": a, "b": b})
    assert (shared["a"].tolist(), shared["b"].tolist()) == ([1.0, 5.0], [2.0, 4.0])
    table = compare_distances({"a": frame([1, 1], [1.0, 2.0]), "deaf": frame([1, 1], [NAN, NAN])})
    assert (table.n.tolist(), table.failed.tolist()) == ([0, 0], [0, 2]), "a failed search is no robustness"
    assert table[["mean", "mean_low", "median", "median_high"]].isna().all().all()


def test_models_are_resampled_alike():
    distance = np.random.default_rng(0).exponential(size=80)
    a, b = frame([1] * 80, list(distance)), frame([1] * 80, list(2 * distance))
    table = compare_distances({"a": a, "b": b}).set_index("model")
    columns = [f"{kind}{end}" for kind in ("mean", "median") for end in ("", "_low", "_high")]
    assert table.loc["b", columns].tolist() == pytest.approx([2 * value for value in table.loc["a", columns]])


def test_the_bootstrap_is_the_percentile_interval():
    values = np.random.default_rng(1).exponential(size=150)
    scipys = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert bootstrap(np.mean, values) == pytest.approx(tuple(scipys), abs=0.015)
    assert bootstrap(lambda a, b: float((a / b).mean()), values, 2 * values) == pytest.approx((0.5, 0.5))
    assert np.isnan(bootstrap(np.mean, values[:0])).all()


N = 100


def uniform(wrong: int, distance: float, start: int = 0) -> pd.DataFrame:
    """N images of which the first `wrong` are wrong; the others have distances about `distance`."""
    correct = np.arange(N) >= wrong
    return frame(correct, np.where(correct, distance + 0.001 * (np.arange(N) - N / 2), 0.0), np.arange(N) + start)


def seeds(*pairs: tuple[int, float]) -> dict[int, pd.DataFrame]:
    return {seed: uniform(*pair) for seed, pair in enumerate(pairs)}


NONE = seeds((2, 0.50), (4, 0.52))  # 97 % on average
CELLS = {
    ("rep", 0.001): seeds((2, 0.51), (4, 0.53)),
    ("rep", 0.01): seeds((3, 0.58), (5, 0.60)),  # 96 %: just allowed
    ("rep", 0.1): seeds((4, 0.70), (5, 0.72)),  # 95.5 %: not allowed
    ("ll", 0.01): seeds((2, 0.49), (2, 0.50)),
}


def test_the_farthest_that_keeps_the_accuracy_is_chosen_on_images_that_all_allowed_cells_have_right():
    grid = select_strength(NONE, CELLS)
    assert list(grid["variant"]) == ["none", "rep", "rep", "rep", "ll"]
    assert list(grid["strength"]) == [0.0, 0.001, 0.01, 0.1, 0.01]
    assert grid["accuracy"].tolist() == pytest.approx([0.97, 0.97, 0.96, 0.955, 0.98])
    assert grid["allowed"].tolist() == [True, True, True, False, True]
    assert grid["chosen"].tolist() == [False, False, True, False, True], "one of each variant, even if no better"
    assert grid["gain_low"].isna().tolist() == [True, False, False, True, False], "none itself, and what costs too much"
    assert grid["n"].tolist() == [95] * 5, "seed 1 loses five; the cell that is not allowed takes none from the others"
    by_hand = [CELLS["rep", 0.01][seed]["distance"][worst:].mean() for seed, worst in ((0, 3), (1, 5))]
    row = grid.set_index(["variant", "strength"]).loc[("rep", 0.01)]
    assert (row["distance"], row["low"], row["high"]) == pytest.approx((np.mean(by_hand), *t_interval(by_hand)))
    far = select_strength(NONE, {**CELLS, ("rep", 1.0): seeds((90, 3.0), (90, 3.0))})
    assert far["n"].tolist() == [95] * 5 + [10]


def test_the_gain_is_of_pairs_over_seeds_and_of_one_seed_over_images():
    several = {("rep", 0.01): seeds((3, 0.58), (5, 0.63))}
    row = select_strength(NONE, several).iloc[1]
    gains = [(several["rep", 0.01][k]["distance"] - NONE[k]["distance"])[3 + 2 * k :].mean() for k in (0, 1)]
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(t_interval(gains))
    rng = np.random.default_rng(0)
    noisy = uniform(2, 0.5).assign(distance=lambda rows: np.where(rows["correct"], 0.5 + rng.normal(0.02, 0.1, N), 0.0))
    row = select_strength({0: uniform(2, 0.5)}, {("rep", 0.01): {0: noisy}}).iloc[1]
    gain = (noisy["distance"] - uniform(2, 0.5)["distance"])[2:]
    half = 1.96 * gain.std() / 98**0.5
    expected = (gain.mean() - half, gain.mean() + half)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(expected, abs=0.15 * half)


def test_distances_of_variants_are_means_over_the_seeds_that_all_have():
    variants = {"a": {**seeds((2, 0.5), (4, 0.6)), 7: uniform(0, 9.0)}, "b": seeds((10, 0.7), (3, 0.9))}
    table = distances_over_seeds(variants).set_index("variant")
    assert table["seeds"].tolist() == [2, 2]
    assert table["n"].tolist() == [90, 90], "seed 0: ten are wrong in b"
    for variant, frames in variants.items():
        means = [frames[seed]["distance"].to_numpy()[worst:].mean() for seed, worst in ((0, 10), (1, 4))]
        low, high = t_interval(means)
        expected = (np.mean(means), max(low, 0), high)  # no distance is negative
        assert tuple(table.loc[variant, ["distance", "low", "high"]]) == pytest.approx(expected)
    assert distances_over_seeds({"a": {0: uniform(2, 0.5)}, "b": {1: uniform(2, 0.5)}}).empty
    assert distances_over_seeds({}).empty


def test_a_variant_without_a_distance_or_without_accuracy_is_not_chosen():
    lost = {seed: uniform(2, 0.5).assign(distance=np.nan) for seed in NONE}
    grid = select_strength(NONE, {("rep", 0.1): seeds((60, 9.0), (60, 9.0)), ("lost", 0.1): lost})
    assert not grid["chosen"].any()
    assert (grid["n"].sum(), grid["distance"].isna().all()) == (0, True), "a failed search counts for nobody"


@pytest.mark.parametrize(
    ("none", "cell", "said"),
    [
        (NONE, {0: NONE[0]}, r"rep at strength 0.01 has the seeds \[0\], none has \[0, 1\]"),
        ({}, {}, r"none at strength 0 has the seeds \[\]"),
        (NONE, {0: NONE[0], 1: uniform(2, 0.5, start=1)}, "measured on different images"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(none, cell, said):
    with pytest.raises(InputError, match="no models"):
        compare_distances({})
    with pytest.raises(InputError, match=said):
        select_strength(none, {("rep", 0.01): cell})
