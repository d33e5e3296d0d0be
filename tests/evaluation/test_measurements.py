"""Distances of finished runs: measured once on the same images, read back only where nothing changed, and told in claims."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robustlib import figures
from robustlib.attacks import FAB, Tangent, Threat
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation import adversarial_distances, compare_distances, measure_distances, shared_distances
from robustlib.methods import make_method
from robustlib.models import Classifier
from robustlib.runs import Run, read_json, write_json
from robustlib.training import fit
from robustlib.workbook import experiments, tables
from robustlib.workbook.claims import Claim, evaluate_claims, gather, measure_of

QUICK = Tangent(Threat("l2", 0.5), queries=300)


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The unregularised variant and a regularised one, hardly trained."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for name, strength in (("none", 0.0), ("rep", 0.1)):
        variant = make_method("rep_spectral", "digits", epochs=3, strength=strength)
        made[name] = fit(variant, digits, root=root, device="cpu", progress=False)
    return made


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes measuring an error: what is asked for must be stored."""
    monkeypatch.setattr("robustlib.evaluation.measurements.adversarial_distances", lambda *_, **__: 1 / 0)


def test_runs_are_measured_once_on_the_same_images(digits, runs, monkeypatch):
    found = measure_distances(runs, digits, QUICK, n=20, seed=3)
    assert list(found) == ["none", "rep"]
    for name, run in runs.items():
        direct = adversarial_distances(run.model(), digits.test.sample(20), QUICK, seed=3)
        pd.testing.assert_frame_equal(found[name], direct, check_dtype=False, atol=1e-6)
    assert len(compare_distances(found)) == 2
    forbid(monkeypatch)
    again = measure_distances(dict(reversed(runs.items())), digits, QUICK, n=20, seed=3)
    pd.testing.assert_frame_equal(again["rep"], found["rep"])
    look = runs["rep"].distances()
    assert (look["attack"], look["split"], look["n"], look["seed"]) == (repr(QUICK), "test", 20, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 21},
        {"seed": 4},
        {"split": "val"},
        {"attack": replace(QUICK, gamma=2.0)},
        {"numerics": {"attacks/tangent": 0}},
        {"weights": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_a_distance_is_measured_anew(digits, runs, monkeypatch, change):
    one, asked = {"rep": runs["rep"]}, {"attack": QUICK, "n": 20, "seed": 3}
    measure_distances(one, digits, **asked)
    file = runs["rep"].path / "distances.json"
    if stale := {name: value for name, value in change.items() if name in ("numerics", "weights")}:
        write_json(file, {key: look | stale for key, look in read_json(file).items()})
        count = len(read_json(file))
        measure_distances(one, digits, **asked)
        assert len(read_json(file)) == count, "an older look is replaced"
    forbid(monkeypatch)
    measure_distances(one, digits, **asked)
    if not stale:
        with pytest.raises(ZeroDivisionError):
            measure_distances(one, digits, **{**asked, **change})


def test_failed_searches_are_stored_as_such(digits, runs, monkeypatch):
    columns = {"index": [1, 2], "label": 0, "correct": True, "distance": [0.5, np.nan], "queries": 7}
    monkeypatch.setattr(
        "robustlib.evaluation.measurements.adversarial_distances", lambda *_, **__: pd.DataFrame(columns)
    )
    for _ in range(2):
        frame = measure_distances({"rep": runs["rep"]}, digits, FAB(Threat("l2", 0.5)), n=2)["rep"]
        assert frame["distance"].isna().tolist() == [False, True]
    assert json.loads((runs["rep"].path / "distances.json").read_text())
    assert runs["rep"].distances(attack="FAB")["distance"] == [0.5, None]


def test_the_last_look_of_a_kind_counts(runs, tmp_path):
    run = Run(tmp_path)
    assert run.distances() == {}
    looks = [("Tangent(a)", "test"), ("Tangent(b)", "test"), ("FAB(c)", "test"), ("Tangent(d)", "val")]
    write_json(run.path / "distances.json", {str(k): {"attack": a, "split": s} for k, (a, s) in enumerate(looks)})
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
    broken = Run(tmp_path / "broken")
    write_json(broken.path / "params.json", runs["rep"].params())
    write_json(broken.path / "status.json", {"state": "interrupted"})
    forbid(monkeypatch)
    with pytest.raises(InputError, match=r"is not finished \(interrupted\)"):
        measure_distances({**runs, "broken": broken}, digits)
    monkeypatch.setattr(Classifier, "stochastic", True)
    with pytest.raises(InputError, match="stochastic model, whose decisions have no boundary"):
        measure_distances(runs, digits)


# ---- several runs of the family


def test_the_grid_is_made_of_what_is_stored_of_validation_images(tmp_path):
    def cell(method: str, strength: float, seed: int, distance: float, changed: str = "", **look: object) -> Run:
        variant = f"{method} {changed or f'strength={strength}'}"
        run = measured(tmp_path, variant, seed, [1, 1, 1, 1], [distance] * 4, split="val", images="a", **look)
        facts = {"title": method.upper(), "hyperparameters": {"strength": strength}}
        write_json(run.path / "params.json", run.params() | facts)
        return run

    runs = [cell("rep", strength, seed, 0.5 + strength) for strength in (0.0, 0.1, 0.01) for seed in (0, 1)]
    runs += [cell("ll", 0.1, 0, 9.0)]  # lacks a seed
    runs += [cell("rep", 0.1, seed, 9.0, "arch=small_cnn") for seed in (0, 1)]
    runs += [cell("cross", 0.1, seed, 9.0, attack="Tangent(queries=9)") for seed in (0, 1)]  # measured otherwise
    grid = experiments.strength_grid(runs)
    assert grid[["variant", "strength", "distance"]].values.tolist() == [
        ["none", 0.0, 0.5],
        ["REP", 0.01, pytest.approx(0.51)],
        ["REP", 0.1, pytest.approx(0.6)],
    ]
    assert grid["chosen"].tolist() == [False, False, True]
    assert experiments.strength_grid(runs[2:]).empty, "no unregularised variant"
    assert experiments.strength_grid([]).empty


def test_what_a_distance_goes_with_is_measured_on_shared_images(digits, runs):
    """Restated: the Jacobian of a network of one hidden layer by hand, and the norm of its one matrix."""
    attack = replace(QUICK, queries=301)
    found = measure_distances(runs, digits, attack, n=12)
    far = shared_distances(found)
    table = experiments.spectral_family([*runs.values(), Run(Path("none"))], digits).set_index("title")
    assert len(table) == 2
    assert (table["n"] == len(far["rep"])).all()
    assert table["distance"].tolist() == pytest.approx([far["none"].mean(), far["rep"].mean()])
    right = found["none"]["correct"] & found["rep"]["correct"]
    for row, run in zip(table.itertuples(), runs.values(), strict=True):
        model = run.model()
        weight = model.get_submodule("encoder.layers.0").weight.detach()
        assert row.sigma == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)) ** 2, rel=1e-3)
        x = digits.test.sample(12).images[torch.tensor(right.tolist())].float() / 255
        exact = [torch.autograd.functional.jacobian(model.features, one[None]).norm() for one in x]
        assert row.jacobian == pytest.approx(float(torch.stack(exact).mean()), rel=0.15)
    assert experiments.spectral_family([], digits).empty


