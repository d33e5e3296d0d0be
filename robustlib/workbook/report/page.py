"""An executed notebook as one HTML page that needs no other file and no network."""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from itertools import count, groupby
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser
from traitlets.config import Config

from robustlib import __version__
from robustlib.errors import InputError
from robustlib.runs import digest, write_atomic
from robustlib.workbook.report.clean import clean, parse
from robustlib.workbook.report.mathml import to_mathml
from robustlib.workbook.tables import VERDICTS, percent

TEMPLATES = Path(__file__).parent / "templates"
# The richest of an output's forms is shown; there are no scripts among them.
DISPLAYED = ["text/html", "text/latex", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
OVERWRITTEN = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)  # what a line said before it began anew
SIGNED = {text: word for word, text in VERDICTS.items()}
LONG = 40  # characters of a cell that is a sentence
STACKED = 12  # columns beside those of sentences that a telephone can still scroll
MANY = 8  # columns of a table that is set in smaller type; one fewer where there are sentences
NUMBER = re.compile(  # 0.1, 3e-4, 75.2 %, 40.8 ± 1.2 %, 75.2 % (71.3–78.8)
    r"nan|NaN|–|—|-|inf|"
    r"|[-+−±]?\s*[\d.,]+(e[-+]?\d+)?(\s*±\s*[\d.,]+)?\s*(%|s|min|points)?(\s*±\s*[\d.,]+)?(\s*\([\d., –%-]+\))?"
)


def is_current(notebook: Path, html: Path, *, title: str, index: str = "") -> bool:
    """Whether the page `html` is whole, and `render` would make it of the same notebook by the same code."""
    page = html.read_bytes() if html.is_file() else b""
    return _made_of(notebook, title, index).encode() in page[:2000] and page.rstrip().endswith(b"</html>")


def _made_of(notebook: Path, *words: str) -> str:
    """A digest of all that decides what a page says."""
    code = sorted(file for file in Path(__file__).parent.rglob("*.*") if file.suffix != ".pyc")
    return digest(*(file.read_bytes() for file in (*code, notebook)), "\0".join([__version__, *words]))


def render(notebook: Path, html: Path, *, title: str, index: str = "") -> Path:
    """Writes an executed notebook as the page `html` and returns it.

    Equations become MathML, code is folded, figures keep their alt text and offer their numbers as CSV. The footer says what
    made the page: papermill's parameters and times, and every entry of the notebook's metadata `robustlib` (name -> text).
    A notebook that stopped with an error gives a page that says so. Links to other sites become text with the address. The title is
    its only <h1>; `index` is the relative address of the index page ("" for no link). Nothing of the notebook runs in the page: see
    `clean`. InputError for a notebook that cannot be read, and for a formula or an image of its Markdown cells that cannot be drawn.
    """
    notebook, html, nb = Path(notebook), Path(html), read(notebook)
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    errors = [f"{o.ename}: {o.evalue}".strip().splitlines()[0] for o in outputs if o.output_type == "error"]
    ran = nb.metadata.get("papermill", {})
    settings = ", ".join(f"{name} = {value!r}" for name, value in (ran.get("parameters") or {}).items())
    facts = {
        "Notebook": Path(ran.get("input_path") or notebook).name,
        "Parameters": settings or "the notebook's defaults",
        "Finished": str(ran.get("end_time") or "")[:19].replace("T", " "),
        "Time": "{:.0f} min {:02.0f} s".format(*divmod(round(ran["duration"]), 60)) if ran.get("duration") else "",
        "Software": f"robustlib {__version__}, Python {nb.metadata.get('language_info', {}).get('version', 'unknown')}",
    }
    facts |= {str(name): str(value) for name, value in nb.metadata.get("robustlib", {}).items()}
    known = {name: value for name, value in facts.items() if value}
    made = _made_of(notebook, title, index)
    shown = {"title": title, "index": index, "failure": "".join(errors[:1]), "facts": known, "made": made}
    soup = to_soup(nb, notebook, html.stem, count(1), shown)
    _order_headings(soup)
    _lead_with_the_result(soup)
    write_atomic(html, str(soup))
    return html


