"""LaTeX to MathML, which every browser draws offline and without a script."""

import re
import xml.etree.ElementTree as ET
from itertools import groupby

from latex2mathml.converter import convert

from robustlib.errors import InputError

ENVIRONMENTS = re.compile(r"align\*?|aligned|split|equation\*?|gather\*?|cases|array|[pbvBV]?matrix|smallmatrix")
REWRITES = {  # spellings latex2mathml does not know -> ones that mean the same
    r"\\(begin|end)\{(?:aligned|align|gather\*?)\}": r"\\\1{align*}",
    r"\\arg(?![a-z])": r"\\operatorname{arg}",
    r"\\!": r"\\hspace{-0.167em}",
    r"\\colon(?![a-z])": r"\\mathrel{:}",
    r"\\[bB]igg?[lr]?\\\|": r"\\|",
}
OPERATORS = "±⧵⟹⟺¬~∼⟂⟨⟩⌊⌋⌈⌉|:;"  # latex2mathml writes them as identifiers, which have no spacing
LIMITS = {"max", "min", "sup", "inf", "lim", "argmax", "argmin", "∑", "∏", "⋃", "⋂"}
STRUCK = str.maketrans("0123456789", "𝟘𝟙𝟚𝟛𝟜𝟝𝟞𝟟𝟠𝟡")
CHILDREN = dict.fromkeys(("mfrac", "msub", "msup", "munder", "mover", "mroot"), 2) | {"msubsup": 3, "munderover": 3}
# Browsers draw "normal" alone; classes of style.css do these.
VARIANTS = ("bold", "bold-italic", "italic", "monospace", "sans-serif")


def to_mathml(formula: str, *, display: bool = False) -> str:
    """The `<math>` element of a LaTeX `formula` (without its dollar signs); `display` sets it on a line of its own."""
    source = formula.strip()
    depth = 0  # latex2mathml passes over braces without a partner and unknown environments in silence
    for brace in re.findall(r"(?<!\\)[{}]", source.replace(r"\\", "  ")):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            raise _unreadable(formula, "a '}' has no '{'")
    if depth or not source:
        raise _unreadable(formula, "a '{' has no '}'" if depth else "it is empty")
    for name in re.findall(r"\\begin\{(.*?)\}", source):
        if not ENVIRONMENTS.fullmatch(name):
            raise _unreadable(formula, f"the environment {name!r} is not known")
    for pattern, spelling in REWRITES.items():
        source = re.sub(pattern, spelling, source)
    try:
        tree = ET.fromstring(convert(source, display="block" if display else "inline"))
    except ET.ParseError as fault:
        raise _unreadable(formula, f"what comes out is no well-formed XML ({fault})") from fault
    except Exception as fault:  # latex2mathml raises a class of its own for each mistake
        raise _unreadable(formula, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(fault).__name__)) from fault
    _repair(tree)
    for node in tree.iter():
        if "\\" in (node.text or ""):
            raise _unreadable(formula, f"the command {node.text!r} is not known")
        if len(node) != CHILDREN.get(node.tag, len(node)):
            raise _unreadable(formula, f"<{node.tag}> has {len(node)} of its {CHILDREN[node.tag]} arguments")
    if display:
        _set_limits(tree)
    tree.set("alttext", formula.strip())
    return ET.tostring(tree, encoding="unicode")


def _unreadable(formula: str, reason: str) -> InputError:
    return InputError(f"The formula {formula.strip()!r} cannot be drawn: {reason}. Correct its LaTeX in the notebook.")


def _repair(tree: ET.Element) -> None:
    """Turns latex2mathml's output, which is MathML 3, into the MathML Core that browsers draw, in place; no library does it."""
    for node in tree.iter():
        node.tag = node.tag.rpartition("}")[2]  # HTML knows <math> without its namespace
        if node.tag == "mo" and len(node):  # \mathop{...}: an operator may only hold text
            node.tag = "mrow"
        if node.tag == "mi" and node.text and node.text in OPERATORS:
            node.tag, node.text = "mo", node.text.replace("~", "∼")
            node.set("stretchy", "false")
        if align := node.attrib.pop("columnalign", None):
            node.set("class", f"math-{align}")
    for node in tree.iter():
        children = []
        for upright, run in groupby(list(node), lambda child: child.tag == "mi" and child.get("mathvariant")):
            letters = list(run)
            if upright:  # one word of single letters, as in \mathrm{argmax}
                letters[0].text = "".join(letter.text or "" for letter in letters)
            children += letters[:1] if upright else letters
        node[:] = children
        variant = node.get("mathvariant", "normal")
        if variant == "double-struck":  # only digits still carry it, as in the indicator function
            node.text = (node.text or "").translate(STRUCK)
        if variant != "normal":
            del node.attrib["mathvariant"]
        if variant in VARIANTS:
            node.set("class", f"math-{variant}")


def _set_limits(node: ET.Element) -> None:
    r"""Puts the limits of \max, \sum ... under them in a displayed formula, but not inside fractions or indices."""
    base = "".join(node[0].itertext()) if len(node) else ""
    if node.tag in ("msub", "msubsup") and base in LIMITS:
        node.tag = node.tag.replace("msub", "munder").replace("sup", "over")
    if node.tag in ("math", "mrow", "mtable", "mtr", "mtd"):
        for child in node:
            _set_limits(child)