def test_one_sum_of_norms_is_of_one_architecture(digits, tmp_path):
    runs = [measured(tmp_path, f"rep arch={arch}", 0, [1, 1, 1, 1], [0.5] * 4) for arch in ("mlp_512", "small_cnn")]
    for run, arch in zip(runs, ("mlp_512", "small_cnn"), strict=True):
        write_json(run.path / "params.json", run.params() | {"arch": arch, "title": "Rep"})
    with pytest.raises(InputError, match="Distances of mlp_512 and small_cnn do not go with one sum of norms"):
        experiments.spectral_family(runs, digits)


def test_what_belongs_to_a_grid_differs_in_its_strength_alone(tmp_path):
    study = experiments.read_study("spectral-grid")
    cases = [("rep_spectral", "digits", True), ("ll_spectral strength=0.5", "digits", True), ("bss", "digits", False)]
    cases += [("rep_spectral", "cifar10-short", False)]
    cases += [("rep_spectral train_examples=200, strength=0.0", "digits", False)]
    for variant, preset, belongs in cases:
        run = measured(tmp_path / preset, variant, 0, [1, 1, 1, 1], [0.5] * 4)
        write_json(run.path / "params.json", run.params() | {"preset": preset})
        assert experiments.in_grid(run, study) is belongs, variant


