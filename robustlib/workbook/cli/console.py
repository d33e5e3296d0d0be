"""What the command line shows: tables, and a board of what runs (live on a terminal, lines elsewhere)."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from robustlib.workbook import tables

if TYPE_CHECKING:
    import pandas as pd

    from robustlib.evaluation import Progress
    from robustlib.evaluation.reference import Comparison
    from robustlib.runs import Run
    from robustlib.workbook.claims import Claim
    from robustlib.workbook.experiments import Job


STYLES = {"done": "green", "running": "cyan", "queued": "dim", "interrupted": "yellow"}  # any other state is red
VERDICTS = {
    tables.verdict_label(word): style for word, style in (("pass", "green"), ("amber", "yellow"), ("red", "bold red"))
}
EVERY = 15.0  # seconds between two lines about one running job where the output is no terminal


def console(*, stderr: bool = False) -> Console:
    """A console as wide as its terminal; 110 columns where the output goes to a file."""
    made = Console(stderr=stderr)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=110)


def table(frame: "pd.DataFrame", title: str = "") -> Group:
    """A DataFrame of text as a table under a title, verdicts in colour; too wide, its cells break over lines."""
    if frame.index.name:
        frame = frame.reset_index()
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in frame:
        drawn.add_column(str(name), overflow="fold")
    for row in frame.itertuples(index=False):
        drawn.add_row(*(Text(str(value), style=VERDICTS.get(str(value), "")) for value in row))
    return Group(*([Text(title, style="bold")] if title else []), drawn)


def verdicts(claims: Sequence["Claim"], runs: Sequence["Run"], seeds: Sequence[int]) -> Group:
    """What these runs say of the claims of their study."""
    from robustlib.workbook.claims import evaluate_claims

    found = tables.claims(evaluate_claims(claims, runs, seeds))
    return table(found.drop(columns=["source", "compared"]), "Claims")  # of which a terminal has no room


def headline(runs: Sequence["Run"]) -> Group | str:
    """The main numbers of those runs that are finished and evaluated."""
    from robustlib.evaluation import leaderboard

    board = leaderboard(run for run in runs if run.finished)
    if board.empty:
        return "No run was evaluated."
    frame = tables.leaderboard(board)
    columns = ["method", "arch", "seed", "changed", "clean", "worst case", "headline", "protocol", "minutes", "notes"]
    return table(frame[[name for name in columns if name in frame]], "Accuracy on test images (95 % interval)")


def follow(console: Console, status: Status) -> "Callable[[Progress], None]":
    """Shows the progress of an evaluation in a status line, and what it has to say on lines of their own."""

    def show(progress: "Progress") -> None:
        name = " · ".join(filter(None, (progress.attack, progress.component, progress.surrogate)))
        left = "" if progress.eta is None else f", {_clock(progress.eta)} left"
        status.update(f"{name}: {progress.done} of {progress.total} images{left}")
        if progress.note:
            console.print(Text(progress.note), soft_wrap=True)

    return show


def audited(audit: Mapping[str, Any], title: str) -> Group:
    """The checks of an audit, coloured by verdict, and the two badges."""
    colours = {"pass": "green", "amber": "yellow", "red": "red", "n/a": "dim"}
    frame, drawn = tables.checks(audit), Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in frame:
        drawn.add_column(str(name), overflow="fold")
    for check, row in zip(audit["checks"], frame.itertuples(index=False), strict=True):
        drawn.add_row(*(Text(str(cell), style=colours[check["verdict"]]) for cell in row[:4]), Text(str(row[4])))
    said = []
    for name, badge in audit["badges"].items():
        verdict = (f"{name}: {tables.verdict_label(badge['verdict'])}", f"bold {colours[badge['verdict']]}")
        said.append(Text.assemble(verdict, f"  {badge['text']}"))
    return Group(Text(title, style="bold"), drawn, *said)


def compared(comparison: "Comparison") -> Group:
    """Our AutoAttack beside the authors' own."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("AutoAttack", "robust accuracy", "broken by it alone (index)"):
        drawn.add_column(name, overflow="fold")
    sides = {
        "ours": (comparison.ours, comparison.only_ours),
        "the authors'": (comparison.theirs, comparison.only_theirs),
    }
    for name, (numbers, alone) in sides.items():
        interval = tables.percent(numbers["accuracy"], numbers["low"], numbers["high"])
        drawn.add_row(name, interval, ", ".join(map(str, alone)) or "none")
    said = f"Ours is {comparison.difference:+.1f} points from theirs, which took {_clock(comparison.seconds)}."
    return Group(Text("The authors' package on the same images", style="bold"), drawn, Text(said))


