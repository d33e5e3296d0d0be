"""Records, summaries and curves: what is counted, and that nothing flattering slips in."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch

from robustlib.attacks import FGSM, PGD, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import (
    aggregate,
    evaluate,
    evaluate_run,
    leaderboard,
    robustness_curve,
    standard_attacks,
    summarise,
    wilson,
)
from robustlib.methods import make_method
from robustlib.training import fit
from tests.conftest import Linear

THREAT = Threat("linf", 0.1)


@pytest.fixture
def split():
    images = torch.randint(0, 256, (120, 1, 4, 4), dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    return Split(images, labels, torch.arange(500, 620))


@pytest.fixture
def model():
    model = Linear()
    with torch.no_grad():
        model.map.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16) / 16)
        model.map.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def test_records_are_tidy_and_true(model, split):
    records = evaluate(model, split, {"fgsm": FGSM(THREAT)}, batch_size=50)
    assert list(records) == ["index", "label", "attack", "eps", "draw", "prediction", "margin", "valid"]
    assert len(records) == 240
    assert list(records["index"][:3]) == [500, 501, 502]
    clean = records[records.attack == "clean"]
    x = split.images.float() / 255
    margin = (2 * x.mean((1, 2, 3)) - 1) * (2 * split.labels - 1)
    assert np.allclose(clean.margin, margin, atol=1e-5)
    assert (records.prediction == records.label).eq(records.margin > 0).all()
    attacked = records[records.attack == "fgsm"]
    assert (attacked.margin.to_numpy() < clean.margin.to_numpy()).all()
    assert attacked.valid.all()


def test_batch_size_changes_no_record(model, split):
    attacks = {"pgd": PGD(THREAT, steps=3, restarts=2)}
    frames = [evaluate(model, split, attacks, batch_size=size) for size in (120, 7)]
    order = [f.sort_values(["attack", "index"], ignore_index=True) for f in frames]
    pd.testing.assert_frame_equal(*order, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Cheat:
    """An attack that leaves the ball, or returns NaN."""

    threat: Threat
    value: float

    def __call__(self, model, x, y, *, generator=None, draws=None):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("value", [0.5, 7.0, float("nan")])
def test_a_broken_attack_is_never_reported_as_robustness(model, split, value):
    table = summarise(evaluate(model, split, {"cheat": Cheat(THREAT, value)})).set_index("attack")
    assert table.invalid["cheat"] >= 110
    assert table.accuracy["cheat"] <= 10 / 120
    assert table.accuracy["worst"] <= table.accuracy["cheat"]


def test_labels_beyond_the_classes_are_a_sentence(model, split):
    with pytest.raises(InputError, match="2 classes"):
        evaluate(model, Split(split.images, split.labels + 5, split.indices), {})


def test_means_keep_data_sets_precisions_and_changes_apart():
    rows = [
        {"dataset": d, "method": "m", "title": "M", "arch": "a", "changed": c, "precision": p, "n": 9, "seed": 0}
        for d, c, p in (("x", "", "32-true"), ("y", "", "32-true"), ("x", "beta=1", "32-true"), ("x", "", "bf16-mixed"))
    ]
    numbers = dict.fromkeys(("clean", "fgsm", "pgd20", "pgd50x10", "cw50", "worst", "minutes"), 0.5)
    assert len(aggregate(pd.DataFrame([row | numbers for row in rows]))) == 4


def test_a_model_without_an_answer_is_wrong(split):
    class Mute(Linear):
        def forward(self, x):
            return super().forward(x) * float("nan")

    records = evaluate(Mute(), split, {})
    assert (records.prediction == -1).all()
    assert summarise(records).accuracy[0] == 0


def test_worst_is_per_example_not_the_minimum_of_means():
    records = pd.DataFrame(
        {
            "index": [0, 1, 0, 1, 0, 1],
            "label": 0,
            "attack": ["clean"] * 2 + ["a"] * 2 + ["b"] * 2,
            "eps": [0, 0, 0.1, 0.1, 0.1, 0.1],
            "draw": 0,
            "prediction": [0, 0, 1, 0, 0, 1],
            "margin": 0.0,
            "valid": True,
        }
    )
    assert summarise(records).set_index("attack").accuracy.to_dict() == {"clean": 1, "a": 0.5, "b": 0.5, "worst": 0}


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (480, 500), (500, 500)])
def test_wilson_equals_its_formula(correct, n):
    z, p = NormalDist().inv_cdf(0.975), correct / n
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert np.allclose(wilson(correct, n), np.clip(expected, 0, 1), atol=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_curve_over_eps_matches_the_analytic_margin_and_never_rises(model, split):
    radii = [0.2, 0.0, 0.05, 0.1, 1.0]
    curve = robustness_curve(model, split, PGD(THREAT, steps=20), eps=radii)
    x = split.images.float() / 255
    signed = 2 * split.labels - 1
    worst = [
        ((2 * (x - e * signed.view(-1, 1, 1, 1)).clamp(0, 1).mean((1, 2, 3)) - 1) * signed > 0) for e in sorted(radii)
    ]
    assert list(curve.eps) == sorted(radii)
    assert np.allclose(curve.accuracy, [w.float().mean() for w in worst], atol=0.01)
    assert curve.accuracy.is_monotonic_decreasing
    assert curve.accuracy.iloc[-1] == 0


def test_curve_over_steps_never_rises(model, split):
    curve = robustness_curve(model, split, PGD(THREAT, step_size=0.01), steps=[0, 1, 5, 20])
    assert curve.accuracy.is_monotonic_decreasing
    assert curve.accuracy.iloc[-1] < curve.accuracy.iloc[0]
    with pytest.raises(InputError, match="either eps"):
        robustness_curve(model, split, PGD(THREAT))


def test_samples_are_stratified_and_fixed(digits):
    chosen = digits.test.sample(100)
    assert len(chosen) == 100
    assert torch.equal(chosen.indices, digits.test.sample(100).indices)
    assert chosen.labels.bincount().min() >= 9
    assert digits.test.sample(0) is digits.test
    assert len(digits.test.sample(499)) == 499
    assert len(digits.test.sample(3)) == 3


def test_a_run_is_evaluated_once_and_lands_on_the_leaderboard(tmp_path, digits):
    runs = []
    for seed in (0, 1):
        method = make_method("standard", "digits", epochs=2, train_examples=300)
        runs.append(fit(method, digits, root=tmp_path, device="cpu", seed=seed, progress=False))
        results = evaluate_run(runs[-1], digits, n=40)
    names = [row["attack"] for row in results["rows"]]
    assert names == ["clean", *standard_attacks(THREAT), "worst"]
    assert all("PGD(threat=Threat(" in row["protocol"] for row in results["rows"][1:-1])
    assert results["n"] == 40
    assert results["last"]["rows"][0]["n"] == 40
    assert len(results["curve"]) == 8
    stamp = (runs[-1].path / "records.parquet").stat().st_mtime_ns
    assert evaluate_run(runs[-1], digits, n=40) == runs[-1].results() == results
    assert (runs[-1].path / "records.parquet").stat().st_mtime_ns == stamp
    assert evaluate_run(runs[-1], digits, n=30)["n"] == 30
    assert runs[-1].results() == results, "a look at fewer images must not replace what more have shown"
    best = summarise(runs[-1].records()).set_index("attack")
    assert best.accuracy.to_dict() == {row["attack"]: row["accuracy"] for row in results["rows"]}
    assert len(runs[-1].records("last")) == len(runs[-1].records())
    board = leaderboard(runs)
    assert len(board) == 2
    assert board.title[0] == "Standard training"
    assert (board.worst <= board.pgd20).all()
    means = aggregate(board)
    assert means.seeds[0] == 2
    assert np.isclose(means.clean_mean[0], board.clean.mean())
    assert np.isclose(means.clean_std[0], board.clean.std())
    assert leaderboard([]).empty


def test_runs_of_other_data_or_unfinished_ones_are_refused(tmp_path, digits):
    method = make_method("standard", "digits", epochs=1, train_examples=100)
    run = fit(method, digits, root=tmp_path, device="cpu", progress=False)
    from dataclasses import replace

    with pytest.raises(InputError, match="trained on 'digits'"):
        evaluate_run(run, replace(digits, name="mnist"))
    (run.path / "status.json").write_text('{"state": "running"}')
    with pytest.raises(InputError, match="not finished"):
        evaluate_run(run, digits)
