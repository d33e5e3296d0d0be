"""The command line: robustlib run | study | report | evaluate | audit | list | lab. It parses and prints, nothing else."""

from collections.abc import Sequence

from robustlib.errors import InputError
from robustlib.workbook.cli.commands import app, out, say


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 2 on bad input (a sentence on stderr), 1 if a notebook failed, 130 on Ctrl-C."""
    try:
        app(args=arguments, prog_name="robustlib", standalone_mode=True)
    except InputError as error:
        say(str(error))
        raise SystemExit(2) from None
