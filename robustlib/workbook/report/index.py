"""The index of the reports: for each preset its headlines, its leaderboard, and what its comparison shows of it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd
from bs4 import Tag
from nbformat.v4 import new_code_cell, new_markdown_cell

from robustlib.runs import write_atomic
from robustlib.workbook.report.page import DISPLAYED, fill_template, offer_data, read, to_soup
from robustlib.workbook.tables import VERDICTS, worst_verdict

AUDITED = ("headline", "protocol")
UNAUDITED = "no checks were made; robustlib audit makes them"
STALE = "its method, an attack or a measure gives other numbers today; robustlib run --rerun renews it"
COMMAND = re.compile(r"(robustlib .+?)(?= makes them anew|$)")

TAG = "index"  # of the cells whose outputs the index shows
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
FORMS = DISPLAYED[: DISPLAYED.index("text/plain")]  # of outputs that the index shows

Record = Mapping[str, Any]  # a row of the leaderboard without its missing values


class Column(NamedTuple):
    """A column of the leaderboard: where it comes from, and how it is shown and sorted."""

    key: str
    label: str
    kind: str = "number"  # or "text"
    help: str = ""
    sort: str = "none"  # how the page arrives


PERCENTAGES = (  # what matters most comes first, so that a telephone shows it
    Column("clean", "Clean", help="accuracy on untouched test images"),
    Column(
        "worst", "Worst case", help="right under every attack, on the model and on its surrogates", sort="descending"
    ),
    Column("fgsm", "FGSM", help="one gradient step"),
    Column("pgd20", "PGD-20", help="20 steps of projected gradient ascent"),
    Column("pgd50x10", "PGD-50×10", help="50 steps, the worst of 10 random starts"),
    Column("cw50", "CW-50", help="50 steps on the margin loss of Carlini and Wagner"),
    Column("pgd_eot", "PGD+EOT", help="steps along the mean gradient of several draws of a randomised model"),
    Column("autoattack", "AutoAttack", help="APGD, targeted APGD, targeted FAB and Square in turn"),
)
COLUMNS = (
    Column("title", "Method", "text"),
    Column("arch", "Network", "text"),
    Column("threat", "Threat", "text"),
    Column("seed", "Seed"),
    *PERCENTAGES[:2],
    Column(
        "headline_badge", "Audit", "text", "what the checks say of the worst case, and of the method's own protocol"
    ),
    *PERCENTAGES[2:],
    Column("minutes", "Minutes", help="time of training"),
    Column("epochs", "Epochs"),
)


def write_index(
    reports_dir: Path,
    rows: pd.DataFrame,
    pages: Mapping[str, str],
    *,
    compare: Sequence[tuple[str, str]] = (),
    incomplete: pd.DataFrame | None = None,
    views: Mapping[str, Path] | None = None,
) -> Path:
    """Writes `reports_dir`/index.html and returns its path.

    Args:
        reports_dir: where the reports are.
        rows: the frame of `robustlib.evaluation.leaderboard`; an empty one gives a page that says which command makes runs.
        pages: path of a run -> address of its page, relative to `reports_dir`; runs without one get no link.
        compare: (title, address) of the pages that put runs side by side; those below a preset's directory stand with it.
        incomplete: the frame of `robustlib.evaluation.incomplete`: runs that are listed with what they lack.
        views: preset -> its executed compare.ipynb, whose cells tagged "index" are shown below its leaderboard.
    """
    boards = _leaderboards(_records(rows), pages)
    elsewhere = _attach(boards, compare, views or {})
    lacking = [] if incomplete is None else _records(incomplete)
    choices = {"dataset": _choice(board["dataset"] for board in boards)}
    choices["threat"] = _choice(row["threat"] for board in boards for row in board["rows"])
    page = fill_template(
        "index.html.j2",
        title="What holds under attack",
        leaderboards=boards,
        compare=elsewhere,
        runs=len(rows),
        incomplete=[row | {"missing": COMMAND.split(row["missing"])} for row in lacking],  # every second is a command
        choices=choices,
    )
    target = Path(reports_dir) / "index.html"
    write_atomic(target, page)
    return target


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, each without its missing values."""
    rows = frame.to_dict("records")
    return [{str(k): v for k, v in row.items() if isinstance(v, list | tuple) or pd.notna(v)} for row in rows]


def _choice(values: Iterable[str]) -> list[str]:
    """What a filter offers; nothing where there is no choice."""
    found = sorted(set(filter(None, values)))
    return found if len(found) > 1 else []


