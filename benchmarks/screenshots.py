"""The pictures in docs/: the index, a run's page, and the explorer in JupyterLab, at the width of a screen and of a telephone.

    python benchmarks/screenshots.py          # some minutes; takes the finished runs in runs/ and the pages in reports/
    python benchmarks/screenshots.py index page

Each function below makes its own pictures; they are looked at before they are committed.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from lab import browser, change_theme, lab, run_notebook

ROOT = Path(__file__).parent.parent
WIDTHS = (1400, 400)
PICTURES = ("index", "page", "explorer")
SHOWN = (".rl-near img", ".rl-scatter .ends path")  # what is there when the explorer is


def explorer(out: Path, runs: Path = ROOT / "runs", scheme: str = "light") -> None:
    """The explorer on the runs of digits, an image that the attack fools at the eps of the threat, on the UMAP."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copy(ROOT / "notebooks" / "explore.ipynb", folder)
        shutil.copytree(runs / "digits", folder / "runs" / "digits")
        with lab(folder) as address, browser() as chromium:
            for width in WIDTHS:
                page = chromium.new_page(viewport={"width": width, "height": 1000})
                page.emulate_media(color_scheme=scheme)
                run_notebook(page, address, "explore.ipynb", SHOWN[0])
                page.wait_for_selector(SHOWN[1])
                change_theme(page, scheme.title())
                page.get_by_role("radio", name="UMAP").check()
                page.wait_for_selector(".rl-map small:has-text('UMAP of')", timeout=180_000)
                page.get_by_role("button", name="Next fooled").click()
                page.wait_for_timeout(1500)
                shown = page.locator(".rl-explorer")
                shown.scroll_into_view_if_needed()
                page.set_viewport_size({"width": width, "height": round(shown.bounding_box()["height"]) + 200})
                page.wait_for_timeout(1500)
                shown.screenshot(path=out / f"explorer-{width}.png")
                page.close()


def index(out: Path, reports: Path = ROOT / "reports", scheme: str = "light") -> None:
    """The index of the reports, from its title to the maps of the feature spaces."""
    _pages(out, reports / "index.html", scheme, "index", "h1", (2750, 4400))


def page(out: Path, reports: Path = ROOT / "reports", scheme: str = "light") -> None:
    """A TRADES run's page, from its accuracies on."""
    run = sorted(reports.glob("digits/trades-*.html"))[0]
    _pages(out, run, scheme, "page", "h2[id^=what-holds]", (2600, 3000))


def _pages(out: Path, html: Path, scheme: str, name: str, start: str, heights: tuple[int, int]) -> None:
    """A part of a page at each width: from the element `start` on, so many pixels."""
    from PIL import Image

    with browser() as chromium:
        for width, height in zip(WIDTHS, heights, strict=True):
            shown, file = chromium.new_page(viewport={"width": width, "height": 1000}), out / f"{name}-{width}.png"
            shown.emulate_media(color_scheme=scheme)
            shown.goto(html.resolve().as_uri())
            top = shown.locator(start).first.bounding_box()["y"] - 48
            part = {"x": 0, "y": max(0, top), "width": width, "height": height}
            shown.screenshot(path=file, full_page=True, clip=part)
            shown.close()
            Image.open(file).quantize(128).save(file, optimize=True)  # flat colours: a third of the size


def main() -> int:
    """Makes the pictures in --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("which", nargs="*", help=", ".join(PICTURES))  # argparse checks an empty list against choices
    arguments = parser.parse_args()
    if unknown := set(arguments.which) - set(PICTURES):
        parser.error(f"no picture {', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.which or PICTURES:
        globals()[name](arguments.out, scheme=arguments.scheme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
