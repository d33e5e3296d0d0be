"""Draws the README's pictures from the committed reference results: robustness curves above, trade-off below; and maps of features.

    python benchmarks/readme_figure.py        # reports/reference/digits/ -> reports/reference/digits/robustness.png
    python benchmarks/readme_figure.py --preset cifar10-small --data-root DIR    # and features.png, of runs whose weights are kept

Run `python benchmarks/readme_tables.py` afterwards: it puts the pictures and their alt text into the README.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import pandas as pd

from robustlib.data import Dataset, load_dataset
from robustlib.evaluation import leaderboard
from robustlib.figures import Figure, robustness_curves, to_png, trade_off, umap_atlas
from robustlib.methods import load_preset
from robustlib.representation import embed_runs, probe_attack
from robustlib.runs import Run, find_runs, read_bytes, write_atomic
from robustlib.threat import Threat

REFERENCE = Path(__file__).parent.parent / "reports" / "reference"
GAP = 30  # pixels between the figures
SHOWN = 1000  # test images on maps of features


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
    table = leaderboard(runs).drop(columns="minutes")  # on several machines, some beside other work
    return robustness_curves(curves, threat_eps=runs[0].params()["threat"]["eps"]), trade_off(table)


def feature_maps(runs: list[Run], dataset: Dataset, shown: int = SHOWN) -> Figure:
    """Joint maps of clean and attacked test images in the feature space of each run whose weights are kept, the first of its method."""
    kept = {run.params()["title"]: run for run in reversed(runs) if read_bytes(run.path / "model.safetensors")}
    if not kept:
        raise SystemExit("No weights are kept of these runs: export_reference.py says of which presets they are.")
    attack = probe_attack(Threat(**next(iter(kept.values())).params()["threat"]))
    with tempfile.TemporaryDirectory() as folder:  # beside the runs are kept features, of which archives have no place
        copies = [_unpacked(kept[title], Path(folder)) for title in sorted(kept)]
        made = dict(zip(sorted(kept), embed_runs(copies, dataset, attack, n=shown), strict=True))
    points = {title: tuple(one.points) for title, one in made.items()}
    notes = {title: one.trust for title, one in made.items()}
    labels = dataset.test.sample(shown).labels
    note = f"{shown} test images, attacked by PGD-{attack.steps} on the cross-entropy, {attack.threat}"
    return umap_atlas(points, labels, dataset.class_names, notes=notes, note=note)


def _unpacked(run: Run, folder: Path) -> Run:
    """The run as a directory of its own."""
    copy = Run(folder / run.params()["dataset"] / run.path.parent.name / run.path.name)
    for name in ("params.json", "status.json", "provenance.json", "model.safetensors"):
        write_atomic(copy.path / name, read_bytes(run.path / name) or b"{}")
    return copy


def described(png: bytes, alt: str) -> bytes:
    """The picture with few colours, a fifth of the size, and its description inside."""
    from PIL import Image, PngImagePlugin

    said, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    said.add_itxt("Description", alt)
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(stream, format="png", optimize=True, pnginfo=said)
    return stream.getvalue()


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
    sheet.save(stream, format="png")
    return described(stream.getvalue(), alt_text(figures))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--data-root", help="draw the maps of features, too")
    options = parser.parse_args()
    runs = reference_runs(options.preset)
    if not runs:
        print(f"There are no reference results of {options.preset} yet: see export_reference.py.", file=sys.stderr)
        return 2
    target = REFERENCE / options.preset / "robustness.png"
    write_atomic(target, stacked(panels(runs)))
    if options.data_root:
        figure = feature_maps(runs, load_dataset(load_preset(options.preset)["dataset"], root=options.data_root))
        write_atomic(target.with_name("features.png"), described(to_png(figure), figure.alt.replace('"', "'")))
    print(f"{target.relative_to(REFERENCE.parent.parent)} shows {len(runs)} runs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
