"""What is measured once is read back, and measured again where a fact is another one; several processes may do it at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from robustlib.errors import InputError
from robustlib.runs import Run, digest, measured, read_json, write_json
from robustlib.runs.files import merge_json


@pytest.mark.parametrize("key", ["", "a"])
def test_measured_once_for_the_same_facts(tmp_path, key):
    run, calls = Run(tmp_path), []

    def ask(**facts):
        return measured(run, "look.json", facts, lambda: calls.append(facts) or {"value": len(calls)}, key=key)

    first = ask(n=3, steps=[1, 2])
    assert first == ask(n=3, steps=[1, 2]) == {"n": 3, "steps": [1, 2], "value": 1}
    assert read_json(tmp_path / "look.json") == ({"a": first} if key else first)
    assert ask(n=4, steps=[1, 2])["value"] == 2, "an older measurement is replaced"
    assert ask(n=3, steps=[1, 2])["value"] == 3


def test_measurements_under_other_keys_stay(tmp_path):
    run = Run(tmp_path)
    write_json(tmp_path / "look.json", {"a": {"n": 1}, "b": {"n": 1}})
    measured(run, "look.json", {"n": 2}, dict, key="a")
    assert list(read_json(tmp_path / "look.json").items()) == [("b", {"n": 1}), ("a", {"n": 2})]


def test_nothing_is_written_where_measuring_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        measured(Run(tmp_path), "look.json", {}, lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
    assert digest(b"a") != digest(b"b")


def test_what_others_write_during_a_measurement_survives(tmp_path):
    file = tmp_path / "file.json"
    write_json(file, {"earlier": {"n": 1}})

    def measure():
        merge_json(file, "meanwhile", {"n": 2})  # another page
        merge_json(file, "earlier", {"n": 3})
        return {"value": 4}

    measured(Run(tmp_path), "file.json", {"n": 4}, measure, key="own")
    assert file.read_text() == '{"meanwhile": {"n": 2}, "earlier": {"n": 3}, "own": {"n": 4, "value": 4}}\n'


SEVERAL = "for k in range(10): merge_json(Path({file!r}), f'{name} {{k}}', k)"


def test_threads_and_processes_take_turns(tmp_path):
    file = tmp_path / "file.json"
    codes = [SEVERAL.format(file=str(file), name=name) for name in "abcxy"]
    start = "from pathlib import Path\nfrom robustlib.runs.files import merge_json\n"
    workers = [subprocess.Popen([sys.executable, "-c", start + code]) for code in codes[3:]]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda code: exec(start + code, {}), codes[:3]))
    assert [worker.wait() for worker in workers] == [0, 0]
    assert read_json(file) == {f"{w} {k}": k for w in "abcxy" for k in range(10)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".merge.lock", "file.json"]


def test_what_cannot_be_merged_is_a_sentence_and_stays(tmp_path):
    (tmp_path / "blocked").write_text("a file, not a directory")
    with pytest.raises(InputError, match=r"Cannot write .*choose a writable directory"):
        merge_json(tmp_path / "blocked" / "file.json", "a", 1)
    (tmp_path / "file.json").write_text("{half")
    with pytest.raises(InputError, match="not readable JSON"):
        merge_json(tmp_path / "file.json", "a", 1)
    assert (tmp_path / "file.json").read_text() == "{half"
