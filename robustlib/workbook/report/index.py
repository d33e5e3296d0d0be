"""The index of the reports: for each preset its leaderboard, and what its comparison shows of it.

What the index shows of an executed notebook: the outputs of its cells tagged "index", under their headings.

The boards of the index: each preset's cards and leaderboard, as the template shows them.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from robustlib.errors import InputError
from robustlib.runs import write_atomic
from robustlib.workbook.report.page import DISPLAYED, TEMPLATES, offer_data, read, to_soup, to_text
from robustlib.workbook.tables import VERDICTS, gravest

if TYPE_CHECKING:
    from bs4 import Tag
    from pandas import DataFrame


TAG = "index"
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
SHOWN = DISPLAYED[: DISPLAYED.index("text/plain")]


class Section(NamedTuple):
    """A part of the index: HTML that begins with its <h3>, and its room: "half" a row, "wide" (words beside a figure), "full"."""

    html: str
    kind: str


def lift(notebook: Path, page: str, first: int = 1) -> tuple[list[Section], int]:
    """The outputs of the cells tagged "index": pictures, tables and markdown, under the heading that stands before them.

    A section is the nearest heading, its first paragraph, and the outputs of all tagged cells below it; one without any
    output is left out.

    Args:
        notebook: the executed .ipynb.
        page: the name of the page that shows them, for the files of the figures' data.
        first: number of the first figure.

    Returns:
        The sections, and the number of the next figure.

    Raises:
        InputError: as `robustlib.workbook.report.render`.
    """
    nb = read(notebook)
    nb.cells = list(_cells(nb))
    soup, equations = to_soup(nb, notebook, {"title": "", "index": "", "failure": "", "facts": {}})
    groups: list[list[Tag]] = []
    for part in soup.select("main > *"):
        groups = [*groups, [part]] if part.name == "section" else [*groups[:-1], [*groups[-1], part]]
    sections = []
    for group in groups:
        for part in group:
            first = offer_data(part, page, first)
        words, *outputs = (to_text(part, equations) for part in group)
        sections.append(Section(f'{words}<div class="outputs">{"".join(outputs)}</div>', _kind(group)))
    return _fill_rows(sections), first


def _cells(nb: Any) -> Iterator[Any]:
    """A cell of words for each section, then its cells of outputs, without their code."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    words, told = "", None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (headings := list(HEADING.finditer(cell.source))):
            paragraph = cell.source[headings[-1].end() :].strip().split("\n\n")[0]
            words = f"### {headings[-1][1]}\n\n{paragraph}"
        outputs = [o for o in cell.get("outputs", []) if _shown(o)] if TAG in cell.metadata.get("tags", []) else []
        if outputs:
            if words != told:
                yield new_markdown_cell(words)
            told = words
            yield new_code_cell("", outputs=outputs)


def _shown(output: Any) -> bool:
    data = output.get("data", {})
    return any(str(data.get(kind, "")).strip() for kind in SHOWN)


def _kind(group: "list[Tag]") -> str:
    figures = sum(len(part.find_all("figure")) for part in group)
    return "half" if figures == 1 and not any(part.find("table") for part in group) else "full"


def _fill_rows(sections: list[Section]) -> list[Section]:
    """Of neighbours that take half a row each, the last gets a whole one where their number is odd."""
    filled, halves = list(sections), 0
    for place, section in enumerate(sections):
        halves = halves + 1 if section.kind == "half" else 0
        last = place + 1 == len(sections) or sections[place + 1].kind != "half"
        if halves % 2 and last:
            filled[place] = section._replace(kind="wide")
    return filled


AUDITED = ("headline", "protocol")
UNAUDITED = "no checks were made; robustlib audit makes them"
STALE = "its method, an attack or a measure gives other numbers today; robustlib run --rerun renews it"


class Column(NamedTuple):
    """A column of the leaderboard: where it comes from, and how it is shown and sorted."""

    key: str
    label: str
    kind: str  # "number" or "text"
    help: str = ""
    sort: str = "none"  # how the page arrives