def _attach(
    boards: list[dict[str, Any]], compare: Sequence[tuple[str, str]], views: Mapping[str, Path]
) -> list[tuple[str, str]]:
    """Gives each preset's first board the preset's links and views; returns the links that belong to none."""
    left, number, seen = list(compare), 1, set()
    for board in boards:
        preset, board["sections"] = board["preset"], []
        board["links"] = [link for link in left if link[1].startswith(f"{preset}/")]
        left = [link for link in left if link not in board["links"]]
        if preset in views and preset not in seen:
            board["sections"], number = extract_sections(views[preset], number)
        seen.add(preset)
    return left


# ---- the leaderboard of a preset


def _leaderboards(records: Sequence[Record], pages: Mapping[str, str]) -> list[dict[str, Any]]:
    """One leaderboard for each preset and data set, as the template shows it, in the order of their first rows."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        preset = str(record.get("preset") or record.get("dataset") or "runs")
        groups.setdefault((preset, str(record.get("dataset") or preset)), []).append(record)
    boards = []
    for (preset, dataset), rows in groups.items():
        columns = [column for column in COLUMNS if _tells(column, rows)]
        boards.append(
            {
                "preset": preset,
                "dataset": dataset,
                "name": preset if preset == dataset else f"{preset} ({dataset})",
                "facts": _facts(rows),
                "cards": _cards(rows),
                "columns": columns,
                "rows": [
                    {"threat": row.get("threat", ""), "cells": [_cell(row, column, pages) for column in columns]}
                    for row in sorted(rows, key=lambda row: -row.get("worst", -1))
                ],
            }
        )
    return boards


def _tells(column: Column, rows: Sequence[Record]) -> bool:
    """Whether a column says anything: a known value, and of networks and threats more than one."""
    alike = column.key in ("arch", "threat") and len({row.get(column.key) for row in rows}) == 1
    return column.key == "title" or (not alike and any(column.key in row for row in rows))


def _facts(rows: Sequence[Record]) -> str:
    """What all runs of a leaderboard share."""
    counts = sorted({int(row["n"]) for row in rows if "n" in row})
    threats = sorted({row["threat"] for row in rows if "threat" in row})
    facts = ["1 run" if len(rows) == 1 else f"{len(rows)} runs", " and ".join(threats)]
    facts += [f"{' or '.join(map(str, counts))} test images"] if counts else []
    return " · ".join(filter(None, facts))


def _title(row: Record) -> str:
    return str(row.get("title") or row["method"])


def _cell(row: Record, column: Column, pages: Mapping[str, str]) -> dict[str, Any]:
    """What a cell shows (text, interval, badges) and what it sorts by (value, "" if missing)."""
    key = column.key
    if key == "title":
        cell = {"value": _title(row), "text": _title(row), "changed": row.get("changed", "")}
        return cell | {"href": pages.get(str(row["path"]), ""), "badges": _badges(row)}
    if key == "headline_badge":
        grave = worst_verdict(row.get(f"{name}_badge", "") for name in AUDITED)
        return {"value": str(list(VERDICTS).index(grave)), "badges": _audit_badges([row]), "classes": "audit"}
    classes = [*(["num"] if column.kind == "number" else []), *(["worst"] if key == "worst" else [])]
    cell = {"value": "", "text": "–", "interval": "", "badges": [], "classes": " ".join(classes)}
    if key in row:
        cell |= {"value": str(row[key]), "text": _text(column, row[key]), "interval": _interval(row, key)}
    return cell


def _text(column: Column, value: Any) -> str:
    if column in PERCENTAGES:
        return f"{100 * value:.1f} %"
    if column.key == "minutes":
        return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return f"{value:g}" if column.kind == "number" else str(value)


def _interval(row: Record, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def _badges(row: Record) -> list[dict[str, str]]:
    """What there is to know of a run beside its numbers."""
    badges = [{"kind": "", "text": "stale", "title": STALE}] if row.get("stale") else []
    if said := [str(text) for text in row.get("warnings", ())]:
        text = "1 warning" if len(said) == 1 else f"{len(said)} warnings"
        badges.append({"kind": "warn", "text": text, "title": "; ".join(said)})
    return badges


def _audit_badges(rows: Sequence[Record]) -> list[dict[str, str]]:
    """The headline's and the protocol's badge; of several runs the gravest of each."""
    badges = []
    for name in AUDITED:
        verdicts = [str(row.get(f"{name}_badge", "")) for row in rows]
        word = worst_verdict(verdicts)
        several = f"{verdicts.count(word)} of {len(rows)} runs " if len(rows) > 1 else ""
        text = UNAUDITED
        if word in verdicts:
            reason = rows[verdicts.index(word)].get(f"{name}_text") or UNAUDITED
            text = f"{several}{word or 'not audited'}: {reason}"
        kind, sign = word.replace("/", "") or "none", VERDICTS[word].split()[0]
        badges.append({"kind": kind, "text": f"{sign} {name}", "title": text})
    silent = all(badge["kind"] == "none" for badge in badges)
    return [{"kind": "none", "text": VERDICTS[""], "title": UNAUDITED}] if silent else badges


def _cards(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The headline of each method: means over its runs, best worst case first."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if "worst" in row and "clean" in row:
            key = (_title(row), *(row.get(name, "") for name in ("arch", "changed", "threat")))
            groups.setdefault(key, []).append(row)
    several = len({arch for _, arch, *_ in groups}) > 1
    cards = []
    for (title, arch, changed, threat), runs in groups.items():
        worst, seeds = [100 * row["worst"] for row in runs], len({row["seed"] for row in runs})
        minutes = [row["minutes"] for row in runs if "minutes" in row]
        several_runs = f"{len(runs)} runs of " if len(runs) > seeds else ""
        cards.append(
            {
                "title": " · ".join(filter(None, [title, arch if several else "", changed])),
                "threat": threat,
                "worst": f"{fmean(worst):.1f}",
                "spread": f"{stdev(worst):.1f}" if len(runs) > 1 else "",
                "interval": _interval(runs[0], "worst") if len(runs) == 1 else "",
                "clean": f"{100 * fmean(row['clean'] for row in runs):.1f}",
                "runs": f"mean ± sd of {several_runs}{seeds} seed{'s' * (seeds > 1)}" if len(runs) > 1 else "1 seed",
                "time": _time(fmean(minutes)) if minutes else "",
                "badges": _audit_badges(runs) if "headline_badge" in runs[0] else [],
            }
        )
    return sorted(cards, key=lambda card: -float(card["worst"]))


def _time(minutes: float) -> str:
    return f"{minutes:.1f} min each" if minutes >= 1 else f"{60 * minutes:.0f} s each"


# ---- the sections of a comparison


class Section(NamedTuple):
    """A part of the index: HTML that begins with its <h3>, and its width: "half" a row, "wide" (words beside a figure), "full"."""

    html: str
    kind: str


def extract_sections(notebook: Path, first: int = 1) -> tuple[list[Section], int]:
    """The outputs of an executed notebook's cells tagged "index", under the heading that stands before them.

    A section is the nearest heading, its first paragraph, and the outputs of all tagged cells below it; one without any
    output is left out. Figures are numbered from `first`; also returns the number of the next one.
    """
    nb = read(notebook)
    nb.cells = list(_tagged_cells(nb))
    groups: list[list[Tag]] = []
    for part in to_soup(nb, notebook).select("main > *"):
        groups = [*groups, [part]] if part.name == "section" else [*groups[:-1], [*groups[-1], part]]
    sections = []
    for words, *outputs in groups:
        for part in outputs:
            first = offer_data(part, "index", first)
        figures = sum(len(part.find_all("figure")) for part in outputs)
        kind = "half" if figures == 1 and not any(part.find("table") for part in outputs) else "full"
        sections.append(Section(f'{words}<div class="outputs">{"".join(map(str, outputs))}</div>', kind))
    return _fill_rows(sections), first


def _tagged_cells(nb: Any) -> Iterator[Any]:
    """A cell of words for each section, then its tagged cells without their code."""
    words, last = "", None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (headings := list(HEADING.finditer(cell.source))):
            paragraph = cell.source[headings[-1].end() :].strip().split("\n\n")[0]
            words = f"### {headings[-1][1]}\n\n{paragraph}"
        outputs = [o for o in cell.get("outputs", []) if any(str(o.get("data", {}).get(f, "")).strip() for f in FORMS)]
        if outputs and TAG in cell.metadata.get("tags", []):
            if words != last:
                yield new_markdown_cell(words)
            last = words
            yield new_code_cell("", outputs=outputs)


def _fill_rows(sections: Sequence[Section]) -> list[Section]:
    """Of neighbours that take half a row each, the last gets a whole one where their number is odd."""
    filled: list[Section] = []
    for kind, group in groupby(sections, key=lambda section: section.kind):
        neighbours = list(group)
        if kind == "half" and len(neighbours) % 2:
            neighbours[-1] = neighbours[-1]._replace(kind="wide")
        filled += neighbours
    return filled
