"""One executed notebook as one self-contained HTML page.

What a page makes of figures and tables: words, links to their numbers, columns that line up.
"""

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.runs import write_atomic
from robustlib.workbook.report.mathml import replace_formulas, to_mathml
from robustlib.workbook.tables import VERDICTS

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag


SIGNED = {text: word for word, text in VERDICTS.items()}
LONG = 40  # characters of a cell that is a sentence
NUMBER = re.compile(  # 0.1, 3e-4, 75.2 %, 40.8 ± 1.2 %, 75.2 % (71.3–78.8)
    r"nan|NaN|–|—|-|inf|"
    r"|[-+−±]?\s*[\d.,]+(e[-+]?\d+)?(\s*±\s*[\d.,]+)?\s*(%|s|min|points)?(\s*±\s*[\d.,]+)?(\s*\([\d., –%-]+\))?"
)


def parse(html: str) -> "BeautifulSoup":
    """HTML as a document."""
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")


def tidy(soup: "BeautifulSoup") -> None:
    """Gives pictures words and tables columns that line up; what is too wide scrolls by itself, also by keyboard."""
    _describe_images(soup)
    for number, table in enumerate(soup.find_all("table"), 1):
        _tidy_table(table)
        region = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": f"Table {number}"}
        table.wrap(soup.new_tag("div", attrs=region))
    for text in soup.find_all("pre"):
        text["tabindex"] = "0"


def offer_data(soup: "BeautifulSoup | Tag", page: str, first: int = 1) -> int:
    """Puts a link to a figure's numbers below each figure that has some: one CSV file, named after page and figure.

    Args:
        soup: what holds the figures, numbered in their order.
        page: the page's name, without ".html".
        first: the number of the first figure.

    Returns:
        The number of the next figure.
    """
    figures = soup.find_all("figure")
    for number, figure in enumerate(figures, first):
        csv = str(figure.img.attrs.pop("data-csv", "")) if figure.img else ""
        if csv:
            address = "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv.encode()).decode()
            link = f'<a download="{page}-figure-{number}.csv" href="{address}">Data (CSV)</a>'
            spoken = f'<span class="sr-only"> of figure {number}</span>'
            figure.append(parse(f"<figcaption>{link.replace('</a>', spoken + '</a>')}</figcaption>"))
    return first + len(figures)


def _describe_images(soup: "BeautifulSoup") -> None:
    """An image without words of its own is at least placed by the heading it stands under."""
    for image in soup.find_all("img"):
        if not str(image.get("alt") or "").strip():
            heading = image.find_previous(["h1", "h2", "h3", "h4"])
            words = (
                re.sub("\ue000\\d+\ue001", "…", heading.get_text(strip=True)) if heading else ""
            )  # formulas are not in yet
            image["alt"] = f"Figure in “{words}”" if words else "Figure without description"


def _tidy_table(table: "Tag") -> None:
    """Right-aligns columns of numbers, marks those of sentences, which are not to be a word wide, and colours verdicts."""
    for name in ("border", "style"):
        table.attrs.pop(name, None)
    rows = [row.find_all(["td", "th"]) for row in table.select("tbody tr")]
    heads = [row.find_all(["td", "th"]) for row in table.select("thead tr")]
    plain = not table.select("[colspan], [rowspan]")
    for column in range(max((len(row) for row in rows), default=0) if plain else 0):
        cells = [row[column] for row in rows if column < len(row)]
        texts = [cell.get_text(strip=True) for cell in cells]
        numbers = any(texts) and all(NUMBER.fullmatch(text) for text in texts)
        kind = "num" if numbers else "words" if any(len(text) > LONG for text in texts) else ""
        for cell in [*cells, *(row[column] for row in heads if column < len(row))] if kind else []:
            kept = [str(name) for name in cell.get_attribute_list("class") if name]
            cell["class"] = " ".join([*kept, kind])
    for cell in table.select("tbody td"):
        word = SIGNED.get(cell.get_text(strip=True))
        if word is not None:  # a verdict of the audit
            cell["class"] = " ".join(["verdict", word.replace("/", "") or "none"])
    for cell in table.select("thead th"):
        cell["scope"] = "col"


