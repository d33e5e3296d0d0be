"""The table of epochs that a notebook shows while it trains, and the line that a terminal gets."""

import itertools

import pytest
from bs4 import BeautifulSoup

from robustlib.training.progress import ROWS, Progress, epoch_table


def parse(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def row(epoch: int, **more: object) -> dict[str, object]:
    return {
        "stage": "train",
        "epoch": epoch,
        "epoch_total": epoch,
        "loss": 0.5,
        "seconds": 61.0,
        "warnings": [],
        **more,
    }


def cells(table: str) -> list[list[str]]:
    return [[cell.get_text() for cell in line.find_all(["th", "td"])] for line in parse(table).find_all("tr")]


def test_epochs_are_rows_with_what_was_measured_in_them() -> None:
    rows = [row(0), row(1, clean_val=0.912, robust_val=0.1), row(2, stage="<head>", warnings=["<b>"])]
    table = epoch_table("a & b", rows, 3)
    assert cells(table) == [
        ["epoch", "stage", "loss", "clean", "PGD-10", "time"],
        ["1", "train", "0.500", "91.2 %", "10.0 %", "1:01"],
        ["2", "<head>", "0.500", "", "", "1:01"],
    ]
    soup = parse(table)
    assert soup.details.has_attr("open"), "it still grows"
    assert soup.summary.get_text() == "a & b · epoch 2/3 · loss 0.500 · 1:01 left"
    assert soup.p.get_text() == "⚠ epoch 2: <b>"
    done = parse(epoch_table("a", [row(1)], 1))
    assert not done.details.has_attr("open")
    assert done.summary.get_text() == "a · epoch 1/1 · loss 0.500 · done in 1:01"
    assert cells(str(done))[0] == ["epoch", "loss", "clean", "PGD-10", "time"], "one stage needs no name"


def test_a_long_training_keeps_its_table_short_and_its_last_epoch() -> None:
    for count in (1, ROWS, ROWS + 1, 1000):
        shown = [int(cell) for cell, *_ in cells(epoch_table("a", [row(n + 1) for n in range(count)], count))[1:]]
        assert len(shown) <= ROWS
        assert shown[-1] == count
        assert len({after - before for before, after in itertools.pairwise(shown)}) <= 1


def test_a_terminal_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("a", 2)
    progress.show([row(0, warnings=["slow"])])
    progress.show([row(0), row(1)])
    assert capsys.readouterr().out.splitlines() == [
        "a · epoch 0/2 · loss 0.500",
        "  warning: slow",
        "a · epoch 1/2 · loss 0.500 · 1:01 left",
    ]
