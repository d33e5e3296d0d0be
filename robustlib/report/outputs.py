"""What a page makes of figures and tables: words, links to their numbers, columns that line up."""

import base64
import re
from typing import TYPE_CHECKING

from robustlib.tables import VERDICTS

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
