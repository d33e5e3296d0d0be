"""The commands on batches that are under way, from any terminal that sees their folder: status, cancel."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from robustlib.errors import InputError
from robustlib.workbook.options import Reports, out

if TYPE_CHECKING:
    from robustlib.workbook.task import Training


def status(
    reports: Reports = Path("reports"),
    every: Annotated[bool, Option("--all", help="Also those that ended well.")] = False,
) -> None:
    """Show how trainings stand: state, epoch, robust accuracy so far, time left.

    It reads what robustlib run, study and benchmark keep beside the pages, whoever started them and on which machine.
    """
    from robustlib.workbook import console

    jobs, statuses = _known(reports)
    if not jobs:
        raise InputError(f"There are no trainings in {reports}: give --reports, or start some with `robustlib run`.")
    pairs = [pair for pair in zip(jobs, statuses, strict=True) if every or pair[1]["state"] != "done"]
    if pairs:
        out.print(console.jobs_table(*zip(*pairs, strict=True)))
    done = sum(said["state"] == "done" for said in statuses)
    out.print(f"{done} of {len(jobs)} done.")


def cancel(
    trainings: Annotated[list[str] | None, Argument(help="Names as `robustlib status` shows them, or parts.")] = None,
    every: Annotated[bool, Option("--all", help="All that are under way.")] = False,
    reports: Reports = Path("reports"),
) -> None:
    """Stop trainings that are queued or running; the command that started them goes on with the others.

    What is cancelled goes on from its last epoch when it is asked for again.
    """
    from robustlib.workbook.task import UNDER_WAY

    jobs, statuses = _known(reports)
    under_way = [job for job, said in zip(jobs, statuses, strict=True) if said["state"] in UNDER_WAY]
    names = [job.name for job in under_way]
    if not under_way:
        raise InputError(f"Nothing is queued or running in {reports}: give --reports, or see `robustlib status --all`.")
    if bool(trainings) == every:
        raise InputError(f"Say which trainings to cancel, or --all. Under way: {'; '.join(names)}.")
    for asked in trainings or ():
        if not any(asked in name for name in names):
            raise InputError(f"No training under way is named {asked!r}. Under way: {'; '.join(names)}.")
    chosen = [job for job in under_way if every or any(asked in job.name for asked in trainings or ())]
    for job in chosen:
        job.task.cancel_path.touch()
    out.print(f"Asked to stop, which takes seconds: {'; '.join(job.name for job in chosen)}.")


def _known(reports: Path) -> tuple[list["Training"], list[dict[str, Any]]]:
    """The trainings whose pages are below `reports`, and their statuses: those under way first, then by name."""
    from robustlib.runs import Run
    from robustlib.workbook.task import UNDER_WAY, Task, Training

    known = []
    for file in reports.rglob("*.status.json"):
        task = Task(Path(), {}, file.with_name(file.name.removesuffix(".status.json") + ".ipynb"))
        try:
            said = task.status()
            about = said["about"]
            job = Training(Run(Path(about["run"])), task, str(about["name"]), int(about["epochs"]))
        except (InputError, KeyError, TypeError, ValueError):  # damaged, of an older version, or a comparison
            continue
        known.append((said["state"] not in UNDER_WAY, job.name, job, said | _forsaken(said)))
    known.sort(key=lambda entry: entry[:2])
    return [entry[2] for entry in known], [entry[3] for entry in known]


def _forsaken(said: dict[str, Any]) -> dict[str, str]:
    """What to say of a queued task whose command is gone from this machine; {} if it is there, or nobody can say."""
    if said["state"] != "queued" or "slurm" in said or said.get("host") != platform.node():
        return {}
    try:
        os.kill(int(said["pid"]), 0)
    except (OSError, KeyError, ValueError):
        return {"state": "interrupted", "reason": "The command that queued it is gone; the same one starts it."}
    return {}
