"""Draws the README's picture from the committed reference results: robustness curves above, trade-off below.

    python benchmarks/readme_figure.py        # reports/reference/digits/ -> reports/reference/digits/robustness.png

Run `python benchmarks/readme_tables.py` afterwards: it puts the picture and its alt text into the README.
"""

import argparse
import io
import sys
from pathlib import Path

import pandas as pd

from robustlib.evaluation import leaderboard
from robustlib.figures import Figure, robustness_curves, to_png, trade_off
from robustlib.methods import load_preset
from robustlib.runs import Run, find_runs, write_atomic

REFERENCE = Path(__file__).parent.parent / "reports" / "reference"
GAP = 30  # pixels between the figures


def reference_runs(preset: str, reference: Path = REFERENCE) -> list[Run]:
    """The exported runs of a preset without changes to it, of the methods that it reports, by title, then seed: all would be too many."""
    shown = load_preset(preset)["report"]
    runs = [run for run in find_runs(reference, preset=preset) if not run.changed]
    runs = [run for run in runs if run.params()["method"] in shown]
    return sorted(runs, key=lambda run: (run.params()["title"], run.params()["seed"]))


def panels(runs: list[Run]) -> tuple[Figure, Figure]:
    """Robustness curves of each method's first seed (with the interval of its images), and all runs' trade-off."""
    first = {run.params()["title"]: run for run in reversed(runs)}
    curves = {title: pd.DataFrame(first[title].results()["curve"]) for title in sorted(first)}
    return robustness_curves(curves, threat_eps=runs[0].params()["threat"]["eps"]), trade_off(leaderboard(runs))


def alt_text(figures: tuple[Figure, ...]) -> str:
    """What the picture shows, for those who cannot see it."""
    return " ".join(figure.alt for figure in figures).replace('"', "'")


def stacked(figures: tuple[Figure, ...]) -> bytes:
    """One PNG with the figures above each other."""
    from PIL import Image

    images = [Image.open(io.BytesIO(to_png(figure))).convert("RGB") for figure in figures]
    size = (max(image.width for image in images), sum(image.height + GAP for image in images) - GAP)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + GAP
    stream = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(
        stream, format="png", optimize=True
    )  # few colours, a fifth of the size
    return stream.getvalue()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    options = parser.parse_args()
    runs = reference_runs(options.preset)
    if not runs:
        print(f"There are no reference results of {options.preset} yet: see export_reference.py.", file=sys.stderr)
        return 2
    target = REFERENCE / options.preset / "robustness.png"
    write_atomic(target, stacked(panels(runs)))
    print(f"{target.relative_to(REFERENCE.parent.parent)} shows {len(runs)} runs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
