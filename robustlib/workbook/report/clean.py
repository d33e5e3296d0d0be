"""HTML that shows itself and does nothing else: all that a notebook holds enters a page through `clean`."""

import re
from typing import Any

import nh3
from bs4 import BeautifulSoup

ELEMENTS = (
    "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li"
    " mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var"
    " math merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow ms mspace msqrt msub msubsup msup mtable mtd"
    " mtext mtr munder munderover"
)
# What stands in these is no text for people; of all other elements the words stay.
WORDLESS = "applet audio embed frameset head iframe noembed noframes object script select style svg template video"
NAMES = (
    "alt class colspan height open rowspan scope start title width"
    " accent accentunder alttext columnlines columnspacing depth display displaystyle fence largeop linethickness lspace"
    " mathcolor mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel separator stretchy symmetric"
    " voffset"
)
# A link is a place in the page, a file beside it, or a site, whose address `to_soup` writes out. No other scheme, which needs a colon.
ADDRESSES = {
    ("a", "href"): re.compile(r"\s*(https?:)?//\S*\s*|[\w./#%-]*", re.IGNORECASE),
    ("img", "src"): re.compile(r"data:image/[\w.+;=/,-]*"),
}
KEPT = {tag: {*NAMES.split(), *(name for owner, name in ADDRESSES if owner == tag)} for tag in ELEMENTS.split()}
RULES: dict[str, Any] = {"tags": set(KEPT), "attributes": KEPT, "clean_content_tags": set(WORDLESS.split())}


def parse(html: str) -> BeautifulSoup:
    """HTML as a document."""
    return BeautifulSoup(html, "html.parser")


def clean(html: str) -> str:
    """The elements and attributes of an HTML fragment that neither run nor load anything, nor style or submit; closed where open."""
    return nh3.clean(html, attribute_filter=_kept, url_schemes={"data", "http", "https"}, link_rel=None, **RULES)


def _kept(tag: str, name: str, value: str) -> str | None:
    address = ADDRESSES.get((tag, name))
    return value if address is None or address.fullmatch(value) else None
