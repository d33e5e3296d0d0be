"""Executed notebooks as self-contained HTML pages, and the index that lists them.

A page loads nothing: figures are data URIs, equations MathML, style sheet and script stand in it, and a content
security policy makes the browser refuse the rest.
"""

from robustlib.report.atlas import write_atlas
from robustlib.report.index import write_index
from robustlib.report.mathml import formulas, to_mathml
from robustlib.report.page import render

__all__ = ["formulas", "render", "to_mathml", "write_atlas", "write_index"]