def read(path: Path) -> Any:
    """An executed notebook, its printed lines joined, without what papermill writes about an error: the page says it better."""
    try:
        nb = nbformat.read(path, as_version=4)
    except FileNotFoundError as fault:
        raise InputError(f"There is no notebook {path}: execute it first (robustlib run).") from fault
    except Exception as fault:  # nbformat has many words for it
        raise InputError(f"{path} is no readable notebook ({fault}): execute it again.") from fault
    nb.cells = [cell for cell in nb.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    for cell in nb.cells:
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    return nb


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """Outputs with neighbours of one stream as one text; nbconvert takes minutes for a line of some hundred thousand characters."""
    groups = [list(group) for _, group in groupby(outputs, lambda output: output.get("name", id(output)))]
    for first, *more in groups:
        if "name" in first:
            first.text = OVERWRITTEN.sub("", "".join(output.text for output in (first, *more)))
    return [first for first, *_ in groups]


class _Parser(MathInlineParser):
    """Finds formulas as Jupyter does, except that "$5 and $10" is money."""

    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        "inline_math_tex": r"(?<!\$)\$(?P<math_inline_tex>(?![\s$])(?:\\[\s\S]|[^$`\\])+?)(?<!\s)\$(?![\d$])"
    }


class _Renderer(IPythonRenderer):
    """Draws formulas as MathML, where nbconvert leaves them to a script; outputs (no `embed_images`) show no file of this machine."""

    def inline_math(self, body: str, display: bool = False) -> str:
        try:
            return to_mathml(body, display=display)
        except InputError:
            if self.embed_images:
                raise
            return f"<code>{escape(body)}</code>"

    def block_math(self, body: str) -> str:
        return f'<span class="equation">{self.inline_math(body, display=True)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return str(super().image(text, url, title)) if self.embed_images else escape(text)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str, output: bool = False) -> str:
        """nbconvert's filter of this name, with our parser and renderer. HTML in an `output`, which may say what files say, is text."""
        place, attached = context["resources"]["metadata"], context.get("cell", {}).get("attachments", {})
        options = {"attachments": attached, "path": place["path"], "exclude_anchor_links": True}
        renderer = _Renderer(escape=output, embed_images=not output, **options)
        html = str(MarkdownWithMath(renderer, inline=_Parser(hard_wrap=False)).render(source))
        for image in parse(html).find_all("img", src=re.compile(r"^(?!data:)")):
            said = f"The page of {place['name']} would load {str(image['src'])[:120]!r}: a report stands alone."
            raise InputError(f"{said} Put the file beside the notebook, or display the figure itself.")
        return clean(html)


@cache
def _exporter() -> _Exporter:
    """One for all pages, so that the templates are compiled once."""
    settings = Config(NbConvertBase={"display_data_priority": DISPLAYED})
    folders = {f"extra_template_{kind}": [str(TEMPLATES)] for kind in ("basedirs", "paths")}
    exporter = _Exporter(config=settings, template_name="report", **folders)
    for ours in (clean, source_hash):
        exporter.register_filter(ours.__name__, ours)
    return exporter


def to_soup(nb: Any, path: Path, name: str, numbers: Iterator[int], shown: Mapping[str, Any]) -> BeautifulSoup:
    """A notebook that lies at `path` as a document that loads nothing; `shown` is what the template puts around the cells.

    Below each figure its numbers are offered as a CSV file, named after `name` and the figure's number from `numbers`.
    """
    page = {"facts": {}, **shown, "name": name, "next_figure": lambda: next(numbers)}
    resources = {"page": page, "metadata": {"path": str(path.parent), "name": path.name}}
    soup = parse(_exporter().from_notebook_node(nb, resources=resources)[0])
    _write_out_links(soup)
    tidy(soup)
    return soup


def _write_out_links(soup: BeautifulSoup) -> None:
    """Turns links that leave the page into text with the address, which serves on paper, and links to notebooks into their names."""
    for link in soup.find_all("a", href=re.compile(r"^[\w./-]+\.ipynb$")):
        link.name, link.attrs = "em", {}
    for link in soup.find_all("a", href=re.compile(r"^\s*(https?:)?//", re.IGNORECASE)):
        address = re.sub(r"^\s*(https?:)?//", "", str(link["href"])).rstrip("/")
        shown = re.sub(r"^https?://", "", link.get_text()).rstrip("/")
        link.name, link.attrs = "span", {}
        if shown == address:
            link.string = address
        else:
            after = soup.new_tag("span", attrs={"class": "address"})
            after.string = f" ({address})"
            link.insert_after(after)


