"""What the workbook makes of stored distances and of accuracies under unseen attacks: grids, tables, claims."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from robustlib import figures
from robustlib.attacks import Tangent, Threat
from robustlib.errors import InputError
from robustlib.evaluation import measure_distances, select_strength, shared_distances
from robustlib.methods import make_method
from robustlib.runs import Run, read_json, write_json
from robustlib.training import fit
from robustlib.workbook import experiments, tables
from robustlib.workbook.claims import Claim, evaluate_claims, gather, measure_of
from tests.training_fixtures import altered
from tests.workbook import finished_run


def with_distances(root: Path, variant: str, seed: int, distance: Any, wrong: Any = (), **look: Any) -> Run:
    """A run whose distances of four images are stored; those at positions `wrong` are misclassified."""
    facts = look.pop("facts", {})
    columns = {"index": [3, 5, 8, 9], "correct": [k not in wrong for k in range(4)], "distance": distance}
    protocol = {"attack": "Tangent()", "split": "test", "n": 4, "seed": 0}
    return finished_run(root, variant, seed, {"distances": {"look": {**protocol, **columns, **look}}}, **facts)


def add_fab(run: Run, share: float, n: int = 4) -> None:
    """Stores that FAB finds `share` of the distances of the first `n` images, and fails on the others."""
    look = read_json(run.path / "distances.json")["look"]
    distance = [share * d if k < n and d is not None else None for k, d in enumerate(look["distance"])]
    write_json(run.path / "distances.json", {"look": look, "white": look | {"attack": "FAB()", "distance": distance}})


def test_the_grid_is_made_of_what_is_stored_of_validation_images(tmp_path):
    def cell(method: str, strength: float, seed: int, distance: float, changed: str = "", **look: Any) -> Run:
        facts = {"title": method.upper(), "hyperparameters": {"strength": strength}}
        variant = f"{method} {changed or f'strength={strength}'}"
        return with_distances(tmp_path, variant, seed, [distance] * 4, split="val", images="a", facts=facts, **look)

    runs = [cell("rep", strength, seed, 0.5 + strength) for strength in (0.0, 0.1, 0.01) for seed in (0, 1)]
    runs += [cell("ll", 0.1, 0, 9.0)]  # lacks a seed
    runs += [cell("rep", 0.1, seed, 9.0, "arch=small_cnn") for seed in (0, 1)]
    runs += [cell("cross", 0.1, seed, 9.0, attack="Tangent(queries=9)") for seed in (0, 1)]  # measured otherwise
    grid = experiments.strength_grid(runs)
    rows = [["none", 0.0, 0.5, False], ["REP", 0.01, 0.51, False], ["REP", 0.1, 0.6, True]]
    shown = grid[["variant", "strength", "distance", "chosen"]].values.tolist()
    assert shown == [[*row[:2], pytest.approx(row[2]), row[3]] for row in rows]
    assert experiments.strength_grid(runs[2:]).empty, "no unregularised variant"
    assert experiments.strength_grid([]).empty


def test_what_a_distance_goes_with_is_measured_on_shared_images(few, tmp_path):
    """Restated: the Jacobian of a network of one hidden layer by hand, and the norm of its one matrix."""
    runs = {}
    for name, strength in (("none", 0.0), ("rep", 0.1)):
        method = make_method("rep_spectral", "digits", epochs=3, strength=strength)
        runs[name] = fit(method, few, root=tmp_path, device="cpu", progress=False)
    frames = measure_distances(runs, few, Tangent(Threat("l2", 0.5), queries=300), n=12)
    far = shared_distances(frames)
    table = experiments.spectral_family([*runs.values(), Run(Path("none"))], few)
    assert table["n"].tolist() == [len(far["rep"])] * 2
    assert table["distance"].tolist() == pytest.approx([far["none"].mean(), far["rep"].mean()])
    right = frames["none"]["correct"] & frames["rep"]["correct"]
    for row, run in zip(table.itertuples(), runs.values(), strict=True):
        model = run.model()
        weight = model.get_submodule("encoder.layers.0").weight.detach()
        assert row.sigma == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)) ** 2, rel=1e-3)
        x = few.test.sample(12).images[torch.tensor(right.tolist())].float() / 255
        exact = [torch.autograd.functional.jacobian(model.features, one[None]).norm() for one in x]
        assert row.jacobian == pytest.approx(float(torch.stack(exact).mean()), rel=0.15)
    assert experiments.spectral_family([], few).empty
    two = [with_distances(tmp_path, "rep", 0, [0.5] * 4, facts={"arch": arch}) for arch in ("mlp_512", "small_cnn")]
    with pytest.raises(InputError, match="Distances of mlp_512 and small_cnn do not go with one sum of norms"):
        experiments.spectral_family(two, few)


def test_what_belongs_to_a_grid_differs_in_its_strength_alone(tmp_path):
    strange = ("bss", "rep_spectral train_examples=200, strength=0.0")
    variants = {"rep_spectral": True, "ll_spectral strength=0.5": True, **dict.fromkeys(strange, False)}
    runs = [finished_run(tmp_path, variant) for variant in variants]
    grid = experiments.read_study("spectral-grid")
    assert [experiments.in_grid(run, grid) for run in runs] == list(variants.values())
    assert not experiments.in_grid(finished_run(tmp_path / "other", "rep_spectral", preset="cifar10-short"), grid)


def test_distances_of_variants_stand_beside_those_of_the_white_box(tmp_path):
    runs = [
        with_distances(tmp_path, name, s, [d + s / 10] * 4, () if s else (2,), images="a", facts={"title": "REP"})
        for name, d in (("rep", 0.5), ("rep strength=0.0", 0.3))
        for s in (0, 1)
    ]
    for run in runs:
        add_fab(run, 0.9, n=3)
    table = experiments.variant_distances(runs)
    assert table["variant"].tolist() == ["REP", "REP · strength=0.0"]
    assert table["distance"].tolist() == pytest.approx([0.55, 0.35])
    assert table["fab"].tolist() == pytest.approx([0.9 * 0.55, 0.9 * 0.35])
    assert table["n"].tolist() == [2, 2], "seed 0 has one wrong, and FAB failed on the last"
    assert table["low"][0] == 0, "no distance is below"
    write_json(runs[0].path / "distances.json", {"look": read_json(runs[0].path / "distances.json")["look"]})
    alone = experiments.variant_distances(runs)
    assert (alone["n"][0], alone["fab"].isna().all()) == (3, True), "FAB lacks a run"
    assert tables.distances_over_seeds(alone)["mean distance, FAB (white box)"].tolist() == ["–", "–"]
    assert experiments.variant_distances([]).empty


def test_epochs_of_all_stages_are_one_axis():
    rows = pd.DataFrame({"stage": ["a", "a", "b", "b"], "epoch": [0, 1, 0, 1], "epoch_total": [0, 1, 1, 2]})
    (frame,) = experiments.concat_stages({"A": [rows.assign(value=[1.0, 2.0, 3.0, 4.0])]})["A"]
    assert frame[["epoch", "value"]].values.tolist() == [[0, 1.0], [1, 3.0], [2, 4.0]]
    drawn = figures.probe_curves({"A-B": [frame]}, ["value"])
    assert drawn.alt == "Measures over the epochs. value: A-B (1 seed) 3 at epoch 1, 4 at epoch 2."


def uniform(distance: float, wrong: int, noise: float) -> pd.DataFrame:
    """Distances of 100 images, of which the first are wrong."""
    far = np.where(np.arange(100) >= wrong, distance + noise * np.linspace(-1, 1, 100), 0.0)
    return pd.DataFrame({"index": range(100), "correct": far > 0, "distance": far})


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((0.51, 0.55, 0.60), ["", "", "", "✓ chosen, largest of the grid"]),
        ((0.55, 0.60, 0.51), ["", "", "✓ chosen", ""]),
        ((0.45, 0.41, 0.40), ["", "✓ chosen, smallest of the grid, nearer than none", "", ""]),
        ((0.5001,), ["", "✓ chosen, the only one of the grid, no different from none"]),
        ((0.51, 0.60, np.nan), ["", "", "✓ chosen", "✕ costs too much accuracy"]),
    ],
)
def test_the_table_of_a_grid_says_what_is_chosen_and_why_not(distances, said):
    none = {seed: uniform(0.5, 2, 0.05) for seed in (0, 1)}
    cells = {}
    for k, distance in enumerate(distances):
        far, wrong = (0.9, 60) if np.isnan(distance) else (distance, 2)
        cells["rep", 10.0 ** (k - 3)] = {s: uniform(far + s * 1e-3, wrong, 0.05) for s in none}
    table = tables.strength_grid(select_strength(none, cells))
    assert table[""].tolist() == said
    assert table["strength"].tolist() == ["0", "0.001", "0.01", "0.1"][: len(said)]
    assert table["accuracy"].iloc[0] == "98.0 %"
    assert table["mean distance"].iloc[0].startswith("0.501 (")


def test_the_table_of_distances_says_how_many_images_count():
    row = {"model": "A", "images": 100, "correct": 97, "failed": 0, "n": 95, "mean": 0.5, "mean_low": 0.45}
    row |= {"mean_high": 0.55, **dict.fromkeys(("median", "median_low", "median_high"), np.nan)}
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


def test_words_on_the_plateau():
    def curve(points: list[tuple[int, int, float]], *last: Any) -> dict[str, Any]:
        rows = [{"steps": k, "samples": s, "accuracy": p, "low": p - 0.1, "high": p + 0.1} for k, s, p in points]
        lost = dict(zip(("lost", "low", "high", "verdict"), last, strict=True))
        return {"points": [row | {"n": 64} for row in rows], "last": lost}

    grid = {"samples": curve([(40, 20, 0.41), (40, 50, 0.415)], -0.005, -0.02, 0.01, "flat")}
    grid["steps"] = curve([(100, 8, 0.44), (200, 8, 0.4)], 0.04, 0.01, 0.07, "falling")
    said = tables.plateau_summary({"plateau": grid})
    for words in (
        "with 40 steps of 50 gradient samples PGD+EOT leaves 41.5 % (31.5–51.5) of 64 images",
        "−0.5 points (−2.0 to 1.0) less than with 20: flat",
        "with 200 steps of 8 gradient samples PGD+EOT leaves 40.0 %",
        "4.0 points (1.0 to 7.0) less than with 100: still falling",
    ):
        assert words in said
    assert tables.plateau_summary({}) == tables.plateau_summary({"plateau": {"full": {}}}) == ""


def claim(measure: str, direction: Any = "higher", variant: str = "a", than: str = "b", **changes: Any) -> Claim:
    facts = {"name": "c", "text": "A claim.", "source": "a test", "variant": variant, "than": than}
    return Claim(**facts, measure=measure, direction=direction, **changes)


FARTHER = claim("distance/mean", variant="rep_spectral", than="rep_spectral strength=0.0", relative=True)


def pair(root: Path, seed: int, **look: Any) -> list[Run]:
    """Two variants: three images are right in both, one of which has no known distance in the first."""
    first = with_distances(root, "rep_spectral", seed, [1.0, 2.0, 0.0, None], (2,), **look)
    return [first, with_distances(root, "rep_spectral strength=0.0", seed, [0.5, 1.5, 9.0, 9.0])]


def test_a_claim_compares_distances_on_the_images_that_both_have_right(tmp_path):
    runs = [run for seed in (0, 1) for run in pair(tmp_path, seed)]
    evidence = gather(FARTHER, runs, [0, 1])
    assert evidence.differences == {seed: pytest.approx(1.5 / 1.0 - 1) for seed in (0, 1)}
    assert (evidence.notes, evidence.step) == (("on 2 to 2 of 4 images",), 0.0)
    middle = gather(replace(FARTHER, measure="distance/median", relative=False), runs, [0, 1])
    assert middle.differences == {seed: pytest.approx(0.5) for seed in (0, 1)}
    assert middle.step == 0.0, "no accuracy, so no step of an image"
    alone = [measure_of(runs[1], f"distance/{name}") for name in ("mean", "median")]
    assert alone == pytest.approx([5.0, 5.25]), "on all that it has right"
    row = tables.claims(evaluate_claims([FARTHER], runs, [0, 1])).iloc[0]
    assert row["compared"].endswith(": mean adversarial distance (Tangent, L2)")
    assert row["effect"].startswith("+50.0 %")
    for k, run in enumerate(runs):
        add_fab(run, 0.6 if k % 2 else 0.9)
    (note,) = (note for note in gather(FARTHER, runs, [0, 1]).notes if "FAB" in note)
    assert note == f"by FAB, which sees gradients, {100 * (0.9 / 0.6 * 1.5 - 1):+.1f} %"


def test_distances_that_are_missing_or_no_pair_are_told(tmp_path):
    def missing(runs: list[Run], seeds: tuple[int, ...] = (0,)) -> str:
        (said,) = gather(FARTHER, runs, seeds).missing
        return said

    usual = [run for seed in (1, 2) for run in pair(tmp_path, seed)]
    other = pair(tmp_path, 0, attack="Tangent(queries=9)")
    otherwise = "rep_spectral was judged otherwise (attack Tangent(queries=9) and not Tangent())"
    assert missing([*usual, *other], (0, 1, 2)) == f"seed 0: {otherwise}"
    assert "different images" in missing(pair(tmp_path / "b", 0, index=[1, 5, 8, 9]))
    lost = with_distances(tmp_path / "c", "rep_spectral", 0, [None] * 4, (2,))
    assert missing([lost, other[1]]) == "seed 0: rep_spectral has no distance/mean"
    assert "rep_spectral has no measured distances" in missing(pair(tmp_path / "val", 0, split="val")), "on test images"
    (other[0].path / "distances.json").unlink()
    assert missing(other) == "seed 0: rep_spectral has no measured distances"
    with pytest.raises(InputError, match="has no measured distances: its notebook measures them"):
        measure_of(other[0], "distance/mean")
    with pytest.raises(InputError, match=r"Unknown statistic of distances 'men'. Did you mean 'mean'"):
        measure_of(other[1], "distance/men")


def with_unseen(root: Path, variant: str, seed: int, protocol: str = "", **accuracies: float) -> Run:
    """A run whose unseen.json has these accuracies, measured after others."""
    facts = {"n": 100, "split": "test", "seed": 0, "strengths": {"l2": 0.6, "flow": 0.2}, "images": "a"}
    rows = {name: {"accuracy": share, "protocol": protocol} for name, share in accuracies.items()}
    looks = {"old": {**facts, "n": 3, "accuracies": {}}, "last": {**facts, "accuracies": rows}}
    return finished_run(root, variant, seed, {"unseen": looks})


def test_claims_on_unseen_attacks_pair_runs_by_seed(tmp_path):
    runs = [with_unseen(tmp_path, "a", s, clean=0.9, known=0.5 + s / 10, l2=0.4, stadv=0.3) for s in (0, 1)]
    runs += [with_unseen(tmp_path, "b", s, clean=0.8, known=0.7, l2=0.2, stadv=0.25) for s in (0, 1)]
    expected = {"unseen/l2": [0.2, 0.2], "unseen/stadv": [0.05, 0.05], "unseen/clean": [0.1, 0.1]}
    expected |= {"unseen/known": [-0.2, -0.1], "unseen/loss/l2": [-0.4, -0.3], "unseen/loss/stadv": [-0.25, -0.15]}
    for measure, differences in expected.items():
        evidence = gather(claim(measure), runs, [0, 1])
        assert (list(evidence.differences.values()), evidence.step) == (pytest.approx(differences), 0.01)
        assert not evidence.missing + evidence.notes
    for name, hint in {"l3": r"\. Did you mean 'l2'", "price": ""}.items():
        with pytest.raises(InputError, match=f"Unknown accuracy under unseen attacks '{name}'{hint}"):
            measure_of(runs[0], f"unseen/{name}")
    look = read_json(runs[0].path / "unseen.json")["last"]
    write_json(runs[0].path / "unseen.json", {"x": look | {"bare": {"accuracy": 0.95}}})
    assert measure_of(runs[0], "unseen/price") == pytest.approx(0.05), "what a purifier costs"
    row = tables.claims(evaluate_claims([claim("unseen/loss/stadv", "lower")], runs, [0, 1])).iloc[0]
    assert row["compared"] == "a − b: known attacks, worst case, less unseen: StAdv"
    runs[:2] = [with_unseen(tmp_path, "a", s, "PGD+EOT", clean=0.9, known=0.5, l2=0.4, stadv=0.3) for s in (0, 1)]
    for measure in ("unseen/l2", "unseen/known"):
        (note,) = gather(claim(measure), runs, [0, 1]).notes
        assert note.startswith("a model that answers at random met shorter attacks")
    assert not gather(claim("unseen/clean"), runs, [0, 1]).notes


def test_unseen_accuracies_of_other_images_or_strengths_are_not_paired(tmp_path):
    *usual, bare = [with_unseen(tmp_path, variant, s, known=0.5, l2=0.4) for variant in "ab" for s in (2, 1, 0)]
    (bare.path / "unseen.json").unlink()
    (missing,) = gather(claim("unseen/l2"), [*usual, bare], [0, 1, 2]).missing
    assert missing == "seed 0: b has not met unseen attacks"
    with pytest.raises(InputError, match=r"robustlib evaluate .* --unseen"):
        measure_of(bare, "unseen/l2")
    other = with_unseen(tmp_path / "o", "b", 0, known=0.5, l2=0.4)
    look = read_json(other.path / "unseen.json")["last"]
    write_json(other.path / "unseen.json", {"x": look | {"strengths": {"l2": 0.9}}})
    (missing,) = gather(claim("unseen/l2"), [*usual, other], [0, 1, 2]).missing
    assert "b was judged otherwise (attack {'l2': 0.9} and not {'l2': 0.6, 'flow': 0.2})" in missing


def test_a_study_measures_what_its_claims_need(tmp_path, monkeypatch):
    """The pages of other methods than AToP's measure no unseen attacks, and a claim would wait for them forever."""
    asked: list[tuple[Path, str, str]] = []

    def measure(runs: dict[str, Run], data: Any, *, device: str) -> None:
        (run,) = runs.values()
        asked.append((run.path, data.name, device))
        if run.params()["seed"] == 1:
            raise InputError("not on these images.")

    monkeypatch.setattr(sys.modules["robustlib.workbook.experiments.jobs"], "measure_unseen", measure)
    results = {"n": 6, "rows": [{"attack": "clean", "accuracy": 1.0}], "threat": "Linf 0.2", "checkpoint": "best"}
    judged = [finished_run(tmp_path, "a", seed, {"results": results}) for seed in (0, 1)]
    runs = [*judged, with_unseen(tmp_path, "pgd_at", 0, l2=0.5), Run(tmp_path / "none")]
    options = experiments.Options(device="cpu")
    study = experiments.Study(
        "digits", [("pgd_at", {}), ("trades", {})], [0], claims=[claim("unseen/l2", than="trades")]
    )
    assert study.meet_unseen == {"a", "trades"}, "of claimed variants"
    (problem,) = experiments.meet_unseen(study.meet_unseen, runs, options)
    assert asked == [(run.path, "digits", "cpu") for run in judged], "which are evaluated"
    assert problem.endswith("has not met unseen attacks: not on these images.")
    assert not replace(study, claims=[claim("worst", than="trades")]).meet_unseen
    assert replace(study, unseen=True, claims=[]).meet_unseen == {"pgd_at", "trades"}
    lost = {"dataset": "own-8px-01234567", "images": {"path": "gone", "threat": {"norm": "l2", "eps": 1.0}}}
    own = [altered(judged[0], **lost)]
    (problem,) = experiments.meet_unseen({"a"}, own, options)
    assert "has not met unseen attacks: The images of own-8px-01234567 are not at gone" in problem
