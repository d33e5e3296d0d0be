"""Distances of finished runs: measured once on the same images, read back only where nothing changed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from robustlib.attacks import FAB, Tangent, Threat
from robustlib.errors import InputError
from robustlib.evaluation import adversarial_distances, measure_distances
from robustlib.methods import make_method
from robustlib.models import Classifier
from robustlib.runs import Run, read_json, write_json
from robustlib.training import fit
from tests.training_fixtures import altered

QUICK = Tangent(Threat("l2", 0.5), queries=300)


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> dict[str, Run]:
    """The unregularised variant and a regularised one, hardly trained."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for name, strength in (("none", 0.0), ("rep", 0.1)):
        variant = make_method("rep_spectral", "digits", epochs=3, strength=strength)
        made[name] = fit(variant, few, root=root, device="cpu", progress=False)
    return made


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes measuring an error: what is asked for must be stored."""
    monkeypatch.setattr("robustlib.evaluation.measurements.adversarial_distances", lambda *_, **__: 1 / 0)


def test_runs_are_measured_once_on_the_same_images(digits, runs, monkeypatch):
    frames = measure_distances(runs, digits, QUICK, n=20, seed=3)
    assert list(frames) == ["none", "rep"]
    for name, run in runs.items():
        direct = adversarial_distances(run.model(), digits.test.sample(20), QUICK, seed=3)
        pd.testing.assert_frame_equal(frames[name], direct, check_dtype=False, atol=1e-6)
    forbid(monkeypatch)
    again = measure_distances(dict(reversed(runs.items())), digits, QUICK, n=20, seed=3)
    pd.testing.assert_frame_equal(again["rep"], frames["rep"])
    look = runs["rep"].distances()
    assert (look["attack"], look["split"], look["n"], look["seed"]) == (repr(QUICK), "test", 20, 3)


def test_whatever_changes_a_distance_is_measured_anew(digits, runs, monkeypatch):
    one, asked, file = {"rep": runs["rep"]}, {"attack": QUICK, "n": 20, "seed": 3}, runs["rep"].path / "distances.json"
    measure_distances(one, digits, **asked)
    for stale in ({"numerics": {"attacks/tangent": 0}}, {"weights": "other"}):
        write_json(file, {key: look | stale for key, look in read_json(file).items()})
        measure_distances(one, digits, **asked)
        (look,) = read_json(file).values()
        assert look | stale != look, "the older look is replaced"
    forbid(monkeypatch)
    measure_distances(one, digits, **asked)
    for change in ({"n": 21}, {"seed": 4}, {"split": "val"}, {"attack": replace(QUICK, gamma=2.0)}):
        with pytest.raises(ZeroDivisionError):
            measure_distances(one, digits, **asked | change)


def test_failed_searches_are_stored_as_such(digits, runs, monkeypatch):
    columns = {"index": [1, 2], "label": 0, "correct": True, "distance": [0.5, np.nan], "queries": 7}
    measured = "robustlib.evaluation.measurements.adversarial_distances"
    monkeypatch.setattr(measured, lambda *_, **__: pd.DataFrame(columns))
    for _ in range(2):
        frame = measure_distances({"rep": runs["rep"]}, digits, FAB(Threat("l2", 0.5)), n=2)["rep"]
        assert frame["distance"].isna().tolist() == [False, True]
    assert runs["rep"].distances(attack="FAB")["distance"] == [0.5, None]


def test_the_last_look_of_a_kind_counts(runs, tmp_path):
    run = Run(tmp_path)
    assert run.distances() == {}
    looks = [("Tangent(a)", "test"), ("Tangent(b)", "test"), ("FAB(c)", "test"), ("Tangent(d)", "val")]
    none = dict.fromkeys(("index", "correct", "distance"), ())
    write_json(
        run.path / "distances.json", {str(k): {"attack": a, "split": s, **none} for k, (a, s) in enumerate(looks)}
    )
    assert (run.distances()["attack"], run.distances("val")["attack"]) == ("Tangent(b)", "Tangent(d)")
    assert run.distances(attack="FAB")["attack"] == "FAB(c)"


def test_what_cannot_be_measured_is_a_sentence(digits, runs, tmp_path, monkeypatch):
    for said, given, options in (
        ("no runs to measure", ({}, digits), {}),
        ("was trained on 'digits', not on 'mnist'", (runs, replace(digits, name="mnist")), {}),
        ("Unknown split 'tets'", (runs, digits), {"split": "tets"}),
    ):
        with pytest.raises(InputError, match=said):
            measure_distances(*given, **options)
    unfinished = altered(runs["rep"], tmp_path)
    write_json(unfinished.path / "status.json", {"state": "interrupted"})
    forbid(monkeypatch)
    with pytest.raises(InputError, match=r"is not finished \(interrupted\)"):
        measure_distances({**runs, "unfinished": unfinished}, digits)
    monkeypatch.setattr(Classifier, "stochastic", True)
    with pytest.raises(InputError, match="stochastic model, whose decisions have no boundary"):
        measure_distances(runs, digits)
