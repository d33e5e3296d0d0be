"""The committed results, the tables and the picture that README shows of them, and the agreement with the authors' AutoAttack."""

import re
import sys
from pathlib import Path
from typing import Any

import autoattack_agreement
import export_reference
import pandas as pd
import pytest
import readme_figure
import readme_tables
import torch
from side_by_side import markdown

from robustlib.data import load_dataset
from robustlib.evaluation import accuracy
from robustlib.methods import make_method
from robustlib.runs import Run, versions, write_atomic, write_json
from robustlib.runs.files import read_archive
from robustlib.training.fit import run_params
from robustlib.workbook.claims import Claim
from robustlib.workbook.experiments import Study


def made_up_run(root: Path, method: str, seed: int, worst: int, **changes: Any) -> None:
    """A finished, evaluated run as `fit` and `evaluate_run` leave it, without the training."""
    made = make_method(method, "digits", **changes)
    params = run_params(made, load_dataset("digits"), "small_cnn", seed, "32-true")
    run = Run.of(params, root)
    right = {"clean": 490, "fgsm": worst + 40, "pgd20": worst + 10, "pgd50x10": worst, "cw50": worst}
    right |= {"autoattack": worst, "worst": worst}
    fixed = {"eps": 0.2, "invalid": 0, "protocol": "PGD()"}
    rows = [{"attack": name, **fixed, **accuracy(k, 500)} for name, k in right.items()]
    curve = [{"eps": eps, **accuracy(k, 500)} for eps, k in ((0, 490), (0.2, worst), (0.4, worst // 9))]
    asked = {"n": 500, "split": "test", "checkpoint": "best", "threat": "Linf 0.2", "seed": 0}
    asked["numerics"] = versions("attacks/pgd")
    facts = {"git": "0123", "numerics": versions(*made.numerics), "packages": {"torch": "2"}}
    contents = {"params": params, "status": {"state": "done"}}
    contents["provenance"] = facts | {"device_name": "a CPU", "threads": 1, "wall_seconds": 60.0}
    contents["results"] = {**asked, "rows": rows, "last": {"rows": rows}, "curve": curve}
    if method == "trades":
        protocol = {"verdict": "amber" if seed else "pass", "text": "The paper's protocol overstates by 4.2 points."}
        badges = {"headline": {"verdict": "pass", "text": "14 checks found nothing."}, "protocol": protocol}
        contents["audit"] = {"checks": [], "badges": badges}
    for name, content in contents.items():
        write_json(run.path / f"{name}.json", content)
    write_atomic(run.path / "metrics.jsonl", '{"epoch_total": 40, "warnings": []}\n')
    write_atomic(run.path / "model.safetensors", b"weights")


@pytest.fixture
def exported(tmp_path) -> Path:
    """Made-up runs of two methods, three seeds of one, exported as reference results; and runs that must not be."""
    for seed in range(3):
        made_up_run(tmp_path / "runs", "trades", seed, 350 + seed)
    made_up_run(tmp_path / "runs", "standard", 0, 10)
    made_up_run(tmp_path / "runs", "trades", 0, 450, beta=1.0)
    made_up_run(tmp_path / "runs", "pgd_at", 0, 450)
    stale = next((tmp_path / "runs" / "digits" / "pgd_at").iterdir()) / "provenance.json"
    stale.write_text(stale.read_text().replace('"methods/pgd_at": 1', '"methods/pgd_at": 0'))
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits")
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits")  # replaces itself
    return tmp_path / "reference"


def test_export_takes_the_right_runs_and_no_weights(exported):
    board = pd.read_csv(exported / "digits" / "leaderboard.csv")
    assert list(zip(board.method, board.seed, strict=True)) == [("standard", 0), *(("trades", k) for k in range(3))]
    assert all(Run(exported / "digits" / path).results() for path in board.path)
    archives = sorted((exported / "digits").glob("*.zip"))
    assert [archive.stem for archive in archives] == ["standard", "trades"]
    kept = [name.partition("/")[2] for archive in archives for name in read_archive(archive)]
    assert "model.safetensors" not in kept
    assert kept.count("params.json") == 4
    assert kept.count("audit.json") == 3
    page = (exported / "digits" / "README.md").read_text()
    for words in (
        "robustlib run standard --preset digits --seeds 0 --examples 500\nrobustlib run trades",
        "robustlib run trades --preset digits --seeds 0,1,2 --examples 500\n",
        "70.0 % (65.8–73.9)",
        "[trades](trades.zip)",
        "| ✓ pass | ▲ amber |",
        "- **trades, protocol**: ▲ amber, seed 1: The paper",
        "1 of 4 runs are not audited",
    ):
        assert words in page


def test_a_claim_about_one_arm_is_exported_against_zero(tmp_path, monkeypatch):
    facts = {"name": "own", "text": "It overstates.", "source": "A", "measure": "overstated/worst", "variant": "trades"}
    study = Study("digits", [("trades", {})], [0, 1], claims=[Claim(**facts)], name="own")
    monkeypatch.setattr(export_reference, "claim_studies", lambda preset: [study])
    for seed in study.seeds:
        made_up_run(tmp_path / "runs", "trades", seed, 350)
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "out")
    exported = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert exported[["than", "seed", "difference"]].to_numpy().tolist() == [["zero", 0, 0.0], ["zero", 1, 0.0]]
    assert "trades − zero" in (tmp_path / "out" / "README.md").read_text()


def test_a_protocol_that_does_not_apply_is_no_missing_audit(exported, tmp_path):
    (tmp_path / "digits").mkdir()
    board = pd.read_csv(exported / "digits" / "leaderboard.csv").assign(headline_badge="pass", protocol_badge="n/a")
    board.to_csv(tmp_path / "digits" / "leaderboard.csv", index=False)
    assert "| ✓ pass | – n/a |" in readme_tables.results(tmp_path)


def test_an_attack_that_a_method_did_not_meet_is_a_gap_under_its_name(exported, tmp_path):
    (tmp_path / "digits").mkdir()
    board = pd.read_csv(exported / "digits" / "leaderboard.csv").assign(pgd_eot=float("nan"))
    random = board["method"] == "trades"
    board.loc[random, ["pgd_eot", "pgd50x10"]] = [0.123, float("nan")]
    board.to_csv(tmp_path / "digits" / "leaderboard.csv", index=False)
    head, _, *rows = [line for line in readme_tables.results(tmp_path).splitlines() if line.startswith("|")]
    table = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    (trades,) = (row for row in table if "| TRADES" in row.values())
    assert (trades["PGD+EOT"], trades["PGD-50×10"]) == ("12.3 ± 0.0 %", "–")
    assert all(row["PGD+EOT"] == "–" for row in table if row is not trades)
    with pytest.raises(ValueError, match="other columns"):
        markdown([{"a": 1, "b": 2}, {"b": 2, "a": 1}])


def test_a_method_that_is_made_again_changes_its_archive_only(exported, tmp_path):
    before = {file.name: file.read_bytes() for file in (exported / "digits").glob("*.zip")}
    made_up_run(tmp_path / "again", "trades", 1, 300)
    export_reference.export(tmp_path / "again", "digits", exported / "digits")
    after = {file.name: file.read_bytes() for file in (exported / "digits").glob("*.zip")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"trades.zip"}
    worst = pd.read_csv(exported / "digits" / "leaderboard.csv").set_index(["method", "seed"])["worst"]
    assert worst["trades", 1] < worst["trades", 0], "made again"
    assert len(worst) == 4, "what was not made again stays"


def test_export_without_runs_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_reference.py", "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert export_reference.main() == 2
    assert "robustlib run --preset digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_and_picture_of_exported_results(exported):
    table = readme_tables.results(exported)
    assert "| TRADES | 98.0 ± 0.0 % |" in table
    assert "| 70.2 ± 0.2 % | ✓ pass | ▲ amber | 1.0 | 3 |" in table, "badges stand beside the worst case"
    assert "| – not audited | – not audited |" in table
    assert "2.0 % (1.1–3.6)" in table  # one seed: an interval instead
    png = readme_figure.stacked(readme_figure.panels(readme_figure.reference_runs("digits", exported)))
    assert png.startswith(b"\x89PNG")
    assert len(png) < 300_000
    (exported / "digits" / "robustness.png").write_bytes(png)
    link = r"!\[[^\]\n]*TRADES[^\]\n]*\]\(reports/reference/digits/robustness.png\)"
    assert re.match(link, readme_tables.picture(exported))


def test_speed_and_agreement_are_told_by_their_claims(tmp_path):
    assert readme_tables.speed(tmp_path).startswith("No speed measurements")
    (tmp_path / "own_speed.md").write_text("# Own\n\n| a |\n|---|\n\n- holds: b\n- **does not hold**: c\n- holds: d\n")
    folded = readme_tables.speed(tmp_path)
    assert folded.startswith("<details><summary><b>Own</b> (2 of 3 claims hold)</summary>\n\n| a |\n")
    assert folded.endswith("- holds: d\n\n</details>")
    assert "Not measured yet" in readme_tables.agreement(tmp_path)
    claims = "- holds: linf, ensemble: equal\n- holds: linf, square: equal"
    (tmp_path / "autoattack_agreement.md").write_text(f"# A title\n`python benchmarks/x.py` on a CPU\n{claims}")
    shown = readme_tables.agreement(tmp_path)
    assert shown.startswith("`python benchmarks/x.py` on a CPU; [")
    assert shown.endswith("\n\n- holds: linf, ensemble: equal")


def duel(seed: int, ours: list[int], theirs: list[int]) -> Any:
    """A duel on a made-up model, from who withstood what."""
    sides = (torch.tensor(side, dtype=torch.bool) for side in ([1] * len(ours), ours, theirs))
    return autoattack_agreement.Duel("linf", "trades", seed, "ensemble", *sides, (1.0, 2.0))


def test_agreement_counts_both_sides():
    equal, weaker = duel(0, [1] * 100, [1] * 100), duel(1, [1] * 100, [0] * 2 + [1] * 98)
    assert weaker.difference == pytest.approx(2.0)
    assert all(autoattack_agreement.claims([equal]).values())
    assert not any(autoattack_agreement.claims([equal, weaker]).values()), "weaker by 2 points, by 1 in the mean"
    table = autoattack_agreement.over_models([equal, weaker])
    assert "| ensemble | 100.00 | 99.00 | +1.00 | +0.0 | +2.0 | 0 | 2 |" in table
    assert "100.0 / 98.0" in autoattack_agreement.each_model([equal, weaker])


def test_missing_markers_are_an_error():
    with pytest.raises(SystemExit, match="results:begin"):
        readme_tables.regenerate("# robustlib", {"results": ""})