def test_distances_of_arms_stand_beside_those_of_the_white_box(tmp_path):
    runs = [
        measured(tmp_path, variant, seed, [1, 1, seed, 1], [far + seed / 10] * 4, images="a")
        for variant, far in (("rep", 0.5), ("rep strength=0.0", 0.3))
        for seed in (0, 1)
    ]
    for run in runs:
        write_json(run.path / "params.json", run.params() | {"title": "REP"})
        look = seen_by_fab(run, 0.9, [0, 1, 2])
    table = experiments.variant_distances(runs)
    assert table["variant"].tolist() == ["REP", "REP · strength=0.0"]
    assert table["distance"].tolist() == pytest.approx([0.55, 0.35])
    assert table["fab"].tolist() == pytest.approx([0.9 * 0.55, 0.9 * 0.35])
    assert table["n"].tolist() == [2, 2], "seed 0 has one wrong, and FAB failed on the last"
    half = 12.7062 * np.std([0.5, 0.6], ddof=1) / 2**0.5
    assert (table["low"][0], table["high"][0]) == pytest.approx((0, 0.55 + half), rel=1e-3)
    shown = tables.distances_over_seeds(table)
    tangent, fab = "mean distance, Tangent (decisions only)", "mean distance, FAB (white box)"
    assert list(shown.columns) == ["variant", "seeds", tangent, fab, "images compared"]
    assert shown.iloc[1][fab].startswith("0.315 (")
    write_json(runs[0].path / "distances.json", {"look": look})
    alone = experiments.variant_distances(runs)
    assert (alone["n"][0], alone["fab"].isna().all()) == (3, True), "FAB lacks a run"
    assert tables.distances_over_seeds(alone)[fab].tolist() == ["–", "–"]
    assert experiments.variant_distances([]).empty


def test_epochs_of_all_stages_are_one_axis():
    rows = pd.DataFrame({"stage": ["a", "a", "b", "b"], "epoch": [0, 1, 0, 1], "epoch_total": [0, 1, 1, 2]})
    (frame,) = experiments.concat_stages({"A": [rows.assign(value=[1.0, 2.0, 3.0, 4.0])]})["A"]
    assert frame[["epoch", "value"]].values.tolist() == [[0, 1.0], [1, 3.0], [2, 4.0]]
    drawn = figures.probe_curves({"A-B": [frame]}, ["value"])
    assert drawn.alt == "Measures over the epochs. value: A-B (1 seed) 3 at epoch 1, 4 at epoch 2."


def measured(
    root: Path, variant: str, seed: int, correct: list[int], distance: list[float | None], **look: object
) -> Run:
    """A finished run whose distances of four test images are stored; never evaluated."""
    method, _, changed = variant.partition(" ")
    run = Run(root / "digits" / method / f"{changed}-{seed}")
    write_json(run.path / "params.json", {"method": method, "changed": changed, "dataset": "digits", "seed": seed})
    write_json(run.path / "status.json", {"state": "done"})
    columns = {"index": [3, 5, 8, 9], "correct": [bool(c) for c in correct], "distance": distance}
    protocol = {"attack": "Tangent()", "split": "test", "n": 4, "seed": 0}
    write_json(run.path / "distances.json", {"look": {**protocol, **columns, **look}})
    return run


def seen_by_fab(run: Run, share: float, images: list[int]) -> dict:
    """Stores that FAB finds `share` of the distances of these images and fails on others; what was stored before."""
    look = read_json(run.path / "distances.json")["look"]
    far = [share * value if k in images and value is not None else None for k, value in enumerate(look["distance"])]
    write_json(run.path / "distances.json", {"look": look, "white": look | {"attack": "FAB()", "distance": far}})
    return look


# ---- claims

FACTS = {"name": "farther", "text": "Rep-spectral is farther.", "source": "a test", "variant": "rep_spectral"}
FARTHER = Claim(**FACTS, measure="distance/mean", than="rep_spectral strength=0.0", relative=True)


