"""robustlib as `pip install` leaves it: the built wheel alone, in a folder that is no clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustlib.runs import find_runs
from robustlib.workbook.experiments import lay_out, packaged
from tests import ROOT


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
    tiny = ("--set", "arch=mlp", "--set", "epochs=1", "--set", "train_examples=64", "--examples", "8")
    assert "Report: reports/index.html" in call("run", "standard", *tiny)
    (run,) = find_runs(tmp_path / "runs")
    assert run.provenance()["git"] == "", "it is no clone"
    assert str(installed) in (tmp_path / "reports" / "digits" / "compare.status.json").read_text(), (
        "notebooks of the wheel"
    )
    assert "standard" in (tmp_path / "reports" / "index.html").read_text().lower()


def test_notebooks_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    assert packaged() is None, "this is a clone"
    (tmp_path / "afd.ipynb").write_text("mine")
    assert lay_out(tmp_path) == tmp_path
    assert (tmp_path / "afd.ipynb").read_text() == "mine"
    assert (tmp_path / "ancra.ipynb").read_bytes() == (ROOT / "notebooks" / "ancra.ipynb").read_bytes()
