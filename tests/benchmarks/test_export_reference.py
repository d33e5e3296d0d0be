"""The committed results, the tables and the picture that README shows of them, and the agreement with the authors' AutoAttack."""

import re
import shutil
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
from robustlib.evaluation import accuracy, evaluate_run
from robustlib.figures import to_png
from robustlib.methods import make_method
from robustlib.runs import Run, find_runs, read_bytes, versions, write_atomic, write_json
from robustlib.runs.files import read_archive
from robustlib.training.fit import run_params
from robustlib.workbook.claims import Claim
from robustlib.workbook.experiments import Study
from tests.training_fixtures import tiny, train


def write_run(
    root: Path, method: str, seed: int, worst: int, precision: Any = "32-true", protocol: str = "PGD()", **changes: Any
) -> None:
    """A finished, evaluated run as `fit` and `evaluate_run` leave it, without the training."""
    made = make_method(method, "digits", **changes)
    params = run_params(made, load_dataset("digits"), "small_cnn", seed, precision)
    run = Run.of(params, root)
    correct = {"clean": 490, "fgsm": worst + 40, "pgd20": worst + (21 if seed else 10)}
    correct |= dict.fromkeys(("pgd50x10", "cw50", "autoattack", "worst"), worst)
    fixed = {"eps": 0.2, "invalid": 0, "protocol": protocol}
    rows = [{"attack": name, **fixed, **accuracy(k, 500)} for name, k in correct.items()]
    curve = [{"eps": eps, **accuracy(k, 500)} for eps, k in ((0, 490), (0.2, worst), (0.4, worst // 9))]
    results = {"n": 500, "split": "test", "checkpoint": "best", "threat": "Linf 0.2", "seed": 0, "rows": rows}
    results |= {"numerics": versions("attacks/pgd"), "last": {"rows": rows}, "curve": curve}
    provenance = {"git": "0123", "numerics": versions(*made.numerics), "packages": {"torch": "2"}}
    provenance |= {"device_name": "a CPU", "threads": 1, "wall_seconds": 60.0}
    contents = {"params": params, "status": {"state": "done"}, "provenance": provenance, "results": results}
    if method == "trades":
        told = {"verdict": "red", "text": "Another protocol, which the method once named, overstates by 13 points."}
        badges = {"headline": {"verdict": "pass", "text": "14 checks found nothing."}, "protocol": told}
        contents["audit"] = {"checks": [], "badges": badges}
    for name, content in contents.items():
        write_json(run.path / f"{name}.json", content)
    write_atomic(run.path / "metrics.jsonl", '{"epoch_total": 40, "warnings": []}\n')
    write_atomic(run.path / "model.safetensors", b"weights")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Runs of two methods, three seeds of one, exported as reference results; and runs that must not be."""
    root = tmp_path_factory.mktemp("exported")
    runs, digits = root / "runs", root / "reference" / "digits"
    for seed in range(3):
        write_run(runs, "trades", seed, 350 + seed)
    write_run(runs, "standard", 0, 10)
    write_run(runs, "trades", 0, 450, beta=1.0)
    write_run(runs, "pgd_at", 0, 450)
    stale = next((runs / "digits" / "pgd_at").iterdir()) / "provenance.json"
    stale.write_text(stale.read_text().replace('"methods/pgd_at": 1', '"methods/pgd_at": 0'))
    for _ in range(2):  # the second replaces the first
        export_reference.export(runs, "digits", digits)
    return digits


def board_of(exported: Path) -> pd.DataFrame:
    return pd.read_csv(exported / "leaderboard.csv")


def test_export_takes_the_right_runs_and_no_weights(exported):
    board = board_of(exported)
    assert list(zip(board.method, board.seed, strict=True)) == [("standard", 0), *(("trades", k) for k in range(3))]
    assert all(Run(exported / path).results() for path in board.path)
    archives = sorted(exported.glob("*.zip"))
    assert [archive.stem for archive in archives] == ["standard", "trades"]
    kept = [name.partition("/")[2] for archive in archives for name in read_archive(archive)]
    assert [kept.count(f) for f in ("model.safetensors", "params.json", "audit.json")] == [0, 4, 3]
    page = (exported / "README.md").read_text()
    command = "robustlib run {} --preset digits --seeds {} --examples 500\n"
    assert command.format("standard", "0") + command.format("trades", "0,1,2") in page
    assert "70.0 % (65.8–73.9)" in page
    assert "[trades](trades.zip)" in page
    assert "| ✓ pass | ▲ amber |" in page
    assert "- **trades, protocol**: ▲ amber, seed 1: The paper's protocol (PGD-20) overstates by 4.2 points." in page
    assert "1 of 4 runs are not audited" in page
    assert "no training has seen" not in page


def test_the_page_tells_precisions_and_attacks_that_only_some_runs_share(tmp_path, monkeypatch):
    usual = {**export_reference.load_preset("digits"), "precision": "bf16-mixed"}
    monkeypatch.setattr(export_reference, "load_preset", lambda preset: usual)
    write_run(tmp_path / "runs", "standard", 0, 10)
    for seed, precision, protocol in ((0, "32-true", "PGD()"), (1, "bf16-mixed", "PGD(precision='bf16')")):
        write_run(tmp_path / "runs", "trades", seed, 350, precision=precision, protocol=protocol)
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits")
    page = (tmp_path / "reference" / "digits" / "README.md").read_text()
    assert "run trades --preset digits --seeds 0 --precision 32-true --examples 500\n" in page
    assert "run trades --preset digits --seeds 1 --examples 500\n" in page
    assert "| PGD-20 | `PGD()` | standard, trades (1 of 2) |\n" in page
    assert "| PGD-20 | `PGD(precision='bf16')` | trades (1 of 2) |\n" in page


def test_the_page_has_a_row_for_each_run_that_met_unseen_attacks(tmp_path):
    for method in ("standard", "trades"):
        write_run(tmp_path / "runs", method, 0, 350)
    (trades,) = find_runs(tmp_path / "runs", method="trades")
    found = {
        "clean": accuracy(98, 100),
        "known": accuracy(70, 100),
        "l2": accuracy(64, 100),
        "stadv": accuracy(41, 100),
    }
    kept = {"n": 100, "strengths": {"l2": 0.6, "flow": 0.2}, "accuracies": found}
    write_json(trades.path / "unseen.json", {"of so many images": kept})
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "(L2 perturbations of 0.6, flows of 0.2 pixels;" in page
    (row,) = [line for line in page.splitlines() if "41.0 %" in line]
    cells = [cell.partition(" (")[0].strip() for cell in row.strip("| ").split(" | ")]
    assert cells == ["trades", "–", "0", "98.0 %", "70.0 %", "64.0 %", "41.0 %", "100"]


def test_of_some_presets_the_first_run_of_each_reported_method_keeps_its_weights(tmp_path, monkeypatch):
    for method, seed, changes in (("trades", 1, {}), ("trades", 2, {}), ("trades", 0, {"beta": 1.0}), ("mart", 0, {})):
        write_run(tmp_path / "runs", method, seed, 350, **changes)
    monkeypatch.setattr(export_reference, "WEIGHTS", ("digits",))
    for _ in range(2):  # the second takes them from the archive
        export_reference.export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits", changed=True)
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    reference = tmp_path / "reference"
    runs = [run for run in find_runs(reference) if read_bytes(run.path / "model.safetensors")]
    assert [(run.params()["method"], run.params()["seed"], run.changed) for run in runs] == [("trades", 1, "")]
    assert "is kept of the first run of TRADES; other weights" in (reference / "digits" / "README.md").read_text()


def test_a_claim_about_one_variant_is_exported_against_zero(tmp_path, monkeypatch):
    facts = {"name": "own", "text": "It overstates.", "source": "A", "measure": "overstated/worst", "variant": "trades"}
    study = Study("digits", [("trades", {})], [0, 1], claims=[Claim(**facts)], name="own")
    monkeypatch.setattr(export_reference, "claim_studies", lambda preset: [study])
    for seed in study.seeds:
        write_run(tmp_path / "runs", "trades", seed, 350)
    export_reference.export(tmp_path / "runs", "digits", tmp_path / "out")
    exported = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert exported[["than", "seed", "difference"]].to_numpy().tolist() == [["zero", 0, 0.0], ["zero", 1, 0.0]]
    assert "trades − zero" in (tmp_path / "out" / "README.md").read_text()


def test_a_gap_in_the_table_says_why(exported, tmp_path):
    """A protocol that does not apply is no missing audit; an attack that a method did not meet is a gap under its name."""
    board = board_of(exported).assign(headline_badge="pass", protocol_badge="n/a", pgd_eot=float("nan"))
    board.loc[board["method"] == "trades", ["pgd_eot", "pgd50x10"]] = [0.123, float("nan")]
    (tmp_path / "digits").mkdir()
    board.to_csv(tmp_path / "digits" / "leaderboard.csv", index=False)
    lines = readme_tables.results(tmp_path).splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    table = {row["method"]: row for row in (dict(zip(head, row, strict=True)) for row in rows)}
    trades = table.pop("TRADES")
    assert (trades["PGD+EOT"], trades["PGD-50×10"]) == ("12.3 ± 0.0 %", "–")
    assert {row["PGD+EOT"] for row in table.values()} == {"–"}
    assert "| ✓ pass | – n/a |" in " | ".join(["", *trades.values(), ""])
    with pytest.raises(ValueError, match="other columns"):
        markdown([{"a": 1, "b": 2}, {"b": 2, "a": 1}])


def test_a_method_that_is_made_again_changes_its_archive_only(exported, tmp_path):
    write_run(tmp_path / "again", "trades", 1, 300)
    copy = shutil.copytree(exported, tmp_path / "copy")
    export_reference.export(tmp_path / "again", "digits", copy)
    before, after = ({file.name: file.read_bytes() for file in some.glob("*.zip")} for some in (exported, copy))
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"trades.zip"}
    worst = board_of(copy).set_index(["method", "seed"])["worst"]
    assert worst["trades", 1] < worst["trades", 0], "made again"
    assert len(worst) == 4, "what was not made again stays"


def test_export_without_runs_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["export_reference.py", "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert export_reference.main() == 2
    assert "robustlib run --preset digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_and_picture_of_exported_results(exported):
    table = readme_tables.results(exported.parent)
    assert "| TRADES | 98.0 ± 0.0 % |" in table
    assert "| 70.2 ± 0.2 % | ✓ pass | ▲ amber | 1.0 | 3 |" in table, "badges stand beside the worst case"
    assert "| – not audited | – not audited |" in table
    assert "2.0 % (1.1–3.6)" in table  # one seed: an interval instead
    png = readme_figure.stacked(readme_figure.panels(readme_figure.reference_runs("digits", exported.parent)))
    assert png.startswith(b"\x89PNG")
    assert len(png) < 300_000
    (exported / "robustness.png").write_bytes(png)
    link = r"!\[[^\]\n]*TRADES[^\]\n]*\]\(reports/reference/digits/robustness.png\)"
    assert re.match(link, readme_tables.picture(exported.parent))


def test_readme_has_some_rows_and_says_what_the_runs_say(exported, monkeypatch):
    head, _, *lines = readme_tables.in_short("digits", exported.parent).splitlines()
    assert head.endswith(": 500 test images; mean ± standard deviation over 1 to 3 seeds.")
    assert lines[0] == "| method | clean | PGD-20 | AutoAttack | worst case | headline | protocol | seeds |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| Standard training", "| TRADES"]
    monkeypatch.setattr(readme_tables, "SAID", {"trades": ("Better.", {"robust-worst": "undecided"})})
    assert readme_tables.methods(exported.parent).endswith("| Better. |\n")
    monkeypatch.setattr(readme_tables, "SAID", {"trades": ("Better.", {"robust-worst": "supported"})})
    with pytest.raises(SystemExit, match=r"trades no longer holds.*'robust-worst': 'undecided'"):
        readme_tables.methods(exported.parent)
    family = readme_tables.family("baselines", ["standard", "trades"], exported.parent)
    assert family.splitlines()[4:] == [
        line.replace("| 3 |", "| 1.0 | 3 |").replace("| 1 |", "| 1.0 | 1 |") for line in lines[2:]
    ]
    assert readme_tables.family("afd", ["standard", "afd"], exported.parent) == readme_tables.NONE_YET


def test_maps_of_features_are_of_archived_weights(tmp_path, monkeypatch, digits):
    run = train(tiny("standard", epochs=1), digits.subset(130), tmp_path / "runs")
    evaluate_run(run, digits, n=10)
    monkeypatch.setattr(export_reference, "WEIGHTS", ("digits",))
    monkeypatch.setattr(export_reference, "_with_weights", lambda runs: runs)  # though it is changed from the preset
    export_reference.export(tmp_path / "runs", "digits", folder := tmp_path / "digits", changed=True)
    shutil.rmtree(tmp_path / "runs")
    figure = readme_figure.feature_maps(find_runs(tmp_path), digits, shown=60)
    assert figure.alt.startswith(
        "Maps of clean and adversarial features of 60 images of 10 classes. Standard training:"
    )
    assert [path.suffix for path in folder.iterdir() if path.is_dir()] == [], "nothing is left beside the archive"
    assert readme_tables.features(tmp_path, "digits") == ""
    (folder / "features.png").write_bytes(readme_figure.described(to_png(figure), figure.alt))
    assert readme_tables.features(tmp_path, "digits").startswith(
        f"![{figure.alt}](reports/reference/digits/features.png)"
    )


def test_speed_and_agreement_are_told_by_their_claims(tmp_path):
    assert readme_tables.speed([tmp_path]).startswith("No speed measurements")
    (tmp_path / "own_speed.md").write_text("# Own\n\n| a |\n|---|\n\n- holds: b\n- **does not hold**: c\n- holds: d\n")
    section = readme_tables.speed([tmp_path])
    assert section.startswith("## Own\n\n2 of 3 claims hold.\n\n| a |\n")
    assert section.endswith("- holds: d")
    assert "Not measured yet" in readme_tables.agreement(tmp_path)
    claims = "- holds: linf, ensemble: equal\n- holds: linf, square: equal"
    (tmp_path / "autoattack_agreement.md").write_text(f"# A title\n`python benchmarks/x.py` on a CPU\n{claims}")
    shown = readme_tables.agreement(tmp_path)
    assert shown.startswith("`python benchmarks/x.py` on a CPU; [")
    assert shown.endswith("\n\n- holds: linf, ensemble: equal")


def test_agreement_counts_both_sides():
    def duel(seed: int, theirs: list[int]) -> autoattack_agreement.Duel:
        sides = (torch.tensor(side, dtype=torch.bool) for side in ([1] * 100, [1] * 100, theirs))  # clean, ours, theirs
        return autoattack_agreement.Duel("linf", "trades", seed, "ensemble", *sides, (1.0, 2.0))

    equal, weaker = duel(0, [1] * 100), duel(1, [0] * 2 + [1] * 98)
    assert weaker.difference == pytest.approx(2.0)
    assert all(autoattack_agreement.claims([equal]).values())
    assert not any(autoattack_agreement.claims([equal, weaker]).values()), "weaker by 2 points, by 1 in the mean"
    table = autoattack_agreement.over_models([equal, weaker])
    assert "| ensemble | 100.00 | 99.00 | +1.00 | +0.0 | +2.0 | 0 | 2 |" in table
    assert "100.0 / 98.0" in autoattack_agreement.each_model([equal, weaker])


def test_missing_markers_are_an_error():
    with pytest.raises(SystemExit, match="results:begin"):
        readme_tables.regenerate("# robustlib", {"results": ""})