def planned(jobs: Sequence["Job"], rerun: bool) -> Table:
    """What `--dry-run` shows: every training, where it would go, and what would be done."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("training", "epochs", "run directory", "to do"):
        drawn.add_column(name, overflow="fold")
    for job in jobs:
        drawn.add_row(Text(job.name), str(job.epochs), Text(str(job.run.path)), _todo(job, rerun))
    return drawn


def _todo(job: "Job", rerun: bool) -> str:
    if rerun or job.run.status()["state"] == "new":
        return "train anew" if rerun and job.run.finished else "train"
    if not job.run.finished:
        return "resume"
    stale = ", but stale: --rerun renews it" if job.run.stale else ""
    return ("nothing: finished" if job.current else "evaluate: trained") + stale


class Board:
    """Shows how jobs stand; give it to `run_all` as `on_change`, inside `with`."""

    def __init__(self, console: Console, jobs: Sequence["Job"]) -> None:
        self.console, self.jobs = console, jobs
        self.said: dict[str, tuple[str, float]] = {}  # by job: its last line and when it was printed
        self.live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, statuses: Sequence[dict[str, Any]]) -> None:
        """Shows the statuses of all jobs, in their order."""
        if self.live:
            self.live.update(self._table(statuses))
        else:
            self._lines(statuses)

    def _table(self, statuses: Sequence[dict[str, Any]]) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("training", "state", "now", "elapsed"):
            drawn.add_column(name, overflow="ellipsis", no_wrap=True)
        for job, status in zip(self.jobs, statuses, strict=True):
            state = status["state"]
            style = STYLES.get(state, "red")
            drawn.add_row(Text(job.name), Text(state, style=style), Text(_now(job, status)), _elapsed(status))
        return drawn

    def _lines(self, statuses: Sequence[dict[str, Any]]) -> None:
        for job, status in zip(self.jobs, statuses, strict=True):
            state, now = status["state"], _now(job, status)
            last, when = self.said.get(job.name, ("queued", 0.0))
            soon = state == last.split(":")[0] and time.monotonic() - when < EVERY
            line = f"{state}: {now}" if now else state
            if line != last and not soon:
                self.said[job.name] = (line, time.monotonic())
                self.console.print(Text(f"{_elapsed(status):>8}  {job.name}  {line}"), soft_wrap=True)


def _now(job: "Job", status: dict[str, Any]) -> str:
    """What a job is doing: its epoch while it trains; why it ended, if not well."""
    if status["state"] not in ("running", "done"):
        return str(status.get("reason", ""))
    if status["state"] == "done":
        return ""
    row: dict[str, Any] = {}
    began = datetime.fromisoformat(status["started"]).timestamp()
    file = job.run.path / "metrics.jsonl"
    with suppress(OSError, ValueError, IndexError):
        if file.stat().st_mtime >= began:  # otherwise those of an earlier training
            row = json.loads(file.read_text().splitlines()[-1])
    if job.run.finished:
        return "evaluating"
    if not row:
        return "starting"
    accuracies = {"clean": "clean_val", "robust": "robust_val"}  # a model may not predict yet
    said = [f"{name} {row[key]:.1%}" for name, key in accuracies.items() if key in row]
    return " · ".join([f"epoch {row['epoch_total']}/{job.epochs}", *said])


def _elapsed(status: dict[str, Any]) -> str:
    if "started" not in status:
        return ""
    since = (datetime.now(UTC) - datetime.fromisoformat(status["started"])).total_seconds()
    return _clock(status.get("seconds", since))


def _clock(duration: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes}:{seconds:02d}"
