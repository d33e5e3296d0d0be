"""What the index shows of an executed notebook: the outputs of its cells tagged "index", under their headings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from robustlib.report.outputs import offer_data
from robustlib.report.page import DISPLAYED, read, to_soup, to_text

if TYPE_CHECKING:
    from bs4 import Tag

TAG = "index"
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
SHOWN = DISPLAYED[: DISPLAYED.index("text/plain")]


class Section(NamedTuple):
    """A part of the index: HTML that begins with its <h3>, and its room: "half" a row, "wide" (words beside a figure), "full"."""

    html: str
    kind: str


def lift(notebook: Path, page: str, first: int = 1) -> tuple[list[Section], int]:
    """The outputs of the cells tagged "index": pictures, tables and markdown, under the heading that stands before them.

    A section is the nearest heading, its first paragraph, and the outputs of all tagged cells below it; one without any
    output is left out.

    Args:
        notebook: the executed .ipynb.
        page: the name of the page that shows them, for the files of the figures' data.
        first: number of the first figure.

    Returns:
        The sections, and the number of the next figure.

    Raises:
        InputError: as `robustlib.report.render`.
    """
    nb = read(notebook)
    nb.cells = list(_cells(nb))
    soup, equations = to_soup(nb, notebook, {"title": "", "index": "", "failure": "", "facts": {}})
    groups: list[list[Tag]] = []
    for part in soup.select("main > *"):
        groups = [*groups, [part]] if part.name == "section" else [*groups[:-1], [*groups[-1], part]]
    sections = []
    for group in groups:
        for part in group:
            first = offer_data(part, page, first)
        words, *outputs = (to_text(part, equations) for part in group)
        sections.append(Section(f'{words}<div class="outputs">{"".join(outputs)}</div>', _kind(group)))
    return _fill_rows(sections), first


def _cells(nb: Any) -> Iterator[Any]:
    """A cell of words for each section, then its cells of outputs, without their code."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    words, told = "", None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (headings := list(HEADING.finditer(cell.source))):
            paragraph = cell.source[headings[-1].end() :].strip().split("\n\n")[0]
            words = f"### {headings[-1][1]}\n\n{paragraph}"
        outputs = [o for o in cell.get("outputs", []) if _shown(o)] if TAG in cell.metadata.get("tags", []) else []
        if outputs:
            if words != told:
                yield new_markdown_cell(words)
            told = words
            yield new_code_cell("", outputs=outputs)


def _shown(output: Any) -> bool:
    data = output.get("data", {})
    return any(str(data.get(kind, "")).strip() for kind in SHOWN)


def _kind(group: "list[Tag]") -> str:
    figures = sum(len(part.find_all("figure")) for part in group)
    return "half" if figures == 1 and not any(part.find("table") for part in group) else "full"


def _fill_rows(sections: list[Section]) -> list[Section]:
    """Of neighbours that take half a row each, the last gets a whole one where their number is odd."""
    filled, halves = list(sections), 0
    for place, section in enumerate(sections):
        halves = halves + 1 if section.kind == "half" else 0
        last = place + 1 == len(sections) or sections[place + 1].kind != "half"
        if halves % 2 and last:
            filled[place] = section._replace(kind="wide")
    return filled