PERCENTAGES = (  # what matters most comes first, so that a telephone shows it
    Column("clean", "Clean", "number", "accuracy on untouched test images"),
    Column(
        "worst", "Worst case", "number", "right under every attack, on the model and on its surrogates", "descending"
    ),
    Column("fgsm", "FGSM", "number", "one gradient step"),
    Column("pgd20", "PGD-20", "number", "20 steps of projected gradient ascent"),
    Column("pgd50x10", "PGD-50×10", "number", "50 steps, the worst of 10 random starts"),
    Column("cw50", "CW-50", "number", "50 steps on the margin loss of Carlini and Wagner"),
    Column("pgd_eot", "PGD+EOT", "number", "steps along the mean gradient of several draws of a randomised model"),
    Column("autoattack", "AutoAttack", "number", "APGD, targeted APGD, targeted FAB and Square in turn"),
)
COLUMNS = (
    Column("title", "Method", "text"),
    Column("arch", "Network", "text"),
    Column("threat", "Threat", "text"),
    Column("seed", "Seed", "number"),
    *PERCENTAGES[:2],
    Column("audit", "Audit", "text", "what the checks say of the worst case, and of the method's own protocol"),
    *PERCENTAGES[2:],
    Column("minutes", "Minutes", "number", "time of training"),
    Column("epochs", "Epochs", "number"),
)


def boards(records: list[dict[str, Any]], pages: Mapping[str, str]) -> list[dict[str, Any]]:
    """One board for each preset and data set, in the order of their first rows.

    Args:
        records: the rows of `robustlib.evaluation.leaderboard`.
        pages: path of a run -> address of its page.

    Returns:
        Dicts of preset, dataset, name, facts (a line on what all rows share), cards, columns and rows.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        preset = str(record.get("preset") or record.get("dataset") or "runs")
        groups.setdefault((preset, str(record.get("dataset") or preset)), []).append(record)
    return [
        {
            "preset": preset,
            "dataset": dataset,
            "name": preset if preset == dataset else f"{preset} ({dataset})",
            "facts": _facts(rows),
            "cards": _cards(rows),
            "columns": (columns := [column for column in COLUMNS if _tells(column, rows)]),
            "rows": [
                {"threat": _threat(row), "cells": [_cell(row, column, pages) for column in columns]}
                for row in sorted(rows, key=_robustness)
            ],
        }
        for (preset, dataset), rows in groups.items()
    ]


def _tells(column: Column, rows: list[dict[str, Any]]) -> bool:
    """Whether a column says anything: a known value, and of networks and threats more than one."""
    alike = column.key in ("arch", "threat") and len({str(row.get(column.key)) for row in rows}) == 1
    return not alike and any(_known(row, column.key) for row in rows)


def _facts(rows: list[dict[str, Any]]) -> str:
    """What all runs of a board share."""
    counts = sorted({int(row["n"]) for row in rows if _known(row, "n")})
    facts = ["1 run" if len(rows) == 1 else f"{len(rows)} runs"]
    facts += [" and ".join(sorted(filter(None, {_threat(row) for row in rows})))]
    facts += [f"{' or '.join(map(str, counts))} test images" if counts else ""]
    return " · ".join(filter(None, facts))


def _threat(row: Mapping[str, Any]) -> str:
    return str(row["threat"]) if _known(row, "threat") else ""


def _robustness(row: Mapping[str, Any]) -> float:
    return -float(row["worst"]) if _known(row, "worst") else math.inf


def _known(row: Mapping[str, Any], key: str) -> bool:
    if key == "audit":
        return "headline_badge" in row
    value = row.get(key)
    return key == "title" or not (value is None or (isinstance(value, float) and math.isnan(value)))


def _title(row: Mapping[str, Any]) -> str:
    return str(row["title"]) if isinstance(row.get("title"), str) and row["title"] else str(row["method"])


def _cell(row: Mapping[str, Any], column: Column, pages: Mapping[str, str]) -> dict[str, Any]:
    """What a cell shows (`text`, `interval`) and what it sorts by (`value`, "" if missing)."""
    if column.key == "title":
        href = pages.get(str(row["path"]), "")
        text = {"text": _title(row), "changed": str(row.get("changed") or "")}
        return {"value": _title(row), **text, "href": href, "badges": _badges(row)}
    if column.key == "audit":
        grave = gravest(row.get(f"{kind}_badge", "") for kind in AUDITED)
        return {"value": str(list(VERDICTS).index(grave)), "badges": _audit_badges([row]), "classes": "audit"}
    cell: dict[str, Any] = {
        "value": "",
        "text": "–",
        "interval": "",
        "badges": [],
        "classes": "num" if column.kind == "number" else "",
    }
    if _known(row, column.key):
        cell |= {"value": str(row[column.key]), "text": _text(column, row[column.key])}
        if column in PERCENTAGES:
            cell["interval"] = _interval(row, column.key)
    if column.key == "worst":
        cell["classes"] += " worst"
    return cell


def _text(column: Column, value: Any) -> str:
    if column in PERCENTAGES:
        return f"{100 * value:.1f} %"
    if column.key == "minutes":
        return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return f"{value:g}" if column.kind == "number" else str(value)


def _interval(row: Mapping[str, Any], key: str) -> str:
    low, high = f"{key}_low", f"{key}_high"
    return f"{100 * row[low]:.1f}–{100 * row[high]:.1f}" if _known(row, low) and _known(row, high) else ""


def _badges(row: Mapping[str, Any]) -> list[dict[str, str]]:
    badges = [{"kind": "", "text": "stale", "title": STALE}] if row.get("stale") in (True, 1) else []
    warnings = row.get("warnings")
    said = [str(text) for text in warnings] if isinstance(warnings, list | tuple) else []
    if said:
        text = "1 warning" if len(said) == 1 else f"{len(said)} warnings"
        badges.append({"kind": "warn", "text": text, "title": "; ".join(said)})
    return badges


def _audit_badges(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The headline's and the protocol's badge; of several runs the gravest of each."""
    badges = []
    for name in AUDITED:
        found = [str(row.get(f"{name}_badge") or "") for row in rows]
        word, texts = gravest(found), [str(row.get(f"{name}_text") or UNAUDITED) for row in rows]
        sign = VERDICTS[word].split()[0]
        several = f"{found.count(word)} of {len(rows)} runs " if len(rows) > 1 else ""
        text = f"{several}{word or 'not audited'}: {texts[found.index(word)]}" if word in found else UNAUDITED
        badges.append({"kind": word.replace("/", "") or "none", "text": f"{sign} {name}", "title": text})
    silent = all(badge["kind"] == "none" for badge in badges)
    return [{"kind": "none", "text": VERDICTS[""], "title": UNAUDITED}] if silent else badges


