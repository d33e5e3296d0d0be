"""Looks at a finished run that several processes take at once: none is lost, and the last one stands last."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from robustlib.attacks import PGD, Tangent, Threat
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation import measure_distances, measure_unseen
from robustlib.methods import make_method
from robustlib.representation import measure_runs
from robustlib.runs import Run, merge_json, read_json, write_json
from tests.training_fixtures import train

NUMBERS = {"n": 4, "correct": 2.0, "accuracy": 0.5, "low": 0.1, "high": 0.9}
ATTACK = PGD(Threat("linf", 0.2), steps=1)
QUICK = Tangent(Threat("l2", 0.5), queries=200)
MEASUREMENTS: dict[str, tuple[str, Callable[[Run, Dataset], Any]]] = {
    "distances": (
        "robustlib.evaluation.distances.adversarial_distances",
        lambda run, digits: measure_distances({"a": run}, digits, QUICK, n=4, device="cpu"),
    ),
    "unseen": (
        "robustlib.evaluation.runs._attacked",
        lambda run, digits: measure_unseen({"a": run}, digits, n=4, device="cpu"),
    ),
    "representation": (
        "robustlib.representation.runs.run_features",
        lambda run, digits: measure_runs([run], digits, ATTACK, n=40),
    ),
}


@pytest.fixture(scope="module")
def run(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Hardly trained."""
    method = make_method("standard", "digits", epochs=1, train_examples=100, arch="mlp")
    return train(method, few, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_look_that_is_written_during_a_measurement_survives(
    run: Run, digits: Dataset, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from robustlib.evaluation.distances import adversarial_distances
    from robustlib.representation.runs import run_features

    place, measure = MEASUREMENTS[kind]
    file = run.path / f"{kind}.json"
    write_json(file, {"earlier": {"n": 1}})
    clean = {"clean": dict(NUMBERS), "bare": {}}
    real = {"distances": adversarial_distances, "unseen": lambda *_: clean, "representation": run_features}[kind]

    def slow(*args: Any, **options: Any) -> Any:
        merge_json(file, "meanwhile", {"n": 2})  # another page
        merge_json(file, "earlier", {"n": 3})
        return real(*args, **options)

    monkeypatch.setattr("robustlib.evaluation.runs._known", lambda *_: dict(NUMBERS))
    monkeypatch.setattr(place, slow)
    measure(run, digits)
    looks = read_json(file)
    assert list(looks)[:-1] == ["meanwhile", "earlier"], "the last look stands last"
    assert looks["meanwhile"] == {"n": 2}
    assert looks["earlier"] == {"n": 3}, "as it stands in the file, not as it was read"
    assert next(reversed(looks.values()))["n"] in (4, 40)


def test_a_look_that_is_taken_again_stands_last(tmp_path: Path) -> None:
    file = tmp_path / "run" / "looks.json"
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        merge_json(file, key, value)
    assert list(read_json(file).items()) == [("b", 2), ("a", 3)]
    assert file.read_text() == '{"b": 2, "a": 3}\n'
    merge_json(file, "b", 2, indent=2)
    assert file.read_text() == '{\n  "a": 3,\n  "b": 2\n}\n'


SEVERAL = "for k in range(10): merge_json(Path({file!r}), f'{name} {{k}}', k)"


def test_threads_and_processes_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "looks.json"
    codes = [SEVERAL.format(file=str(file), name=name) for name in "abcxy"]
    start = "from pathlib import Path\nfrom robustlib.runs import merge_json\n"
    workers = [subprocess.Popen([sys.executable, "-c", start + code]) for code in codes[3:]]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda code: exec(start + code, {}), codes[:3]))
    assert [worker.wait() for worker in workers] == [0, 0]
    looks = read_json(file)
    assert {name: looks[name] for name in looks} == {f"{w} {k}": k for w in "abcxy" for k in range(10)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".merge.lock", "looks.json"]


def test_what_cannot_be_merged_is_a_sentence_and_stays(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, not a directory")
    with pytest.raises(InputError, match=r"Cannot write .*choose a writable directory"):
        merge_json(tmp_path / "blocked" / "looks.json", "a", 1)
    (tmp_path / "looks.json").write_text("{half")
    with pytest.raises(InputError, match="not readable JSON"):
        merge_json(tmp_path / "looks.json", "a", 1)
    assert (tmp_path / "looks.json").read_text() == "{half"
