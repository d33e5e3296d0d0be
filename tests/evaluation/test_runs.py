"""The evaluation of finished runs: stored once, resumed, repeated where it must be; the leaderboard, and what is incomplete."""

import json
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import robustlib
from robustlib.attacks import PGD
from robustlib.audit import audit_run
from robustlib.errors import InputError
from robustlib.evaluation import aggregate, evaluate_run, has_new_sources, incomplete, leaderboard, protocols, summarise
from robustlib.evaluation.measurements import faster_precision
from robustlib.evaluation.runs import KIND
from robustlib.models import Classifier
from robustlib.models.reverse_attention import ReverseAttention
from robustlib.runs import Run, write_json
from tests.conftest import Linear


@pytest.fixture
def hurried(monkeypatch):
    """Every attack has two steps, and two restarts where it has several; curves have two points."""

    def hurry(attack):
        many = [name for name in ("steps", "restarts") if getattr(attack, name, 1) > 1]
        return replace(attack, **dict.fromkeys(many, 2)) if many else attack

    def short(suite):
        return lambda *settings: {name: hurry(attack) for name, attack in suite(*settings).items()}

    for name in ("standard_attacks", "adaptive_attacks"):
        monkeypatch.setattr(f"robustlib.evaluation.protocols.{name}", short(getattr(protocols, name)))
    for name in ("EPS_MULTIPLES", "STEPS"):
        monkeypatch.setattr(f"robustlib.evaluation.runs.{name}", (0, 1))


@pytest.mark.usefixtures("hurried")
def test_a_run_is_evaluated_once_and_lands_on_the_leaderboard(digits, train):
    runs = [train(seed=seed, epochs=2, examples=300) for seed in (0, 1)]
    run, (_, results) = runs[-1], (evaluate_run(run, digits, n=20) for run in runs)
    assert [row["attack"] for row in results["rows"]] == ["clean", *protocols.standard_attacks(digits.threat), "worst"]
    assert all("(threat=Threat(" in row["protocol"] for row in results["rows"][1:-1])
    assert [row["component"] for row in results["cascade"]][:2] == ["clean", "apgd-ce"]
    assert results["cascade"][-1]["accuracy"] == results["rows"][-2]["accuracy"]
    last = results["last"]["rows"]
    assert "autoattack" not in [row["attack"] for row in last]
    assert (results["n"], last[0]["n"], len(results["curve"]), run.evaluation.exists()) == (20, 20, 2, False)
    stamp = (run.path / "records.parquet").stat().st_mtime_ns
    assert evaluate_run(run, digits, n=20) == run.results() == results
    assert (run.path / "records.parquet").stat().st_mtime_ns == stamp
    assert evaluate_run(run, digits, n=12)["n"] == 12
    assert run.results() == results, "a look at fewer images must not replace what more have shown"
    stored = summarise(run.records()).set_index("attack")["accuracy"].to_dict()
    assert stored == {row["attack"]: row["accuracy"] for row in results["rows"]}
    assert set(run.records("last")["index"]) == set(run.records()["index"])
    board = leaderboard(runs)
    assert (len(board), board.title[0], set(board.headline_badge)) == (2, "Standard training", {""})
    assert (board.worst <= board[["autoattack", "pgd20"]].min(axis=1)).all()
    badges = {"headline": {"verdict": "amber", "text": "weak"}, "protocol": {"verdict": "pass", "text": "fair"}}
    (runs[0].path / "audit.json").write_text(json.dumps({"badges": badges}))
    judged = leaderboard(runs[:1]).loc[0]
    assert (judged.headline_badge, judged.headline_text, judged.protocol_text) == ("amber", "weak", "fair")
    evaluate_run(runs[0], digits, n=21)
    assert runs[0].audit() == {}, "a badge must not stand beside a number that it did not judge"
    means = aggregate(board)
    assert (means.seeds[0], board.threat[0]) == (2, "Linf 0.2")
    assert (means.clean_mean[0], means.clean_std[0]) == pytest.approx((board.clean.mean(), board.clean.std()))
    assert leaderboard([]).empty


def test_means_keep_data_sets_precisions_and_changes_apart():
    row = dict.fromkeys(("clean", "fgsm", "pgd20", "pgd50x10", "cw50", "worst", "minutes"), 0.5)
    row |= dict.fromkeys(KIND, "x") | {"n": 9, "seed": 0}
    changes = ({}, {"dataset": "y"}, {"changed": "beta=1"}, {"precision": "bf16-mixed"})
    assert len(aggregate(pd.DataFrame([row | change for change in changes]))) == 4


