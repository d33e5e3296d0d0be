"""What the runs of an AToP ablation say together, on made-up results."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robustlib import figures
from robustlib.workbook import tables
from robustlib.workbook.experiments import attack_table, purifier_grid, randomness_table


def run(least: float = 0.4, *, method: str = "atop", random: bool = True, changes: Any = None, **values) -> Any:
    """An evaluated run as the grid sees it; `least` is left by the strong attack."""
    left = {"clean": 0.95, "pgd_eot" if random else "pgd50x10": least, "pgd20@classifier": 0.7, "worst": least - 0.1}
    rows = [{"attack": name, "accuracy": x, "low": x - 0.05, "high": x + 0.05} for name, x in left.items()]
    values = {"purifier": "gan", "transform": "rt2", "fine_tune": True, **values}
    facts = {"method": method, "hyperparameters": values}
    return SimpleNamespace(
        params=lambda: facts, changes=lambda: changes or {}, results=lambda: {"n": 128, "rows": rows}
    )


def test_the_grid_sets_the_weak_attack_beside_the_strong_one():
    runs = [run(), run(0.5), run(0.1, transform="none", random=False, changes={"transform": "none", "cls_weight": 2.0})]
    runs += [run(0.3, fine_tune=False, changes={"fine_tune": False}), run(purifier="none", fine_tune=False)]
    grid = purifier_grid([run(method="pgd_at"), *runs])
    tuned = "GAN, no transform, fine-tuned, cls_weight=2.0"
    assert grid["row"].tolist() == ["no purifier, RT2", "GAN, RT2", "GAN, RT2, fine-tuned", tuned]
    mean = grid.set_index("row").loc["GAN, RT2, fine-tuned"]
    assert (mean["seeds"], mean["strong"]) == (2, pytest.approx(0.45))
    half = 12.7062 * np.std([0.4, 0.5], ddof=1) / math.sqrt(2)
    assert mean["strong_low"] == pytest.approx(max(0.45 - half, 0), abs=1e-4)
    assert grid.set_index("row").loc[tuned, "strong_high"] == pytest.approx(0.15)
    table = tables.inflation(grid).set_index("model")
    assert table.loc["GAN, RT2", "weak less strong"] == "+40.0 points"
    assert table.loc[tuned, "strong"] == "10.0 % (5.0–15.0)"
    drawn = figures.accuracy_dots(attack_table(grid), "Weak and strong")
    assert len(drawn.data) == 8
    assert "GAN, RT2: weak: gradients of the bare classifier 70.0 %, strong" in drawn.alt


def test_rows_on_more_images_than_the_others_say_so_and_nothing_gives_no_row():
    alone = run(0.1, transform="none", random=False)
    evaluated = {**alone.results(), "n": 500}
    alone.results = lambda: evaluated
    drawn = attack_table(purifier_grid([run(), alone]))
    assert drawn["row"].unique().tolist() == ["GAN, no transform, fine-tuned\n(500 images)", "GAN, RT2, fine-tuned"]
    alone.results = dict
    assert purifier_grid([alone, run(method="pgd_at")]).empty


def test_draws_are_told_apart_with_their_control():
    share = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 8, "correct": 4}
    both = {"expected": share, "single": share, "worst": {**share, "accuracy": 0.3}}
    fixed = [{"seed": 0, "clean": share, "attacked": {**share, "accuracy": 0.2}}]
    measured = {"draws": 10, "clean": both, "attacked": both, "fixed": fixed}
    table = randomness_table(measured).set_index(["row", "series"])
    assert table.loc[("worst of 10 draws", "clean"), "accuracy"] == 0.3
    assert table.loc[("draw fixed by seed 0,\nknown to the attacker", "attacked"), "accuracy"] == 0.2
    assert len(table) == 8