TEMPLATES = Path(__file__).parent / "templates"
DISPLAYED = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]  # no scripts
LOADING = ("src", "srcset", "data", "poster", "background", "xlink:href")  # attributes that make a browser fetch
FETCHED_STYLE = re.compile(r"@import[^;]*|url\(\s*['\"]?(?!data:|['\"]?#)[^)]*\)", re.IGNORECASE)


def render(notebook: Path, html: Path, *, title: str, index: str = "") -> Path:
    """Writes an executed notebook as a page that needs no other file and no network; returns `html`.

    Markdown equations become MathML, code is folded, figures keep their alt text and offer their numbers as CSV, and the
    footer says what made the page: papermill's parameters and times, and every entry of the notebook's own metadata
    `robustlib` (name -> text). Links to other sites become text with the address beside it.

    Args:
        notebook: the executed .ipynb; one that stopped with an error gives a page that says so.
        html: the page to write.
        title: its only <h1>; the notebook's own first heading becomes the line below it.
        index: relative address of the index page, linked at the top; "" for no link.

    Raises:
        InputError: no readable notebook, a formula that cannot be drawn, or something that would be loaded.
    """
    nb = read(Path(notebook))
    page = {"title": title, "index": index, "failure": _failure(nb), "facts": _facts(nb, Path(notebook))}
    soup, equations = to_soup(nb, Path(notebook), page)
    _order_headings(soup)
    offer_data(soup, Path(html).stem)
    write_atomic(Path(html), to_text(soup, equations))
    return Path(html)


def to_soup(nb: Any, path: Path, page: dict[str, Any]) -> tuple["BeautifulSoup", list[str]]:
    """A notebook as a document that loads nothing, and the equations that `to_text` puts into it.

    Args:
        nb: as `read` gives it; its formulas are replaced by tokens in place.
        path: where it lies, for the pictures beside it.
        page: title, index, failure and facts of the template.

    Raises:
        InputError: a formula that cannot be drawn, or something that would be loaded.
    """
    equations: list[str] = []
    _take_formulas(nb, equations)
    soup = parse(_export(nb, path.parent, page))
    _refuse_loading(soup, path)
    _spell_out_links(soup)
    tidy(soup)
    return soup, equations


def to_text(soup: "BeautifulSoup | Tag", equations: Sequence[str]) -> str:
    """A document, or a part of one, as HTML with its equations."""
    return re.sub("\ue000(\\d+)\ue001", lambda token: equations[int(token[1])], str(soup))


