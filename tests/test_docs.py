"""README, CONTRIBUTING and the other words say what is true: their commands parse, their snippets run, their tables are current."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from tests import ROOT

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted((ROOT / "reports" / "reference").rglob("*.md"))]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
sys.path.append(str(ROOT / "benchmarks"))  # its scripts import each other by name


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of each shell line of a page."""
    lines = "".join(blocks(page, "bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


COMMANDS = [words for page in (README, CONTRIBUTING) for words in commands(page)]
OURS = [words[1:] for words in COMMANDS if words[0] == "robustlib"]


def snippets() -> list[Any]:
    """The Python of both pages, named by the heading above it."""
    found = []
    for page in (CONTRIBUTING, README):
        for section in re.split(r"^##+ ", page.read_text(), flags=re.MULTILINE)[1:]:
            for code in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
                found.append(pytest.param(code, id=section.splitlines()[0]))
    return found


@pytest.mark.parametrize("code", snippets())
def test_snippet_runs_and_is_short(code, tmp_path):
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_contributing_shows_how_to_add_each_kind():
    assert len(blocks(CONTRIBUTING, "python")) == 4


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_command_line_parses(words):
    """The options exist and their values have the right types; what they do is tested elsewhere."""
    from typer.main import get_command

    from robustlib.workbook.cli import app

    group: Any = get_command(app)
    name, *rest = words
    assert name in group.commands
    group.commands[name].make_context(name, list(rest))


def can_run_dry(words: list[str]) -> bool:
    return words[0] in ("run", "study") and "--data-root" not in words  # there are no data at ~/data here


@pytest.mark.parametrize("words", [words for words in OURS if can_run_dry(words)], ids=" ".join)
def test_command_line_would_run(words, tmp_path, monkeypatch, capsys):
    """Dry runs check methods, hyper-parameters, seeds and data."""
    from robustlib.workbook.cli import main

    monkeypatch.chdir(tmp_path)
    for text in blocks(README, "yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        Path(name).write_text(text)
    with pytest.raises(SystemExit) as end:
        main([*words, "--dry-run"])
    assert end.value.code in (0, None), capsys.readouterr().err


def test_every_command_of_the_cli_is_shown():
    from typer.main import get_command

    from robustlib.workbook.cli import app

    group: Any = get_command(app)
    assert {words[0] for words in OURS} == set(group.commands)


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "papermill"], ids=" ".join)
def test_papermill_parameters_exist(words):
    from robustlib.workbook.task import inspect

    names = [words[k + 1] for k, word in enumerate(words) if word == "-p"]
    names += [name for k, word in enumerate(words) if word == "-y" for name in yaml.safe_load(words[k + 1])]
    assert names
    assert set(names) <= set(inspect(ROOT / words[1]))


def test_make_targets_and_scripts_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {
        word for page in (README, CONTRIBUTING) for word in re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.M)
    }
    assert asked >= {"report", "test", "lab"}
    assert asked <= targets
    for page in PAGES:
        for script in re.findall(r"benchmarks/\w+\.py", page.read_text()):
            assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_readme_is_regenerated():
    """`python benchmarks/readme_tables.py` would change nothing."""
    import readme_tables

    current = readme_tables.regenerate(README.read_text(), readme_tables.parts()) == README.read_text()
    assert current, "README.md is out of date: run `python benchmarks/readme_tables.py`"


