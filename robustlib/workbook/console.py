"""What the command line shows: tables, and how jobs stand (live on a terminal, lines elsewhere)."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from robustlib.errors import printable
from robustlib.figures.canvas import clock
from robustlib.runs import Run
from robustlib.workbook import tables
from robustlib.workbook.task import Training

if TYPE_CHECKING:  # these import torch, for seconds, and `status` is a command that people repeat
    from robustlib.evaluation import Progress
    from robustlib.evaluation.reference import Comparison
    from robustlib.workbook.claims import Claim
    from robustlib.workbook.experiments import Job

STATES = {"done": "green", "running": "cyan", "queued": "dim", "interrupted": "yellow"}  # any other state is red
COLOURS = {"pass": "green", "amber": "yellow", "red": "red", "n/a": "dim"}  # of verdicts
CELLS = {tables.verdict_label(verdict): colour for verdict, colour in COLOURS.items()}
AROUND = 5  # lines of a terminal that no row of the live table may take
EVERY = 15.0  # seconds between two lines about one running job where the output is no terminal


def _text(words: object, style: str = "") -> Text:
    """What files and users say, without markup and what would steer the terminal."""
    return Text(printable(words), style)


def _empty(*columns: str, overflow: Literal["fold", "ellipsis"] = "fold") -> Table:
    """A table whose cells break over lines, or are cut ("ellipsis"), where it is too wide."""
    headers = [Column(name, overflow=overflow, no_wrap=overflow == "ellipsis") for name in columns]
    return Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False)


def table(frame: pd.DataFrame, title: str = "") -> Group:
    """A DataFrame of text as a table under a title, verdicts in colour."""
    frame = frame.reset_index() if frame.index.name else frame
    drawn = _empty(*map(str, frame))
    for row in frame.itertuples(index=False):
        drawn.add_row(*(_text(value, CELLS.get(str(value), "")) for value in row))
    return Group(*([_text(title, "bold")] if title else []), drawn)


def claims_table(claims: "Sequence[Claim]", runs: Sequence[Run], seeds: Sequence[int]) -> Group:
    """What these runs say of the claims of their study, without columns for which a terminal has no room."""
    from robustlib.workbook.claims import evaluate_claims

    runs = [run for run in runs if not run.damage]
    return table(tables.claims(evaluate_claims(claims, runs, seeds)).drop(columns=["source", "compared"]), "Claims")


def results_table(runs: Sequence[Run]) -> Group | str:
    """The main numbers of those runs that are finished, evaluated and not damaged."""
    from robustlib.evaluation import leaderboard

    board = leaderboard(run for run in runs if not run.damage and run.finished)
    if board.empty:
        return "No run was evaluated."
    frame = tables.leaderboard(board)
    columns = ["method", "arch", "seed", "changed", "clean", "worst case", "headline", "protocol", "minutes", "notes"]
    return table(frame[[name for name in columns if name in frame]], "Accuracy on test images (95 % interval)")


def evaluation_tables(run: Run, results: Mapping[str, Any], unseen: pd.DataFrame | None) -> Iterator[Group | str]:
    """The accuracies of an evaluation, and what else was measured of the run."""
    stale = " · stale" if run.stale else ""
    title = f"{run.name} · {results['threat']} · {results['n']} test images{stale}"
    yield table(tables.accuracies(results).drop(columns=["images", "protocol"]), title)
    if words := tables.adaptive_summary(results):
        yield table(tables.adaptive(results), words)
    if randomness := run.read("randomness.json"):
        yield table(tables.randomness(results, randomness), "What its randomness is worth")
        if words := tables.plateau_summary(results):
            yield words
    if unseen is not None:
        yield table(tables.unseen(unseen), "Known and unseen attacks")


def audit_table(audit: Mapping[str, Any], title: str) -> Group:
    """The checks of an audit, coloured by verdict, and the two badges."""
    frame = tables.checks(audit)
    drawn = _empty(*map(str, frame))
    for check, row in zip(audit["checks"], frame.itertuples(index=False), strict=True):
        drawn.add_row(*(_text(cell, COLOURS[check["verdict"]]) for cell in row[:4]), _text(row[4]))
    badges = []
    for name, badge in audit["badges"].items():
        verdict = (f"{name}: {tables.verdict_label(badge['verdict'])}", f"bold {COLOURS[badge['verdict']]}")
        badges.append(Text.assemble(verdict, printable(f"  {badge['text']}")))
    return Group(_text(title, "bold"), drawn, *badges)


def reference_table(comparison: "Comparison") -> Group:
    """Our AutoAttack beside the authors' own."""
    rows = []
    for name, own in {"ours": "ours", "the authors'": "theirs"}.items():
        share, alone = getattr(comparison, own), getattr(comparison, f"only_{own}")
        accuracy = tables.percent(share["accuracy"], share["low"], share["high"])
        rows.append((name, accuracy, ", ".join(map(str, alone)) or "none"))
    frame = pd.DataFrame(rows, columns=["AutoAttack", "robust accuracy", "broken by it alone (index)"])
    words = f"Ours is {comparison.difference:+.1f} points from theirs, which took {clock(comparison.seconds)}."
    return Group(table(frame, "The authors' package on the same images"), Text(words))


