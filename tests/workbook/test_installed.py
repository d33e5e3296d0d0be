"""robustlib as `pip install` leaves it: the built wheel alone, in a folder that is no clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustlib.runs import Run, find_runs, read_json
from robustlib.workbook.experiments import lay_out, packaged
from tests import ROOT
from tests.workbook.test_notebooks import assert_shows, cells, pictures, text


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as site-packages would hold it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_trains_reports_and_lays_out_its_notebooks(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "XDG_STATE_HOME": str(tmp_path / "state")}

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "robustlib.workbook.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Notebooks: edited" in call("notebooks", "edited")
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (tmp_path / "edited").iterdir()} == names
    tiny = [f"--set={change}" for change in ("arch=mlp_512", "epochs=4", "train_examples=512", "attack_steps=2")]
    assert "Report: reports/index.html" in call("run", "trades", "--seeds", "1", *tiny, "--examples", "12")
    (run,) = find_runs(tmp_path / "runs", method="trades", preset="digits")
    assert run.provenance()["git"] == "", "it is no clone"
    pages = tmp_path / "reports" / "digits"
    assert str(installed) in (pages / "compare.status.json").read_text(), "notebooks of the wheel"
    assert "TRADES" in (tmp_path / "reports" / "index.html").read_text()
    (page,) = pages.glob("trades-*.ipynb")
    assert_shows_a_training_and_its_judgement(run, page)


def assert_shows_a_training_and_its_judgement(run: Run, page: Path) -> None:
    """baselines.ipynb, executed in a kernel."""
    assert (run.finished, run.params()["seed"], run.results()["n"]) == (True, 1, 12)
    signs = ["TRADES", "beta", "epoch 4/4", "worst case", "PGD(", "robustlib run trades"]
    assert_shows(text(page), *signs, "apgd-t", "headline: ", "protocol: ", "15. ")
    outputs = [output.get("data", {}) for cell in cells(page) for output in cell.outputs]
    tables = [html for data in outputs if " · epoch " in (html := data.get("text/html", ""))]
    assert [(html.count("<tr>"), html.startswith('<details class="code"><summary>')) for html in tables] == [(5, True)]
    images = pictures(page)
    assert len(images) == 11
    assert run.changed == "arch=mlp_512, epochs=4, train_examples=512, attack_steps=2"
    assert all(len(image["alt"]) > 40 and "\n" in image["csv"] for image in images)
    assert list(read_json(run.path / "representation.json").values())[-1]["n"] == 500


def test_notebooks_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    assert packaged() is None, "this is a clone"
    (tmp_path / "afd.ipynb").write_text("mine")
    assert lay_out(tmp_path) == tmp_path
    assert (tmp_path / "afd.ipynb").read_text() == "mine"
    assert (tmp_path / "ancra.ipynb").read_bytes() == (ROOT / "notebooks" / "ancra.ipynb").read_bytes()
