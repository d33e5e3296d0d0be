"""The index of the reports: for each preset its leaderboard, and what its comparison shows of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib.errors import InputError
from robustlib.report.board import boards
from robustlib.report.lift import Section, lift
from robustlib.report.page import TEMPLATES
from robustlib.runs import write_atomic

if TYPE_CHECKING:
    from pandas import DataFrame

TITLE = "What holds under attack"
COMMAND = re.compile(r"(robustlib .+?)(?= makes them anew|$)")


def write_index(
    reports_dir: Path,
    rows: "DataFrame",
    pages: Mapping[str, str],
    *,
    compare: Sequence[tuple[str, str]] = (),
    incomplete: "DataFrame | None" = None,
    views: Mapping[str, Path] | None = None,
) -> Path:
    """Writes `reports_dir`/index.html and returns its path.

    Args:
        reports_dir: where the reports are.
        rows: the frame of `robustlib.evaluation.leaderboard`, one row a run; an empty one gives a page that says which
            command makes runs.
        pages: path of a run -> address of its page, relative to `reports_dir`; runs without one get no link.
        compare: (title, address) of the pages that put runs side by side; those below a preset's directory stand with it.
        incomplete: the frame of `robustlib.evaluation.incomplete`: runs that are listed with what they lack.
        views: preset -> its executed compare.ipynb, whose cells tagged "index" are shown below its leaderboard.

    Raises:
        InputError: a column is missing, a view cannot be drawn, or the page cannot be written.
    """
    missing = [name for name in ("method", "seed", "clean", "worst", "path") if len(rows) and name not in rows]
    if missing:
        raise InputError(f"The leaderboard has no column {missing[0]!r}: give what evaluation.leaderboard returns.")
    records = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
    made = boards(records, pages)
    elsewhere = _attach(made, compare, views or {})
    lacking = [] if incomplete is None else _incomplete(incomplete)
    choices = {"dataset": _choice(board["dataset"] for board in made)}
    choices["threat"] = _choice(row["threat"] for board in made for row in board["rows"])
    target = Path(reports_dir) / "index.html"
    page = fill("index.html.j2", boards=made, compare=elsewhere, runs=len(records), incomplete=lacking, choices=choices)
    write_atomic(target, page)
    return target


def fill(template: str, **values: Any) -> str:
    """A page from one of the templates, which knows the version and the index's title besides `values`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from robustlib import __version__

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**{"title": TITLE, "version": __version__} | values)


def _attach(
    made: list[dict[str, Any]], compare: Sequence[tuple[str, str]], views: Mapping[str, Path]
) -> list[tuple[str, str]]:
    """Gives each preset's first board the preset's links and views; returns the links that belong to none."""
    left, number = list(compare), 1
    for board in made:
        board["links"] = [link for link in left if link[1].startswith(f"{board['preset']}/")]
        left = [link for link in left if link not in board["links"]]
        first = next(other for other in made if other["preset"] == board["preset"]) is board
        sections: list[Section] = []
        if first and board["preset"] in views:
            sections, number = lift(views[board["preset"]], "index", number)
        board["sections"] = sections
    return left


def _choice(values: Any) -> list[str]:
    """What a filter offers; nothing where there is no choice."""
    found = sorted({value for value in values if value})
    return found if len(found) > 1 else []


def _incomplete(frame: "DataFrame") -> list[dict[str, Any]]:
    """Runs that lack something; `missing` in pieces, of which every second is a command."""
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    return [row | {"missing": COMMAND.split(str(row["missing"]))} for row in rows]
