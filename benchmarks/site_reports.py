"""The reports that the site shows: executed notebooks of the first seed of each method, kept small, and rendered when the site is built.

    robustlib run --preset digits --jobs 2          # or `make report`
    python benchmarks/site_reports.py digits        # runs/, reports/ -> docs/reports/digits.zip

Rendering is that of `robustlib report`; what is in an archive is only what took time to compute.
"""

import argparse
import base64
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from export_reference import FILES, write_archive
from PIL import Image
from readme_figure import reference_runs

from robustlib.errors import InputError
from robustlib.evaluation import leaderboard
from robustlib.methods import load_preset
from robustlib.runs import Run, read_bytes
from robustlib.workbook.experiments import page
from robustlib.workbook.report import render, write_index
from robustlib.workbook.task import Task

ROOT = Path(__file__).parent.parent
ARCHIVES = ROOT / "docs" / "reports"


def first_runs(preset: str, root: Path) -> list[Run]:
    """The first seed of each method that a preset reports, below `root`."""
    return list({run.params()["method"]: run for run in reversed(reference_runs(preset, root))}.values())[::-1]


def export(preset: str, runs: Path, reports: Path, out: Path = ARCHIVES) -> list[str]:
    """Archives what pages of the first runs of a preset and of their comparison need: executed notebooks, and what the index asks of runs.

    Returns the notebooks' names. InputError for one that did not end well.
    """
    shown = first_runs(preset, runs)
    executed = [*(page(run, reports, preset) for run in shown), reports / preset / "compare.ipynb"]
    for notebook in executed:
        if Task(notebook, {}, notebook).status().get("state") != "done":
            raise InputError(f"{notebook} is not there, or did not end well: call robustlib run --preset {preset}.")
    files = {f"reports/{preset}/{notebook.name}": _smaller(notebook) for notebook in executed}
    for run in shown:
        place = "/".join(("runs", *run.path.parts[-3:]))
        files |= {f"{place}/{name}": data for name in FILES if (data := read_bytes(run.path / name)) is not None}
    write_archive(out / f"{preset}.zip", files)
    return [notebook.name for notebook in executed]


def _smaller(notebook: Path) -> bytes:
    """An executed notebook with pictures of few colours, which are a quarter of the size, and without paths of this machine."""
    nb = nbformat.read(notebook, as_version=4)
    for output in (output for cell in nb.cells for output in cell.get("outputs", [])):
        if png := output.get("data", {}).get("image/png"):
            image, stream = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
            image.quantize(128, dither=Image.Dither.NONE).save(stream, format="png", optimize=True)
            output["data"]["image/png"] = base64.b64encode(stream.getvalue()).decode()
    ran: dict[str, Any] = nb.metadata.get("papermill", {})
    for name in ("input_path", "output_path"):
        ran[name] = Path(str(ran.get(name) or notebook)).name
    return nbformat.writes(nb).encode()


def addresses(archives: Path = ARCHIVES) -> dict[str, str]:
    """The address of each page that `render_all` will write, relative to their index, by method ("compare" for the comparison)."""
    found = {}
    for archive in sorted(archives.glob("*.zip")):
        with zipfile.ZipFile(archive) as kept:
            names = [Path(name).name for name in kept.namelist() if name.endswith(".ipynb")]
        found |= {name.partition("-")[0].removesuffix(".ipynb"): archive.stem for name in names}
    return {method: f"{preset}/{method}.html" for method, preset in found.items()}


def render_all(target: Path, archives: Path = ARCHIVES) -> Path:
    """Renders what is in the archives as pages below `target`; returns their index."""
    pages, links, views, runs = dict[str, str](), list[tuple[str, str]](), dict[str, Path](), list[Run]()
    with TemporaryDirectory() as folder:
        for archive in sorted(archives.glob("*.zip")):
            with zipfile.ZipFile(archive) as kept:
                kept.extractall(folder)
        reports = Path(folder) / "reports"
        for preset in sorted(place.name for place in reports.glob("*")):
            found, views[preset] = first_runs(preset, Path(folder) / "runs"), reports / preset / "compare.ipynb"
            runs += found
            for run in found:
                executed = page(run, reports, preset)
                pages[str(run.path)] = f"{preset}/{run.path.parent.name}.html"  # an address that outlives this run
                render(executed, target / pages[str(run.path)], title=run.name, index="../index.html")
            links.append((f"Comparison: {load_preset(preset)['title']}", f"{preset}/compare.html"))
            render(views[preset], target / links[-1][1], title=links[-1][0], index="../index.html")
        return write_index(target, leaderboard(runs), pages, compare=links, views=views)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    options = parser.parse_args(arguments)
    try:
        names = export(options.preset, options.runs, options.reports)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    size = (ARCHIVES / f"{options.preset}.zip").stat().st_size / 1e6
    print(f"docs/reports/{options.preset}.zip holds {len(names)} notebooks, {size:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
