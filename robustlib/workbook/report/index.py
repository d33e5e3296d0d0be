"""The index of the reports: for each preset its headlines, its leaderboard, and what its comparison shows of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd
from bs4 import Tag
from nbformat.v4 import new_code_cell, new_markdown_cell

from robustlib.runs import write_atomic
from robustlib.workbook.report.page import DISPLAYED, fill_template, read, to_soup
from robustlib.workbook.tables import VERDICTS, worst_verdict

AUDITED = ("headline", "protocol")
UNAUDITED = "no checks were made; robustlib audit makes them"
COMMAND = re.compile(r"(robustlib .+?)(?= makes them anew|$)")

TAG = "index"  # of the cells whose outputs the index shows
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
FORMS = DISPLAYED[: DISPLAYED.index("text/plain")]  # of outputs that the index shows

Record = dict[str, Any]  # a row of the leaderboard without its missing values


class Column(NamedTuple):
    """A column of the leaderboard: where it comes from, and how it is shown and sorted."""

    key: str
    label: str
    kind: str = "share"  # or "number", "minutes", "text"
    help: str = ""
    sort: str = "none"  # how the page arrives


COLUMNS = (  # beside the method's; what matters most comes first, so that a telephone shows it
    Column("arch", "Network", "text"),
    Column("threat", "Threat", "text"),
    Column("seed", "Seed", "number"),
    Column("clean", "Clean", help="accuracy on untouched test images"),
    Column(
        "worst", "Worst case", help="right under every attack, on the model and on its surrogates", sort="descending"
    ),
    Column(
        "headline_badge", "Audit", "text", "what the checks say of the worst case, and of the method's own protocol"
    ),
    Column("fgsm", "FGSM", help="one gradient step"),
    Column("pgd20", "PGD-20", help="20 steps of projected gradient ascent"),
    Column("pgd50x10", "PGD-50×10", help="50 steps, the worst of 10 random starts"),
    Column("cw50", "CW-50", help="50 steps on the margin loss of Carlini and Wagner"),
    Column("pgd_eot", "PGD+EOT", help="steps along the mean gradient of several draws of a randomised model"),
    Column("autoattack", "AutoAttack", help="APGD, targeted APGD, targeted FAB and Square in turn"),
    Column("minutes", "Minutes", "minutes", "time of training"),
    Column("epochs", "Epochs", "number"),
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
    links, views, figures = list(compare), dict(views or {}), count(1)
    for board in boards:  # the first of a preset has the preset's links and views
        board["links"] = [link for link in links if link[1].startswith(f"{board['preset']}/")]
        links = [link for link in links if link not in board["links"]]
        view = views.pop(board["preset"], None)
        board["sections"] = extract_sections(view, figures) if view else []
    offered = {
        "dataset": {board["dataset"] for board in boards},
        "threat": {row["threat"] for board in boards for row in board["rows"] if row.get("threat")},
    }
    lacking = [] if incomplete is None else _records(incomplete)
    page = fill_template(
        "index.html.j2",
        title="What holds under attack",
        leaderboards=boards,
        compare=links,
        runs=len(rows),
        incomplete=[row | {"missing": COMMAND.split(row["missing"])} for row in lacking],  # every second is a command
        choices={name: sorted(values) if len(values) > 1 else [] for name, values in offered.items()},
        audit=_audit_badges,
    )
    target = Path(reports_dir) / "index.html"
    write_atomic(target, page)
    return target


def _records(frame: pd.DataFrame) -> list[Record]:
    """The rows of a frame, each without its missing values."""
    rows = frame.to_dict("records")
    return [{str(k): v for k, v in row.items() if isinstance(v, list | tuple) or pd.notna(v)} for row in rows]


# ---- the leaderboard of a preset


def _leaderboards(records: Sequence[Record], pages: Mapping[str, str]) -> list[dict[str, Any]]:
    """One leaderboard for each preset and data set, as the template shows it, in the order of their first rows."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        preset = str(record.get("preset") or record.get("dataset") or "runs")
        title, href = str(record.get("title") or record["method"]), pages.get(str(record["path"]), "")
        row = record | {"title": title, "href": href}
        groups.setdefault((preset, str(record.get("dataset") or preset)), []).append(row)
    return [
        {
            "preset": preset,
            "dataset": dataset,
            "name": preset if preset == dataset else f"{preset} ({dataset})",
            "facts": _facts(rows),
            "cards": _cards(rows),
            "columns": [column for column in COLUMNS if _tells(column.key, rows)],
            "rows": sorted(rows, key=lambda row: -row.get("worst", -1)),
        }
        for (preset, dataset), rows in groups.items()
    ]