def plan_table(jobs: "Sequence[Job]", rerun: bool) -> Table:
    """What `--dry-run` shows: every training, where it would go, and what would be done."""
    drawn = _empty("training", "epochs", "run directory", "to do")
    for job in jobs:
        damage = job.run.damage
        if damage and not rerun:
            todo = f"damaged: {damage}"
        elif rerun or job.run.status()["state"] == "new":
            todo = "train anew" if rerun and (damage or job.run.finished) else "train"
        elif not job.run.finished:
            todo = "resume"
        else:
            todo = "nothing: finished" if job.current else "evaluate: trained"
            todo += ", but stale: --rerun renews it" if job.run.stale else ""
        drawn.add_row(_text(job.name), str(job.epochs), _text(job.run.path), todo)
    return drawn


def progress_line(console: Console, status: Status) -> "Callable[[Progress], None]":
    """Shows the progress of an evaluation in a status line, and its notes on lines of their own."""

    def show(progress: "Progress") -> None:
        name = " · ".join(filter(None, (progress.attack, progress.component, progress.surrogate)))
        left = "" if progress.eta is None else f", {clock(progress.eta)} left"
        status.update(_text(f"{name}: {progress.done} of {progress.total} images{left}"))
        if progress.note:
            console.print(_text(progress.note), soft_wrap=True)

    return show


@contextmanager
def job_monitor(console: Console, jobs: Sequence[Training]) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Shows how jobs stand, for `run_all` to call with the statuses of all: a live table on a terminal, else lines."""
    printed: dict[str, tuple[str, float]] = {}  # by job: its last line and when it was printed

    def print_news(statuses: Sequence[dict[str, Any]]) -> None:
        for job, status in zip(jobs, statuses, strict=True):
            last, when = printed.get(job.name, ("queued", 0.0))
            if status["state"] == last.split(":")[0] and time.monotonic() - when < EVERY:
                continue  # not every epoch of a fast one, nor a file read for each of hundreds
            line = ": ".join(filter(None, (status["state"], activity(job, status))))
            if line != last:
                printed[job.name] = (line, time.monotonic())
                console.print(_text(f"{_elapsed(status):>8}  {job.name}  {line}"), soft_wrap=True)

    def draw(statuses: Sequence[dict[str, Any]]) -> None:
        live.update(_on_one_screen(jobs, statuses, console.height - AROUND))

    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            yield draw
    else:
        yield print_news


def _on_one_screen(jobs: Sequence[Training], statuses: Sequence[dict[str, Any]], lines: int) -> Table | Group:
    """The jobs' table; of more jobs than `lines` those that run, then those that ended badly, and how many there are of each state."""
    order = ["running", *(state for state in STATES if state not in ("running", "queued", "done")), "queued", "done"]
    ranks = [order.index(s["state"]) if s["state"] in order else 0.5 for s in statuses]
    chosen = sorted(sorted(range(len(jobs)), key=ranks.__getitem__)[: max(lines, 1)])
    drawn = jobs_table([jobs[k] for k in chosen], [statuses[k] for k in chosen])
    if len(chosen) == len(jobs):
        return drawn
    counts = Counter(printable(status["state"]) for status in statuses)
    return Group(drawn, Text(f"of {len(jobs)}: " + ", ".join(f"{n} {state}" for state, n in counts.most_common())))


def jobs_table(jobs: Sequence[Training], statuses: Sequence[dict[str, Any]]) -> Table:
    """How jobs stand: state, epoch and accuracies so far, the time that they took, and about what is left of their trainings."""
    drawn = _empty("training", "state", "now", "elapsed", "left", overflow="ellipsis")
    for job, status in zip(jobs, statuses, strict=True):
        state = Text(printable(status["state"]), style=STATES.get(status["state"], "red"))
        drawn.add_row(_text(job.name), state, _text(activity(job, status)), _elapsed(status), _left(job, status))
    return drawn


def activity(job: Training, status: dict[str, Any]) -> str:
    """What a job is doing: its epoch while it trains, with the accuracies that were last measured; why it ended, if not well."""
    if status["state"] != "running":
        return "" if status["state"] == "done" else str(status.get("reason", ""))
    if not job.run.damage and job.run.finished:
        return "evaluating"
    if not (rows := _rows(job, status)):
        return "starting"
    last = {name: row[f"{name}_val"] for row in rows for name in ("clean", "robust") if f"{name}_val" in row}
    parts = [f"{name} {value:.1%}" for name, value in last.items()]
    return " · ".join([f"epoch {rows[-1]['epoch_total']}/{job.epochs}", *parts])


def _rows(job: Training, status: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of the training that is under way; none where there are only those of an earlier one."""
    file, began = job.run.path / "metrics.jsonl", datetime.fromisoformat(status["started"]).timestamp()
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return rows if file.stat().st_mtime >= began else []
    except (OSError, ValueError):
        return []


def _left(job: Training, status: dict[str, Any]) -> str:
    """What is left of a training at the pace of its last epochs; the evaluation after it is not in it."""
    rows = _rows(job, status) if status["state"] == "running" else []
    paces = [row["seconds"] for row in rows if row.get("seconds")][-5:]
    rest = job.epochs - rows[-1]["epoch_total"] if rows else 0
    return clock(sum(paces) / len(paces) * rest) if paces and rest > 0 else ""


def _elapsed(status: dict[str, Any]) -> str:
    if "started" not in status:
        return ""
    since = (datetime.now(UTC) - datetime.fromisoformat(status["started"])).total_seconds()
    return clock(status.get("seconds", since))
