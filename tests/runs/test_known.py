"""What was read of a run is believed as long as its files stand, and no longer."""

import json
from pathlib import Path

import pytest

from robustlib.evaluation import incomplete, leaderboard
from robustlib.runs import Run, find_runs, known, recall, write_json
from robustlib.workbook import tables


def made(root: Path, seed: int) -> Run:
    params = {"method": "trades", "dataset": "digits", "arch": "small_cnn", "seed": seed, "preset": "digits"}
    run = Run.of(params, root)
    write_json(run.path / "params.json", params)
    row = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    rows = [{**row, "attack": "clean"}, {**row, "attack": "worst", "accuracy": 0.25}]
    run.write("results.json", {"n": 8, "threat": "Linf 0.2", "checkpoint": "best", "rows": rows})
    run.write("status.json", {"state": "done"})
    return run


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of runs that are read."""
    seen: list[Path] = []
    read = known.digest.__globals__["read_bytes"]
    monkeypatch.setattr("robustlib.runs.files.read_bytes", lambda path: [seen.append(path), read(path)][1])
    return seen


def look(root: Path) -> tuple[list[str], list[float], int]:
    runs = find_runs(root, finished=False)
    table = tables.inventory(runs)
    return list(table["notes"]), list(leaderboard(find_runs(root))["worst"]), len(incomplete(runs))


def test_a_second_look_reads_no_file_and_sees_what_changed(tmp_path, reads):
    runs = [made(tmp_path, seed) for seed in range(3)]
    first = look(tmp_path)
    assert first == (["", "", ""], [0.25] * 3, 3)
    assert reads
    reads.clear()
    assert look(tmp_path) == first
    assert reads == []
    results = runs[1].results()
    results["rows"][1]["accuracy"] = 0.5
    reads.clear()
    runs[1].write("results.json", results)
    assert look(tmp_path)[1] == [0.5, 0.25, 0.25]
    assert {path.parent for path in reads} == {runs[1].path}
    (runs[2].path / "results.json").write_text("{")
    assert "not readable JSON" in look(tmp_path)[0][[*find_runs(tmp_path, finished=False)].index(runs[2])]
    assert len(find_runs(tmp_path)) == 2


def test_where_there_are_many_runs_another_process_reads_none_again(tmp_path, reads, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(known, "_folders", {})
    monkeypatch.setattr(known, "_learnt", set())
    for seed in range(known.MANY):
        made(tmp_path / "many", seed)
    made(tmp_path / "few", 0)
    first, _ = look(tmp_path / "many"), look(tmp_path / "few")
    known.keep()
    (kept,) = (tmp_path / "state").rglob("runs-*.json")
    monkeypatch.setattr(known, "_folders", {})
    reads.clear()
    assert look(tmp_path / "many") == first
    assert reads == []
    for spoilt in ("{", json.dumps(json.loads(kept.read_text()) | {"code": "another"})):
        kept.write_text(spoilt)
        monkeypatch.setattr(known, "_folders", {})
        reads.clear()
        assert look(tmp_path / "many") == first
        assert len(reads) > known.MANY, "of other code nothing is believed"


def test_what_changes_while_it_is_read_is_not_kept(tmp_path):
    run, said = made(tmp_path, 0), []

    def read() -> int:
        said.append(1)
        if len(said) == 1:
            run.write("status.json", {"state": "running"})
        return len(said)

    assert [recall(run.path, "x", read) for _ in range(3)] == [1, 2, 2]


def test_no_weights_are_read_to_say_what_runs_lack(tmp_path, monkeypatch):
    run = made(tmp_path, 0)
    lacks = lambda: incomplete([run])["missing"][0]  # noqa: E731
    assert lacks().startswith("no weights")
    (run.path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    monkeypatch.setattr("robustlib.runs.files.load_weights", lambda *_: pytest.fail("weights were read"))
    assert lacks().startswith("records of clean are incomplete")
    (run.path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}   ")
    assert "truncated" in lacks()