def tidy(soup: BeautifulSoup) -> None:
    """Gives pictures words and tables columns that line up; what is too wide scrolls by itself, also by keyboard."""
    for image in soup.find_all("img"):
        if not str(image.get("alt") or "").strip():  # at least the heading it stands under places it
            heading = image.find_previous(["h1", "h2", "h3", "h4"])
            words = parse(re.sub(r"<math.*?</math>", "…", str(heading))).get_text(strip=True) if heading else ""
            image["alt"] = f"Figure in “{words}”" if words else "Figure without description"
    for number, table in enumerate(soup.find_all("table"), 1):
        _tidy_table(table)
        region = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": f"Table {number}"}
        table.wrap(soup.new_tag("div", attrs=region))
    for text in soup.select("pre, .equation"):
        text["tabindex"] = "0"


def _tidy_table(table: Tag) -> None:
    """Right-aligns columns of numbers, marks those of sentences, which a telephone sets below the others, and colours verdicts."""
    heads, rows = ([row.find_all(["td", "th"]) for row in table.select(f"{part} tr")] for part in ("thead", "tbody"))
    long: list[int] = []
    plain = not table.select("[colspan], [rowspan]")
    for column in range(max(map(len, rows), default=0) if plain else 0):
        cells = [row[column] for row in rows if column < len(row)]
        texts = [cell.get_text(strip=True) for cell in cells]
        numbers = any(texts) and all(NUMBER.fullmatch(text) for text in texts)
        kind = "num" if numbers else "words" if any(len(text) > LONG for text in texts) else ""
        headings = [row[column] for row in heads if column < len(row)]
        long += [column] * (kind == "words")
        for cell in cells if kind == "words" and column and headings else []:
            cell["data-label"] = headings[-1].get_text(strip=True)
        for cell in [*cells, *headings] if kind else []:
            cell["class"] = " ".join([*map(str, cell.get("class") or []), kind])
    short = max(map(len, rows), default=0) - len(long)
    kinds = [*map(str, table.get("class") or [])]
    kinds += ["dense"] * (max(map(len, heads), default=0) >= (MANY - 1 if long else MANY))
    kinds += ["stacks", f"of-{short}"] if long and 1 < short <= STACKED else []
    table["class"] = " ".join(kinds)
    for cell in table.select("tbody td"):
        word = SIGNED.get(cell.get_text(strip=True))
        if word is not None:  # a verdict of the audit
            cell["class"] = " ".join(["verdict", word.replace("/", "") or "none"])
    for cell in table.select("thead th"):
        cell["scope"] = "col"


def _order_headings(soup: BeautifulSoup) -> None:
    """Leaves one <h1>, the title; the notebook's first one becomes the line below it, others <h2>; then the contents."""
    (masthead,), (body,) = soup.select("header.masthead"), soup.select("main")
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
        masthead.insert_after(parse(fill_template("contents.html.j2", headings=headings)))


def _lead_with_the_result(soup: BeautifulSoup) -> None:
    """Moves what the cell tagged "result" shows to the top, below the title; its code stays where it is."""
    (masthead,) = soup.select("header.masthead")
    if outputs := soup.select(".cell.result > :not(details.code)"):
        result = soup.new_tag("section", attrs={"class": "result", "aria-label": "Result"})
        masthead.insert_after(result)
        for output in outputs:
            result.append(output.extract())


def fill_template(template: str, **values: Any) -> str:
    """A page from one of the templates, which knows robustlib's version besides `values`."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "source_hash": source_hash}
    return environment.get_template(template).render(version=__version__, **values)


def source_hash(name: str) -> str:
    """How a content security policy names the style sheet or script `name`: nothing else in a page may style or run."""
    text = (TEMPLATES / name).read_text().removesuffix("\n")  # as Jinja includes it
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
