"""Executed notebooks as self-contained HTML pages, the index that lists them, and the atlas of feature spaces.

A page loads nothing: figures are data URIs, equations MathML, style sheet and script stand in it, and a content
security policy makes the browser refuse the rest, scripts and styles that are not its own among it.
"""

from robustlib.workbook.report.index import write_atlas, write_index
from robustlib.workbook.report.mathml import to_mathml
from robustlib.workbook.report.page import is_current, render
