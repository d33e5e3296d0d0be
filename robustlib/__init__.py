"""robustlib: a research workbook for adversarially robust representations."""

import sys

__version__ = "0.1.0"

if sys.platform == "win32":
    raise ImportError("robustlib runs on Linux and macOS, and on Windows within WSL: it needs their locks and signals.")
