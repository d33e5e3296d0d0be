"""README, CONTRIBUTING and the other words say what is true: their commands parse, their snippets run, their tables are current."""

import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import readme_tables
import yaml
from PIL import Image
from typer.main import get_command

from robustlib.data import DATASETS
from robustlib.methods import METHODS, preset_names
from robustlib.runs import find_runs
from robustlib.workbook.cli import app, main
from robustlib.workbook.task import inspect
from tests import ROOT

README, CONTRIBUTING, DOCS = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs"
START, ADD, OWN = DOCS / "index.md", DOCS / "add-your-own.md", DOCS / "bring-your-own-model.md"
SITE = sorted([*DOCS.glob("*.md"), *DOCS.glob("methods/*.md")])
PAGES = [README, CONTRIBUTING, *SITE, ROOT / "CHANGELOG.md", *sorted((ROOT / "reports" / "reference").rglob("*.md"))]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


LINES = "".join(block for page in (README, CONTRIBUTING, *SITE) for block in blocks(page, "bash")).splitlines()
COMMANDS = [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in LINES) if words]
GROUP: Any = get_command(app)
OURS = [words[1:] for words in COMMANDS if words[0] == "robustlib"]
ABSENT = {"--data-root", "--engine"}  # data at ~/data, and clusters
DRY = [words for words in OURS if words[0] in ("run", "study") and not ABSENT & {*words}]


@pytest.mark.parametrize(
    "code", blocks(ADD, "python") + blocks(README, "python"), ids=lambda code: code.splitlines()[0]
)
def test_snippet_runs_and_is_short(code, tmp_path, monkeypatch):
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    Path("snippet.py").write_text(code)
    with patch.dict(METHODS), patch.dict(DATASETS):
        runpy.run_path("snippet.py", run_name="__main__")


def test_the_tutorial_on_ones_own_model_runs_in_its_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for kind, text in re.findall(r"^```(python|bash)\n(.*?)^```", OWN.read_text(), re.DOTALL | re.MULTILINE):
        if kind == "python":
            file = Path(text.splitlines()[0].removeprefix("# "))
            file.write_text(text)
            runpy.run_path(str(file), run_name="__main__")
        elif "--dry-run" in text:  # the others attack all images, and train
            with pytest.raises(SystemExit) as end:
                main([*shlex.split(text)[1:]])
            said = capsys.readouterr()
            assert end.value.code in (0, None), said.err
            assert "test images are right without attack" in " ".join(said.out.split())
    del sys.modules["my_models"]
    assert [run.name for run in find_runs(Path("runs"))] == ["an object · sequential"], "dry runs leave nothing"


def test_the_tutorial_quotes_the_sanity_page():
    quoted = re.findall(r'"([^"]+)"', "".join(line for line in OWN.read_text().splitlines() if line.startswith("| ")))
    code = (ROOT / "robustlib" / "audit" / "sanity.py").read_text()
    assert len(quoted) > 12
    assert not [words for words in quoted if words not in code]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_options_exist_and_their_values_have_the_right_types(words):
    name, *rest = words
    GROUP.commands[name].make_context(name, rest)


@pytest.mark.parametrize("words", DRY, ids=" ".join)
def test_dry_run_accepts_methods_hyperparameters_seeds_and_data(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in blocks(START, "yaml"):
        Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
    Path("my_defence.py").write_text(next(code for code in blocks(ADD, "python") if "MixedAT" in code))
    for k in range(20):
        file = Path("photos", "ant" if k % 2 else "bee", f"{k}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (k, k, k)).save(file)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # remembers what is trusted
    with pytest.raises(SystemExit) as end:
        main([*words, "--dry-run"])
    assert end.value.code in (0, None), capsys.readouterr().err


def test_commands_that_messages_name_exist():
    texts = [file.read_text() for file in (ROOT / "robustlib").rglob("*.py")]
    named = {words for text in texts for words in re.findall(r"`robustlib (\w[^`]*)`", text)}
    assert len(named) > 5
    for name, *rest in map(str.split, named):
        options = {option for parameter in GROUP.commands[name].params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= options, name
    assert not [text for text in texts if "the README" in text], "which an installed package lacks"


def test_every_command_and_how_to_add_each_kind_are_shown():
    assert {words[0] for words in OURS} == set(GROUP.commands)
    assert len(blocks(ADD, "python")) == 4
    assert blocks(START, "python") == blocks(README, "python")


def test_readme_is_short_and_has_the_two_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 250
    assert len(text.encode()) <= 12_000
    assert "make report   #" in blocks(README, "bash")[0]
    assert "make test     #" in blocks(README, "bash")[0]


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "papermill"], ids=" ".join)
def test_papermill_parameters_exist(words):
    given = [(word, words[k + 1]) for k, word in enumerate(words) if word in ("-p", "-y")]
    names = {name for option, text in given for name in ([text] if option == "-p" else yaml.safe_load(text))}
    assert names
    assert names <= set(inspect(ROOT / words[1]))


def test_make_targets_and_scripts_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "".join(page.read_text() for page in (README, CONTRIBUTING, *SITE))
    asked = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE))
    assert {"report", "test", "lab", "site"} <= asked <= targets
    scripts = {script for page in PAGES for script in re.findall(r"benchmarks/\w+\.py", page.read_text())}
    assert not [script for script in scripts if not (ROOT / script).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if target.startswith("repo:"):
            assert (ROOT / target.removeprefix("repo:")).exists(), target
        elif not target.startswith(
            ("http://", "https://", "api/", "../api/")
        ):  # the API's pages are made by `make site`
            assert (page.parent / target).exists(), target


def test_readme_is_regenerated():
    """`python benchmarks/readme_tables.py` would change nothing."""
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
    assert not [(place.name, hit) for place in places for hit in ranged.findall(place.read_text())]
    assert not [*ROOT.glob("*requirements*.txt"), *ROOT.glob("setup.*"), *ROOT.glob("*requirements*.in")]


def test_citation_licence_and_changelog():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "version", "license", "references"} <= set(cited)
    assert (cited["license"], cited["version"]) == (PROJECT["license"], PROJECT["version"])
    assert all({"type", "title", "authors", "year", "url"} <= set(reference) for reference in cited["references"])
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_every_method_is_cited_and_every_preset_is_real():
    bibliography = (DOCS / "references.bib").read_text()
    for method in METHODS.values():
        title = method.paper.split(", ")[1].lower()
        assert title in bibliography.replace("{", "").replace("}", "").lower(), method.paper
    text = "".join(page.read_text() for page in (README, *SITE))
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(preset_names())
    cited = {key for page in SITE for key in re.findall(r"{cite(?::t)?}`(\w+)`", page.read_text())}
    assert cited <= set(re.findall(r"^@\w+{(\w+),", bibliography, re.MULTILINE))
