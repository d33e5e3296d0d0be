"""Attacks from elsewhere, from a command to what a notebook is given."""

from pathlib import Path

import pytest

from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.runs import Run
from robustlib.workbook import cli
from robustlib.workbook.experiments import Benchmark

NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
MINE = """
def mine(model, x, y, *, generator=None, rng=None):
    return x
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the code of a network and of an attack."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustlib.runs.user_code._TRUSTED", set())
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_a_notebook_is_given_them_with_absolute_paths(place):
    digits = load_dataset("digits")
    asked = Benchmark("nets.py:build", dataset="digits", attacks=["torchattacks:FGSM", "mine.py:mine"])
    task = asked.job(asked.run(digits), Path("reports")).task
    assert task.parameters["options"] == {"attacks": ["torchattacks:FGSM", f"{place}/mine.py:mine"]}
    again = {name: task.parameters[name] for name in ("model", "dataset", "options")}
    assert Benchmark.asked(again.pop("options"), **again).attacks == ("torchattacks:FGSM", f"{place}/mine.py:mine")
    plain = Benchmark("nets.py:build", dataset="digits")
    assert plain.job(plain.run(digits), Path("reports")).task.parameters["options"] == {}
    wrong = Benchmark("nets.py:build", dataset="digits", attacks=["torchattacks:PGD(eps=0.3)"])
    with pytest.raises(InputError, match=r"searches farther than Linf 0\.2"):
        wrong.run(digits)
    with pytest.raises(InputError, match="Benchmark attacks='x': give a list"):
        Benchmark("nets.py:build", dataset="digits", attacks="x")


@pytest.mark.usefixtures("place")
def test_commands_hand_them_on(monkeypatch):
    asked = []

    def evaluate(run, dataset, **settings):
        asked.append(settings["extra"])
        raise InputError("enough")

    monkeypatch.setattr("robustlib.evaluation.evaluate_run", evaluate)
    run = Run.from_model("nets.py:build", load_dataset("digits"))
    for words in ([], ["--attack", "torchattacks:FGSM", "--attack", "mine.py:mine"]):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", str(run.path), *words])
    assert asked == [(), ["torchattacks:FGSM", "mine.py:mine"]]
    planned = []
    monkeypatch.setattr(cli, "_execute", lambda jobs, *_: planned.extend(jobs))
    with pytest.raises(SystemExit) as stop:
        cli.main(["benchmark", "nets.py:build", "--dataset", "digits", "--attack", "torchattacks:FGSM"])
    assert not stop.value.code
    assert [job.task.parameters["options"] for job in planned] == [{"attacks": ["torchattacks:FGSM"], "threads": 1}]