def _cards(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The headline of each method: means over its runs, best worst case first."""
    import statistics

    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if _known(row, "worst") and _known(row, "clean"):
            key = (_title(row), str(row.get("arch", "")), str(row.get("changed") or ""), _threat(row))
            groups.setdefault(key, []).append(row)
    several = len({arch for _, arch, *_ in groups}) > 1
    cards: list[dict[str, Any]] = []
    for (title, arch, changed, threat), mine in groups.items():
        worst = [100 * row["worst"] for row in mine]
        minutes = [row["minutes"] for row in mine if _known(row, "minutes")]
        name = " · ".join([title, *([arch] if several else []), *([changed] if changed else [])])
        card: dict[str, Any] = {"title": name, "threat": threat, "worst": f"{statistics.fmean(worst):.1f}"}
        card["spread"] = f"{statistics.stdev(worst):.1f}" if len(worst) > 1 else ""
        card["interval"] = _interval(mine[0], "worst") if len(mine) == 1 else ""
        card["clean"] = f"{100 * statistics.fmean(row['clean'] for row in mine):.1f}"
        seeds = len({row["seed"] for row in mine})
        several_runs = f"{len(mine)} runs of " if len(mine) > seeds else ""
        card["runs"] = f"mean ± sd of {several_runs}{seeds} seed{'s' * (seeds > 1)}" if len(mine) > 1 else "1 seed"
        card["time"] = _time(statistics.fmean(minutes)) if minutes else ""
        card["badges"] = _audit_badges(mine) if _known(mine[0], "audit") else []
        cards.append(card)
    return sorted(cards, key=lambda card: -float(card["worst"]))


def _time(minutes: float) -> str:
    return f"{minutes:.1f} min each" if minutes >= 1 else f"{60 * minutes:.0f} s each"


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
