"""What is measured once is read back, and measured again where a fact is another one."""

import pytest

from robustlib.runs import Run, digest, measured, read_json, write_json


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
