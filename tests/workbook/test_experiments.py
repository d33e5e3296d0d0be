"""What a comparison asks of finished runs: curves, variants told apart, and verdicts of runs and of committed results."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from robustlib.data import dataset_of, open_dataset
from robustlib.errors import InputError
from robustlib.evaluation import incomplete, leaderboard
from robustlib.methods import METHODS, make_method
from robustlib.representation import probe_attack
from robustlib.runs import Run, find_runs, read_json, versions, write_atomic, write_json
from robustlib.threat import Threat
from robustlib.training import fit
from robustlib.workbook import experiments, tables
from robustlib.workbook.claims import variant_of
from robustlib.workbook.experiments import REFERENCE, metrics_of, study_runs
from robustlib.workbook.task import Task
from tests import fixtures
from tests.training_fixtures import altered
from tests.workbook import evaluated_run, finished_run

STUDY = experiments.read_study("digits-claims")


def made(root: Path, method: str, seed: int, changed: str = "", threat: str = "Linf 0.2", **params: Any) -> Run:
    spec = {"num_classes": 10, "image_shape": [1, 8, 8], "mean": [0.5], "std": [0.5]}
    rows = [{"attack": name, "accuracy": a, "low": a, "high": a} for name, a in (("clean", 0.9), ("worst", 0.6))]
    results = {"threat": threat, "curve": [{"eps": eps, "accuracy": 1 - eps} for eps in (0.0, 0.2)], "rows": rows}
    results |= {"last": {"rows": rows}, "n": 500, "checkpoint": "best"}
    return finished_run(root, f"{method} {changed}", seed, {"results": results}, spec=spec, **params)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    variants = (("trades", 1, ""), ("trades", 0, ""), ("trades", 2, "beta=3.0"), ("pgd_at", 0, ""))
    return [made(tmp_path, *variant) for variant in variants]


def test_variants_and_networks_are_told_apart(tmp_path: Path, runs: list[Run]) -> None:
    chosen = {title: run.params()["seed"] for title, run in experiments.first_seed(runs).items()}
    assert chosen == {"PGD_AT": 0, "TRADES": 0, "TRADES · beta=3.0": 2}
    assert list(experiments.first_seed(runs, most=2)) == ["PGD_AT", "TRADES"], "variants without changes come first"
    few = [made(tmp_path / "few", method, 0) for method in ("acl", "standard", "afd")]
    assert list(experiments.first_seed(few, most=2)) == ["STANDARD", "AFD"], "and those of the report before others"
    counted = {title: len(frames) for title, frames in metrics_of([*runs, runs[0]]).items()}
    assert counted == {"TRADES": 2, "TRADES · beta=3.0": 1, "PGD_AT": 1}
    pair = [made(tmp_path / arch, "trades", 0, arch=arch) for arch in ("small_cnn", "mlp")]
    assert list(experiments.first_seed(pair)) == ["TRADES · mlp", "TRADES · small_cnn"]
    table = experiments.curves(runs)
    assert len(table) == 8
    seeds = table.groupby(["title", "changed"]).seed.nunique().to_dict()
    assert seeds == {("PGD_AT", ""): 1, ("TRADES", ""): 2, ("TRADES", "beta=3.0"): 1}
    assert experiments.curves([]).empty


def test_only_runs_of_one_data_set_and_threat_are_compared(tmp_path: Path, runs: list[Run]) -> None:
    made(tmp_path, "trades", 7, "norm=l2", threat="L2 0.5")
    made(tmp_path, "trades", 0, dataset="mnist")
    compared = experiments.compare_runs(tmp_path, "digits")
    assert (len(compared.shown), len(compared.every), compared.threat) == (4, 5, "Linf 0.2")
    assert "Runs on mnist are left out: set `dataset`. Runs judged under L2 0.5 are left out" in compared.summary
    assert compared.usable == [], "no run here has weights"
    assert len(experiments.compare_runs(tmp_path, "digits", threat="L2 0.5").shown) == 1


def test_a_damaged_run_is_left_out_and_the_others_are_compared(tmp_path: Path, runs: list[Run]) -> None:
    (runs[0].path / "results.json").write_text('{"rows": [')
    (runs[1].path / "audit.json").write_text("")
    (runs[2].path / "metrics.jsonl").write_text('{"epoch": 1')
    compared = experiments.compare_runs(tmp_path, "digits")
    assert compared.shown == runs[3:]
    for name in ("results.json", "audit.json", "metrics.jsonl"):
        assert f"{name} is not readable" in compared.summary
    assert find_runs(tmp_path) == compared.shown
    board, lacking = leaderboard(find_runs(tmp_path)), incomplete(find_runs(tmp_path, finished=False))
    assert (len(board), lacking["missing"].str.startswith("damaged: ").sum()) == (1, 3)
    states = tables.inventory(find_runs(tmp_path, finished=False)).set_index("run directory")
    assert [states["state"][run.path] for run in runs] == ["damaged"] * 3 + ["done"]
    assert "results.json is not readable JSON" in states["notes"][runs[0].path]
    assert "robustlib run --preset digits" in experiments.compare_runs(tmp_path / "none", "digits").summary


def test_a_damaged_page_is_said_and_the_others_and_the_index_stand(tmp_path: Path, runs: list[Run]) -> None:
    options = experiments.Options(runs=tmp_path, reports=tmp_path / "pages")
    pages = [experiments.page(run, options.reports, "digits") for run in runs]
    for page in pages:
        write_atomic(page, nbformat.writes(fixtures.notebook()))
        write_json(page.with_suffix(".status.json"), {"state": "done"})
    pages[0].write_text("{}")
    pages[1].write_text('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": 3}]}')
    pages[2].with_suffix(".status.json").write_text("[]")
    index, problems = experiments.publish(options, [])
    assert all(any(page.stem in said for said in problems) for page in pages[:3])
    there = [page.with_suffix(".html").name in index.read_text() for page in pages]
    assert (len(problems), there) == (3, [False, False, False, True])
    jobs = [experiments.Job(run, Task(page, {}, page), "", 1) for run, page in zip(runs, pages, strict=True)]
    (runs[3].path / "audit.json").write_text("[]")
    assert not any(job.current for job in jobs), "they are made anew, and nothing is raised"


def test_a_method_is_trained_by_its_own_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = type("Foreign", (METHODS["pgd_at"],), {"name": "foreign"})
    own = type("Own", (foreign,), {"name": "own", "notebook": "own"})
    folder = tmp_path / "notebooks"
    for name in ("baselines", "own"):
        write_atomic(folder / f"{name}.ipynb", experiments.notebook("baselines").read_bytes())
    for method in (foreign, own):
        monkeypatch.setitem(METHODS, method.name, method)
    monkeypatch.setattr("robustlib.__file__", str(tmp_path / "robustlib" / "__init__.py"))
    options = experiments.Options(preset="digits", runs=tmp_path / "runs", reports=tmp_path / "reports")
    variants = [(name, {}) for name in ("pgd_at", "foreign", "own")]
    planned = experiments.plan(variants, [0], options)
    assert [job.task.notebook.name for job in planned] == ["baselines.ipynb", "baselines.ipynb", "own.ipynb"]
    (folder / "own.ipynb").unlink()
    with pytest.raises(InputError, match=r"There is no .*own\.ipynb"):
        experiments.plan(variants, [0], options)


@pytest.mark.parametrize("preset", ["../elsewhere", "/tmp", "javascript:x", "", None, ["digits"], "digits/../x"])
def test_a_run_that_names_no_preset_of_ours_leads_to_no_notebook_of_others(tmp_path: Path, preset: Any) -> None:
    run, options = (
        made(tmp_path / "runs", "trades", 0, preset=preset),
        experiments.Options(reports=tmp_path / "reports"),
    )
    assert experiments.page(run, options.reports, preset).parent == options.reports / "other"
    for place in (tmp_path / "elsewhere", options.reports / "elsewhere"):
        foreign = place / f"trades-{run.path.name}.ipynb"
        write_atomic(foreign, "{}")
        write_json(foreign.with_suffix(".status.json"), {"state": "done"})
    index, problems = experiments.publish(replace(options, runs=tmp_path / "runs"), [])
    assert (problems, [*tmp_path.rglob("*.html")]) == ([], [index])


def test_pages_are_made_anew_if_they_would_change_and_one_that_cannot_be_made_leaves_the_index(tmp_path: Path) -> None:
    options = experiments.Options(runs=tmp_path / "runs", reports=tmp_path / "reports")
    whole, broken = (made(options.runs, "trades", seed) for seed in (0, 1))
    for run in (whole, broken):
        executed = experiments.page(run, options.reports, "digits")
        write_atomic(executed, nbformat.writes(fixtures.notebook()) if run is whole else "{")
        write_json(executed.with_suffix(".status.json"), {"state": "done"})
    html = experiments.page(whole, options.reports, "digits").with_suffix(".html")
    index, (problem,) = experiments.publish(options, [])
    assert "trades · small_cnn · seed 1" in problem
    assert index.read_text().count(f'href="digits/{html.name}"') == 1
    good = html.read_text()
    html.write_text(good[:-99])
    os.utime(html)
    experiments.publish(options, [])
    assert html.read_text() == good, "a page cut short, however new"
    stamp = html.stat().st_ino
    experiments.publish(options, [])
    assert html.stat().st_ino == stamp, "nothing to do"


def test_findings_are_of_runs_or_committed(tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [experiments.preset_study(preset) for preset in ("digits", "cifar10-paper")] == [STUDY, None]
    assert {found.verdict for found in experiments.claim_findings(STUDY, runs)} == {"undecided"}
    committed = experiments.reference_findings(STUDY)
    assert [found.claim.name for found in committed] == [claim.name for claim in STUDY.claims]
    exported = find_runs(REFERENCE, dataset="digits")
    there = {variant_of(run) for run in exported} | {""}
    decided = [found for found in committed if {found.claim.variant, found.claim.than} <= there]
    assert len(decided) >= 6
    assert all(found.evidence.differences for found in decided), "study and export"
    features = [read_json(run.path / "representation.json") for run in exported]
    attacks = {part["attack"] for measured in features for part in measured.values()}
    assert attacks == {repr(probe_attack(Threat("linf", 0.2)))}
    monkeypatch.setattr(sys.modules["robustlib.workbook.experiments.studies"], "REFERENCE", tmp_path / "none")
    assert experiments.reference_findings(STUDY) == []


def test_claims_are_compared_with_the_committed_ones_of_another_preset(tmp_path: Path, runs: list[Run]) -> None:
    assert experiments.findings_by_preset([]) == experiments.findings_by_preset(runs[:1]) == {}, (
        "no run decides anything"
    )
    pair = [evaluated_run(tmp_path, name, 0, 0.5) for name in ("trades", "pgd_at")]
    found = experiments.findings_by_preset(pair)
    assert list(found) == ["cifar10-small, reference", "digits"]
    assert [one.evidence.differences for one in found["digits"][:2]] == [{}, {0: 0.0}]


def test_claims_that_cannot_be_compared_stop_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(runs: list[Run]) -> None:
        raise InputError("a reference is damaged")

    monkeypatch.setattr(sys.modules["robustlib.workbook.experiments.jobs"], "findings_by_preset", damaged)
    options = experiments.Options(runs=tmp_path / "runs", reports=tmp_path / "reports")
    index, problems = experiments.publish(options, [])
    assert index.is_file()
    assert problems == ["Claims of several presets are not compared. InputError: a reference is damaged"]
    assert experiments.publish(options, [], waiting={})[1] == problems, "nothing waits any more"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text("methods: {trades: {beta: [1.0, 3.0, 6.0]}, pgd_at: {}}\nseeds: 0-1")
    return file


def test_study_runs_are_in_the_order_of_variants_and_say_what_is_missing(tmp_path: Path, study: Path) -> None:
    root = tmp_path / "runs"
    last = made(root, "pgd_at", 1)
    plain, first, *_ = [made(root, "trades", s, c) for s, c in ((0, ""), (0, "beta=1.0"), (0, "beta=9.0"), (5, ""))]
    chosen = study_runs(str(study), root)
    assert chosen.runs == [first, plain, last]
    assert chosen.summary.startswith("3 of the 8 runs")
    assert f"robustlib study {study}" in chosen.summary
    study.write_text("methods: [pgd_at]\nseeds: 1")
    words = f"1 of the 1 runs of the study **{study}** (preset digits) are here, judged under Linf 0.2 on 500 images."
    assert study_runs(str(study), root).summary == words, "a complete study asks for nothing"


def test_a_study_takes_runs_of_its_data_that_were_judged_alike(tmp_path: Path, study: Path) -> None:
    root = tmp_path / "runs"
    study.write_text("methods: [pgd_at]\nseeds: 0-3\nexamples: 200")
    runs = [made(root, "pgd_at", seed) for seed in range(3)]
    other = made(root, "pgd_at", 3)
    write_json(other.path / "results.json", other.results() | {"n": 200})
    chosen = study_runs(str(study), root)
    assert chosen.runs == [other], "the study's own number of images"
    assert chosen.summary.endswith("Left out: 3 that were judged otherwise.")
    (other.path / "results.json").unlink()
    of_digits, of_mnist = (study_runs(str(study), root, name) for name in ("digits", "mnist"))
    assert (of_digits.runs, of_mnist.runs) == (runs, []), "a page about other data shows none of digits"
    mnist = made(root, "pgd_at", 1, dataset="mnist")  # the study asked for with --dataset mnist
    assert study_runs(str(study), root, "mnist").runs == [mnist]


def test_models_that_answer_at_random_count_with_the_images_of_their_budget(tmp_path: Path, study: Path) -> None:
    study.write_text("methods: [atop, standard]\nseeds: 0\nexamples: 500")
    fixed, random = (made(tmp_path / "runs", method, 0) for method in ("standard", "atop"))
    for images, runs in ((128, [random, fixed]), (512, [fixed])):  # capped; asked to meet fewer than it may
        write_json(random.path / "results.json", random.results() | {"n": 128, "budget": {"images": images}})
        chosen = study_runs(str(study), tmp_path / "runs")
        assert chosen.runs == runs
        assert ("random on 128" in chosen.summary) == (len(runs) == 2)
        assert ("Left out: 1" in chosen.summary) == (len(runs) == 1)


def test_what_stands_beside_a_run_is_its_own_seed_and_the_run_itself_first(tmp_path: Path) -> None:
    pairs = (("trades", 0), ("trades", 1), ("ancra", 0), ("pgd_at", 0))
    others = [made(tmp_path, method, seed) for method, seed in pairs]
    others.append(made(tmp_path, "mart", 1, arch="mlp"))
    run = made(tmp_path, "ancra", 1, changed="base=mart")
    beside = experiments.comparable_runs(run, [*others, run])
    assert next(iter(beside.values())) == run
    seeds = {title: one.params()["seed"] for title, one in beside.items()}
    assert seeds == {"ANCRA · base=mart": 1, "ANCRA": 0, "PGD_AT": 0, "TRADES": 1}
    same = experiments.same_setting(run, tmp_path, ["ancra", "trades"])
    assert same[0] == run
    assert {one.name.split(" ")[0] + str(one.params()["seed"]) for one in same[1:]} == {"ancra0", "trades0", "trades1"}
    other = made(tmp_path, "trades", 2, changed="beta=1.0")
    made(tmp_path, "trades", 3, changed="beta=1.0, epochs=3")
    varied = experiments.same_setting(run, tmp_path, ["trades"], vary=["beta"])
    assert [one.params()["seed"] for one in varied[1:]] == [0, 1, 2]
    assert varied[-1] == other


def test_a_changed_tuple_is_one_change(tmp_path: Path) -> None:
    name = experiments.variant_name(("trades", {"milestones": (20, 30), "lr": 0.123}), "digits")
    assert name == "trades lr=0.123, milestones=(20, 30)"
    run = made(tmp_path, "trades", 0, changed="lr=0.123, milestones=(20, 30)")  # text, as version 0.1 wrote it
    new = altered(run, tmp_path / "new", changes={"lr": 0.123, "milestones": [20, 30]})
    assert variant_of(run) == variant_of(new) == name
    assert run.changes() == new.changes() == {"lr": 0.123, "milestones": (20, 30)}


def test_feature_spaces_of_archives_are_what_they_keep_and_a_sentence_says_what_is_not_there(tmp_path: Path) -> None:
    look = probe_attack(Threat("linf", 0.2))
    facts = {"attack": repr(look), "layers": ["features"], "n": 500, "seed": 0}
    facts |= {"numerics": versions("measures/representation", "attacks/pgd"), "measures": {"features": {"cka": 0.5}}}
    first, second, third, bare = (made(tmp_path, method, 0) for method in ("trades", "mart", "afd", "pgd_at"))
    write_json(first.path / "representation.json", {"x": {**facts, "n": 60}, "y": facts})
    write_json(second.path / "representation.json", {"x": {**facts, "numerics": {"attacks/pgd": -1}}})
    write_json(third.path / "representation.json", {"x": {**facts, "attack": "FGSM()"}})
    runs = [first, second, third, bare]
    table = experiments.geometry(runs, [], None, look)
    assert table[["method", "layer", "cka"]].to_numpy().tolist() == [["trades", "features", 0.5]]
    assert experiments.geometry([bare], [], None, look).empty
    assert "none of the 4 runs has any" in experiments.unseen(runs, [])
    assert "1 of the 4 runs" in experiments.unseen(runs, runs[1:])
    assert "the data" in experiments.unseen(runs, [], look_inside=False)
    assert experiments.unseen([], []) == "There are no runs to show."
    assert experiments.unseen(runs, runs) == ""


def test_metrics_of_a_stage_leave_out_runs_without_it(tmp_path: Path) -> None:
    runs = [made(tmp_path, "claf", 0), made(tmp_path, "supcon", 0)]
    for run, stages in zip(runs, (("augmented", "adversarial", "slf"), ("contrastive", "slf")), strict=True):
        rows = [{"stage": s, "epoch": e, "epoch_total": e, "warnings": []} for s in stages for e in (0, 1)]
        (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ((title, (table,)),) = metrics_of(runs, "adversarial").items()
    assert (title, list(table["stage"]), list(table["epoch"])) == ("CLAF", ["adversarial"] * 2, [0, 1])
    assert list(metrics_of(runs)) == ["CLAF", "SUPCON"]


def test_supervised_rivals_have_as_many_attack_passes_as_claf() -> None:
    passes = make_method("claf", "digits").attack_passes
    for study in ("digits-claims", "claf-comparison"):
        variants = [make_method(name, "digits", **changes) for name, changes in experiments.read_study(study).variants]
        equal = {variant.name for variant in variants if variant.attack_passes == passes}
        assert equal == {"claf", "pgd_at"} | ({"trades"} if study == "claf-comparison" else set())
    rivals = {part.than for part in STUDY.claims if part.name.startswith("claf") and part.than}
    assert rivals == {"pgd_at epochs=25", "rocl", "acl", "claf refresh=never"}


def test_a_sweep_is_a_row_a_hyper_parameter(tmp_path: Path) -> None:
    def run(changed: str, **values: float) -> Run:
        return made(tmp_path, "afd", 0, changed=changed, hyperparameters={"alpha": 0.05, "beta": 0.25} | values)

    runs = [run(""), run("alpha=0.2", alpha=0.2), run("alpha=0.2, beta=1.0", alpha=0.2, beta=1.0), run("lr=1", lr=1)]
    table = experiments.sweep_table(runs, ["alpha", "beta"])[["parameter", "value", "clean", "robust"]]
    points = [("alpha", 0.05), ("beta", 0.25), ("alpha", 0.2)]
    assert table.to_numpy().tolist() == [[*point, 0.9, 0.6] for point in points]


def test_trainings_on_images_of_ones_own_are_planned_made_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{k}.png"
            )
    monkeypatch.chdir(tmp_path)
    options = experiments.Options(dataset="photos@8", runs=Path("runs"), reports=Path("reports"))
    changes = {"arch": "mlp", "epochs": 1, "batch_size": 4}
    (job,) = experiments.plan([("standard", changes)], [0], options)
    assert job.task.parameters["dataset"] == f"{tmp_path}/photos@8", "kernels work in other directories"
    run = fit(
        make_method("standard", "digits", **changes), open_dataset("photos@8"), root="runs", progress=False, threads=1
    )
    assert run.path == job.run.path
    assert dataset_of(run.params()).name == run.params()["dataset"]
    assert f"--dataset {tmp_path}/photos@8" in run.provenance()["command"]
    os.renames("photos", "moved/photos")
    again = fit(
        make_method("standard", "digits", **changes),
        open_dataset("moved/photos@8"),
        root="runs",
        progress=False,
        threads=1,
    )
    assert again.path == run.path, "the same images at another place are the same"
    with pytest.raises(InputError, match="Unknown dataset 'photos'"):
        open_dataset("photos")
    with pytest.raises(InputError, match=r"'photos' is neither a folder of images nor a \.csv or \.npz file"):
        open_dataset("photos@8")
