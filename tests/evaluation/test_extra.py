"""Attacks from elsewhere are further rows of an evaluation: they count in the worst case, and change no other row."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robustlib import figures
from robustlib.attacks import FGSM
from robustlib.errors import InputError
from robustlib.evaluation import evaluate_run, extra_attacks, incomplete, leaderboard, summarise
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.workbook import tables

THEIR_PGD, THEIR_FGSM = "torchattacks:PGD(alpha=0.05, steps=4)", "torchattacks:FGSM"
MINE = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Mine:
    threat: object
    far: float = 1.0

    def __call__(self, model, x, y, *, generator=None, rng=None):
        return x + self.far * self.threat.eps
"""


@pytest.fixture
def run(digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("robustlib.runs.user_code._TRUSTED", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("robustlib.evaluation.runs.EPS_MULTIPLES", (0, 1))
    monkeypatch.setattr("robustlib.evaluation.runs.STEPS", (0, 1))
    weak = lambda threat, *_: {"fgsm": FGSM(threat.scaled(0.25))}  # noqa: E731 - so that others find more, and soon
    monkeypatch.setattr("robustlib.evaluation.protocols.standard_attacks", weak)
    monkeypatch.setattr("robustlib.evaluation.protocols.adaptive_attacks", weak)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = digits.train.images[:500].float().flatten(1) / 255, digits.train.labels[:500]
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return Run.from_model(net, digits, name="linear", threat=Threat("linf", 0.05), root=tmp_path / "runs")


def test_they_stand_after_the_others_and_count_in_the_worst_case(digits, run):
    plain = evaluate_run(run, digits, n=40)
    both = evaluate_run(run, digits, n=40, extra=[THEIR_PGD, THEIR_FGSM, THEIR_PGD])
    assert both["rows"][: len(plain["rows"]) - 1] == plain["rows"][:-1], "no other number moves"
    names = [row["attack"] for row in both["rows"]]
    assert names[-3:] == ["torchattacks PGD", "torchattacks FGSM", "worst"]
    assert [row["protocol"] for row in both["rows"][-3:-1]] == both["extra"]
    assert both["extra"][0].startswith(
        "torchattacks:PGD(alpha=0.05, eps=0.05, steps=4) within Linf 0.05, torchattacks "
    )
    assert both["rows"][-1]["correct"] < plain["rows"][-1]["correct"]
    assert (both["last"], both["rows"][-1]["invalid"]) == ({}, 0)
    assert both["rows"][-3]["passes"] > 0
    records = run.records()
    assert summarise(records)["accuracy"].tolist() == [row["accuracy"] for row in both["rows"]]
    wrong = records[(records["prediction"] != records["label"])]["index"].nunique()
    assert both["rows"][-1]["correct"] == 40 - wrong
    stamp = (run.path / "records.parquet").stat().st_mtime_ns
    for asked in ([], [THEIR_FGSM], [THEIR_PGD, THEIR_FGSM]):
        assert evaluate_run(run, digits, n=40, extra=asked) == both, "what was asked for is stored"
    assert (run.path / "records.parquet").stat().st_mtime_ns == stamp
    assert incomplete([run])["missing"].str.startswith("not audited").all()
    assert list(leaderboard([run])) == list(leaderboard([])), "no column of their own"
    shown = tables.accuracies(both)
    assert list(shown.index[-3:]) == ["torchattacks PGD", "torchattacks FGSM", "worst case"]
    assert "torchattacks FGSM" in figures.accuracy_bars(both["rows"]).alt
    more = evaluate_run(run, digits, n=44, extra=[THEIR_FGSM])
    assert (more["n"], more["extra"]) == (44, both["extra"][1:]), "renewed for another reason, with what was asked for"


def test_to_a_stored_evaluation_only_what_it_lacks_is_added(digits, run, monkeypatch: pytest.MonkeyPatch):
    first, said = evaluate_run(run, digits, n=40, extra=[THEIR_FGSM + "(eps=0.01)"]), []
    never = lambda *_, **__: pytest.fail("it was measured again")  # noqa: E731
    monkeypatch.setattr("robustlib.evaluation.runs.robustness_curve", never)
    twice = evaluate_run(run, digits, n=40, extra=[THEIR_PGD, THEIR_FGSM], progress=said.append)
    assert {p.attack for p in said} - {"clean"} == {"torchattacks PGD", "torchattacks FGSM (2)"}
    assert twice["rows"][: len(first["rows"]) - 1] == first["rows"][:-1], "no other number moves"
    assert [row["attack"] for row in twice["rows"][-3:]] == ["torchattacks PGD", "torchattacks FGSM (2)", "worst"]
    assert [row["protocol"] for row in twice["rows"][-4:-1]] == twice["extra"]
    assert twice["rows"][-1]["correct"] == min(row["correct"] for row in twice["rows"]) < first["rows"][-1]["correct"]
    assert not (run.path / "audit.json").exists(), "its verdict was on another worst case"
    assert summarise(run.records())["accuracy"].tolist() == [row["accuracy"] for row in twice["rows"]]
    assert evaluate_run(run, digits, n=40, extra=[THEIR_FGSM]) == twice


def test_a_users_attack_is_renewed_with_its_code_and_what_leaves_the_ball_is_said(digits, run):
    Path("mine.py").write_text(MINE)
    first = evaluate_run(run, digits, n=20, extra=["mine.py:Mine"])
    assert first["rows"][-2]["attack"] == "mine Mine"
    assert first["extra"][0].startswith("mine.py:Mine() within Linf 0.05, code ")
    assert first == evaluate_run(run, digits, n=20, extra=["mine.py:Mine()"])
    Path("mine.py").write_text(MINE.replace("+ self.far", "- 2 * self.far"))
    again = evaluate_run(run, digits, n=20, extra=["mine.py:Mine"])
    row = again["rows"][-2]
    assert [r["attack"] for r in again["rows"]] == [r["attack"] for r in first["rows"]], "it takes the old one's place"
    assert len(again["extra"]) == 1
    clean = first["rows"][0]
    assert row["accuracy"] == clean["accuracy"]
    said = "; {0} of {0} images came back outside of the ball or of [0, 1] and count as withstood".format(
        clean["correct"]
    )
    assert row["protocol"].endswith(said)


def test_an_interrupted_evaluation_goes_on_among_them(digits, run):
    def interrupt(progress):
        if progress.attack == "torchattacks PGD":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, digits, n=20, extra=[THEIR_PGD], progress=interrupt)
    began = len(list(run.evaluation.rglob("part-*")))
    said = []
    results = evaluate_run(run, digits, n=20, extra=[THEIR_PGD], progress=said.append)
    assert began == len([p for p in said if p.eta is None and p.done == p.total > 0])
    assert results["rows"][-2]["attack"] == "torchattacks PGD"
    assert not run.evaluation.exists()


def test_names_are_their_own():
    threat = Threat("linf", 0.1)
    attacks = extra_attacks([THEIR_PGD, "torchattacks:PGD(alpha=0.05, steps=5)", "foolbox:PGD()"], threat)
    assert list(attacks) == ["torchattacks PGD", "torchattacks PGD (2)", "foolbox PGD"]
    with pytest.raises(InputError, match="is one text: give a list of attacks"):
        extra_attacks(THEIR_PGD, threat)
    with pytest.raises(InputError, match=r"There is no file gone\.py"):
        extra_attacks(["gone.py:Mine"], threat)
