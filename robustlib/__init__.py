"""robustlib: a research workbook for adversarially robust representations."""

__version__ = "0.1.0"