def read(path: Path) -> Any:
    """An executed notebook.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    import nbformat

    try:
        nb = nbformat.read(path, as_version=4)
    except FileNotFoundError as fault:
        raise InputError(f"There is no notebook {path}: execute it first (robustlib run).") from fault
    except Exception as fault:  # nbformat has many words for it
        raise InputError(f"{path} is no readable notebook ({fault}): execute it again.") from fault
    # papermill's own words about an error go: the page has better ones
    nb.cells = [cell for cell in nb.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    return nb


def _take_formulas(nb: Any, equations: list[str]) -> None:
    """Replaces formulas by tokens that markdown leaves alone; their MathML is put in at the end."""

    def token(formula: str, display: bool) -> str:
        math = to_mathml(formula, display=display)
        equations.append(f'<span class="equation" tabindex="0">{math}</span>' if display else math)
        return f"\ue000{len(equations) - 1}\ue001"

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = replace_formulas(cell.source, token)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/latex" in data and "text/html" not in data:  # IPython.display.Math
                data["text/markdown"] = data["text/latex"].replace(r"\displaystyle", "")
            if "text/markdown" in data:
                data["text/markdown"] = replace_formulas(data["text/markdown"], token)


def _failure(nb: Any) -> str:
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    errors = [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    return errors[0].strip().splitlines()[0] if errors else ""


def _facts(nb: Any, path: Path) -> dict[str, str]:
    """What the footer says: name -> value, only what is known."""
    from robustlib import __version__

    ran = nb.metadata.get("papermill", {})
    parameters = ran.get("parameters") or {}
    settings = ", ".join(f"{name} = {value!r}" for name, value in parameters.items())
    facts = {
        "Notebook": Path(ran.get("input_path") or path).name,
        "Parameters": settings or "the notebook's defaults",
        "Finished": str(ran.get("end_time") or "")[:19].replace("T", " "),
        "Time": "{:.0f} min {:02.0f} s".format(*divmod(round(ran["duration"]), 60)) if ran.get("duration") else "",
        "Software": f"robustlib {__version__}, Python {nb.metadata.get('language_info', {}).get('version', 'unknown')}",
    }
    facts |= {str(name): str(value) for name, value in nb.metadata.get("robustlib", {}).items()}
    return {name: value for name, value in facts.items() if value}


def _export(nb: Any, folder: Path, page: dict[str, Any]) -> str:
    html, _ = _exporter().from_notebook_node(nb, resources={"page": page, "metadata": {"path": str(folder)}})
    return str(html)


@cache
def _exporter() -> Any:
    """One for all pages, so that the templates are compiled once."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    settings = Config()
    settings.NbConvertBase.display_data_priority = DISPLAYED
    settings.CoalesceStreamsPreprocessor.enabled = True  # lines printed one by one are one text
    return HTMLExporter(
        config=settings,
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],
        exclude_anchor_links=True,
        embed_images=True,
    )


def _refuse_loading(soup: "BeautifulSoup", path: Path) -> None:
    for node in soup.find_all(True):
        fetched = [str(node[name]) for name in LOADING if node.has_attr(name)]
        if node.name == "link":
            fetched.append(str(node.get("href", "")))
        style = node.get_text() if node.name == "style" else str(node.get("style", ""))
        outside = [address for address in fetched if not address.startswith("data:")] + FETCHED_STYLE.findall(style)
        if outside:
            raise InputError(
                f"The page of {path.name} would load {outside[0][:120]!r} (<{node.name}>): a report stands alone. "
                "Put the file beside the notebook, or display the figure itself."
            )


def _spell_out_links(soup: "BeautifulSoup") -> None:
    """Links that leave the page become their text and the address, which also serves on paper."""
    for link in soup.find_all("a", href=re.compile(r"^\s*(https?:)?//", re.IGNORECASE)):
        address = re.sub(r"^\s*(https?:)?//", "", str(link["href"])).rstrip("/")
        shown = re.sub(r"^https?://", "", link.get_text()).rstrip("/")
        link.name, link.attrs = "span", {}
        if shown == address:
            link.string = address
            continue
        note = soup.new_tag("span", attrs={"class": "address"})
        note.string = f" ({address})"
        link.insert_after(note)


def _order_headings(soup: "BeautifulSoup") -> None:
    """One <h1>, the title; the notebook's first one becomes the line below it, others <h2>; then the contents."""
    masthead, body = soup.select_one(".masthead"), soup.select_one("main")
    if masthead is None or body is None:
        raise AssertionError("The report template has lost its masthead or its main part.")
    for place, heading in enumerate(body.find_all("h1")):
        heading.name = "h2"
        if place == 0:
            heading.name, heading.attrs = "p", {"class": "lede"}
            masthead.append(heading.extract())
    headings = [heading for heading in body.find_all("h2") if heading.get_text(strip=True)]
    for number, heading in enumerate(headings, 1):
        words = re.sub(r"[^a-z0-9]+", "-", heading.get_text().lower()).strip("-")
        heading["id"] = f"{words or 'section'}-{number}"
    if len(headings) > 2:
        entries = "".join(f'<li><a href="#{h["id"]}">{h.decode_contents()}</a></li>' for h in headings)
        masthead.insert_after(parse(f'<nav class="contents" aria-label="Contents"><ol>{entries}</ol></nav>'))
