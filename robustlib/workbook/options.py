"""What commands share: their options, and where they print."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from rich.console import Console
from rich.text import Text
from typer import Argument, Exit, Option

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
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=HOW)]
Devices = Annotated[
    int, Option(min=1, help="How many share each training and evaluation, a process each.", rich_help_panel=HOW)
]
Search = Annotated[
    str,
    Option("--precision", help="Of searches: auto, 32-true or bf16-mixed. Verdicts are float32.", rich_help_panel=HOW),
]
Trust = Annotated[bool, Option("--trust-code", help="Execute the code that a run from elsewhere names.")]
Attacks = Annotated[
    list[str] | None,
    Option(
        "--attack",
        help="Another attack: 'torchattacks:PGD(steps=20)', 'foolbox:LinfDeepFoolAttack()', 'my_attacks.py:Mine(k=3)'; repeatable.",
    ),
]
RunDirectory = Annotated[Path, Argument(callback=check_path, help="A run directory, as `robustlib list` shows it.")]


def announce(index: Path, problems: Sequence[str], code: int = 1, said: str = "Report") -> None:
    """Says what went wrong and where the report is; exits with `code` if anything did."""
    for problem in problems:
        say(problem)
    out.print(f"{said}: {index}", soft_wrap=True)
    if problems:
        raise Exit(code)


@dataclass(frozen=True)
class Shared:
    """The options that `run`, `study` and `benchmark` share."""

    examples: Annotated[int, Option(min=0, help="Test images to attack; 0 for the usual number.")] = 0
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would run, and stop.")] = False
    rerun: Annotated[bool, Option("--rerun", help="Make anew what is finished or stale.")] = False
    dataset: Annotated[
        str,
        Option(
            help="cifar10 or another one, or your images, as in photos@64; else the preset's.", rich_help_panel=DATA
        ),
    ] = ""
    data_root: DataRoot = ""
    download: Annotated[bool, Option("--download", help="Fetch missing data there.", rich_help_panel=DATA)] = False
    jobs: Annotated[int, Option(help="How many side by side.", rich_help_panel=HOW)] = 1
    device: Device = "auto"
    devices: Devices = 1
    logger: Annotated[str, Option(help="tensorboard: its events go beside each run.", rich_help_panel=WHERE)] = ""
    precision: Annotated[str, Option(help="auto, 32-true or bf16-mixed.", rich_help_panel=HOW)] = "auto"
    timeout: Annotated[float | None, Option(help="Seconds for each notebook.", rich_help_panel=HOW)] = None
    engine: Annotated[str, Option(help="local processes, ray or slurm.", rich_help_panel=HOW)] = "local"
    gpus_per_task: Annotated[
        float | None, Option(help="GPUs of each notebook; 0.5 where two may share one.", rich_help_panel=HOW)
    ] = None
    address: Annotated[str, Option(help="Of a Ray cluster: host:port; else $RAY_ADDRESS.", rich_help_panel=HOW)] = ""
    slurm: Annotated[
        list[str] | None, Option(help="An option of sbatch: partition=gpu, time=240; repeatable.", rich_help_panel=HOW)
    ] = None
    runs: Runs = Path("runs")
    reports: Reports = Path("reports")

    @property
    def settings(self) -> dict[str, Any]:
        """What an engine is told besides how many and how long."""
        return {
            "gpus_per_task": self.gpus_per_task,
            "address": self.address,
            "slurm": tuple(self.slurm or ()),
        }

    def absolute(self) -> Self:
        """The same with absolute paths, for engines whose workers are elsewhere."""
        root = os.path.abspath(os.path.expanduser(self.data_root)) if self.data_root else ""
        return replace(self, runs=self.runs.absolute(), reports=self.reports.absolute(), data_root=root)


@dataclass(frozen=True)
class Judged(Shared):
    """Those of `benchmark`, which has a network to look at before it attacks it."""

    dry_run: Annotated[bool, Option("--dry-run", help="Check the network, attack nothing, keep nothing.")] = False


@dataclass(frozen=True)
class Network:
    """The options of `benchmark` that say what the network and the images are."""

    weights: Annotated[str, Option(help="A file of weights, or a pattern such as 'checkpoints/*.pt'.")] = ""
    images: Annotated[
        str, Option(help="A folder with a subfolder a class, a CSV or an .npz.", rich_help_panel=DATA)
    ] = ""
    size: Annotated[int, Option(min=0, help="Pixels to which these are scaled.", rich_help_panel=DATA)] = 0
    name: Annotated[str, Option(help="What pages call it; else the name of its weights' file.")] = ""
    threat: Annotated[str, Option(help="linf:8/255 or l2:0.5; else the data set's.")] = ""
    mean: Annotated[str, Option(help="Numbers a channel, where it wants normalised images: 0.485,0.456,0.406.")] = ""
    std: Annotated[str, Option(help="Likewise.")] = ""
    layer: Annotated[str, Option(help="Whose answers are its features; else the input of its last linear layer.")] = ""
    output: Annotated[str, Option(help="Where the logits are in its answer: a key, an attribute or a position.")] = ""
    model_args: Annotated[str, Option(help="""JSON for what builds it: '{"depth": 28}'.""")] = ""
    threads: Annotated[
        int, Option(min=0, help="CPU threads a network; 0 shares the cores among --jobs.", rich_help_panel=HOW)
    ] = 0
    stochastic: Annotated[bool, Option("--stochastic", help="It answers at random: average over draws.")] = False


def with_options(*groups: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a command whose first parameters are dataclasses of these kinds: they are spelled out for typer, an option for each field."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [inspect.signature(group).parameters for group in groups]

        @functools.wraps(command)
        def spelled_out(**values: Any) -> None:
            made = [
                group(**{name: values.pop(name) for name in names})
                for group, names in zip(groups, options, strict=True)
            ]
            command(*made, **values)

        own = list(inspect.signature(command).parameters.values())[len(groups) :]
        every = [parameter for names in reversed(options) for parameter in names.values()]
        spelled_out.__signature__ = inspect.Signature([*own, *every])  # type: ignore[attr-defined]
        return spelled_out

    return decorate
