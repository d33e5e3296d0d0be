"""The application that commands register with, and where they write."""

import typer
from rich.text import Text

from robustlib import console

app = typer.Typer(
    help="Train, attack and compare adversarially robust models. [bold]robustlib run[/bold] trains and reports all baselines on the embedded digits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out, err = console.console(), console.console(stderr=True)


def say(sentence: str, more: str = "") -> None:
    """A problem, on stderr."""
    err.print(Text.assemble(("Error: ", "bold red"), sentence), soft_wrap=True)
    if more:
        err.print(Text(more, style="dim"), soft_wrap=True)


def warn(sentence: str) -> None:
    """What to know, on stderr; nothing is stopped by it."""
    err.print(Text.assemble(("Warning: ", "bold yellow"), sentence), soft_wrap=True)
