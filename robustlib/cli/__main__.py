"""`python -m robustlib.cli` is the command `robustlib`."""

from robustlib.cli import main

main()
