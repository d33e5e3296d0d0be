"""`python -m robustlib.workbook.cli` is the command `robustlib`."""

from robustlib.workbook.cli import main

main()
