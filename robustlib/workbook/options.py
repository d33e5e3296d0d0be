"""What commands share: their options, and where they print."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from robustlib.errors import check_path, printable

Plain = functools.partial(Console, markup=False, emoji=False)  # a path may hold [/x] or :x:
out, err = Plain(), Plain(stderr=True)
if not (out.is_terminal or "COLUMNS" in os.environ):
    out.width = 110  # of a file


def say(sentence: str, kind: str = "Error", style: str = "bold red") -> None:
    """A problem, on stderr."""
    err.print(Text.assemble((f"{kind}: ", style), printable(sentence)), soft_wrap=True)


WHERE, HOW, DATA = "Where results go", "How it runs", "Data"

Runs = Annotated[Path, Option(help="Directory of all runs.", callback=check_path, rich_help_panel=WHERE)]
Reports = Annotated[Path, Option(help="Directory of the pages.", callback=check_path, rich_help_panel=WHERE)]
DataRoot = Annotated[
    str, Option(help="Directory of the data; else $ROBUSTLIB_DATA.", callback=check_path, rich_help_panel=DATA)
]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel=HOW)]
Search = Annotated[
    str,
    Option("--precision", help="Of searches: auto, 32-true or bf16-mixed. Verdicts are float32.", rich_help_panel=HOW),
]
Attacks = Annotated[
    list[str] | None,
    Option(
        "--attack",
        help="Another attack: 'torchattacks:PGD(steps=20)', 'foolbox:LinfDeepFoolAttack()', 'my_attacks.py:Mine(k=3)'; repeatable.",
    ),
]
RunDirectory = Annotated[Path, Argument(callback=check_path, help="A run directory, as `robustlib list` shows it.")]


@dataclass(frozen=True)
class Shared:
    """The options that `run` and `study` share."""

    examples: Annotated[int, Option(min=0, help="Test images to attack; 0 for the preset's number.")] = 0
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would run, and stop.")] = False
    rerun: Annotated[bool, Option("--rerun", help="Train anew what is finished or stale.")] = False
    dataset: Annotated[str, Option(help="Another data set than the preset's.", rich_help_panel=DATA)] = ""
    data_root: DataRoot = ""
    download: Annotated[bool, Option("--download", help="Fetch missing data there.", rich_help_panel=DATA)] = False
    jobs: Annotated[int, Option(help="Trainings side by side.", rich_help_panel=HOW)] = 1
    device: Device = "auto"
    precision: Annotated[str, Option(help="auto (the preset's), 32-true or bf16-mixed.", rich_help_panel=HOW)] = "auto"
    timeout: Annotated[float | None, Option(help="Seconds for each notebook.", rich_help_panel=HOW)] = None
    engine: Annotated[str, Option(help="local processes, or ray.", rich_help_panel=HOW)] = "local"
    runs: Runs = Path("runs")
    reports: Reports = Path("reports")


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, `shared`, is spelled out for typer: an option for each field of `Shared`."""
    options = inspect.signature(Shared).parameters

    @functools.wraps(command)
    def spelled_out(**values: Any) -> None:
        shared = Shared(**{name: values.pop(name) for name in options})
        command(shared, **values)

    _, *own = inspect.signature(command).parameters.values()
    spelled_out.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore[attr-defined]
    return spelled_out
