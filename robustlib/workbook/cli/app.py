"""The application that commands register with, and where they write.

The options that several commands share.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from robustlib.workbook.cli import console

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


WHERE, HOW, DATA = "Where results go", "How it runs", "Data"
Runs = Annotated[Path, typer.Option(help="Directory of all runs.", rich_help_panel=WHERE)]
Reports = Annotated[Path, typer.Option(help="Directory of the pages.", rich_help_panel=WHERE)]
Seeds = Annotated[str, typer.Option(help="0-2 or 0,3,5.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="A hyper-parameter, e.g. beta=3.0 or eps=8/255; repeatable.")
]
DatasetName = Annotated[str, typer.Option(help="Another data set than the preset's.", rich_help_panel=DATA)]
DataRoot = Annotated[str, typer.Option(help="Directory of the data; else $ROBUSTLIB_DATA.", rich_help_panel=DATA)]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data there.", rich_help_panel=DATA)]
Jobs = Annotated[int, typer.Option(help="Trainings side by side.", rich_help_panel=HOW)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel=HOW)]
Precision = Annotated[str, typer.Option(help="auto, 32-true or bf16-mixed.", rich_help_panel=HOW)]
Timeout = Annotated[float | None, typer.Option(help="Seconds for each notebook.", rich_help_panel=HOW)]
Engine = Annotated[str, typer.Option(help="local processes, or ray.", rich_help_panel=HOW)]
Examples = Annotated[int, typer.Option(min=0, help="Test images to attack; 0 for the preset's number.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Train anew what is finished or stale.")]
RunDirectory = Annotated[Path, typer.Argument(help="A run directory, as `robustlib list` shows it.")]
