"""How Sphinx builds the site (`make site`): warnings are errors, formulas are MathML, and no page loads anything from elsewhere."""

import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks")]

import robustlib.workbook  # noqa: E402,F401,I001  before nbformat, which it spares a second and a half
import site_parts  # noqa: E402
import site_reports  # noqa: E402
from docutils.nodes import SkipNode  # noqa: E402
from sphinx_autodoc_typehints import format_annotation  # noqa: E402

from robustlib import __version__  # noqa: E402
from robustlib.workbook.report import to_mathml  # noqa: E402

# sphinx-autodoc-typehints 3.6 calls what Sphinx 10 will not have
warnings.filterwarnings("ignore", message=".*set_application", category=DeprecationWarning)

project, author, copyright = "robustlib", "The robustlib developers", "The robustlib developers, Apache-2.0"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinxcontrib.bibtex",
    "sphinxcontrib.typer",
]
exclude_patterns = ["_build", "_generated"]
html_extra_path = ["_generated/site"]  # rendered reports, as `robustlib run` leaves them

# Markdown. [text](repo:PATH) is a file of the repository; site_check.py asks whether it exists.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_url_schemes: dict[str, Any] = {
    "http": None,
    "https": None,
    "repo": {"url": f"{site_parts.REPOSITORY}{{{{path}}}}"},
}
myst_heading_anchors = 3
nb_execution_mode = "force"  # the tutorial reads committed results
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # on a machine that does other things
nb_ipywidgets_js: dict[str, Any] = {}  # which would come from elsewhere
nb_mime_priority_overrides = [("html", "text/html", 0)]

# Python
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings write `name`
always_document_param_types = True
typehints_defaults = "comma"
napoleon_numpy_docstring = False
suppress_warnings = [
    "config.cache",  # of typehints_formatter, a function: nothing is wrong
    "sphinx_autodoc_typehints.forward_reference",  # of names that are imported for type checkers only
]

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
bibtex_reference_style = "author_year"

html_theme = "pydata_sphinx_theme"
html_title = "robustlib"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_sidebars = {"*": [], "methods/*": ["sidebar-nav-bs"], "api/*": ["sidebar-nav-bs"]}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "robustlib"},
    "github_url": site_parts.REPOSITORY.partition("/blob/")[0],
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _renderer(display: bool) -> tuple[Any, None]:
    """How a formula is written: within its line, or on a line of its own, which scrolls where it is too wide."""

    def visit(writer: Any, node: Any) -> None:
        formula = to_mathml(node.astext(), display=display)
        writer.body.append(f'<div class="equation" tabindex="0">{formula}</div>' if display else formula)
        raise SkipNode

    return visit, None


def typehints_formatter(annotation: Any, config: Any) -> str | None:
    """A link from a public class in a signature to its page of the API, checked numbers as plain ones; None where Sphinx knows better."""
    known = site_parts.public_names()
    if get_origin(annotation) is Annotated:
        return format_annotation(get_args(annotation)[0], config)
    return f":py:class:`~{known[annotation]}`" if inspect.isclass(annotation) and annotation in known else None


def _plain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: nothing else in them is markup, least of all |f| or x_adv."""
    lines[:] = [
        re.sub(r"`[^`]*`|^ +\w+:|([*|_\\])", lambda sign: "\\" + sign[1] if sign[1] else sign[0], line)
        for line in lines
    ]


def setup(app: Any) -> None:
    """Writes what is generated before Sphinx looks for sources."""
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon makes fields of it
    app.add_html_math_renderer("mathml", _renderer(False), _renderer(True))
    site_parts.write(HERE)
    site_reports.render_all(HERE / "_generated" / "site" / "reports")