def test_conda_gets_what_pip_gets():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, installed = environment["dependencies"]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    (line,) = installed["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"workbook", "test", "reference"} <= set(extras)  # ray is for clusters


def test_ranges_stand_in_pyproject_only():
    everything = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = "|".join(re.escape(re.split(r"[<>=~!\[ ;]", dependency)[0]) for dependency in everything)
    ranged = re.compile(rf"(?<![\w-])(?:{names})(?:\[[\w,]+\])?\s*(?:[<>=~!]=|[<>])\s*\d", re.IGNORECASE)
    places = [ROOT / "environment.yml", ROOT / "Makefile", README, CONTRIBUTING, *(ROOT / ".ci").iterdir()]
    found = [(place.name, hit) for place in places for hit in ranged.findall(place.read_text())]
    assert not found
    assert not [*ROOT.glob("*requirements*.txt"), *ROOT.glob("setup.*"), *ROOT.glob("*requirements*.in")]


def test_citation_file():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "version", "license", "references"} <= set(cited)
    assert cited["license"] == PROJECT["license"]
    assert cited["version"] == PROJECT["version"]
    for reference in cited["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)


def test_licence_and_changelog():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"{PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_cites_every_method_and_every_preset_is_real():
    from robustlib.methods import METHODS, preset_names

    text = README.read_text()
    for method in METHODS.values():
        surname = method.paper.split()[0]
        assert surname in text or method.name == "standard", method.paper
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(preset_names())


def made_up_run(root: Path, method: str, seed: int, worst: int, **changes: Any) -> None:
    """A finished, evaluated run as `fit` and `evaluate_run` leave it, without the training."""
    from robustlib.data import load_dataset
    from robustlib.evaluation import accuracy
    from robustlib.methods import make_method
    from robustlib.runs import Run, versions, write_atomic, write_json
    from robustlib.training.fit import run_params

    made = make_method(method, "digits", **changes)
    params = run_params(made, load_dataset("digits"), "small_cnn", seed, "32-true")
    run = Run.of(params, root)
    right = {"clean": 490, "fgsm": worst + 40, "pgd20": worst + 10, "pgd50x10": worst, "cw50": worst}
    right |= {"autoattack": worst, "worst": worst}
    rows = [
        {"attack": name, "eps": 0.2, **accuracy(k, 500), "invalid": 0, "protocol": "PGD()"} for name, k in right.items()
    ]
    curve = [{"eps": eps, **accuracy(k, 500)} for eps, k in ((0, 490), (0.2, worst), (0.4, worst // 9))]
    asked = {"n": 500, "split": "test", "checkpoint": "best", "threat": "Linf 0.2", "seed": 0}
    asked["numerics"] = versions("attacks/pgd")
    facts = {
        "git": "0123",
        "numerics": versions(*made.numerics),
        "packages": {"torch": "2"},
        "device_name": "a CPU",
        "threads": 1,
        "wall_seconds": 60.0,
    }
    write_json(run.path / "params.json", params)
    write_json(run.path / "status.json", {"state": "done"})
    write_json(run.path / "provenance.json", facts)
    write_json(run.path / "results.json", {**asked, "rows": rows, "last": {"rows": rows}, "curve": curve})
    if method == "trades":
        protocol = {"verdict": "amber" if seed else "pass", "text": "The paper's protocol overstates by 4.2 points."}
        badges = {"headline": {"verdict": "pass", "text": "14 checks found nothing."}, "protocol": protocol}
        write_json(run.path / "audit.json", {"checks": [], "badges": badges})
    write_atomic(run.path / "metrics.jsonl", '{"epoch_total": 40, "warnings": []}\n')
    write_atomic(run.path / "model.safetensors", b"weights")


@pytest.fixture
def exported(tmp_path) -> Path:
    """Made-up runs of two methods, three seeds of one, exported as reference results; and runs that must not be."""
    from export_reference import export

    for seed in range(3):
        made_up_run(tmp_path / "runs", "trades", seed, 350 + seed)
    made_up_run(tmp_path / "runs", "standard", 0, 10)
    made_up_run(tmp_path / "runs", "trades", 0, 450, beta=1.0)
    made_up_run(tmp_path / "runs", "pgd_at", 0, 450)
    stale = next((tmp_path / "runs" / "digits" / "pgd_at").iterdir()) / "provenance.json"
    stale.write_text(stale.read_text().replace('"methods/pgd_at": 1', '"methods/pgd_at": 0'))
    export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits")
    export(tmp_path / "runs", "digits", tmp_path / "reference" / "digits")  # replaces itself
    return tmp_path / "reference"


def test_export_takes_the_right_runs_and_no_weights(exported):
    from robustlib.runs import Run
    from robustlib.runs.files import read_archive

    board = pd.read_csv(exported / "digits" / "leaderboard.csv")
    assert list(zip(board.method, board.seed, strict=True)) == [("standard", 0), *(("trades", k) for k in range(3))]
    assert all(Run(exported / "digits" / path).results() for path in board.path)
    archives = sorted((exported / "digits").glob("*.zip"))
    assert [archive.stem for archive in archives] == ["standard", "trades"]
    kept = [name.partition("/")[2] for archive in archives for name in read_archive(archive)]
    assert "model.safetensors" not in kept
    assert kept.count("params.json") == 4
    assert kept.count("audit.json") == 3
    words = (exported / "digits" / "README.md").read_text()
    assert "robustlib run standard --preset digits --seeds 0 --examples 500\nrobustlib run trades" in words
    assert "robustlib run trades --preset digits --seeds 0,1,2 --examples 500\n" in words
    assert "70.0 % (65.8–73.9)" in words
    assert "[trades](trades.zip)" in words
    assert "| ✓ pass | ▲ amber |" in words
    assert "- **trades, protocol**: ▲ amber, seed 1: The paper" in words
    assert "1 of 4 runs are not audited" in words


def test_every_adversarial_method_has_its_step_counted():
    from training_speed import COUNTS, LOOPS

    from robustlib.methods import METHODS, AdversarialMethod

    adversarial = {name for name, kind in METHODS.items() if issubclass(kind, AdversarialMethod)}
    assert adversarial - {"atop"} <= set(
        COUNTS
    )  # the passes of its purifier are no classifier's: purifier_speed.py times it
    assert set(LOOPS) <= set(COUNTS)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_every_stage_of_a_smoke_run_lasts_an_epoch(dataset):
    from cifar_smoke import PRESETS, lengths

    from robustlib.data import load_dataset
    from robustlib.methods import METHODS, make_method
    from robustlib.models import build_model

    digits = load_dataset("digits")
    for name in METHODS:
        preset = PRESETS[dataset]
        method, usual = (make_method(name, preset, **short) for short in (lengths(name, preset), {}))
        kinds = [
            [stage.name for stage in made.stages(digits, build_model("small_cnn", digits, **made.model_options()))]
            for made in (method, usual)
        ]
        assert kinds[0] == kinds[1], name
        stages = method.stages(digits, build_model("small_cnn", digits, **method.model_options()))
        assert {stage.epochs for stage in stages} == {1}, name


def test_the_report_speed_benchmark_can_plan_its_runs(tmp_path):
    from report_speed import TINY, lengths

    from robustlib.workbook.experiments import Options, plan, preset_methods

    variants = [(name, lengths(name, "digits") | TINY) for name in preset_methods("digits")]
    jobs = plan(variants, [0], Options(runs=tmp_path / "runs", reports=tmp_path / "reports"))
    assert [job.name.split(" ")[0] for job in jobs] == preset_methods("digits")


FORWARDS = {"trades": 2, "afkd": 1, "arrest": 2, "afd": 1}  # passes without a backward one, which count half


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "n_fgsm", "vaft", "afkd", "arrest", "afd", "ancra"])
def test_a_step_goes_backwards_as_often_as_it_is_counted(name, monkeypatch):
    import torch
    from training_speed import COUNTS
    from training_steps import our_step

    backward = []

    class Tap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, gradient):
            backward.append(1)
            return gradient

    conv2d = torch.nn.functional.conv2d
    first = (64, 3)  # shape of the first layer's weight, also of its copies
    tapped = lambda z, w, *a, **k: Tap.apply(conv2d(z, w, *a, **k)) if w.shape[:2] == first else conv2d(z, w, *a, **k)  # noqa: E731
    step = our_step(name, "fp32", 2, torch.device("cpu"))
    monkeypatch.setattr("torch.nn.functional.conv2d", tapped)
    step()
    assert len(backward) + 0.5 * FORWARDS.get(name, 0) == COUNTS[name][0]


@pytest.mark.parametrize("name", ["trades", "mart", "afd", "ancra"])
def test_the_plain_loops_differentiate_the_losses_of_the_methods(name, monkeypatch):
    import plain_loops
    import torch
    from side_by_side import cifar_model

    from robustlib.losses import mart_loss, trades_loss
    from robustlib.methods import make_method
    from robustlib.methods.ancra import head_logits

    seen: list[float] = []
    found: list[torch.Tensor] = []
    backward, climb = torch.Tensor.backward, plain_loops._climb
    monkeypatch.setattr(plain_loops, "STEPS", 1)
    monkeypatch.setattr(plain_loops, "_climb", lambda *a: found.append(climb(*a)) or found[-1])
    monkeypatch.setattr(torch.Tensor, "backward", lambda z, *a, **k: seen.append(z.item()) or backward(z, *a, **k))
    x, y = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    plain_loops.LOOPS[name](x, y)()
    method = make_method(name)
    model = cifar_model("resnet18", x.device, **method.model_options())
    teacher = cifar_model("resnet18", x.device, **method.model_options())
    model.train()
    if name == "ancra":
        other = torch.stack([torch.nonzero(y != label)[0, 0] for label in y])
        pair = found[0], y[other]
        ours = [method.loss(head_logits(model), SimpleNamespace(x=x, y=y), found[1], pair).total]
    elif name == "afd":
        losses = method.losses(model, SimpleNamespace(x=x, y=y), found[0], teacher.latent(x).detach())
        ours = [losses["confused"].total, losses["model"].total]
    else:
        loss, beta = {"trades": (trades_loss, 6.0), "mart": (mart_loss, 5.0)}[name]
        ours = [loss(model(x), model(found[0]), y, beta)[0]]
    assert seen == pytest.approx([value.item() for value in ours], rel=1e-4)


def test_the_attack_of_the_plain_loops_ends_on_the_ball():
    import torch
    from plain_loops import EPS, _climb

    x = torch.rand(2, 3, 4, 4)
    x_adv = _climb(x, x, lambda z: z.sum())
    assert torch.allclose(x_adv, (x + EPS).clamp(0, 1))


def test_a_claim_about_one_arm_is_exported_against_zero(tmp_path, monkeypatch):
    import export_reference

    from robustlib.workbook.claims import Claim
    from robustlib.workbook.experiments import Study

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
    import readme_tables

    (tmp_path / "digits").mkdir()
    board = pd.read_csv(exported / "digits" / "leaderboard.csv").assign(headline_badge="pass", protocol_badge="n/a")
    board.to_csv(tmp_path / "digits" / "leaderboard.csv", index=False)
    assert "| ✓ pass | – n/a |" in readme_tables.results(tmp_path)


def test_an_attack_that_a_method_did_not_meet_is_a_gap_under_its_name(exported, tmp_path):
    import readme_tables
    from side_by_side import markdown

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
    from export_reference import export

    before = {file.name: file.read_bytes() for file in (exported / "digits").glob("*.zip")}
    made_up_run(tmp_path / "again", "trades", 1, 300)
    export(tmp_path / "again", "digits", exported / "digits")
    after = {file.name: file.read_bytes() for file in (exported / "digits").glob("*.zip")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"trades.zip"}
    worst = pd.read_csv(exported / "digits" / "leaderboard.csv").set_index(["method", "seed"])["worst"]
    assert worst["trades", 1] < worst["trades", 0], "made again"
    assert len(worst) == 4, "what was not made again stays"


def test_export_without_runs_says_what_to_do(tmp_path, capsys, monkeypatch):
    import export_reference

    monkeypatch.setattr(sys, "argv", ["export_reference.py", "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert export_reference.main() == 2
    assert "robustlib run --preset digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_and_picture_of_exported_results(exported):
    import readme_figure
    import readme_tables

    table = readme_tables.results(exported)
    assert "| TRADES | 98.0 ± 0.0 % |" in table
    assert "| 70.2 ± 0.2 % | ✓ pass | ▲ amber | 1.0 | 3 |" in table, "badges stand beside the worst case"
    assert "| – not audited | – not audited |" in table
    assert "2.0 % (1.1–3.6)" in table  # one seed: an interval instead
    figures = readme_figure.panels(readme_figure.reference_runs("digits", exported))
    png = readme_figure.stacked(figures)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 300_000
    (exported / "digits" / "robustness.png").write_bytes(png)
    assert re.match(
        r"!\[[^\]\n]*TRADES[^\]\n]*\]\(reports/reference/digits/robustness.png\)", readme_tables.picture(exported)
    )


def test_speed_is_folded_under_how_many_claims_hold(tmp_path):
    import readme_tables

    assert readme_tables.speed(tmp_path).startswith("No speed measurements")
    (tmp_path / "own_speed.md").write_text("# Own\n\n| a |\n|---|\n\n- holds: b\n- **does not hold**: c\n- holds: d\n")
    folded = readme_tables.speed(tmp_path)
    assert folded.startswith("<details><summary><b>Own</b> (2 of 3 claims hold)</summary>\n\n| a |\n")
    assert folded.endswith("- holds: d\n\n</details>")


def test_agreement_shows_the_claims_on_the_whole_cascade(tmp_path):
    import readme_tables

    assert "Not measured yet" in readme_tables.agreement(tmp_path)
    lines = [
        "# A title",
        "`python benchmarks/x.py` on a CPU",
        "- holds: linf, ensemble: equal",
        "- holds: linf, square: equal",
    ]
    (tmp_path / "autoattack_agreement.md").write_text("\n".join(lines))
    told = readme_tables.agreement(tmp_path)
    assert told.startswith("`python benchmarks/x.py` on a CPU; [")
    assert told.endswith("\n\n- holds: linf, ensemble: equal")


def duel(seed: int, ours: list[int], theirs: list[int]) -> Any:
    """A duel on a made-up model, from who withstood what."""
    import autoattack_agreement as agreement
    import torch

    sides = (torch.tensor(side, dtype=torch.bool) for side in ([1] * len(ours), ours, theirs))
    return agreement.Duel("linf", "trades", seed, "ensemble", *sides, (1.0, 2.0))


def test_agreement_counts_both_sides():
    import autoattack_agreement as agreement

    equal, weaker = duel(0, [1] * 100, [1] * 100), duel(1, [1] * 100, [0] * 2 + [1] * 98)
    assert weaker.difference == pytest.approx(2.0)
    assert all(agreement.claims([equal]).values())
    assert not any(agreement.claims([equal, weaker]).values()), "weaker by 2 points on one model, by 1 in the mean"
    table = agreement.over_models([equal, weaker])
    assert "| ensemble | 100.00 | 99.00 | +1.00 | +0.0 | +2.0 | 0 | 2 |" in table
    assert "100.0 / 98.0" in agreement.each_model([equal, weaker])


def test_missing_markers_are_an_error():
    import readme_tables

    with pytest.raises(SystemExit, match="results:begin"):
        readme_tables.regenerate("# robustlib", {"results": ""})
