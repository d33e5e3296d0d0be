"""Looks over the built site: every address in it exists, and no page loads anything from elsewhere.

    python benchmarks/site_check.py docs/_build/html

Sphinx knows of references between its own pages; this knows of rendered reports, of files of the repository, and of what a browser would fetch.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from site_parts import REPOSITORY, ROOT

STATED = ("canonical", "license", "search")  # kinds of <link> that name a page and load none
ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
IMPORTED = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class Page(HTMLParser):
    """What a page names: its anchors, its addresses, and those that a browser would fetch by itself."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.anchors, self.addresses, self.fetched = file, set[str](), set[str](), set[str]()
        self.text = file.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag's id and addresses."""
        said = {name: value or "" for name, value in attrs}
        self.anchors.add(said.get("id", ""))
        named = {said[name] for name in ("href", "src", "data", "poster") if name in said}
        self.addresses |= named
        if tag != "a" and not (tag == "link" and set(said.get("rel", "").split()) & set(STATED)):
            self.fetched |= named


@cache
def page(file: Path) -> Page:
    """A page, read once."""
    return Page(file)


def pages(site: Path) -> list[Path]:
    """The pages of the site; the theme keeps templates among its static files."""
    return [file for file in sorted(site.rglob("*.html")) if "_static" not in file.relative_to(site).parts]


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """What a browser would fetch from another host, a sentence each."""
    for file in pages(site):
        fetched = [*filter(ELSEWHERE.match, page(file).fetched), *IMPORTED.findall(page(file).text)]
        yield from (f"{file.relative_to(site)} loads {address}" for address in fetched)
    for sheet in sorted(site.rglob("*.css")):
        yield from (f"{sheet.relative_to(site)} loads {address}" for address in IMPORTED.findall(sheet.read_text()))


def broken_links(site: Path) -> Iterator[str]:
    """Addresses that lead nowhere: pages, anchors and files of the site, and files of the repository."""
    for file in pages(site):
        wrong = (address for address in sorted(page(file).addresses) if not _exists(site, file, address))
        yield from (f"{file.relative_to(site)} names {address}" for address in wrong)


def _exists(site: Path, file: Path, address: str) -> bool:
    if address.startswith(REPOSITORY):
        return (ROOT / unquote(urlsplit(address).path.removeprefix(urlsplit(REPOSITORY).path))).exists()
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or address in ("", "#"):
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.is_file() or not target.is_relative_to(site):
        return False
    return not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in page(target).anchors


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    site = Path(arguments[0]).resolve()
    page.cache_clear()
    wrong = [*loaded_from_elsewhere(site), *broken_links(site)]
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    count = len(pages(site))
    print(f"{count} pages: {len(wrong) or 'no'} broken links or outside resources.")
    return int(bool(wrong) or not count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