def pair(root: Path, seed: int, **look: object) -> list[Run]:
    """Two variants: three images are right in both, one of which has no known distance in the first."""
    first = measured(root, "rep_spectral", seed, [1, 1, 0, 1], [1.0, 2.0, 0.0, None], **look)
    return [first, measured(root, "rep_spectral strength=0.0", seed, [1, 1, 1, 1], [0.5, 1.5, 9.0, 9.0])]


def test_a_claim_compares_distances_on_the_images_that_both_have_right(tmp_path):
    runs = [run for seed in (0, 1) for run in pair(tmp_path, seed)]
    evidence = gather(FARTHER, runs, [0, 1])
    assert evidence.differences == {seed: pytest.approx(1.5 / 1.0 - 1) for seed in (0, 1)}
    assert (evidence.notes, evidence.step) == (("on 2 to 2 of 4 images",), 0.0)
    middle = replace(FARTHER, measure="distance/median", relative=False)
    assert gather(middle, runs, [0, 1]).differences == {seed: pytest.approx(0.5) for seed in (0, 1)}
    assert gather(middle, runs, [0, 1]).step == 0.0, "no accuracy, so no step of an image"
    assert measure_of(runs[1], "distance/mean") == pytest.approx(5.0), "alone, on all that it has right"
    assert measure_of(runs[1], "distance/median") == pytest.approx(5.25)
    row = tables.claims(evaluate_claims([FARTHER], runs, [0, 1])).iloc[0]
    assert row["compared"].endswith(": mean adversarial distance (Tangent, L2)")
    assert row["effect"].startswith("+50.0 %")


def test_a_claim_on_distances_says_what_the_white_box_finds(tmp_path):
    """Decision-based distances are the looser bound: a difference that FAB does not see may be the attack's."""
    pairs = [pair(tmp_path, seed) for seed in (0, 1)]
    runs = [run for both in pairs for run in both]
    assert not any("FAB" in note for note in gather(FARTHER, runs, [0, 1]).notes)
    for both in pairs:
        for run, share in zip(both, (0.9, 0.6), strict=True):
            seen_by_fab(run, share, [0, 1, 2, 3])
    evidence = gather(FARTHER, runs, [0, 1])
    (note,) = (note for note in evidence.notes if "FAB" in note)
    expected = np.mean([0.9 / 0.6 * (1 + gain) - 1 for gain in evidence.differences.values()])
    assert note == f"by FAB, which sees gradients, {100 * expected:+.1f} %"


def test_missing_distances_are_told(tmp_path):
    first, second = pair(tmp_path, 0)
    (first.path / "distances.json").unlink()
    (missing,) = gather(FARTHER, [first, second, *pair(tmp_path, 1)], [0, 1]).missing
    assert missing == "seed 0: rep_spectral has no measured distances"
    with pytest.raises(InputError, match="has no measured distances: its notebook measures them"):
        measure_of(first, "distance/mean")
    with pytest.raises(InputError, match=r"Unknown statistic of distances 'men'. Did you mean 'mean'"):
        measure_of(second, "distance/men")
    (missing,) = gather(FARTHER, pair(tmp_path / "val", 0, split="val"), [0]).missing
    assert "rep_spectral has no measured distances" in missing, "on test images"


def test_other_protocols_and_images_are_not_paired(tmp_path):
    usual = [run for seed in (1, 2) for run in pair(tmp_path, seed)]
    other = pair(tmp_path, 0, attack="Tangent(queries=9)")
    (missing,) = gather(FARTHER, [*usual, *other], [0, 1, 2]).missing
    assert missing == "seed 0: rep_spectral was judged otherwise (attack Tangent(queries=9) and not Tangent())"
    (missing,) = gather(FARTHER, pair(tmp_path / "b", 0, index=[1, 5, 8, 9]), [0]).missing
    assert "different images" in missing
    lost = measured(tmp_path / "c", "rep_spectral", 0, [1, 1, 0, 1], [None] * 4)
    (missing,) = gather(FARTHER, [lost, other[1]], [0]).missing
    assert missing == "seed 0: rep_spectral has no distance/mean"