def _tells(key: str, rows: Sequence[Record]) -> bool:
    """Whether a column says anything: a known value, and of networks and threats more than one."""
    alike = key in ("arch", "threat") and len({row.get(key) for row in rows}) == 1
    return not alike and any(key in row for row in rows)


def _facts(rows: Sequence[Record]) -> str:
    """What all runs of a leaderboard share."""
    counts = sorted({int(row["n"]) for row in rows if "n" in row})
    threats = sorted({row["threat"] for row in rows if "threat" in row})
    facts = ["1 run" if len(rows) == 1 else f"{len(rows)} runs", " and ".join(threats)]
    facts += [f"{' or '.join(map(str, counts))} test images"] if counts else []
    return " · ".join(filter(None, facts))


def _audit_badges(rows: Sequence[Record]) -> list[dict[str, Any]]:
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
        badges.append({"kind": kind, "text": f"{sign} {name}", "title": text, "rank": list(VERDICTS).index(word)})
    silent = all(badge["kind"] == "none" for badge in badges)
    return [badges[0] | {"text": VERDICTS[""], "title": UNAUDITED}] if silent else badges


def _cards(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The headline of each method: means over its runs in percent, best worst case first."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if "worst" in row and "clean" in row:
            key = (row["title"], *(row.get(name, "") for name in ("arch", "changed", "threat")))
            groups.setdefault(key, []).append(row)
    several = len({arch for _, arch, *_ in groups}) > 1
    cards = []
    for (title, arch, changed, threat), runs in groups.items():
        worst = [100 * row["worst"] for row in runs]
        minutes = [row["minutes"] for row in runs if "minutes" in row]
        cards.append(
            {
                "title": " · ".join(filter(None, [title, arch if several else "", changed])),
                "threat": threat,
                "runs": runs,
                "seeds": len({row["seed"] for row in runs}),
                "worst": f"{fmean(worst):.1f}",
                "spread": f"{stdev(worst):.1f}" if len(runs) > 1 else "",
                "clean": f"{100 * fmean(row['clean'] for row in runs):.1f}",
                "minutes": fmean(minutes) if minutes else None,
            }
        )
    return sorted(cards, key=lambda card: -float(card["worst"]))


# ---- the sections of a comparison


def extract_sections(notebook: Path, numbers: Iterator[int]) -> list[tuple[str, list[Tag]]]:
    """The outputs of an executed notebook's cells tagged "index", under the heading that stands before them.

    A section is the nearest heading, its first paragraph, and the outputs of all tagged cells below it; one without any
    output is left out. Figures take their numbers from `numbers`.

    Returns:
        (width, elements) of each: "half" a row (one figure without a table), "wide" (such a figure with the words beside it, the
        last of an odd number of neighbours), or "full". The first element is the words.
    """
    nb = read(notebook)
    nb.cells = list(_tagged_cells(nb))
    groups: list[list[Tag]] = []
    for part in to_soup(nb, notebook, "index", numbers, {}).select("main > *"):
        groups = [*groups, [part]] if part.name == "section" else [*groups[:-1], [*groups[-1], part]]
    sections: list[tuple[str, list[Tag]]] = []
    for half, group in groupby(groups, _is_half):
        neighbours = list(group)
        widths = ["half" if half else "full"] * len(neighbours)
        if half and len(neighbours) % 2:
            widths[-1] = "wide"
        sections += zip(widths, neighbours, strict=True)
    return sections


def _is_half(parts: Sequence[Tag]) -> bool:
    outputs = parts[1:]
    return sum(len(part.find_all("figure")) for part in outputs) == 1 and not any(
        part.find("table") for part in outputs
    )


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
