"""Tables: every number with its interval, every hyper-parameter with its meaning."""

from dataclasses import dataclass

import pandas as pd
import pytest

from robustlib import tables

RESULTS = {
    "rows": [
        {"attack": "clean", "accuracy": 0.99, "low": 0.98, "high": 0.995, "n": 500, "protocol": "no attack"},
        {"attack": "worst", "accuracy": 0.735, "low": 0.69, "high": 0.77, "n": 500, "protocol": "PGD(steps=20)"},
    ],
    "last": {"rows": [{"attack": "clean", "accuracy": 1.0, "low": 0.99, "high": 1.0, "n": 500}]},
}


@dataclass
class Base:
    """A method."""

    epochs: int = 110
    lr: float = 0.1  # peak learning rate


@dataclass
class Special(Base):
    """With a default of its own."""

    epochs: int = 30  # fewer = cheaper
    points: tuple[int, ...] = ()  # none


def board(**columns: object) -> pd.DataFrame:
    """Two runs of a leaderboard."""
    both = {"method": ["trades", "pgd_at"], "arch": ["mlp", "mlp"], "seed": [0, 1], "minutes": [1.25, 2.0]}
    numbers = {"clean": [0.9, 0.8], "clean_low": [0.88, 0.7], "clean_high": [0.92, 0.9], "worst": [0.5, float("nan")]}
    return pd.DataFrame(both | numbers | columns)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0.5,), "50.0 %"), ((0.752, 0.713, 0.788), "75.2 % (71.3–78.8)"), ((float("nan"),), "–"), ((None,), "–")],
)
def test_percent(numbers: tuple[float, ...], text: str) -> None:
    assert tables.percent(*numbers) == text


def test_hyperparameters_carry_their_comments() -> None:
    table = tables.hyperparameters(Special(lr=0.2))
    assert table.loc["lr"].tolist() == ["0.2", "0.1", "peak learning rate"]
    assert table.loc["epochs"].tolist() == ["30", "30", "fewer = cheaper"]
    assert table.loc["points", "value"] == "–"


def test_accuracies_best_beside_last() -> None:
    table = tables.accuracies(RESULTS)
    assert table.loc["worst case", "best epoch"] == "73.5 % (69.0–77.0)"
    assert table.loc["clean", "last epoch"] == "100.0 % (99.0–100.0)"
    assert table.loc["worst case", "protocol"] == "PGD(steps=20)"


def test_leaderboard_leaves_out_what_is_alike() -> None:
    table = tables.leaderboard(board(stale=[False, False], warnings=[[], []]))
    assert list(table) == ["method", "seed", "clean", "worst case", "minutes"]
    assert table["clean"].tolist() == ["90.0 % (88.0–92.0)", "80.0 % (70.0–90.0)"]
    noted = tables.leaderboard(
        board(stale=[True, False], warnings=[["robust overfitting"], []], arch=["mlp", "resnet18"])
    )
    assert noted["notes"].tolist() == ["stale; robust overfitting", ""]
    assert "arch" in noted


def test_over_seeds_says_when_there_is_one() -> None:
    numbers = {"clean_mean": [0.9, 0.8], "clean_std": [0.012, float("nan")], "seeds": [3, 1]}
    table = tables.over_seeds(pd.DataFrame({"method": ["a", "b"], "arch": ["mlp", "mlp"], **numbers}))
    assert table["clean"].tolist() == ["90.0 ± 1.2 %", "80.0 %"]


def test_warnings() -> None:
    quiet = pd.DataFrame({"epoch_total": [0, 1], "warnings": [[], []]})
    assert "No catastrophic or robust overfitting" in tables.warnings(quiet)
    assert "- epoch 7: robust overfitting" in tables.warnings(
        pd.DataFrame({"epoch_total": [7], "warnings": [["robust overfitting"]]})
    )


def test_provenance_repeats_the_command() -> None:
    card = tables.provenance({"command": "robustlib run trades", "wall_seconds": 90, "threads": 1}, "runs/x")
    assert card.loc["repeat it with", "this run"] == "robustlib run trades"
    assert card.loc["training time", "this run"] == "1.5 minutes"


def test_show_does_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(pd.DataFrame({"protocol": ["x" * 200]}))
    assert "x" * 200 in capsys.readouterr().out
