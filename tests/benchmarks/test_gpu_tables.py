"""Every table of the GPU queue, by the command of its rehearsal, on a small network in place of ResNet-18 and in this process."""

import queue
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import attack_speed
import autoattack_speed
import compiled_step
import gpu_slices
import pytest
import torch
import training_speed
import training_steps
from side_by_side import FOLDER, cifar_model

from robustlib.methods import METHODS, AdversarialMethod
from robustlib.models import build_model

COMPILE = torch.compile
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
BARE = "of the bare convolutions' time: fp32, bf16"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A small network, attacks of one step in training, and a compiler that takes no minute."""
    for module in ("plain_loops", "training_steps"):
        monkeypatch.setattr(f"{module}.STEPS", 1)
    for module in ("plain_loops", "training_steps", "attack_speed"):
        monkeypatch.setattr(
            f"{module}.cifar_model", lambda _, *rest, **options: cifar_model("small_cnn", *rest, **options)
        )
    monkeypatch.setattr(autoattack_speed, "build_model", lambda _, dataset: build_model("small_cnn", dataset))
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend="eager"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def table(name: str, folder: Path, monkeypatch, *more: str) -> tuple[int, list[dict[str, str]], list[str]]:
    """The exit code of a script called as the queue rehearses it, the rows of its table, and its claims."""
    (part,) = (part for part in gpu_slices.slices("data", folder / "runs", rehearse=True) if part.name == name)
    monkeypatch.setattr(sys, "argv", [*part.command[1:], *more])
    monkeypatch.setenv(FOLDER, str(folder / "gpu"))
    code = import_module(name).main()
    (file,) = part.products(folder)
    lines = file.read_text().splitlines()
    assert lines[2].startswith(f"`python benchmarks/{name}.py ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    return code, rows, [line for line in lines if line.startswith("- ") and "hold" in line]


def weighed(make, name, *arguments, device, threads):
    """Memory in this process, of PGD-AT alone: the steps of others are timed anyway."""
    return 1 + (training_steps._peak_here(make, (name, *arguments), device, threads) if name == "pgd_at" else 0)


KNOWN = [n for n, kind in METHODS.items() if issubclass(kind, AdversarialMethod) and n in training_speed.COUNTS]


@pytest.mark.parametrize(
    ("known", "more"),
    [
        (["pgd_at"], []),
        pytest.param(KNOWN, ["--batch", "10", "--methods", *KNOWN], marks=pytest.mark.slow),  # an image of each class
    ],
)
def test_steps_are_timed_and_weighed(tmp_path, monkeypatch, known, more):
    monkeypatch.setattr(training_speed, "peak_mb", weighed)
    code, rows, claims = table("training_speed", tmp_path, monkeypatch, *more)
    assert [row["method"] for row in rows] == known
    for row in rows:
        assert float(row["fp32, share of the count"]) > 0
        assert float(row["bf16, share of the count"]) > 0
        assert (row["plain fp32 loop, seconds"] == "–") == (row["method"] not in training_speed.LOOPS)
    assert len(claims) == 2 * len(known) - 1 + len(training_speed.LOOPS.keys() & set(known))
    assert code == any("not" in claim for claim in claims)


def test_plain_and_compiled_steps_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_step, "STEPS", 1)
    code, rows, _ = table("compiled_step", tmp_path, monkeypatch)
    assert [(row["precision"], row["way"]) for row in rows] == [
        (p, w) for p in ("fp32", "bf16") for w in ("plain", "compiled")
    ]
    assert code == 0, "on a CPU nothing is promised"


def test_every_library_attacks_and_is_weighed(tmp_path, digits, monkeypatch):
    """The digits model is an untrained one, and few images are attacked."""
    few, model = replace(digits, test=digits.test.sample(6)), build_model("small_cnn", digits).eval()
    monkeypatch.setattr(attack_speed, "STEPS", 2)
    monkeypatch.setattr(attack_speed, "load_dataset", lambda _: few)
    monkeypatch.setattr(attack_speed, "fit", lambda *_, **__: SimpleNamespace(model=lambda: model))
    here = SimpleNamespace(
        Queue=queue.Queue, Process=lambda target, args: SimpleNamespace(start=lambda: target(*args), join=int)
    )
    monkeypatch.setattr(attack_speed.multiprocessing, "get_context", lambda _: here)
    _, rows, claims = table("attack_speed", tmp_path, monkeypatch)
    assert [row["library"] for row in rows] == list(attack_speed.LIBRARIES)
    for row in rows:
        passes = float(row["passes per image (forward + backward)"])
        assert 2 * attack_speed.STEPS <= passes <= 2 * attack_speed.STEPS + 2, row["library"]
        assert float(row["above the best known (points)"]) >= 0
    assert len(claims) == (4 if attack_speed.FOUND else 0) + sum(
        peer in attack_speed.FOUND for peers in attack_speed.TARGETS.values() for peer in peers
    )


def test_every_part_of_the_cascade_is_timed_on_every_side(tmp_path, monkeypatch):
    monkeypatch.setattr(autoattack_speed, "bf16_pays", lambda model, x: True)
    _, rows, claims = table("autoattack_speed", tmp_path, monkeypatch)
    sides = ["fp32", "bf16"] if autoattack_speed.MISSING else ["reference", "fp32", "bf16"]
    assert [row["attack"] for row in rows] == [*autoattack_speed.PARTS, "whole cascade"]
    for row in rows:
        assert len(row[f"left standing: {', '.join(sides)}"].split(", ")) == len(sides)
        assert all(float(number) > 0 for number in row[BARE].split(", ")), "a search takes longer than no time"
        passes = [int(count) for count in row[f"passes per image: {', '.join(sides)}"].split(", ")]
        assert all(passes), "each side has met the network"
    assert len(claims) == (0 if autoattack_speed.MISSING else 3)


@pytest.mark.parametrize(("bf16", "faster"), [("", ["1.60x"]), ("3.20x", ["1.60x", "3.20x"])])
def test_where_bf16_is_no_faster_nothing_is_asked_of_it(bf16, faster, monkeypatch):
    monkeypatch.setattr(autoattack_speed, "MISSING", [])
    whole = {"fp32 is faster by": "1.60x", **({"bf16 is faster by": bf16} if bf16 else {})}
    verdicts = "1, 0" if bf16 else "1"
    said = autoattack_speed.claims([{}, {**whole, "other verdicts than the reference: ...": verdicts}])
    assert all(said.values())
    assert [text.rpartition("(")[2] for text in said][:-1] == [f"{ratio})" for ratio in faster]
    two = autoattack_speed.claims([{**whole, "other verdicts than the reference: ...": verdicts.replace("1", "2")}])
    assert list(two.values()) == [*[True] * len(faster), False]


@pytest.mark.parametrize(("compiled", "hold"), [(0.1, [True, True, True]), (0.5, [False, False, False])])
def test_what_is_promised_of_compiled_steps_on_a_gpu(compiled, hold):
    """Five steps of 128 images of 50 000: 0.1 s are 7.8 s an epoch."""
    seconds = {f"{p} {way}": s for p in ("fp32", "bf16") for way, s in (("plain", 0.4), ("compiled", compiled))}
    assert list(compiled_step.claims(seconds, 128).values()) == hold
