"""Executed notebooks as self-contained HTML pages, and the index that lists them.

A page loads nothing: figures are data URIs, equations MathML, style sheet and script stand in it, and a content
security policy makes the browser refuse the rest.
"""

from robustlib.workbook.report.index import write_index
from robustlib.workbook.report.maps import write_atlas
from robustlib.workbook.report.mathml import formulas, to_mathml
from robustlib.workbook.report.page import render