def test_runs_that_lack_something_are_named_with_the_remedy(digits, train):
    run = train()
    again = f"{run.provenance()['command']} --examples 6 --rerun"

    def lacks() -> str:
        (missing,) = incomplete([run]).missing
        return missing

    assert lacks() == f"not evaluated: robustlib evaluate {run.path}"
    evaluate_run(run, digits, n=6)
    assert lacks() == f"not audited: robustlib audit {run.path}"
    (run.path / "audit.json").write_text(json.dumps({"badges": {"headline": {}}}))
    assert incomplete([run]).empty
    records = run.path / "records.parquet"
    write_json(run.path / "results.json", {name: part for name, part in run.results().items() if name != "files"})
    whole = pd.read_parquet(records)
    run.write_frame("records.parquet", whole[(whole.attack != "pgd20") | (whole["index"] != whole["index"].iloc[0])])
    row = incomplete([run]).loc[0]
    assert row.missing == f"records of pgd20 are incomplete: {again}"
    assert (row.run, row.dataset, row.path) == (run.name, "digits", str(run.path))
    run.write_frame("records.parquet", pd.concat([whole, whole[whole.attack == "pgd20"].assign(surrogate="head")]))
    results = run.results()
    results["rows"] += [row | {"attack": "pgd20@head"} for row in results["rows"] if row["attack"] == "pgd20"]
    (run.path / "results.json").write_text(json.dumps(results))
    assert incomplete([run]).empty, "what was found on a surrogate is kept beside it"
    run.write_frame("records.parquet", whole)
    assert lacks() == f"records of pgd20@head are incomplete: {again}"
    records.write_bytes(records.read_bytes()[:50])
    assert lacks().startswith("a file cannot be read")
    records.unlink()
    assert "clean" in lacks()
    (run.path / "model.safetensors").unlink()
    assert lacks() == f"no weights (model.safetensors): {again}"
    (run.path / "results.json").write_text('{"n": 6, ')
    assert lacks().startswith(f"damaged: {run.path}/results.json is not readable JSON")
    (run.path / "results.json").unlink()
    (run.path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert lacks() == f"training failed: {run.provenance()['command']}"


def test_an_interrupted_evaluation_of_a_run_goes_on(digits, train):
    run = train()

    def interrupt(progress):
        if progress.attack == "autoattack" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, digits, n=20, progress=interrupt)
    assert run.results() == {}
    parts, said = list(run.evaluation.rglob("part-*")), []
    results = evaluate_run(run, digits, n=20, progress=said.append)
    assert len([p for p in said if p.eta is None and p.done == p.total > 0]) == len(parts), "nothing is redone"
    assert not run.evaluation.exists()
    records = run.records()
    (run.path / "results.json").unlink()
    assert evaluate_run(run, digits, n=20) == results
    pd.testing.assert_frame_equal(run.records(), records, check_exact=True)
    (run.path / "representation.json").write_text("{}")
    for folder in (run.evaluation, run.path / "features", run.path / "embeddings"):
        folder.mkdir()
        (folder / "part").write_text("")
    run.clear()
    assert [file.name for file in run.path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("hurried")
def test_killed_between_records_and_results_an_evaluation_leaves_no_two_generations(digits, train, monkeypatch):
    run = train()
    few = evaluate_run(run, digits, n=8)
    for fails, there in (("write_frame", few), ("write", {})):
        with monkeypatch.context() as patch:
            patch.setattr(Run, fails, None)
            with pytest.raises(TypeError):
                evaluate_run(run, digits, n=12)
        assert (run.results(), run.damage) == (there, "")
    many = evaluate_run(run, digits, n=12)
    assert (many["n"], run.records()["index"].nunique()) == (12, 12)
    assert many["files"] == run.digests("model.safetensors", "last.safetensors", "records.parquet")


@pytest.mark.usefixtures("hurried")
def test_a_model_with_surrogates_is_judged_again_when_a_source_appears(digits, train, monkeypatch):
    """Two of its views are attacked here; tests of the schedule say which attack meets which."""

    def two(self, every=ReverseAttention.surrogates):
        return {name: view for name, view in every(self).items() if name in ("head 1", "gate 0")}

    monkeypatch.setattr(ReverseAttention, "surrogates", two)
    for name, value in (("EPS_MULTIPLES", (0,)), ("STEPS", (0,)), ("LAST", ("fgsm",))):
        monkeypatch.setattr(f"robustlib.evaluation.runs.{name}", value)
    run = train("ancra")
    alone = evaluate_run(run, digits, n=8)
    rows = {row["attack"]: row for row in alone["rows"]}
    assert alone["transfer"] == {}
    assert rows["worst"]["protocol"].endswith("nothing was transferred from pgd_at or trades")
    assert "on what withstood everything before" in rows["autoattack@head 1"]["protocol"]
    assert {row["surrogate"] for row in alone["cascade"]} == {""}
    assert all(row["n"] == 8 for row in rows.values())
    source = train("pgd_at")
    again = evaluate_run(run, digits, n=8)
    assert again["transfer"] == {source.place: source.status()["files"]["model.safetensors"]}
    assert not has_new_sources(run)
    of_version_01, retrained = {"pgd_at": source.place}, {source.place: "0" * 16}
    for stored, new in ((of_version_01, False), (retrained, True)):
        write_json(run.path / "results.json", {**again, "transfer": stored})
        assert has_new_sources(run) == new
    write_json(run.path / "results.json", again)
    rows = {row["attack"]: row for row in again["rows"]}
    assert f"searched on {source.place}" in rows["cw50@transfer from pgd_at"]["protocol"]
    assert again["rows"][-1]["accuracy"] <= alone["rows"][-1]["accuracy"]
    stamp = (run.path / "records.parquet").stat().st_mtime_ns
    assert (evaluate_run(run, digits, n=8), (run.path / "records.parquet").stat().st_mtime_ns) == (again, stamp)
    assert "transfer" not in evaluate_run(source, digits, n=8)


def test_a_reader_passes_few_functions_from_evaluate_run_to_a_forward_pass_under_pgd(digits, train, monkeypatch):
    run, paths, plain, package = train(), [], Classifier.forward, str(Path(robustlib.__file__).parent)

    def forward(self, x):
        frames = [frame for frame in traceback.extract_stack()[:-1] if frame.filename.startswith(package)]
        names = [f"{Path(frame.filename).parent.name}.{frame.name}" for frame in frames]
        paths.append(names[names.index("evaluation.evaluate_run") + 1 :] if x.requires_grad else [])
        return plain(self, x)

    monkeypatch.setattr(Classifier, "forward", forward)
    attacks = {"pgd": PGD(digits.threat, steps=1)}
    monkeypatch.setattr("robustlib.evaluation.protocols.standard_attacks", lambda *_: attacks)
    for name, value in (("EPS_MULTIPLES", (0,)), ("STEPS", (0,)), ("LAST", ("pgd",))):
        monkeypatch.setattr(f"robustlib.evaluation.runs.{name}", value)
    evaluate_run(run, digits, n=20, device="cpu")
    longest = max(paths, key=len)
    assert 0 < len(longest) <= 12, " > ".join(longest)
    assert len([name for name in longest if not name.startswith("attacks.")]) <= 8, "two of them share it among devices"


@pytest.mark.parametrize(("stochastic", "count"), [(False, 20), (True, 80)])
def test_precisions_are_compared_on_batches_as_a_search_has_them(digits, monkeypatch, stochastic, count):
    model, asked = Linear(10, (1, 8, 8)), []
    model.stochastic = stochastic
    measured = "robustlib.evaluation.measurements.fastest_precision"
    monkeypatch.setattr(measured, lambda model, x: asked.append(len(x)) or "32-true")
    images, where = digits.test.sample(20), torch.device("cpu")
    assert faster_precision(SimpleNamespace(model=lambda: model), images, where) == "32-true"
    assert asked == [count]


@pytest.mark.usefixtures("hurried")
def test_searches_take_the_faster_precision_and_say_so(digits, train, monkeypatch):
    run, asked = train(), []
    measured = "robustlib.evaluation.measurements.fastest_precision"
    monkeypatch.setattr(measured, lambda model, x: asked.append(tuple(x.shape)) or "bf16-mixed")
    results = evaluate_run(run, digits, n=12)
    assert (results["precision"], asked) == ("bf16-mixed", [(12, 1, 8, 8)])
    assert all("precision='bf16-mixed'" in row["protocol"] for row in results["rows"] if "PGD" in row["protocol"])
    assert evaluate_run(run, digits, n=12) == results
    assert (audit_run(run, digits, n=6)["precision"], len(asked)) == ("bf16-mixed", 1), "it follows the evaluation"
    assert audit_run(run, digits, n=6, precision="32-true")["precision"] == "32-true"
    exact = evaluate_run(run, digits, n=12, precision="32-true")
    assert (exact["precision"], run.results(), run.audit()) == ("32-true", exact, {})
    with pytest.raises(InputError, match="Unknown precision 'bf16'"):
        evaluate_run(run, digits, n=12, precision="bf16")
    old = {name: value for name, value in exact.items() if name != "precision"}
    write_json(run.path / "results.json", old)
    assert evaluate_run(run, digits, n=12) == old, "version 0.1 searched in float32 and did not say so"
