"""How long the explorer takes on digits: to start from nothing, to open again, and to answer a control.

    python benchmarks/explorer_speed.py       # about 3 minutes on two CPU cores; writes explorer_speed.md

A control's time is that of its callback in the kernel, panels and map included; "in the browser" is from a key press on the eps slider
to the changed picture in JupyterLab under headless Chromium.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lab
import torch
from side_by_side import markdown, write_report

from robustlib.data import load_dataset
from robustlib.workbook.explorer import Explorer
from robustlib.workbook.explorer.app import finished_runs, small_baselines

ROUNDS, TRAIN_SECONDS, CALLBACK_MS = 15, 40, 300
PICTURE = ".rl-three figure:nth-child(3) img"


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def openings(root: Path) -> tuple[list[dict[str, object]], Explorer, float]:
    """A row for each way to open, the explorer, and the seconds of the baselines."""
    data, seconds, made = load_dataset("digits"), {}, []
    seconds["the two small baselines"] = timed(lambda: small_baselines(root))
    runs = finished_runs(root)
    for name in ("the first opening: PGD-20 at 8 radii on 200 images", "the second opening"):
        made.append(Explorer(data, runs))
        seconds[name] = timed(made[-1].load)
    rows: list[dict[str, object]] = [{"opening": name, "seconds": f"{s:.2f}"} for name, s in seconds.items()]
    return rows, made[-1], seconds["the two small baselines"]


def controls(explorer: Explorer) -> tuple[list[dict[str, object]], float]:
    """A row for each control and the longest time of any, in ms."""
    board, rows, longest = explorer.board, [], 0.0
    values = {
        "eps": (board.eps, range(9)),
        "image": (board.image, range(9)),
        "layer": (board.layer, [name for _, name in board.layer.options]),
        "class": (board.label, range(10)),
    }
    for name, (control, choices) in values.items():
        turns = [partial(setattr, control, "value", value) for value in choices]
        for turn in turns:  # each once, so that only what stays is timed
            turn()
        times = [1000 * timed(turn) for _ in range(ROUNDS) for turn in turns]
        longest = max(longest, max(times))
        rows.append(
            {"control": name, "median ms": f"{statistics.median(times):.0f}", "longest ms": f"{max(times):.0f}"}
        )
    return rows, longest


def in_browser(root: Path) -> list[float]:
    """Milliseconds from a key press on the slider to another picture."""
    place = root.parent
    source = Path(__file__).parent.parent / "notebooks" / "explore.ipynb"
    (place / "explore.ipynb").write_text(source.read_text())
    times = []
    with lab.lab(place) as address, lab.browser() as chromium:
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        lab.run_notebook(page, address, "explore.ipynb", ".rl-near img")
        page.locator(".rl-slider input").focus()
        changed = f"old => document.querySelector('{PICTURE}').src !== old"
        for turn in range(2 * ROUNDS):
            old = page.locator(PICTURE).get_attribute("src")
            started = time.perf_counter()
            page.keyboard.press("ArrowRight" if turn % 6 < 3 else "ArrowLeft")
            page.wait_for_function(changed, arg=old, polling=5)
            times.append(1000 * (time.perf_counter() - started))
        page.close()
    return times


def main() -> int:
    """Measures, prints and writes the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        opened, explorer, trained = openings(root)
        moved, longest = controls(explorer)
        if lab.chromium():
            times = in_browser(root)
            row = {"control": "eps, in the browser", "median ms": f"{statistics.median(times):.0f}"}
            moved.append(row | {"longest ms": f"{max(times):.0f}"})
    claims = {
        f"two baselines are trained in under {TRAIN_SECONDS} s ({trained:.0f} s)": trained < TRAIN_SECONDS,
        f"every callback takes less than {CALLBACK_MS} ms (at most {longest:.0f} ms)": longest < CALLBACK_MS,
    }
    title, tables = "The explorer on digits, 200 images, small CNN", [markdown(opened), markdown(moved)]
    return write_report(
        "explorer_speed.md", title, "python benchmarks/explorer_speed.py", torch.device("cpu"), tables, claims
    )


if __name__ == "__main__":
    sys.exit(main())
