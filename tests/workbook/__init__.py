"""What tests of the workbook share: runs that were never trained, and waiting."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustlib.runs import Run, write_json


def finished_run(root: Path, variant: str, seed: int = 0, files: dict[str, Any] | None = None, **params: Any) -> Run:
    """A finished run of "method changes" with JSON files beside its parameters; never trained."""
    method, _, changed = variant.partition(" ")
    facts = {"dataset": "digits", "preset": "digits", "arch": "small_cnn", "title": method.upper(), **params}
    facts |= {"method": method, "changed": changed, "seed": seed, "variant": variant}
    run = Run.of(facts, root)
    for name, content in {"params": facts, "status": {"state": "done"}, **(files or {})}.items():
        write_json(run.path / f"{name}.json", content)
    return run


def evaluated_run(root: Path, variant: str, seed: int, accuracy: float | dict[str, float], **results: object) -> Run:
    """A finished run with these accuracies of 500 test images, or this worst case; `results` change facts of results.json."""
    named = accuracy if isinstance(accuracy, dict) else {"worst": accuracy}
    rows = [{"attack": name, "accuracy": value} for name, value in {"autoattack": 0.5, **named}.items()]
    facts = {"n": 500, "split": "test", "checkpoint": "best", "threat": "Linf 0.2", "seed": 0}
    facts |= {"numerics": {"attacks/pgd": 1}, "rows": rows, **results}
    return finished_run(root, variant, seed, {"results": facts})


def wait_for(condition: Callable[[], Any]) -> None:
    """Waits for a state, however slow the machine is; fails after a quarter of an hour."""
    end = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
